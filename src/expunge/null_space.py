"""Closed forms that may only act where what is kept has no component."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from expunge.closed_form import Edit, Kept, Rows, Solver, cholesky, edit


@dataclass(frozen=True)
class NullSpace(Solver):
    """Hold hard: the edit lives in the null space of kept embeddings (SPEED, eq. 9 and 12).

    With P the projector onto that null space, M = (Σ c cᵀ P + ρI)⁻¹ and K what must stay exactly,
    R = P [I − M K (Kᵀ P M K + λI)⁻¹ Kᵀ P] M takes the place of the inverse.

    Attributes:
        threshold: eigenvalues of Σ r rᵀ below it count as none.
        ridge: ρ.
        invariant_ridge: λ, of what must stay exactly.
        filter_kept: keep those embeddings that an unheld edit would move more than the mean, and
            drop the others, which cost room for the edit and are hardly touched.
    """

    name: ClassVar[str] = "null_space"
    reads_rows: ClassVar[bool] = True
    threshold: float = 0.1
    ridge: float = 1.0
    invariant_ridge: float = 1e-4
    filter_kept: bool = True

    def with_others(self, others: Iterable[Solver]) -> Solver:
        return self

    def solve(self, concepts: Mapping[str, Rows], kept: Kept | None) -> dict[str, Edit]:
        grams = sum(rows.gram for rows in concepts.values())
        assert isinstance(grams, Tensor)
        projector = self._projector(concepts, grams, kept)
        eye = torch.eye(len(grams), dtype=torch.float64)
        inverse = torch.linalg.inv(grams @ projector + self.ridge * eye)
        right = projector @ inverse
        if kept is not None and len(kept.fixed):
            fixed = kept.fixed.double().T
            small = fixed.T @ projector @ inverse @ fixed
            small.diagonal().add_(self.invariant_ridge)
            held = inverse @ fixed @ torch.linalg.solve(small, fixed.T @ projector)
            right = projector @ (eye - held) @ inverse
        return {name: edit(rows, lambda x: right.T @ x) for name, rows in concepts.items()}

    def _projector(self, concepts: Mapping[str, Rows], grams: Tensor, kept: Kept | None) -> Tensor:
        """Onto the null space of what is kept, (width, width)."""
        if kept is None:
            return torch.eye(len(grams), dtype=torch.float64)
        held = kept.gram
        if self.filter_kept:
            rows = kept.rows.double()
            moved = self._moved(concepts, grams, rows)
            held = rows[moved >= moved.mean()]
            held = held.T @ held
        values, vectors = torch.linalg.eigh(held)
        free = vectors[:, values < self.threshold]
        if not free.shape[1]:
            raise ValueError(
                "what is kept fills all directions, so no edit is left that leaves it alone; keep "
                "fewer prompts, or raise threshold"
            )
        projector: Tensor = free @ free.T
        return projector

    def _moved(self, concepts: Mapping[str, Rows], grams: Tensor, rows: Tensor) -> Tensor:
        """How far an edit that holds nothing would move each kept embedding, (m,)."""
        system = grams.clone()
        system.diagonal().add_(self.ridge)
        factor = cholesky(system)
        edits = [edit(c, lambda x: torch.cholesky_solve(x, factor)) for c in concepts.values()]
        total = torch.cat([e.core for e in edits], dim=1)
        shift = rows @ torch.cat([e.down for e in edits]).T @ total.T
        moved: Tensor = shift.norm(dim=1)
        return moved
