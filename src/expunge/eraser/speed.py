"""SPEED (Li et al., ICLR 2026): an edit in the null space of what is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.eraser.closed import ClosedForm
from expunge.settings import Hold, TokenChoice, check_numbers

if TYPE_CHECKING:
    from expunge.closed_form import Solver


@dataclass(frozen=True, kw_only=True)
class SPEED(ClosedForm):
    """Send the concept's embeddings to the anchor's, only where kept ones have no component.

    ΔW = W (Σ a cᵀ − Σ c cᵀ) P [I − M K (Kᵀ P M K + λI)⁻¹ Kᵀ P] M, M = (Σ c cᵀ P + ρI)⁻¹ (SPEED,
    sec. 4): P projects onto the null space of kept embeddings, of which those count that an unheld
    edit would move more than the mean; K holds the empty prompt's first state and three means of
    its others, which stay exactly.

    Attributes:
        threshold: eigenvalues of Σ r rᵀ below it count as none.
        ridge: ρ.
        invariant_ridge: λ.
    """

    to_anchor: bool = True
    preserved: int = 100
    tokens: TokenChoice = "concept"
    hold: Hold = "states"
    threshold: float = 0.1
    ridge: float = 1.0
    invariant_ridge: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "threshold", "ridge", "invariant_ridge", above=0)

    def solver(self) -> Solver:
        from expunge.null_space import NullSpace

        return NullSpace(self.threshold, self.ridge, self.invariant_ridge)
