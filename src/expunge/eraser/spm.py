"""SPM (Lyu et al., CVPR 2024): one-dimensional adapters that act as far as the prompt asks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from expunge.concept import Concept
from expunge.eraser.finetune import FineTuner, Students
from expunge.lazy import torch
from expunge.run.objective import Loss, Objective, Step
from expunge.settings import Branch, check_counts, check_numbers

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone
    from expunge.backbone.conditioning import Conditioning
    from expunge.eraser.points import Points
    from expunge.gate import Gate


@dataclass(frozen=True, kw_only=True)
class SPM(FineTuner):
    """Semi-permeable membranes: rank 1 on every linear layer and convolution of the transformers.

    L = ‖ε_θ(x_t, c) − (ε₀(s) − η[ε₀(c) − ε₀(s)])‖² + λ ‖ε_θ(x_t, a) − ε₀(x_t, a)‖² (SPM, eq. 5 to
    7), s the anchor. What is kept are no prompts but random directions a in the space of the text
    states, with norms of 0.8 to 1.2 of the concept's, taken with probability 1 − cos(c, a). At
    inference the strength is max(cos(prompt, c), share of c's tokens in the prompt).

    Attributes:
        trajectories: sampling runs per concept that training points are taken from.
        negative_guidance: η, how far past the anchor the target lies.
        keep: λ.
        permeable: scale the strength by the prompt afterwards; the paper's. Without it the changes
            are an ordinary LoRA.
    """

    exports: ClassVar[tuple[str, ...]] = ()

    steps: int = 3000
    batch_size: int = 1
    rank: int = 1
    attention: Branch = "transformer"
    trajectories: int = 32
    negative_guidance: float = 1.0
    keep: float = 1000.0
    permeable: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "trajectories", least=1)
        check_numbers(self, "negative_guidance")
        check_numbers(self, "keep", least=0)

    def gate(self, backbone: Backbone, concept: Concept) -> Gate | None:
        from expunge.prompt_gate import PromptGate

        names = concept.names if self.synonyms else (concept.name,)
        return PromptGate.of(backbone, names) if self.permeable else None

    def objective(self, backbone: Backbone, students: Students) -> Objective:
        from expunge.hooks import original

        with original():
            points = {n: self.points(backbone, s.concept) for n, s in students.items()}
        return _Membranes(self, backbone, points)

    def points(self, backbone: Backbone, concept: Concept) -> Points:
        """On the way to pictures of the concept, where the target lies past the anchor's."""
        from expunge.eraser.points import Points, predictions, walk

        pairs = self.training_pairs(concept, self.trajectories)
        prompts, anchors = [p for p, _ in pairs], [a for _, a in pairs]
        seen = walk(backbone, prompts, self.sampling(backbone), seed=self.seed * 1000)
        told = seen.told(prompts)
        toward = predictions(backbone, seen.latents, seen.levels, told)
        anchor = predictions(backbone, seen.latents, seen.levels, seen.told(anchors))
        targets = anchor - self.negative_guidance * (toward - anchor)
        return Points(seen.latents, seen.levels, told, targets)


class _Membranes(Objective):
    """Erase at points on trajectories, keep at random texts. Students take turns."""

    def __init__(self, method: SPM, backbone: Backbone, points: Mapping[str, Points]) -> None:
        self.method, self.backbone, self.points = method, backbone, points
        self.names = list(points)

    def loss(self, step: Step, player: str) -> Loss:
        if player != self.names[step.number % len(self.names)]:
            return None
        from expunge.backbone.conditioning import Conditioning
        from expunge.hooks import original

        backbone, size = self.backbone, self.method.batch_size
        some = self.points[player].sample(size, step.generator)
        latents = some.latents.to(backbone.device)
        asked = backbone.encode_prompts(some.prompts)
        others = _random_texts(asked, step.generator)
        with torch.no_grad(), original():
            kept = backbone.predict(latents, some.levels, others)
        predicted = backbone.predict(
            torch.cat([latents, latents]),
            torch.cat([some.levels, some.levels]),
            Conditioning.cat([asked, others]),
        )
        wanted = torch.cat([some.targets.to(latents), kept])
        errors = (predicted - wanted).float().square().flatten(1).mean(1)
        return {"erase": errors[:size].mean(), "keep": self.method.keep * errors[size:].mean()}


def _random_texts(asked: Conditioning, generator: torch.Generator) -> Conditioning:
    """States in random directions, each taken with a probability that falls with its likeness."""
    from expunge.backbone.conditioning import Conditioning

    pooled = None if asked.pooled is None else _random_like(asked.pooled, generator)
    return Conditioning(_random_like(asked.prompt_embeds, generator), pooled)


def _random_like(states: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    rows = []
    for own in states.float().cpu():
        while True:
            found = torch.randn(own.shape, generator=generator)
            likeness = torch.nn.functional.cosine_similarity(found.flatten(), own.flatten(), dim=0)
            if float(torch.rand((), generator=generator)) <= 1 - float(likeness):
                break
        scale = 0.8 + 0.4 * torch.rand((), generator=generator)
        # Every token's state keeps the size that states have.
        sizes = own.norm(dim=-1, keepdim=True)
        rows.append(found / found.norm(dim=-1, keepdim=True) * sizes * scale)
    return torch.stack(rows).to(states)
