"""Draw a part of the picture anew and leave the rest as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.backbone.base import Backbone
from expunge.backbone.sampling import Step, follow, levels_below
from expunge.watermark.edit.base import Subject
from expunge.watermark.edit.redraw import (
    AfterSteps,
    PromptSource,
    Redraw,
    check_steps,
    conditioning_of,
    noise_for,
)


@dataclass(frozen=True)
class Inpainting(Redraw):
    """Fill a rectangle from pure noise; outside it the marked pixels stay.

    At every noise level the latents outside the rectangle are the marked picture's own, noised to
    that level (Avrahami et al., *Blended Latent Diffusion*, SIGGRAPH 2023), which works on any
    model, not only on those trained to inpaint.

    Attributes:
        level: share of the picture's area that is filled, in a rectangle of the picture's
            proportions at a random place.
        prompt: nothing, or each picture's caption.
        guidance_scale: 1 for none.
        num_inference_steps: of the run.
    """

    name: ClassVar[str] = "inpainting"
    unit: ClassVar[str] = "share of the area"
    level: float = 0.3
    prompt: PromptSource = "empty"
    guidance_scale: float = 1.0
    num_inference_steps: int = 50

    def __post_init__(self) -> None:
        check_steps(self.num_inference_steps)
        if not 0 < self.level < 1:
            raise ValueError(f"inpainting's level is a share between 0 and 1, got {self.level:g}")

    def __call__(self, subject: Subject) -> Tensor:
        hole = self.holes(subject)
        return torch.where(hole, super().__call__(subject), subject.pixels)

    def holes(self, subject: Subject) -> Tensor:
        """Where pixels are drawn anew, bool, (n, 1, height, width)."""
        height, width = subject.pixels.shape[-2:]
        tall, wide = (max(1, round(side * self.level**0.5)) for side in (height, width))
        hole = torch.zeros(len(subject.pixels), 1, height, width, dtype=torch.bool)
        for index, seed in enumerate(subject.seeds):
            rng = np.random.default_rng([seed, 3])
            top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
            hole[index, :, top : top + tall, left : left + wide] = True
        return hole

    def redraw(self, backbone: Backbone, latents: Tensor, subject: Subject) -> Tensor:
        conditioning = conditioning_of(backbone, self.prompt, subject.captions)
        factor = backbone.pipe.vae_scale_factor
        hole = F.max_pool2d(self.holes(subject).float(), factor, ceil_mode=True)
        hole = F.pad(
            hole,
            (0, latents.shape[-1] - hole.shape[-1], 0, latents.shape[-2] - hole.shape[-2]),
        ).to(latents)
        noise = noise_for(latents, subject.seeds)
        blend = _Blend(backbone, latents, noise, hole)
        guidance = backbone.guidance_for(conditioning, self.guidance_scale)
        levels = levels_below(1.0, self.num_inference_steps)
        return follow(backbone, blend(noise, 1.0), guidance, levels, guards=(blend,))


class _Blend(AfterSteps):
    """Outside the hole the marked picture's own latents, noised to the level that was reached."""

    def __init__(self, backbone: Backbone, own: Tensor, noise: Tensor, hole: Tensor) -> None:
        self._backbone, self._own, self._noise, self._hole = backbone, own, noise, hole

    def __call__(self, drawn: Tensor, level: float) -> Tensor:
        kept = self._backbone.add_noise(self._own, self._noise, level)
        return kept * (1 - self._hole) + drawn * self._hole

    def latents(self, step: Step) -> Tensor:
        return self(step.reached, step.to)
