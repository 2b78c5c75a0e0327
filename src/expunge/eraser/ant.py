"""ANT (Li et al., ACM MM 2025): follow the concept at first, then turn the trajectory away."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.concept import Concept
from expunge.eraser.finetune import FineTuner, Students
from expunge.lazy import torch
from expunge.run.objective import Loss, Objective, Step
from expunge.settings import Branch, Form, check_choice, check_counts, check_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.backbone.base import Backbone
    from expunge.change import Changes
    from expunge.eraser.points import Points


@dataclass(frozen=True, kw_only=True)
class ANT(FineTuner):
    """Auto-steering trajectories: guidance to the concept early, away from it late.

    L = α₁ ‖ε_θ(c) − (ε₀(∅) + η[ε₀(c) − ε₀(∅)])‖² in the first steps of a run, 7 of 50, and
    ‖ε_θ(c) − (ε₀(∅) − η[ε₀(c) − ε₀(∅)])‖² in all others, plus α₂ ‖ε_θ(∅) − ε₀(∅)‖² in both, at x_t
    on the original's runs for c: layout is left to the concept, so the picture stays a likely one,
    and what would show it is not drawn. All layers change, where a mask allows: weights in the top
    half of their tensor by the gradient of ‖ε₀(c) − ε₀(∅)‖², by several seeds and wordings alike.

    The published code gives the term in ∅ no gradient and its mask keeps the lowest half; this is
    as the paper says. For several concepts the paper trains a LoRA of rank 64 each
    (`form="low-rank"`) and fuses them by MACE's closed form; here each concept's changes lie side
    by side, switched apart, and add up. `dense` trains and keeps as many numbers as all layers
    have, with AdamW four times that in float32: 14 GB for Stable Diffusion 1.5.

    Attributes:
        trajectories: sampling runs per concept that training points are taken from.
        follow: share of a run's steps, its first ones, that follow the concept.
        negative_guidance: η.
        follow_weight: α₁.
        hold: α₂.
        form: `dense` changes of the weights that the mask allows, `low-rank` ones of whole layers.
        maps: pairs of a seed and a wording, each of which has to call a weight salient.
        salient: share of every tensor that one of them calls so.
    """

    steps: int = 250
    lr: float = 5e-4
    batch_size: int = 1
    rank: int = 64
    attention: Branch = "all"
    trajectories: int = 32
    follow: float = 0.14
    negative_guidance: float = 1.0
    follow_weight: float = 1.0
    hold: float = 0.5
    form: Form = "dense"
    maps: int = 4
    salient: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "trajectories", "maps", least=1)
        check_numbers(self, "follow", "negative_guidance", "follow_weight", "hold", least=0)
        check_numbers(self, "salient", above=0, most=1)
        check_choice(self, form=Form)

    def check(self, backbone: Backbone) -> None:
        super().check(backbone)
        self.turn(backbone)

    def turn(self, backbone: Backbone) -> float:
        """The noise level from which down a run is turned away.

        Raises:
            ValueError: no step is left to turn in.
        """
        path = backbone.levels(self.sampling(backbone))[:-1]
        first = math.ceil(self.follow * len(path) - 1e-9)
        if first >= len(path):
            raise ValueError(
                f"follow is {self.follow:g}, so all {len(path)} steps of a run would follow the "
                "concept and none lead away; lower it"
            )
        return path[first]

    def fresh(self, backbone: Backbone, concept: Concept, generator: torch.Generator) -> Changes:
        if self.form == "low-rank":
            return super().fresh(backbone, concept, generator)
        from expunge.change import Dense
        from expunge.eraser.saliency import agreed_masks, saliency

        layers, start = backbone.select(self.attention), f"{backbone.denoiser_name}/"
        sampling, pairs = self.sampling(backbone), self.training_pairs(concept, self.maps)
        found = (
            saliency(backbone, [(pairs[i % len(pairs)][0], "")], layers, sampling, seed=seed)
            for i, seed in enumerate(range(self.seed * 1000, self.seed * 1000 + self.maps))
        )
        masks = agreed_masks(found, self.salient)
        return {start + name: Dense.fresh(layers[name], mask) for name, mask in masks.items()}

    def objective(self, backbone: Backbone, students: Students) -> Objective:
        from expunge.hooks import original

        with original():
            lessons = {n: self.lesson(backbone, s.concept) for n, s in students.items()}
        return _Steering(self, backbone, lessons)

    def lesson(self, backbone: Backbone, concept: Concept) -> tuple[Points, Tensor]:
        """Points on the way to the concept with their targets, and what ∅ gets at each of them."""
        from expunge.eraser.points import Points, predictions, walk

        prompts = [text for text, _ in self.training_pairs(concept, self.trajectories)]
        seen = walk(backbone, prompts, self.sampling(backbone), seed=self.seed * 1000)
        told = seen.told(prompts)
        toward = predictions(backbone, seen.latents, seen.levels, told)
        empty = predictions(backbone, seen.latents, seen.levels, None)
        sign = torch.where(seen.levels > self.turn(backbone), 1.0, -1.0)
        scale = (self.negative_guidance * sign).to(empty).view(-1, *(1,) * (empty.ndim - 1))
        return Points(seen.latents, seen.levels, told, empty + scale * (toward - empty)), empty


class _Steering(Objective):
    """Steer what the prompt gets, hold what the empty one gets, at the same points, in turns."""

    def __init__(
        self, method: ANT, backbone: Backbone, lessons: Mapping[str, tuple[Points, Tensor]]
    ) -> None:
        self.method, self.backbone, self.lessons = method, backbone, lessons
        self.names, self.turn = list(lessons), method.turn(backbone)

    def loss(self, step: Step, player: str) -> Loss:
        if player != self.names[step.number % len(self.names)]:
            return None
        from expunge.backbone.conditioning import Conditioning

        backbone, size = self.backbone, self.method.batch_size
        points, empty = self.lessons[player]
        index = torch.randint(len(points.prompts), (size,), generator=step.generator)
        some = points.pick(index)
        asked, nothing = backbone.encode_prompts(some.prompts), backbone.unconditional()
        predicted = backbone.predict(
            torch.cat([some.latents, some.latents]).to(backbone.device),
            torch.cat([some.levels, some.levels]),
            Conditioning.cat([asked, nothing.repeat(size)]),
        )
        wanted = torch.cat([some.targets, empty[index]]).to(backbone.device)
        errors = (predicted - wanted).float().square().flatten(1).mean(1)
        weight = torch.where(some.levels > self.turn, self.method.follow_weight, 1.0).to(errors)
        return {
            "steer": (weight * errors[:size]).mean(),
            "hold": self.method.hold * errors[size:].mean(),
        }
