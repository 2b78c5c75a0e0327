"""Unified Concept Editing (Gandikota et al., 2024): one ridge solve over all text projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.backbone.base import Backbone
from expunge.closed_form import Targets
from expunge.concept import Concept
from expunge.eraser.base import ClosedForm
from expunge.eraser.tokens import EMPTY, TokenChoice, joint_targets


@dataclass(frozen=True, kw_only=True)
class UCE(ClosedForm):
    """Send the concept's embeddings to the anchor's, hold others, in one solve.

    W* = (λW + e Σ W g cᵀ + p Σ W r rᵀ)(λI + e Σ c cᵀ + p Σ r rᵀ)⁻¹ (UCE, eq. 7), in fp64, for every
    layer that reads the text encoders' output: keys and values of cross-attention, and on FLUX, SD3
    and SDXL the embedders of token states and of the pooled state. Targets are products with the
    weight alone, so a layer's bias is counted once; the published FLUX code counts it twice.

    Attributes:
        ridge: λ, pull toward the original weights.
        erase_weight: e.
        preserve_weight: p.
        prompts: prompts with the concept that embeddings are taken from; 0 for the bare name, as
            published.
        preserved: prompts whose tokens are held still.
        tokens: `last` is the name's last token, as published; `concept` all of the name's;
            `suffix` also everything that follows.
        synonyms: whether the concept's synonyms go as well (the published code's paraphrases).
        to_anchor: send to the concept's anchor; otherwise to the empty prompt, as published for
            everything but styles.
    """

    ridge: float = 0.5
    erase_weight: float = 1.0
    preserve_weight: float = 1.0
    prompts: int = 0
    preserved: int = 40
    tokens: TokenChoice = "last"
    synonyms: bool = False
    to_anchor: bool = False

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise ValueError(f"ridge must be positive, got {self.ridge}")

    def targets(self, backbone: Backbone, concepts: Sequence[Concept]) -> dict[str, Targets]:
        pairs = {
            concept.name: [
                (text, anchor if self.to_anchor else EMPTY)
                for name in (concept.names if self.synonyms else (concept.name,))
                for text, anchor in self._prompts(concept, name)
            ]
            for concept in concepts
        }
        kept = [text for c in concepts for text in c.preserved("train", self.preserved)]
        return joint_targets(
            backbone,
            pairs,
            kept,
            self.tokens,
            ridge=self.ridge,
            erase_weight=self.erase_weight,
            preserve_weight=self.preserve_weight,
        )

    def _prompts(self, concept: Concept, name: str) -> list[tuple[str, str]]:
        if self.prompts == 0:
            return [(name, concept.anchor)]
        return concept.pairs("train", self.prompts, name)
