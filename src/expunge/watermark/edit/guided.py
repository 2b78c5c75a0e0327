"""Guided removal: regeneration steered by the scheme's own decoder."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.backbone.inversion import levels_below
from expunge.watermark.edit.base import Subject
from expunge.watermark.edit.redraw import (
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
        scheme = needed_decoder(subject.scheme)
        backbone.check_guidance(self.guidance_scale)
        conditioning = conditioning_of(backbone, self.prompt, subject.captions)
        empty = backbone.unconditional()
        limit = latents.abs().amax(dim=(1, 2, 3), keepdim=True)
        noise = noise_for(latents, subject.seeds)
        levels = levels_below(self.level, self.num_inference_steps)
        if len(levels) == 1:
            return self._steered(backbone, scheme, latents, limit)
        latents = backbone.add_noise(latents, noise, self.level)
        for left, (level, to) in zip(range(len(levels) - 1, 0, -1), pairwise(levels), strict=True):
            predicted = backbone.guided(latents, level, conditioning, self.guidance_scale, empty)
            clean = backbone.clean(latents, predicted, level)
            noise = backbone.noise(latents, predicted, level)
            if left <= self.last_levels:
                clean = self._steered(backbone, scheme, clean, limit)
            latents = backbone.add_noise(clean, noise, to) if to else clean
        return latents

    def _steered(
        self, backbone: Backbone, scheme: DifferentiableScheme, latents: Tensor, limit: Tensor
    ) -> Tensor:
        """Follow the gradient of the decoded message's squared distance from the null message."""
        for _ in range(self.gradient_steps):
            with torch.enable_grad():
                at = latents.detach().requires_grad_()
                pixels = (backbone.decode_pixels(at).float() / 2 + 0.5).clamp(0, 1)
                distance = scheme.logits(pixels).sigmoid().square().sum()
                (slope,) = torch.autograd.grad(distance, at)
            latents = (latents - self.weight * slope).clamp(-limit, limit)
        return latents


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
