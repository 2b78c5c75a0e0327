"""Least-squares edits of layers that read text, factored: solved once in fp64 for all of them.

Every edit here asks that a projection W send source embeddings c where it now sends guides g:

    min  Σ ‖W* c − W g‖² + what holds the rest,   so that   W* − W = W · [(g − c)ᵀ as rows] · down

The right-hand factors do not depend on W. With sources C and guides G as rows, concept k's exact
change is `down = S⁻¹ Cₖᵀ` and `up = W (Gₖ − Cₖ)ᵀ`; its rank is its number of embeddings, and no
(width × width) matrix is made for a concept.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from expunge.adapter import weight_of
from expunge.change import LowRank

LOST = 1e-6
"""Share of an edit's norm that is dropped where it has more embeddings than a quarter of the width:
what lies below is noise of the solve, and costs a file larger than the weights."""
AT_ONCE = 4096
"""Rows whose fp64 copies are held at once."""


@dataclass(frozen=True)
class Rows:
    """One concept's embeddings in one text stream, and what takes their place.

    Attributes:
        sources: (k, width).
        guides: (k, width).
        weight: of each row in the solve.
        strength: η, the share of the edit that is made.
    """

    sources: Tensor
    guides: Tensor
    weight: float = 1.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        for name in ("sources", "guides"):
            object.__setattr__(self, name, getattr(self, name).detach().cpu())

    @property
    def gram(self) -> Tensor:
        """Σ c cᵀ, weighted, fp64, (width, width)."""
        return self.weight * gram(self.sources)

    def cross(self) -> Tensor:
        """Σ (g − c) cᵀ, weighted, fp64, (width, width)."""
        parts = zip(
            torch.split(self.sources, AT_ONCE), torch.split(self.guides, AT_ONCE), strict=True
        )
        found = sum((g.double() - c.double()).T @ c.double() for c, g in parts)
        assert isinstance(found, Tensor)
        return self.weight * found


@dataclass(frozen=True)
class Kept:
    """Embeddings that stay.

    Attributes:
        gram: Σ r rᵀ, weighted, fp64, (width, width).
        rows: the embeddings themselves, (m, width), where a solver asks for them.
        fixed: embeddings that must stay exactly, (f, width), where a solver asks for them.
    """

    gram: Tensor
    rows: Tensor
    fixed: Tensor

    def __add__(self, other: Kept) -> Kept:
        rows = torch.cat([self.rows, other.rows])
        return Kept(self.gram + other.gram, rows, self.fixed)  # these are the model's own


@dataclass(frozen=True)
class Edit:
    """One concept's change of every layer of a stream: W · core · down.

    Attributes:
        down: (rank, width), fp64.
        core: (width, rank), fp64.
    """

    down: Tensor
    core: Tensor

    def compressed(self, tolerance: float = LOST) -> Edit:
        """The same within a share of its norm, with fewer columns."""
        small = LowRank(self.down, self.core).compressed(tolerance)
        return Edit(small.down.detach(), small.up.detach())


def gram(rows: Tensor) -> Tensor:
    """Σ r rᵀ of (k, width), fp64 on the CPU, (width, width)."""
    width = rows.shape[-1]
    total = torch.zeros(width, width, dtype=torch.float64)
    for part in torch.split(rows, AT_ONCE):
        some = part.detach().to("cpu", torch.float64)
        total.addmm_(some.T, some)
    return total


class Solver(ABC):
    """How the rest of a model is held while embeddings are moved. Settings are its fields."""

    name: ClassVar[str]
    reads_rows: ClassVar[bool] = False
    """Whether it asks for kept embeddings one by one."""

    @abstractmethod
    def solve(self, concepts: Mapping[str, Rows], kept: Kept | None) -> dict[str, Edit]:
        """The joint edit as one term a concept.

        With any subset switched off, the concepts that are on go to their guides.

        Raises:
            ValueError: the system is singular, with what to do.
        """

    @abstractmethod
    def with_others(self, others: Iterable[Solver]) -> Solver:
        """One solver of this kind for the concepts of several."""

    def record(self) -> dict[str, Any]:
        """Name and settings."""
        return {"name": self.name, **dataclasses.asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Ridge(Solver):
    """Hold softly: S = λI + Σ c cᵀ + Σ r rᵀ (UCE, eq. 7).

    Attributes:
        ridge: λ; 0 takes the pseudo-inverse.
    """

    name: ClassVar[str] = "ridge"
    ridge: float = 0.5

    def with_others(self, others: Iterable[Solver]) -> Solver:
        return Ridge(max(s.ridge for s in (self, *others) if isinstance(s, Ridge)))

    def solve(self, concepts: Mapping[str, Rows], kept: Kept | None) -> dict[str, Edit]:
        system = sum(rows.gram for rows in concepts.values())
        assert isinstance(system, Tensor)
        if kept is not None:
            system = system + kept.gram
        if self.ridge == 0:
            inverse = torch.linalg.pinv(system, hermitian=True)
            return {n: edit(rows, lambda x: inverse @ x) for n, rows in concepts.items()}
        system.diagonal().add_(self.ridge)
        factor = cholesky(system)
        return {
            name: edit(rows, lambda x: torch.cholesky_solve(x, factor))
            for name, rows in concepts.items()
        }


def cholesky(system: Tensor) -> Tensor:
    """The factor of a positive definite system.

    Raises:
        ValueError: it is singular to fp64.
    """
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info):
        raise ValueError(
            "the closed form is singular: too many embeddings for its width and too little that "
            "holds them; raise ridge, or take fewer prompts or concepts"
        )
    return factor


def edit(rows: Rows, solve: Any) -> Edit:
    """One concept's term of the joint solution, `solve` being the inverse of the system."""
    width = rows.sources.shape[1]
    if len(rows.sources) > width:  # fewer numbers as one matrix than as factors
        whole = LowRank.of(rows.strength * solve(rows.cross().T).T, LOST)
        return Edit(whole.down.detach(), whole.up.detach())
    down = rows.weight * solve(rows.sources.double().T).T
    core = rows.strength * (rows.guides.double() - rows.sources.double()).T
    found = Edit(down, core)
    return found.compressed() if len(down) > width // 4 else found


def on_layers(
    edits: Mapping[str, Edit], layers: Mapping[str, nn.Module]
) -> dict[str, dict[str, LowRank]]:
    """What edits do to the layers of their stream.

    Every concept's `down` is one tensor that all its layers share.

    Returns:
        Concept name -> layer name -> change, float32.
    """
    downs = {n: nn.Parameter(e.down.float(), requires_grad=False) for n, e in edits.items()}
    cores = torch.cat([each.core for each in edits.values()], dim=1)
    found: dict[str, dict[str, LowRank]] = {name: {} for name in edits}
    ranks = [len(each.down) for each in edits.values()]
    for name, layer in layers.items():
        whole = (weight_of(layer) @ cores).float()
        ups = torch.split(whole, ranks, dim=1)
        for concept, up in zip(edits, ups, strict=True):
            found[concept][name] = LowRank(downs[concept], up.contiguous())
    return found
