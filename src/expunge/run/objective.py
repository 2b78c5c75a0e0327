"""What is trained, and towards what: players and the objective they share."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from expunge.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

Loss: TypeAlias = "Tensor | Mapping[str, Tensor] | None"
"""A scalar with a graph; or named ones, whose sum is meant; or None: this player passes."""
Grads: TypeAlias = "Sequence[Tensor | None]"
"""One for each parameter, None where the loss does not reach it."""


@dataclass(frozen=True, eq=False)
class Player:
    """A module whose parameters that require a gradient are trained, with an AdamW of its own.

    Attributes:
        module: trained in place.
        lr: peak learning rate.
        betas: decay of AdamW's two averages.
        weight_decay: AdamW's.
        clip: norm the gradient is clipped to, None for no clipping.
        every: the player moves in every so many steps, the first one included.
    """

    module: nn.Module
    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float | None = 1.0
    every: int = 1

    def __post_init__(self) -> None:
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1), got {self.betas}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or more and finite, got {self.weight_decay}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip}; None for no clipping")
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        number: from 0.
        generator: on the CPU, seeded by the run's seed and `number` alone, so that a run that goes
            on after a stop sees what an unbroken one would have seen. All of the step share it.
        logged: what `log` was told.
    """

    number: int
    generator: torch.Generator
    logged: dict[str, float] = field(default_factory=dict)

    def log(self, name: str, value: float | Tensor) -> None:
        """Keep a number of this step beside the losses."""
        self.logged[name] = float(value)


class Objective(ABC):
    """What players are trained towards.

    In each step `before` is called, then `loss` for each player in turn, after the former has
    moved. A loss reaches the parameters of its own player and no others.

    Attributes:
        networks: whatever else has to be kept to go on after a stop: free embeddings, pools as
            buffers.
    """

    networks: Mapping[str, nn.Module] = {}

    def before(self, step: Step) -> None:  # noqa: B027  most have nothing to do
        """Inner loops, refilling pools."""

    @abstractmethod
    def loss(self, step: Step, player: str) -> Loss:
        """What the player of that name lowers in this step; None where it does not move."""

    def gradient(
        self, step: Step, player: str, terms: Mapping[str, Tensor], parameters: Sequence[Tensor]
    ) -> Grads:
        """Of the sum of the terms. Surgery overrides it, with `gradients_by_term`.

        Args:
            step: this one.
            player: whose loss it is.
            terms: the loss by name; under the player's name if it is one tensor.
            parameters: the player's.
        """
        total = functools.reduce(torch.add, terms.values())
        return torch.autograd.grad(total, parameters, allow_unused=True)

    def done(self, step: Step) -> bool:
        """Whether to end after this step."""
        return False


@dataclass(frozen=True)
class Minimise(Objective):
    """One loss for one player.

    Attributes:
        function: the loss of a step, or its named terms.
    """

    function: Callable[[Step], Loss]

    def loss(self, step: Step, player: str) -> Loss:
        return self.function(step)


def gradients_by_term(
    terms: Mapping[str, Tensor], parameters: Sequence[Tensor]
) -> dict[str, list[Tensor]]:
    """The gradient of each term by itself, zero where a term does not reach a parameter."""
    return {
        name: list(
            torch.autograd.grad(
                term, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        )
        for name, term in terms.items()
    }
