"""Noise a picture and let a model denoise it: regeneration, rinsing, image to image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.backbone.sampling import follow, levels_below
from expunge.watermark.edit.base import Subject
from expunge.watermark.edit.redraw import (
    PromptSource,
    Redraw,
    check_level,
    check_steps,
    conditioning_of,
    noise_for,
)
from expunge.watermark.scheme.base import seeds_for


@dataclass(frozen=True)
class Regeneration(Redraw):
    """Noise to a level, denoise from that same level.

    Source: Vanishing Watermarks, section 3, "Diffusion Regeneration Attack"; level 0.3, empty
    prompt. With `times` above 1 it is the rinsing of An et al., *WAVES*, ICML 2024.

    Attributes:
        level: noise level, 0 to 1; 0 is the round trip through the autoencoder.
        prompt: nothing, or each picture's caption.
        guidance_scale: 1 for none.
        times: how often, each time with other noise.
        num_inference_steps: of a whole run; a level takes its share.
    """

    name: ClassVar[str] = "regeneration"
    unit: ClassVar[str] = "noise level"
    level: float = 0.3
    prompt: PromptSource = "empty"
    guidance_scale: float = 1.0
    times: int = 1
    num_inference_steps: int = 50

    def __post_init__(self) -> None:
        check_level(self.name, self.level)
        check_steps(self.num_inference_steps)
        if self.times < 1:
            raise ValueError(f"times must be at least 1, got {self.times}")

    def redraw(self, backbone: Backbone, latents: Tensor, subject: Subject) -> Tensor:
        told = conditioning_of(backbone, self.prompt, subject.captions)
        guidance = backbone.guidance_for(told, self.guidance_scale)
        levels = levels_below(self.level, self.num_inference_steps)
        for time in range(self.times):
            if time:
                latents = backbone.encode_pixels(backbone.decode_pixels(latents).clamp(-1, 1))
            noise = noise_for(latents, seeds_for(f"time {time}", subject.seeds))
            latents = backbone.add_noise(latents, noise, self.level)
            latents = follow(backbone, latents, guidance, levels)
        return latents


@dataclass(frozen=True)
class ImageToImage(Redraw):
    """The everyday edit: noise to a level, denoise with the caption and the model's own guidance.

    Attributes:
        level: noise level, 0 to 1 (`strength` in diffusers' pipelines).
        num_inference_steps: of a whole run; a level takes its share.
    """

    name: ClassVar[str] = "img2img"
    unit: ClassVar[str] = "noise level"
    level: float = 0.5
    num_inference_steps: int = 50

    def __post_init__(self) -> None:
        check_level(self.name, self.level)
        check_steps(self.num_inference_steps)

    @property
    def reads_captions(self) -> bool:
        return True

    def redraw(self, backbone: Backbone, latents: Tensor, subject: Subject) -> Tensor:
        scale = backbone.profile.sampling.guidance_scale
        edit = Regeneration(self.level, "caption", scale, 1, self.num_inference_steps)
        return edit.redraw(backbone, latents, subject)
