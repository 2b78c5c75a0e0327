"""TRACE: a closed-form edit of what reads the concept, then adapters trained on trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.closed_form import Targets
from expunge.concept import Concept
from expunge.eraser.base import Result, closed_form_result
from expunge.eraser.finetune import FineTuner, Points
from expunge.eraser.tokens import TokenChoice, joint_targets

ClosedFormVariant = Literal["refine", "collapse"]


@dataclass(frozen=True, kw_only=True)
class TRACE(FineTuner):
    """Attention refinement (phase 1) and trajectory-constrained adapters (phase 2).

    Phase 1 sends the concept's embeddings to the anchor's. `refine` is the paper's eq. 1, for one
    embedding ΔW = η (W e_u − W e_w) e_wᵀ / ‖e_w‖²; `collapse` is its Proposition 3.2,
    ΔW = −η W (e_w − e_u)(e_w − e_u)ᵀ / ‖e_w − e_u‖². Several embeddings are one joint solve. With
    `ridge` and `preserved` at 0 it is the paper's bare edit; both above 0 hold other prompts still.

    Phase 2 follows the original on the concept's prompt down to noise level `switch` and on the
    anchor's prompt from there. Along both parts, where `from_level` allows, the adapted model,
    given the concept's prompt, learns what the original predicts for the target.

    Attributes:
        refine: run phase 1.
        tune: run phase 2.
        variant: which closed form.
        tokens: which embeddings carry the concept; the paper edits its own tokens (`concept`), a
            contextual text encoder also needs what follows them (`suffix`).
        strength: η, the share of phase 1's edit.
        ridge: λ of the joint solve.
        preserved: prompts whose embeddings phase 1 holds still.
        prompts: prompts that embeddings are taken from.
        switch: t₀, the noise level at which the trajectory turns to the anchor.
        from_level: highest noise level that phase 2 trains at; the paper's low-noise part is
            `switch`, 1 trains the whole way.
        target: `anchor`, the original's prediction for the anchor's prompt; `reversed`, guidance
            away from the concept.
        negative_guidance: how far past the empty prompt the reversed target lies.
        high_noise_weight: extra weight of preservation at noise level 1, falling linearly to none.
    """

    steps: int = 1000
    batch_size: int = 4
    rank: int = 4
    refine: bool = True
    tune: bool = True
    variant: ClosedFormVariant = "refine"
    tokens: TokenChoice = "suffix"
    strength: float = 1.0
    ridge: float = 0.1
    preserved: int = 40
    prompts: int = 20
    switch: float = 0.6
    from_level: float = 1.0
    target: Literal["anchor", "reversed"] = "anchor"
    negative_guidance: float = 1.0
    high_noise_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.refine or self.tune):
            raise ValueError("refine and tune are both off, so nothing would be erased")
        for name in ("switch", "from_level", "strength"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.ridge < 0:
            raise ValueError(f"ridge must not be negative, got {self.ridge}")

    def _run(self, backbone: Backbone, concepts: Sequence[Concept], folder: Path | None) -> Result:
        if self.tune:
            return super()._run(backbone, concepts, folder)
        return closed_form_result(backbone, concepts, self._targets(backbone, concepts))

    def closed_form(self, backbone: Backbone, concepts: Sequence[Concept]) -> dict[str, Targets]:
        return self._targets(backbone, concepts) if self.refine else {}

    def _targets(self, backbone: Backbone, concepts: Sequence[Concept]) -> dict[str, Targets]:
        pairs = {
            concept.name: [
                pair
                for name in (concept.names if self.synonyms else (concept.name,))
                for pair in concept.pairs("train", self.prompts, name)
            ]
            for concept in concepts
        }
        kept = [text for c in concepts for text in c.preserved("train", self.preserved)]
        return joint_targets(
            backbone,
            pairs,
            kept if self.preserved else None,
            self.tokens,
            ridge=self.ridge,
            strength=self.strength,
            collapse=self.variant == "collapse",
        )

    def keep_weight(self, levels: Tensor) -> Tensor:
        return 1 + self.high_noise_weight * levels

    def points(self, backbone: Backbone, concept: Concept) -> Points:
        pairs = self.training_pairs(concept)
        prompts, anchors = [p for p, _ in pairs], [a for _, a in pairs]
        latents, levels, owner = self.walk(backbone, prompts, then=anchors, below=self.switch)
        low = levels <= self.from_level
        latents, levels, owner = latents[low], levels[low], owner[low]
        asked = [prompts[i] for i in owner.tolist()]
        if self.target == "anchor":
            other = [anchors[i] for i in owner.tolist()]
            return Points(
                latents, levels, asked, self.predictions(backbone, latents, levels, other)
            )
        toward = self.predictions(backbone, latents, levels, asked)
        empty = self.predictions(backbone, latents, levels, None)
        return Points(latents, levels, asked, empty - self.negative_guidance * (toward - empty))
