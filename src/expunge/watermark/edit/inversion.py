"""Find the noise a picture would be drawn from, and draw it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.backbone.sampling import follow, invert, levels_below
from expunge.backbone.solvers import solver_named
from expunge.watermark.edit.base import Subject
from expunge.watermark.edit.redraw import (
    PromptSource,
    Redraw,
    check_level,
    check_steps,
    conditioning_of,
)


@dataclass(frozen=True)
class Inversion(Redraw):
    """Invert to a noise level with the empty prompt, then sample from there.

    Source: Vanishing Watermarks, section 3 ("an image inversion followed by generation"); DDIM
    inversion is Song et al., ICLR 2021, section 4.3.

    Attributes:
        level: noise level that inversion climbs to.
        prompt: what the model is told on the way down.
        guidance_scale: on the way down, 1 for none.
        solver: how a step up is taken, `euler` (DDIM inversion on ε-models), `midpoint` or
            `fixed_point`.
        num_inference_steps: of a whole run; a level takes its share.
    """

    name: ClassVar[str] = "inversion"
    unit: ClassVar[str] = "noise level"
    level: float = 1.0
    prompt: PromptSource = "empty"
    guidance_scale: float = 1.0
    solver: str = "euler"
    num_inference_steps: int = 50

    def __post_init__(self) -> None:
        check_level(self.name, self.level)
        check_steps(self.num_inference_steps)
        solver_named(self.solver)

    def redraw(self, backbone: Backbone, latents: Tensor, subject: Subject) -> Tensor:
        levels = levels_below(self.level, self.num_inference_steps)
        empty = conditioning_of(backbone, "empty", subject.captions)
        told = conditioning_of(backbone, self.prompt, subject.captions)
        up, down = backbone.guidance_for(empty, 1), backbone.guidance_for(told, self.guidance_scale)
        latents = invert(backbone, latents, up, levels, solver=solver_named(self.solver))
        return follow(backbone, latents, down, levels)
