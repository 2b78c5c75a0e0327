"""What a model that draws well says of pictures: the loss it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from expunge.attack.base import Reference
    from expunge.backbone.base import Backbone
    from expunge.backbone.conditioning import Conditioning
    from expunge.run.objective import Step

UNGUIDED = 1.0
"""What models that take guidance as an input are told: pictures teach no guidance."""


@dataclass(frozen=True)
class Denoising:
    """The model's own training loss on pictures, for an objective.

    Attributes:
        backbone: the model as it stands; guards of it act.
        latents: of the pictures, clean, (n, channels, height, width).
        prompts: n of them.
        encode: what the model is told for some prompts, with a graph to what is learned.
        batch_size: pictures in a step.
    """

    backbone: Backbone
    latents: Tensor
    prompts: Sequence[str]
    encode: Callable[[Sequence[str]], Conditioning]
    batch_size: int

    def __call__(self, step: Step) -> Tensor:
        """The loss of a step, at random pictures, noise and noise levels."""
        rows = torch.randint(len(self.prompts), (self.batch_size,), generator=step.generator)
        noise = torch.randn(self.batch_size, *self.latents.shape[1:], generator=step.generator)
        levels = torch.rand(self.batch_size, generator=step.generator, dtype=torch.float64)
        told = self.encode([self.prompts[row] for row in rows.tolist()])
        return denoising_loss(self.backbone, self.latents[rows], noise, levels, told)


def denoising_loss(
    backbone: Backbone, clean: Tensor, noise: Tensor, levels: Tensor, told: Conditioning
) -> Tensor:
    """Mean squared error of the model's own prediction, be it noise, v or a velocity.

    Args:
        backbone: the model as it stands.
        clean: clean latents, (n, channels, height, width).
        noise: shaped alike.
        levels: noise levels in [0, 1), (n,); 0 itself is raised to the lowest of a thousand.
        told: of n prompts.
    """
    clean, noise = (each.to(backbone.device).float() for each in (clean, noise))
    levels = levels.clamp(min=1e-3)
    noisy = backbone.add_noise(clean, noise, levels)
    with backbone.exact():
        predicted = backbone.predict(noisy.to(backbone.dtype), levels, told, UNGUIDED).float()
    # Clean latents are linear in a prediction, so their error, over the slope, is that of the
    # prediction itself, whatever it is of.
    slope = backbone.clean(torch.zeros_like(clean), torch.ones_like(clean), levels)
    error = (backbone.clean(noisy, predicted, levels) - clean) / slope
    return error.square().mean()


def encoded(backbone: Backbone, references: Sequence[Reference]) -> tuple[list[str], Tensor]:
    """Prompts and clean latents of references, latents on the CPU."""
    prompts = [prompt for prompt, _ in references]
    return prompts, backbone.encode_images([picture for _, picture in references]).float().cpu()
