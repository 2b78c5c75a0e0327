"""How a prediction is guided: objects from latents and noise level to a prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from expunge.backbone.call import Row
from expunge.backbone.conditioning import Conditioning
from expunge.hooks import original

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone


Level = Tensor | float
"""One noise level for all latents, or n of them."""


class Guidance(Protocol):
    """A guided prediction for n latents at one noise level, shaped like them."""

    def __call__(self, backbone: Backbone, latents: Tensor, level: float) -> Tensor: ...


@dataclass(frozen=True)
class Plain:
    """The conditional prediction as it is, ε(c).

    Attributes:
        conditioning: of n prompts.
    """

    conditioning: Conditioning

    def __call__(self, backbone: Backbone, latents: Tensor, level: Level) -> Tensor:
        return backbone.predict(latents, level, self.conditioning, 1.0)


@dataclass(frozen=True)
class Embedded:
    """One prediction of a denoiser that reads the guidance scale as an input.

    Attributes:
        conditioning: of n prompts.
        scale: 1 for none.
    """

    conditioning: Conditioning
    scale: float

    def __call__(self, backbone: Backbone, latents: Tensor, level: Level) -> Tensor:
        return backbone.predict(latents, level, self.conditioning, self.scale)


@dataclass(frozen=True)
class ClassifierFree:
    """ε(∅) + scale [ε(c) − ε(∅)], both in one batched call.

    Attributes:
        conditioning: of n prompts.
        scale: how far the prediction follows the prompt.
        negative: ∅, of one prompt or of n; None for what the model leads away from by itself.
        detached: whether ε(∅) is kept out of any graph, as a call of its own.
    """

    conditioning: Conditioning
    scale: float
    negative: Conditioning | None = None
    detached: bool = False

    def __call__(self, backbone: Backbone, latents: Tensor, level: Level) -> Tensor:
        both = _apart if self.detached else _both
        away, toward = both(backbone, latents, level, self.conditioning, self.negative)
        return away + self.scale * (toward - away)


@dataclass(frozen=True)
class Away:
    """ε(∅) − scale [ε(c) − ε(∅)], away from what the prompt says (ESD's target).

    Attributes:
        conditioning: of n prompts, or of one.
        scale: η, how far past ∅ the prediction lies.
        negative: ∅, of one prompt or of n; None for what the model leads away from by itself.
    """

    conditioning: Conditioning
    scale: float
    negative: Conditioning | None = None

    def __call__(self, backbone: Backbone, latents: Tensor, level: Level) -> Tensor:
        empty, toward = _both(backbone, latents, level, self.conditioning, self.negative)
        return empty - self.scale * (toward - empty)


@dataclass(frozen=True)
class Switch:
    """One guidance above a noise level, another one from there down.

    Attributes:
        at: the level; at it the second one guides.
        before: above it.
        after: at it and below.
    """

    at: float
    before: Guidance
    after: Guidance

    def __call__(self, backbone: Backbone, latents: Tensor, level: float) -> Tensor:
        now = self.before if level > self.at else self.after
        return now(backbone, latents, level)


@dataclass(frozen=True)
class Arithmetic:
    """A weighted sum of guided predictions.

    Attributes:
        terms: weights and guidances.
    """

    terms: Sequence[tuple[float, Guidance]]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("terms must hold at least one weight and guidance, got none")

    def __call__(self, backbone: Backbone, latents: Tensor, level: float) -> Tensor:
        parts = [weight * guide(backbone, latents, level) for weight, guide in self.terms]
        return torch.stack(parts).sum(0)


@dataclass(frozen=True)
class Completion:
    """The original model begins a picture, the model as it stands completes it.

    Attributes:
        guidance: of both.
        until: above this noise level every change is silent.
    """

    guidance: Guidance
    until: float

    def __call__(self, backbone: Backbone, latents: Tensor, level: float) -> Tensor:
        if level <= self.until:
            return self.guidance(backbone, latents, level)
        with original():
            return self.guidance(backbone, latents, level)


def _both(
    backbone: Backbone,
    latents: Tensor,
    level: Level,
    conditioning: Conditioning,
    negative: Conditioning | None,
) -> tuple[Tensor, Tensor]:
    """Predictions for ∅ and for the prompt."""
    count = len(latents)
    level = torch.cat([level, level]) if isinstance(level, Tensor) and level.ndim else level
    empty = backbone.unconditional() if negative is None else negative
    told = Conditioning.cat([_filled(empty, count), _filled(conditioning, count)])
    rows: list[Row] = ["negative"] * count
    rows += ["positive"] * count
    predicted = backbone.predict(torch.cat([latents, latents]), level, told, rows=rows)
    away, toward = predicted.chunk(2)
    return away, toward


def _apart(
    backbone: Backbone,
    latents: Tensor,
    level: Level,
    conditioning: Conditioning,
    negative: Conditioning | None,
) -> tuple[Tensor, Tensor]:
    """Predictions for ∅, without a graph, and for the prompt."""
    count = len(latents)
    empty = _filled(backbone.unconditional() if negative is None else negative, count)
    with torch.no_grad():
        away = backbone.predict(latents, level, empty, rows=["negative"] * count)
    told = _filled(conditioning, count)
    return away, backbone.predict(latents, level, told, rows=["positive"] * count)


def _filled(conditioning: Conditioning, count: int) -> Conditioning:
    """One row for each of the latents."""
    return conditioning if len(conditioning) == count else conditioning.repeat(count)
