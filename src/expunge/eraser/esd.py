"""Erased Stable Diffusion (Gandikota et al., 2023): train against the concept's own guidance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.concept import Concept
from expunge.eraser.matching import Matcher
from expunge.settings import Branch

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone
    from expunge.eraser.points import Points


@dataclass(frozen=True, kw_only=True)
class ESD(Matcher):
    """Predict, for the concept, what the original predicts away from it.

    L = ‖ε_θ(x_t, c) − (ε₀(∅) − η[ε₀(c) − ε₀(∅)])‖² (ESD, eq. 7), with x_t on the original's own
    sampling runs with prompt c. ESD-x is `attention="cross"`; ESD-u trains the rest, here
    `attention="self"`. The paper trains whole projections, this trains changes of `rank`.

    Attributes:
        negative_guidance: η, how far past the empty prompt the target lies.
    """

    batch_size: int = 1
    attention: Branch = "cross"
    preserve: float = 0.0
    negative_guidance: float = 1.0

    def points(self, backbone: Backbone, concept: Concept) -> Points:
        from expunge.eraser.points import Points, predictions, walk

        prompts = [text for text, _ in self.training_pairs(concept)]
        seen = walk(backbone, prompts, self.sampling(backbone), seed=self.seed * 1000)
        told = seen.told(prompts)
        toward = predictions(backbone, seen.latents, seen.levels, told)
        empty = predictions(backbone, seen.latents, seen.levels, None)
        targets = empty - self.negative_guidance * (toward - empty)
        return Points(seen.latents, seen.levels, told, targets)
