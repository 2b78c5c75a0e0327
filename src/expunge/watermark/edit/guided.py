"""Guided removal: regeneration steered by the scheme's own decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.backbone.sampling import Step, follow, levels_below
from expunge.watermark.edit.base import Subject
from expunge.watermark.edit.redraw import (
    AfterSteps,
    PromptSource,
    Redraw,
    check_level,
    check_steps,
    conditioning_of,
    noise_for,
)
from expunge.watermark.scheme.base import DifferentiableScheme, Scheme


@dataclass(frozen=True)
class Guided(Redraw):
    """Regenerate, and in the last steps follow the decoder's gradient toward a null message.

    Source: Vanishing Watermarks, Algorithm 1: y ← y − λ ∇ ‖g_dec(decode(y)) − m̃‖², λ = 0.5, one
    step, at the last level only, m̃ all zeros. White box: it holds the scheme's own decoder, so it
    shows what one attack with the decoder does, and says nothing of ordinary editing.

    Attributes:
        level: noise level, 0 to 1.
        weight: λ.
        gradient_steps: at each noise level.
        last_levels: noise levels, counted from the end, at which the gradient is followed; 1 is
            the clean latent alone.
        prompt: nothing, or each picture's caption.
        guidance_scale: 1 for none.
        num_inference_steps: of a whole run; a level takes its share.
    """

    name: ClassVar[str] = "guided"
    unit: ClassVar[str] = "noise level"
    level: float = 0.3
    weight: float = 0.5
    gradient_steps: int = 1
    last_levels: int = 1
    prompt: PromptSource = "empty"
    guidance_scale: float = 1.0
    num_inference_steps: int = 50

    def __post_init__(self) -> None:
        check_level(self.name, self.level)
        check_steps(self.num_inference_steps)
        for name in ("gradient_steps", "last_levels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.weight > 0:
            raise ValueError(f"weight must be positive, got {self.weight:g}")

    @property
    def white_box(self) -> bool:
        return True

    def check(self, scheme: Scheme, backbone: Backbone | None) -> None:
        super().check(scheme, backbone)
        needed_decoder(scheme)

    def redraw(self, backbone: Backbone, latents: Tensor, subject: Subject) -> Tensor:
        told = conditioning_of(backbone, self.prompt, subject.captions)
        guidance = backbone.guidance_for(told, self.guidance_scale)
        levels = levels_below(self.level, self.num_inference_steps)
        steer = _Steer(self, backbone, needed_decoder(subject.scheme), latents, levels)
        if len(levels) == 1:
            return steer(latents)
        noisy = backbone.add_noise(latents, noise_for(latents, subject.seeds), self.level)
        return follow(backbone, noisy, guidance, levels, guards=(steer,))


class _Steer(AfterSteps):
    """Moves the clean latents along the decoder's gradient, no further than the picture's range."""

    def __init__(
        self,
        edit: Guided,
        backbone: Backbone,
        scheme: DifferentiableScheme,
        latents: Tensor,
        levels: Sequence[float],
    ) -> None:
        self._edit, self._backbone, self._scheme = edit, backbone, scheme
        self._limit = latents.abs().amax(dim=(1, 2, 3), keepdim=True)
        self._last = set(levels[-edit.last_levels :])

    def __call__(self, clean: Tensor) -> Tensor:
        """Follow the gradient of the decoded message's squared distance from the null message."""
        for _ in range(self._edit.gradient_steps):
            with torch.enable_grad():
                at = clean.detach().requires_grad_()
                pixels = (self._backbone.decode_pixels(at).float() / 2 + 0.5).clamp(0, 1)
                distance = self._scheme.logits(pixels).sigmoid().square().sum()
                (slope,) = torch.autograd.grad(distance, at)
            clean = (clean - self._edit.weight * slope).clamp(-self._limit, self._limit)
        return clean

    def latents(self, step: Step) -> Tensor:
        if step.to not in self._last:
            return step.reached
        noise = self._backbone.noise(step.latents, step.prediction, step.level)
        return self._backbone.add_noise(self(step.clean), noise, step.to)


def needed_decoder(scheme: Scheme | None) -> DifferentiableScheme:
    """The scheme's decoder as a network.

    Raises:
        ValueError: the scheme has none.
    """
    if not isinstance(scheme, DifferentiableScheme):
        named = "no scheme" if scheme is None else scheme.name
        raise ValueError(
            f"the edit guided follows the gradient of the scheme's decoder, and {named} has no "
            "differentiable one; leave it out, or use it with learned, learned-vae or vine"
        )
    return scheme
