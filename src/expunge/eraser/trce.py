"""TRCE (Chen et al., ICCV 2025): redirect the end of the text, then steer early predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from expunge.concept import Concept
from expunge.eraser.base import Result
from expunge.eraser.closed import request, solved
from expunge.eraser.matching import Matcher
from expunge.lazy import torch
from expunge.settings import (
    Branch,
    Form,
    Hold,
    TokenChoice,
    check_choice,
    check_counts,
    check_numbers,
)

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.backbone.base import Backbone
    from expunge.change import Changes
    from expunge.eraser.points import Points
    from expunge.request import Request


@dataclass(frozen=True, kw_only=True)
class TRCE(Matcher):
    """Textual semantic erasure, then steering of the denoising trajectory.

    Stage 1 sends the end-of-text embedding of prompts with the concept to that of the same prompts
    with the anchor, in closed form in every layer that reads text. The end gathers what a causal
    text encoder read, so a prompt loses the concept and keeps its other words. The paper's concepts
    are 20 words with 15 prompts each: the concept's name and synonyms here. States behind the end
    carry the concept too, and T5's end gathers little; `tokens="suffix"` sends all of them.

    Stage 2 trains the picture's attention to itself and the queries of its attention to text, at
    high noise, where layout is decided: max(0, ‖ε_θ(c) − ε₀(a)‖² − ‖ε_θ(c) − ε₀(c)‖² + m), nearer
    to the anchor's prediction than to the concept's by a margin, beside ‖ε_θ − ε₀‖² for kept
    prompts. Squares are means over a latent. Where the two predictions differ by less than m, the
    student is sent past the anchor's.

    Attributes:
        refine: run stage 1.
        tune: run stage 2.
        prompts: of each name, for stage 1.
        tokens: which embeddings stage 1 redirects.
        ridge: λ of its solve.
        preserved: prompts whose embeddings it holds still.
        hold: what of them stays.
        above: lowest noise level at which stage 2 steers and preserves.
        margin: m.
        form: of stage 2's changes: `dense` as in the paper, or `low-rank`, which wants an `lr` some
            hundred times higher.
        attention: what stage 2 trains beside the queries.
    """

    to_anchor: ClassVar[bool] = True

    steps: int = 900
    lr: float = 1e-6
    batch_size: int = 1
    attention: Branch = "self"
    synonyms: bool = True
    refine: bool = True
    tune: bool = True
    prompts: int = 15
    tokens: TokenChoice = "end"
    ridge: float = 0.1
    preserved: int = 40
    hold: Hold = "states"
    above: float = 0.6
    margin: float = 0.01
    form: Form = "dense"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.refine or self.tune):
            raise ValueError("refine and tune are both off, so nothing would be erased")
        check_counts(self, "prompts", "preserved")
        check_numbers(self, "ridge", "margin", least=0)
        check_numbers(self, "above", least=0, most=1)
        check_choice(self, tokens=TokenChoice, hold=Hold, form=Form)

    def check(self, backbone: Backbone) -> None:
        super().check(backbone)
        highest = backbone.levels(self.sampling(backbone))[0]
        if self.tune and self.above > highest:
            raise ValueError(
                f"above is {self.above:g}, and a run begins at noise level {highest:.3g}, so "
                "nothing would be steered; lower it"
            )

    def _run(self, backbone: Backbone, concepts: Sequence[Concept], folder: Path | None) -> Result:
        if self.tune:
            return super()._run(backbone, concepts, folder)
        return solved(backbone, concepts, {c.name: self._request(c) for c in concepts})

    def closed_form(self, concept: Concept) -> Request | None:
        return self._request(concept) if self.refine else None

    def _request(self, concept: Concept) -> Request:
        from expunge.closed_form import Ridge

        return request(concept, Ridge(self.ridge), self)

    def fresh(self, backbone: Backbone, concept: Concept, generator: torch.Generator) -> Changes:
        from expunge.change import Dense, LowRank

        layers = backbone.select(self.attention) | backbone.select("cross", ("q",))
        dense, start = self.form == "dense", f"{backbone.denoiser_name}/"
        return {
            start + n: Dense.fresh(x) if dense else LowRank.fresh(x, self.rank, generator)
            for n, x in layers.items()
        }

    def points(self, backbone: Backbone, concept: Concept) -> Points:
        """At high noise on the way to the concept: toward the anchor's prediction, not its own."""
        from expunge.eraser.points import Points, predictions, walk

        prompts, anchors = zip(*self.training_pairs(concept, self.trajectories), strict=True)
        seen = walk(backbone, prompts, self.sampling(backbone), seed=self.seed * 1000)
        seen = seen.above(self.above)
        told, at = seen.told(prompts), (seen.latents, seen.levels)
        safe = predictions(backbone, *at, seen.told(anchors))
        return Points(*at, told, safe, predictions(backbone, *at, told))

    def kept_points(self, backbone: Backbone, concept: Concept, gone: Sequence[Concept]) -> Points:
        return super().kept_points(backbone, concept, gone).above(self.above)

    def erase_error(self, predicted: Tensor, points: Points) -> Tensor:
        from expunge.eraser.matching import distances

        assert points.away is not None
        near, far = (distances(predicted, each) for each in (points.targets, points.away))
        return (near - far + self.margin).clamp(min=0)
