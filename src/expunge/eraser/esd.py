"""Erased Stable Diffusion (Gandikota et al., 2023): train against the concept's own guidance."""

from __future__ import annotations

from dataclasses import dataclass

from expunge.backbone.base import Backbone
from expunge.backbone.layers import Branch
from expunge.concept import Concept
from expunge.eraser.finetune import FineTuner, Points


@dataclass(frozen=True, kw_only=True)
class ESD(FineTuner):
    """Predict, for the concept, what the original predicts away from it.

    L = ‖ε_θ(x_t, c) − (ε₀(∅) − η[ε₀(c) − ε₀(∅)])‖² (ESD, eq. 7), with x_t on the original's own
    sampling runs with prompt c. ESD-x is `attention="cross"`; ESD-u trains the rest, here
    `attention="self"`. The paper trains whole projections, this trains adapters of `rank`.

    Attributes:
        negative_guidance: η, how far past the empty prompt the target lies.
    """

    steps: int = 1000
    lr: float = 1e-4
    batch_size: int = 1
    attention: Branch = "cross"
    preserve: float = 0.0
    negative_guidance: float = 1.0

    def points(self, backbone: Backbone, concept: Concept) -> Points:
        prompts = [text for text, _ in self.training_pairs(concept)]
        latents, levels, owner = self.walk(backbone, prompts)
        asked = [prompts[i] for i in owner.tolist()]
        toward = self.predictions(backbone, latents, levels, asked)
        empty = self.predictions(backbone, latents, levels, None)
        return Points(latents, levels, asked, empty - self.negative_guidance * (toward - empty))
