"""One loop from noise level to noise level: drawing, denoising, inverting, and parts of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from expunge import hooks
from expunge.backbone.call import Guard
from expunge.backbone.guidance import Guidance
from expunge.backbone.profile import Sampling
from expunge.backbone.solvers import FixedPoint, Scheduled, Solver, Straight

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone

Path = Sampling | Sequence[float]
"""The noise levels a run passes through: a model's own sampler, or levels down or up."""


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        level: noise level where it begins.
        to: noise level where it ends.
        latents: at `level`, (n, channels, height, width).
        prediction: the guided one that the step stands on.
        clean: the clean latents that it stands for.
        reached: latents at `to`, from where the run goes on.
    """

    level: float
    to: float
    latents: Tensor
    prediction: Tensor
    clean: Tensor
    reached: Tensor


def steps(
    backbone: Backbone,
    latents: Tensor,
    guidance: Guidance,
    path: Path,
    *,
    solver: Solver | None = None,
    guards: Sequence[Guard] = (),
    graph_last: int = 0,
) -> Iterator[Step]:
    """Pass through noise levels, yielding every step after it was taken.

    At the first step that is not silenced, everything that hangs on the denoiser must have run.

    Args:
        backbone: the model as it stands; its guards act as well.
        latents: at the first level, (n, channels, height, width); `initial_noise` to draw.
        guidance: what guides it, for example from `backbone.guidance_for`.
        path: the model's sampler with so many steps (DPM-Solver++ on ε- and v-models, Euler on
            flows), or any noise levels in their order.
        solver: how a step between given levels is taken; None for straight ones.
        guards: act after those of the backbone, in this run alone.
        graph_last: how many of the last steps keep a graph; the others keep none.

    Raises:
        NotFeltError: a change that is applied did not run.
        ValueError: a solver is given together with the model's own sampler.
    """
    solver, levels = _plan(backbone, path, solver)
    active = (*backbone.guards, *guards)
    pairs = list(pairwise(levels))
    felt = False
    for index, (level, to) in enumerate(pairs):
        heard = backbone.predictions_heard
        if not felt:
            hooks.step_begun(backbone.denoiser)
        graph = len(pairs) - index <= graph_last
        with torch.set_grad_enabled(graph), backbone.guarded(*active):
            step = _step(backbone, latents, guidance, solver, level, to)
        if not felt and backbone.predictions_heard > heard:
            hooks.step_done(backbone.denoiser)
            felt = True
        with torch.set_grad_enabled(graph):
            step = _past_guards(backbone, active, solver, step)
        yield step
        latents = step.reached


def _plan(backbone: Backbone, path: Path, solver: Solver | None) -> tuple[Solver, Sequence[float]]:
    if not isinstance(path, Sampling):
        return solver or Straight(), path
    if solver is not None:
        raise ValueError(
            f"solver must be None where the model's own sampler draws, got {solver}; "
            "give noise levels (backbone.levels(sampling)) to choose one"
        )
    scheduler = backbone.scheduler(path)
    return Scheduled(scheduler), backbone.levels_of(scheduler)


def _step(
    backbone: Backbone, latents: Tensor, guidance: Guidance, solver: Solver, level: float, to: float
) -> Step:
    def predict(at: Tensor, there: float) -> Tensor:
        return guidance(backbone, at, there)

    predicted, reached = solver.step(backbone, predict, latents, level, to)
    clean = backbone.clean(latents, predicted, level)
    return Step(level, to, latents, predicted, clean, reached)


def _past_guards(backbone: Backbone, guards: Sequence[Guard], solver: Solver, step: Step) -> Step:
    """What the guards make of the latents; what the solver knew of them is then void."""
    for guard in guards:
        with backbone.guarded():
            latents = guard.latents(step)
        if latents is not step.reached:
            solver.forget()
            step = replace(step, reached=latents)
    return step


def follow(
    backbone: Backbone,
    latents: Tensor,
    guidance: Guidance,
    path: Path,
    *,
    solver: Solver | None = None,
    guards: Sequence[Guard] = (),
    graph_last: int = 0,
) -> Tensor:
    """Where `steps` end; the latents themselves where there is no step to take."""
    run = steps(
        backbone, latents, guidance, path, solver=solver, guards=guards, graph_last=graph_last
    )
    for step in run:
        latents = step.reached
    return latents


def invert(
    backbone: Backbone,
    clean: Tensor,
    guidance: Guidance,
    path: Path,
    *,
    solver: Solver | None = None,
) -> Tensor:
    """Pass through the noise levels of a sampling run in reverse.

    Args:
        backbone: the model.
        clean: clean latents, (n, channels, height, width).
        guidance: as in drawing.
        path: of the run that is inverted, from its highest level down to 0.
        solver: how a step up is taken; None for fixed points, which straight steps lead back from.

    Returns:
        Latents at the highest noise level, shaped like `clean`.
    """
    levels = backbone.levels(path) if isinstance(path, Sampling) else path
    return follow(backbone, clean, guidance, levels[::-1], solver=solver or FixedPoint())


def levels_below(level: float, num_inference_steps: int) -> list[float]:
    """Evenly spaced noise levels from `level` down to 0.

    Args:
        level: where to start, 0 to 1.
        num_inference_steps: of a whole run from 1 to 0; a part of it takes its share, rounded up.
    """
    count = math.ceil(level * num_inference_steps - 1e-9)
    return [level * (count - index) / count for index in range(count)] + [0.0]
