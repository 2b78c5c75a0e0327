"""What every edit by a diffusion model shares: batches, sizes, captions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.backbone.base import Backbone
from expunge.backbone.call import Call
from expunge.backbone.conditioning import Conditioning
from expunge.backbone.sampling import Step
from expunge.watermark.edit.base import Edit, Subject, to_float, to_uint8
from expunge.watermark.scheme.base import Scheme

PromptSource = Literal["empty", "caption"]
"""What the model is told: nothing, or what the picture shows."""


@dataclass(frozen=True)
class Redraw(Edit):
    """An edit in a model's latent space.

    Sides that the model cannot take are padded by repeating the border and cut off afterwards.
    """

    @property
    def redraws(self) -> bool:
        return True

    def check(self, scheme: Scheme, backbone: Backbone | None) -> None:
        model = needed_backbone(self.name, backbone)
        model.check_guidance(getattr(self, "guidance_scale", 1.0))

    def __call__(self, subject: Subject) -> Tensor:
        backbone = needed_backbone(self.name, subject.backbone)
        size, parts = backbone.profile.sampling.batch_size, []
        for start in range(0, len(subject.pixels), size):
            part = subject.part(slice(start, start + size))
            pixels = to_float(part.pixels) * 2 - 1
            latents = backbone.encode_pixels(_padded(pixels, backbone))
            with torch.no_grad():
                redrawn = backbone.decode_pixels(self.redraw(backbone, latents, part))
            height, width = pixels.shape[-2:]
            parts.append(to_uint8(redrawn.float().cpu()[..., :height, :width] / 2 + 0.5))
        return torch.cat(parts)

    @abstractmethod
    def redraw(self, backbone: Backbone, latents: Tensor, subject: Subject) -> Tensor:
        """Clean latents of the edited pictures.

        Args:
            backbone: the model that edits.
            latents: of the marked pictures, (n, channels, height, width).
            subject: the same pictures with their seeds and captions.
        """


class AfterSteps(ABC):
    """Acts on the latents between steps of a run, and leaves predictions as they are."""

    def conditioning(self, call: Call) -> Conditioning:
        """The call's own."""
        return call.conditioning

    def prediction(self, call: Call, out: Tensor) -> Tensor:
        """The denoiser's own."""
        return out

    @abstractmethod
    def latents(self, step: Step) -> Tensor:
        """Latents at `step.to` from where the run goes on."""


def needed_backbone(name: str, backbone: Backbone | None) -> Backbone:
    """The model, or a sentence that says it is missing."""
    if backbone is None:
        raise ValueError(f"the edit {name} draws with a diffusion model: name one with --model")
    return backbone


def conditioning_of(
    backbone: Backbone, prompt: PromptSource, captions: Sequence[str]
) -> Conditioning:
    """What the model is told of each picture."""
    return backbone.encode_prompts(["" for _ in captions] if prompt == "empty" else captions)


def noise_for(latents: Tensor, seeds: Sequence[int]) -> Tensor:
    """Standard noise shaped like latents, (n, channels, height, width), a CPU generator each."""
    drawn = [
        torch.randn(latents.shape[1:], generator=torch.Generator().manual_seed(seed))
        for seed in seeds
    ]
    return torch.stack(drawn).to(latents)


def check_level(name: str, level: float) -> None:
    """Refuse noise levels outside 0 to 1."""
    if not 0 <= level <= 1:
        raise ValueError(f"{name}'s level is a noise level from 0 to 1, got {level:g}")


def check_steps(num_inference_steps: int) -> None:
    """Refuse fewer than one step."""
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")


def _padded(pixels: Tensor, backbone: Backbone) -> Tensor:
    height, width = pixels.shape[-2:]
    below, right = -height % backbone.grain, -width % backbone.grain
    return F.pad(pixels, (0, right, 0, below), mode="replicate")
