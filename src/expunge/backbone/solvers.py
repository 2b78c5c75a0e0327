"""How one step between two noise levels is taken, down or up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone

Predict = Callable[[Tensor, float], Tensor]
"""The guided prediction for latents at a noise level."""


class Solver(ABC):
    """From latents at one noise level to latents at the next."""

    @abstractmethod
    def step(
        self, backbone: Backbone, predict: Predict, latents: Tensor, level: float, to: float
    ) -> tuple[Tensor, Tensor]:
        """Take one step.

        Returns:
            The prediction the step stands on, and the latents at `to`.
        """

    def forget(self) -> None:  # noqa: B027
        """Drop what is remembered of earlier steps: the latents were replaced."""


@dataclass(frozen=True)
class Straight(Solver):
    """In a straight line along the prediction where it stands.

    On ε- and v-models a DDIM step, on flows Euler's; upwards on ε-models it is DDIM inversion.
    """

    def step(
        self, backbone: Backbone, predict: Predict, latents: Tensor, level: float, to: float
    ) -> tuple[Tensor, Tensor]:
        predicted = predict(latents, level)
        return predicted, backbone.move(latents, predicted, level, to)


@dataclass(frozen=True)
class Midpoint(Solver):
    """Along the prediction half a step ahead (second order, as in RF-Solver)."""

    def step(
        self, backbone: Backbone, predict: Predict, latents: Tensor, level: float, to: float
    ) -> tuple[Tensor, Tensor]:
        middle = (level + to) / 2
        half = backbone.move(latents, predict(latents, level), level, middle)
        predicted = predict(half, middle)
        return predicted, backbone.move(latents, predicted, level, to)


@dataclass(frozen=True)
class FixedPoint(Solver):
    """Along the prediction where it arrives, so that straight steps lead back exactly.

    Attributes:
        iterations: predictions after the first.
    """

    iterations: int = 4

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def step(
        self, backbone: Backbone, predict: Predict, latents: Tensor, level: float, to: float
    ) -> tuple[Tensor, Tensor]:
        one = torch.ones(1, 1, 1, 1, dtype=latents.dtype, device=latents.device)
        slope = backbone.move(one, torch.zeros_like(one), to, level)  # of the step back, in latents
        predicted = predict(latents, to)
        reached = backbone.move(latents, predicted, level, to)
        for _ in range(self.iterations):
            predicted = predict(reached, to)
            back = backbone.move(reached, predicted, to, level)
            reached = reached + (latents - back) / slope
        return predicted, reached


class Scheduled(Solver):
    """The steps of a diffusers scheduler, from its first to its last. Serves one run.

    Args:
        scheduler: a fresh one, its time steps set.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._left = list(scheduler.timesteps)[::-1]

    def step(
        self, backbone: Backbone, predict: Predict, latents: Tensor, level: float, to: float
    ) -> tuple[Tensor, Tensor]:
        predicted = predict(latents, level)
        taken = self._scheduler.step(predicted, self._left.pop(), latents, return_dict=False)
        return predicted, taken[0]

    def forget(self) -> None:
        # Both samplers in use (DPM-Solver++, Euler of flows) remember nothing else.
        if hasattr(self._scheduler, "model_outputs"):
            self._scheduler.model_outputs = [None] * self._scheduler.config.solver_order
            self._scheduler.lower_order_nums = 0


SOLVERS: dict[str, Solver] = {
    "euler": Straight(),
    "midpoint": Midpoint(),
    "fixed_point": FixedPoint(),
}
"""Ways to step between freely chosen levels, by the names that settings use."""


def solver_named(name: str) -> Solver:
    """The solver of a setting.

    Raises:
        ValueError: no solver has that name.
    """
    if name not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {name!r}")
    return SOLVERS[name]
