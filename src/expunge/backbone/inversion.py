"""Part of a sampling run, downwards from a noisy picture or backwards to its noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    levels = backbone.levels(sampling)[::-1]
    return climb(
        backbone,
        clean,
        levels,
        conditioning,
        sampling.guidance_scale,
        solver=solver,
        iterations=iterations,
    )


@torch.no_grad()
def climb(
    backbone: Backbone,
    clean: Tensor,
    levels: Sequence[float],
    conditioning: Conditioning,
    guidance_scale: float = 1.0,
    *,
    solver: Solver = "fixed_point",
    iterations: int = 4,
) -> Tensor:
    """Invert through given noise levels, the lowest first; else as `invert`."""
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    backbone.check_guidance(guidance_scale)
    empty = backbone.unconditional()

    def predict(latents: Tensor, level: float) -> Tensor:
        return backbone.guided(latents, level, conditioning, guidance_scale, empty)

    latents = clean
    for level, to in pairwise(levels):
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


def levels_below(level: float, num_inference_steps: int) -> list[float]:
    """Evenly spaced noise levels from `level` down to 0.

    Args:
        level: where to start, 0 to 1.
        num_inference_steps: of a whole run from 1 to 0; a part of it takes its share, rounded up.
    """
    steps = math.ceil(level * num_inference_steps - 1e-9)
    return [level * (steps - index) / steps for index in range(steps)] + [0.0]


def denoise(
    backbone: Backbone,
    latents: Tensor,
    levels: Sequence[float],
    conditioning: Conditioning,
    guidance_scale: float = 1.0,
    *,
    after: Callable[[float, Tensor], Tensor] | None = None,
) -> Tensor:
    """Denoise from the first level to the last, which is 0.

    On ε- and v-models these are DDIM steps, on flows Euler steps.

    Args:
        backbone: the model.
        latents: at the first level, (n, channels, height, width).
        levels: from the highest to 0; where there is only 0, nothing is done.
        conditioning: of n prompts.
        guidance_scale: 1 for none.
        after: given the level reached and the latents there; the run goes on from what it returns.

    Returns:
        Clean latents that the last prediction stands for.
    """
    backbone.check_guidance(guidance_scale)
    empty = backbone.unconditional()
    for level, to in pairwise(levels):
        with torch.no_grad():
            predicted = backbone.guided(latents, level, conditioning, guidance_scale, empty)
            latents = (
                backbone.move(latents, predicted, level, to)
                if to
                else backbone.clean(latents, predicted, level)
            )
        latents = after(to, latents) if after else latents
    return latents
