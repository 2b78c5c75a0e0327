"""Receler (Huang et al., ECCV 2024): bottlenecks behind cross-attention, trained on attacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from expunge.concept import Concept
from expunge.eraser.finetune import FineTuner, Student, Students
from expunge.lazy import torch
from expunge.run.objective import Loss, Objective, Step
from expunge.settings import check_counts, check_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.backbone.base import Backbone
    from expunge.backbone.conditioning import Conditioning
    from expunge.change import Changes
    from expunge.eraser.points import Points

FREE = "<adversary>"
"""The word that stands for the adversary's free embeddings."""


@dataclass(frozen=True, kw_only=True)
class Receler(FineTuner):
    """Reliable erasing: E(x) behind every cross-attention, trained against an adversary.

    In every step free embeddings, placed after the prompt, are moved until the erased model given
    them predicts what the original predicts for the concept; then E learns to predict for them
    ε₀(∅) − η[ε₀(c) − ε₀(∅)] (Receler, eq. 3 and 5), and to add nothing outside of where the
    original's attention to the concept lies (eq. 4). E is no change of a weight: it is applied by
    Expunge alone.

    Attributes:
        trajectories: sampling runs per concept that training points are taken from.
        hidden: width of a bottleneck.
        negative_guidance: η.
        inner_steps: of the adversary, in every step; 0 for none.
        inner_lr: of its Adam.
        vectors: free embeddings.
        local: weight of what E adds outside the concept's mask.
        mask_threshold: of the original's attention map, as a share of its largest value.
    """

    exports: ClassVar[tuple[str, ...]] = ()

    steps: int = 500
    lr: float = 3e-4
    batch_size: int = 1
    trajectories: int = 32
    hidden: int = 128
    negative_guidance: float = 1.0
    inner_steps: int = 50
    inner_lr: float = 0.1
    vectors: int = 16
    local: float = 0.1
    mask_threshold: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "trajectories", "hidden", "vectors", least=1)
        check_counts(self, "inner_steps")
        check_numbers(self, "inner_lr", above=0)
        check_numbers(self, "local", "negative_guidance", least=0)
        check_numbers(self, "mask_threshold", least=0, most=1)

    def fresh(self, backbone: Backbone, concept: Concept, generator: torch.Generator) -> Changes:
        from expunge.change import Bottleneck

        found = {}
        for name, module in backbone.attention_modules("cross").items():
            width = _width(module)
            place = f"{backbone.denoiser_name}/{name}"
            found[place] = Bottleneck.fresh(width, self.hidden, generator)
        return found

    def objective(self, backbone: Backbone, students: Students) -> Objective:
        from expunge.hooks import original

        with original():
            points = {n: self.points(backbone, s.concept) for n, s in students.items()}
        return _Robust(self, backbone, students, points)

    def points(self, backbone: Backbone, concept: Concept) -> Points:
        """On the way to pictures of the concept; targets lead away from it."""
        from expunge.eraser.points import Points, predictions, walk

        prompts = [p for p, _ in self.training_pairs(concept, self.trajectories)]
        seen = walk(backbone, prompts, self.sampling(backbone), seed=self.seed * 1000)
        told = seen.told(prompts)
        toward = predictions(backbone, seen.latents, seen.levels, told)
        empty = predictions(backbone, seen.latents, seen.levels, None)
        targets = empty - self.negative_guidance * (toward - empty)
        return Points(seen.latents, seen.levels, told, targets)


def _width(module: torch.nn.Module) -> int:
    """Features that an attention layer puts out."""
    out: Any = getattr(module, "to_out", None)
    layer: Any = out[0] if out is not None else module.to_q
    return int(layer.out_features)


def _free(backbone: Backbone, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random vectors for every text encoder, as large as its words', (count, width) each."""
    found = {}
    for name, encoder in backbone.text_encoders.items():
        words: Any = encoder.get_input_embeddings()  # type: ignore[operator]
        shape, size = (count, words.weight.shape[1]), words.weight.float().std()
        drawn = torch.randn(shape, generator=generator).to(backbone.device) * size
        found[name] = drawn.requires_grad_()
    return found


class _Robust(Objective):
    """Erase what an adversary finds, and nothing elsewhere. Students take turns."""

    def __init__(
        self,
        method: Receler,
        backbone: Backbone,
        students: Students,
        points: Mapping[str, Points],
    ) -> None:
        self.method, self.backbone, self.points = method, backbone, points
        self.students, self.names = students, list(students)

    def loss(self, step: Step, player: str) -> Loss:
        if player != self.names[step.number % len(self.names)]:
            return None
        backbone, method, student = self.backbone, self.method, self.students[player]
        some = self.points[player].sample(method.batch_size, step.generator)
        latents = some.latents.to(backbone.device)
        told = self._attacked(latents, some, step)
        added: list[Tensor] = []
        watching = [
            change.register_forward_hook(lambda _, __, output: added.append(output))
            for change in student.changes.values()
        ]
        try:
            predicted = backbone.predict(latents, some.levels, told)
        finally:
            for handle in watching:
                handle.remove()
        error = (predicted - some.targets.to(latents)).float().square().mean()
        outside, words = self._outside(latents, some, student), told.prompt_embeds.shape[1]
        elsewhere = torch.stack([_where(each, outside, words).square().mean() for each in added])
        return {"erase": error, "local": method.local * elsewhere.mean()}

    def _attacked(self, latents: Tensor, some: Points, step: Step) -> Conditioning:
        """The prompts with what an adversary puts after them to bring the concept back."""
        from expunge.hooks import original

        backbone, method = self.backbone, self.method
        if not method.inner_steps:
            return backbone.encode_prompts(some.prompts)
        prompts = [f"{text} {FREE}" for text in some.prompts]
        with torch.no_grad(), original():
            wanted = backbone.predict(latents, some.levels, backbone.encode_prompts(some.prompts))
        free = _free(backbone, method.vectors, step.generator)
        optimizer = torch.optim.Adam(list(free.values()), lr=method.inner_lr)
        for _ in range(method.inner_steps):
            states = backbone.encode(prompts, {FREE: free}, grad=True)
            gap = (backbone.predict(latents, some.levels, states) - wanted).float().square().mean()
            for vectors, grad in zip(
                free.values(), torch.autograd.grad(gap, list(free.values())), strict=True
            ):
                vectors.grad = grad
            optimizer.step()
        fixed = {encoder: vectors.detach() for encoder, vectors in free.items()}
        return backbone.encode(prompts, {FREE: fixed})

    def _outside(self, latents: Tensor, some: Points, student: Student) -> Tensor:
        """1 where the original does not attend to the concept, (n, 1, height, width)."""
        from expunge.backbone.attention import attention_to
        from expunge.hooks import original

        names = [n for n in student.concept.names if all(n in text for text in some.prompts)]
        if not names:  # names of several prompts differ: nothing is called outside
            return torch.zeros_like(latents[:, :1])
        with torch.no_grad(), original():
            maps = attention_to(self.backbone, latents, some.levels, some.prompts, names[0])
        largest = maps.flatten(1).amax(1).view(-1, 1, 1)
        return (maps < self.method.mask_threshold * largest).to(latents.dtype)[:, None]


def _where(added: Tensor, outside: Tensor, words: int) -> Tensor:
    """What a bottleneck adds outside, (n, places, width)."""
    from expunge.backbone.attention import grid

    if added.shape[1] > outside[0].numel():  # FLUX's single blocks: text and picture as one
        added = added[:, words:]
    rows, columns = grid(added.shape[1], *outside.shape[-2:])
    mask = torch.nn.functional.interpolate(outside.float(), (rows, columns), mode="nearest")
    return added.float() * mask.flatten(2).mT
