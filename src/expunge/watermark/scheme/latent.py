"""What marks in the starting noise share: drawing marked pictures, reading by inversion."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.backbone.sampling import follow, invert, levels_below
from expunge.backbone.solvers import solver_named
from expunge.watermark.scheme.base import Batch, Bits, Reading, Scheme


@dataclass(frozen=True, kw_only=True)
class LatentScheme(Scheme):
    """A scheme that marks the noise a picture is drawn from.

    The unmarked picture is drawn of the same caption and seed, so it is another picture. Reading
    inverts with the empty prompt and without guidance, since a reader knows no prompt.

    Attributes:
        key: seed of everything secret.
        num_inference_steps: of inversion.
        solver: how inversion takes a step, `euler`, `midpoint` or `fixed_point`.
    """

    reads_captions: ClassVar[bool] = True

    key: int = 0
    num_inference_steps: int = 25
    solver: str = "euler"

    def __post_init__(self) -> None:
        if self.key < 0:
            raise ValueError(f"key must be at least 0, got {self.key}")
        if self.num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps must be at least 1, got {self.num_inference_steps}"
            )

        solver_named(self.solver)

    def check(self, backbone: Backbone | None) -> None:
        self.prepare()
        model = needed(self.name, backbone)
        self.noise(model.latent_shape(*own_size(model)), self.payloads([0]), [0])

    @abstractmethod
    def noise(self, shape: Sequence[int], payloads: Bits, seeds: Sequence[int]) -> Tensor:
        """Marked starting noise, float32, (n, channels, height, width).

        Args:
            shape: of one latent, (channels, height, width).
            payloads: booleans, (n, payload bits).
            seeds: of the rest of the noise, n.
        """

    @abstractmethod
    def read_noise(self, noise: Tensor) -> Reading:
        """Read starting noise, float32, (n, channels, height, width)."""

    def mark(self, batch: Batch, payloads: Bits) -> tuple[Tensor, Tensor]:
        backbone = needed(self.name, batch.backbone)
        self.check_payloads(payloads, len(batch))
        sampling = backbone.profile.sampling
        pairs: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(batch), sampling.batch_size):
            part = batch.part(slice(start, start + sampling.batch_size))
            plain = backbone.initial_noise(part.seeds, sampling)
            told = payloads[start : start + sampling.batch_size]
            marked = self.noise(plain.shape[1:], told, part.seeds).to(plain)
            drawn = [_drawn(backbone, noise, part.captions) for noise in (plain, marked)]
            pairs.append((drawn[0], drawn[1]))
        first, second = zip(*pairs, strict=True)
        return torch.cat(first), torch.cat(second)

    def read(self, pixels: Tensor, backbone: Backbone | None) -> Reading:
        backbone = needed(self.name, backbone)
        size = backbone.profile.sampling.batch_size
        noises = []
        for part in torch.split(pixels, size):
            latents = backbone.encode_pixels(part.float() / 127.5 - 1)
            empty = backbone.guidance_for(backbone.encode_prompts([""] * len(part)), 1)
            levels = levels_below(1.0, self.num_inference_steps)
            solver = solver_named(self.solver)
            noises.append(invert(backbone, latents, empty, levels, solver=solver))
        return self.read_noise(torch.cat(noises).float().cpu())


def own_size(backbone: Backbone) -> tuple[int, int]:
    """Height and width in pixels of what the model draws."""
    sampling = backbone.profile.sampling
    assert sampling.height and sampling.width
    return sampling.height, sampling.width


def needed(name: str, backbone: Backbone | None) -> Backbone:
    """The model, or a sentence that says it is missing."""
    if backbone is None:
        raise ValueError(f"{name} marks the noise a model draws from: name one with --model")
    return backbone


def _drawn(backbone: Backbone, noise: Tensor, captions: Sequence[str]) -> Tensor:
    sampling = replace(backbone.profile.sampling, batch_size=len(noise))
    told = backbone.encode_prompts(captions)
    guidance = backbone.guidance_for(told, sampling.guidance_scale)
    latents = follow(backbone, noise, guidance, sampling)
    with torch.no_grad():
        pixels = backbone.decode_pixels(latents).float().cpu()
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
