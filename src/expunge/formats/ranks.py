"""How much of an erasure a few columns hold, and what can be written as low rank at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.change import Change, LowRank, summed
from expunge.erasure import Erasure

STATED = (4, 8, 16, 32)
"""Ranks at which every card states what would be lost: the defaults of common tools lie there."""
NOISE = 1e-7
"""Share of a change's norm below which its columns are noise of the float32 they are stored in."""


@dataclass(frozen=True)
class Loss:
    """What is lost where every layer keeps few columns, relative to the Frobenius norm.

    Attributes:
        overall: of all layers together.
        worst: of the layer that loses most.
        layer: which one that is.
    """

    overall: float
    worst: float
    layer: str

    def record(self) -> dict[str, Any]:
        """For records and headers."""
        return {"overall": self.overall, "worst": self.worst, "layer": self.layer}

    def __str__(self) -> str:
        return f"{100 * self.overall:.2g} % overall, {100 * self.worst:.2g} % in {self.layer}"


def refuse_unweighted(erasure: Erasure, what: str) -> None:
    """Refuse an erasure that no change of weights stands for.

    Raises:
        ValueError: its strength depends on the prompt, or it holds another kind of change.
    """
    kinds = {c.kind for changes in erasure.by_place().values() for c in changes
             if not c.weight_change}  # fmt: skip
    why = "its strength depends on the prompt" if erasure.gated else ""
    if kinds:
        why = f"a {min(kinds)} is no change of a weight"
    if why:
        raise ValueError(
            f"this erasure cannot be written as {what}: {why}; apply it with expunge, "
            "erasure.apply(pipe)"
        )


def refuse_dense(erasure: Erasure) -> None:
    """Refuse to write an erasure of whole weights as a LoRA of unstated rank.

    Raises:
        ValueError: names the two ways.
    """
    if not low_rank(erasure):
        raise ValueError(
            "this erasure changes whole weights, which is no low rank: say how many columns a LoRA "
            "keeps (--rank 32, with the error stated), or write whole differences (format 'full')"
        )


def low_rank(erasure: Erasure) -> bool:
    """Whether every change is a product of two thin matrices."""
    return all(
        isinstance(change, LowRank) for changes in erasure.by_place().values() for change in changes
    )


def columns(erasure: Erasure, rank: int | None = None) -> dict[str, LowRank]:
    """All concepts at strength 1, each layer with the fewest columns.

    Args:
        erasure: whose changes are changes of weights.
        rank: most columns of a layer, whatever is lost; None for all but noise.
    """
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    found = {}
    for place, changes in sorted(erasure.by_place().items()):
        whole = summed(changes)
        if isinstance(whole, LowRank):
            found[place] = whole.compressed(NOISE, rank)
        else:
            found[place] = LowRank.of(whole.delta, NOISE, rank)
    return found


def spectrum(change: Change) -> Tensor:
    """Singular values of a change of a weight, largest first, fp64."""
    if not isinstance(change, LowRank):
        whole: Tensor = torch.linalg.svdvals(change.delta.flatten(1))
        return whole
    up = torch.linalg.qr(change.up.detach().double()).R
    down = torch.linalg.qr(change.down.detach().double().flatten(1).T).R
    found: Tensor = torch.linalg.svdvals(up @ down.T)
    return found


def spectra(erasure: Erasure) -> dict[str, Tensor]:
    """`spectrum` of every layer, by place."""
    return {place: spectrum(summed(each)) for place, each in sorted(erasure.by_place().items())}


def loss(values: Mapping[str, Tensor], rank: int) -> Loss:
    """What is lost where no layer keeps more than `rank` columns.

    Args:
        values: singular values of every layer, by place.
        rank: columns that are kept.
    """
    dropped = {place: float(each[rank:].norm()) for place, each in values.items()}
    norms = {place: float(each.norm()) for place, each in values.items()}
    shares = {
        place: lost / norms[place] if norms[place] else 0.0 for place, lost in dropped.items()
    }
    layer = max(shares, key=shares.__getitem__)
    whole = sum(norm**2 for norm in norms.values()) ** 0.5
    lost = sum(each**2 for each in dropped.values()) ** 0.5
    return Loss(lost / whole if whole else 0.0, shares[layer], layer)


def rank_of(values: Mapping[str, Tensor]) -> int:
    """Most columns of a layer that are more than noise."""
    return max(int((each > NOISE * each.norm()).sum()) for each in values.values())


def stated(values: Mapping[str, Tensor]) -> dict[str, Any]:
    """For records: the rank, and what is lost at each of `STATED`."""
    losses = {str(rank): loss(values, rank).record() for rank in STATED}
    return {"rank": rank_of(values), "loss": losses}
