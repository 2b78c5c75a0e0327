"""Unified Concept Editing (Gandikota et al., 2024): one ridge solve over all text projections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from expunge.concept import Concept
from expunge.eraser.closed import ClosedForm
from expunge.settings import check_numbers

if TYPE_CHECKING:
    from expunge.closed_form import Solver
    from expunge.request import Request


@dataclass(frozen=True, kw_only=True)
class UCE(ClosedForm):
    """Send the concept's embeddings elsewhere, hold others softly, in one solve.

    W* = (λW + e Σ W g cᵀ + p Σ W r rᵀ)(λI + e Σ c cᵀ + p Σ r rᵀ)⁻¹ (UCE, eq. 7), in fp64, for every
    layer that reads the text encoders' output: keys and values of cross-attention, and on FLUX, SD3
    and SDXL the embedders of token states and of the pooled state. The published FLUX code counts
    a layer's bias twice, this once.

    The defaults are the published code's: the last token of the bare name goes to the state that
    begins every text, held by λ alone.

    Attributes:
        ridge: λ, pull toward the original weights.
        erase_weight: e.
        preserve_weight: p.
    """

    ridge: float = 0.5
    erase_weight: float = 1.0
    preserve_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self, "ridge", "erase_weight", above=0)
        check_numbers(self, "preserve_weight", least=0)

    def solver(self) -> Solver:
        from expunge.closed_form import Ridge

        return Ridge(self.ridge)

    def request(self, concept: Concept) -> Request:
        weights = {"erase_weight": self.erase_weight, "preserve_weight": self.preserve_weight}
        return replace(super().request(concept), **weights)  # type: ignore[arg-type]
