"""TRACE: a closed-form edit of what reads the concept, then changes trained on trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from expunge.concept import Concept
from expunge.eraser.base import Result
from expunge.eraser.closed import request, solved
from expunge.eraser.matching import Matcher
from expunge.settings import Hold, TokenChoice, check_choice, check_counts, check_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.backbone.base import Backbone
    from expunge.eraser.points import Points
    from expunge.request import Request

ClosedFormVariant = Literal["refine", "collapse"]
Target = Literal["anchor", "reversed"]


@dataclass(frozen=True, kw_only=True)
class TRACE(Matcher):
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
        hold: what of them stays: all `states`, or the last token of neighbours' `names`.
        prompts: prompts that embeddings are taken from.
        to_anchor: send them to the anchor's; otherwise to the state that begins every text.
        switch: t₀, the noise level at which the trajectory turns to the anchor.
        from_level: highest noise level that phase 2 trains at; the paper's low-noise part is
            `switch`, 1 trains the whole way.
        target: `anchor`, the original's prediction for the anchor's prompt; `reversed`, guidance
            away from the concept.
        negative_guidance: how far past the empty prompt the reversed target lies.
        high_noise_weight: extra weight of preservation at noise level 1, falling linearly to none.
    """

    refine: bool = True
    tune: bool = True
    variant: ClosedFormVariant = "refine"
    tokens: TokenChoice = "suffix"
    strength: float = 1.0
    ridge: float = 0.1
    preserved: int = 40
    hold: Hold = "states"
    prompts: int = 20
    to_anchor: bool = True
    switch: float = 0.6
    from_level: float = 1.0
    target: Target = "anchor"
    negative_guidance: float = 1.0
    high_noise_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.refine or self.tune):
            raise ValueError("refine and tune are both off, so nothing would be erased")
        check_numbers(self, "ridge", "high_noise_weight", least=0)
        check_numbers(self, "negative_guidance")
        check_counts(self, "prompts", "preserved")
        check_choice(self, variant=ClosedFormVariant, tokens=TokenChoice, hold=Hold, target=Target)
        for name in ("switch", "from_level", "strength"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")

    def _run(self, backbone: Backbone, concepts: Sequence[Concept], folder: Path | None) -> Result:
        if self.tune:
            return super()._run(backbone, concepts, folder)
        return solved(backbone, concepts, {c.name: self._request(c) for c in concepts})

    def closed_form(self, concept: Concept) -> Request | None:
        return self._request(concept) if self.refine else None

    def _request(self, concept: Concept) -> Request:
        from expunge.closed_form import Ridge

        collapse = self.variant == "collapse"
        return request(concept, Ridge(self.ridge), self, strength=self.strength, collapse=collapse)

    def keep_weight(self, levels: Tensor) -> Tensor:
        return 1 + self.high_noise_weight * levels

    def points(self, backbone: Backbone, concept: Concept) -> Points:
        from expunge.eraser.points import Points, predictions, walk

        pairs = self.training_pairs(concept, self.trajectories)
        prompts, anchors = [p for p, _ in pairs], [a for _, a in pairs]
        sampling, seed = self.sampling(backbone), self.seed * 1000
        seen = walk(backbone, prompts, sampling, seed=seed, then=anchors, below=self.switch)
        seen = seen.below(self.from_level)
        told = seen.told(prompts)
        if self.target == "anchor":
            targets = predictions(backbone, seen.latents, seen.levels, seen.told(anchors))
        else:
            toward = predictions(backbone, seen.latents, seen.levels, told)
            empty = predictions(backbone, seen.latents, seen.levels, None)
            targets = empty - self.negative_guidance * (toward - empty)
        return Points(seen.latents, seen.levels, told, targets)
