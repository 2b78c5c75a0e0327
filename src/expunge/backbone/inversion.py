"""The noise from which a picture would be drawn, found by sampling backwards."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.backbone.conditioning import Conditioning
from expunge.backbone.profile import Sampling

Solver = Literal["euler", "midpoint", "fixed_point"]
"""How a step is taken. `euler`: with the prediction where it stands (on ε-models this is DDIM
inversion). `midpoint`: with the prediction half a step ahead (second order, as in RF-Solver).
`fixed_point`: with the prediction where it arrives, found by iteration, so that straight steps lead
back exactly."""

Predict = Callable[[Tensor, float], Tensor]


@torch.no_grad()
def invert(
    backbone: Backbone,
    clean: Tensor,
    conditioning: Conditioning,
    sampling: Sampling,
    *,
    solver: Solver = "fixed_point",
    iterations: int = 4,
) -> Tensor:
    """Pass through the noise levels of a sampling run in reverse.

    Args:
        backbone: the model.
        clean: clean latents, (n, channels, height, width).
        conditioning: of n prompts.
        sampling: steps; guidance as in drawing.
        solver: how each step is taken.
        iterations: predictions that a fixed-point step takes after its first.

    Returns:
        Latents at the highest noise level, shaped like `clean`.

    Raises:
        ValueError: the model cannot take this guidance, or `iterations` is below 1.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    backbone.check_guidance(sampling.guidance_scale)
    empty = backbone.unconditional()

    def predict(latents: Tensor, level: float) -> Tensor:
        return backbone.guided(latents, level, conditioning, sampling.guidance_scale, empty)

    latents = clean
    for level, to in pairwise(backbone.levels(sampling)[::-1]):
        if solver == "fixed_point":
            latents = _arrive(backbone, latents, level, to, predict, iterations)
            continue
        predicted = predict(latents, level)
        if solver == "midpoint":
            middle = (level + to) / 2
            predicted = predict(backbone.move(latents, predicted, level, middle), middle)
        latents = backbone.move(latents, predicted, level, to)
    return latents


def _arrive(
    backbone: Backbone,
    latents: Tensor,
    level: float,
    to: float,
    predict: Predict,
    iterations: int,
) -> Tensor:
    """Latents at level `to` from which a step down leads to where we stand."""
    one = torch.ones(1, 1, 1, 1, dtype=latents.dtype, device=latents.device)
    slope = backbone.move(one, torch.zeros_like(one), to, level)  # of the step down, in latents
    reached = backbone.move(latents, predict(latents, to), level, to)
    for _ in range(iterations):
        back = backbone.move(reached, predict(reached, to), to, level)
        reached = reached + (latents - back) / slope
    return reached
