"""FADE (Fu et al.): train against a network that tells whether the concept was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from expunge.concept import Concept
from expunge.eraser.base import Result
from expunge.eraser.finetune import FineTuner, Students
from expunge.lazy import torch
from expunge.settings import Form, check_choice, check_counts, check_numbers

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone
    from expunge.change import Changes
    from expunge.eraser.points import Points
    from expunge.run.objective import Objective, Player


@dataclass(frozen=True, kw_only=True)
class FADE(FineTuner):
    """Adversarial erasure: a discriminator D tells the concept in latents, the model hides it.

    D lowers −E[log D(x_c) + log(1 − D(x_¬c))] plus R1; the model lowers −E[log(1 − D(x_c))] plus
    λ ‖ε_θ(x_t, ¬c) − ε₀(x_t, ¬c)‖² at high noise (FADE, eq. 1). x_c and x_¬c end runs of the model
    itself from one noise, with prompts that differ in the concept alone. A run is followed without
    a graph down to a random noise level; the gradient goes through the last `tail` predictions.

    The paper trains until D fails, "once D cannot detect c". A D that fails here may be a weak one,
    so this trains for `steps`; `leakage` asks a fresh one.

    Attributes:
        preserve: λ, in units of the two gradients' norms, which the record holds.
        trajectories: runs of the original whose points are held still.
        preserve_from: lowest noise level at which they are; the paper's T₀ lies half way.
        from_level: highest noise level at which a run's last predictions begin.
        tail: K, how many of them keep a graph.
        salient: share of the weights that may change, those that the concept hangs on most.
        form: `low-rank` takes the most salient layers whole, `dense` single weights.
        discriminator_lr: AdamW's peak learning rate for D.
        momentum: the first of AdamW's betas for D.
        r1: γ, weight of D's squared gradient by the latents, on both kinds of them.
        spectral: bound D by spectral norms.
        told: whether D is told the prompt without the concept.
        head_start: steps of each concept in which D learns alone.
        refill: pairs that are drawn afresh at a time; twice as many are kept.
        refill_every: steps of a concept between two refills.
        leakage: whether to measure what a fresh discriminator still tells.
    """

    usual_guidance: ClassVar[float] = 2.0

    synonyms: bool = True
    preserve: float = 300.0
    trajectories: int = 64
    preserve_from: float = 0.5
    from_level: float = 0.5
    tail: int = 1
    salient: float = 0.5
    form: Form = "low-rank"
    discriminator_lr: float = 1e-4
    momentum: float = 0.5
    r1: float = 2.0
    spectral: bool = False
    told: bool = False
    head_start: int = 20
    refill: int = 12
    refill_every: int = 20
    leakage: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "trajectories", "tail", "refill", "refill_every", least=1)
        check_counts(self, "head_start")
        check_numbers(self, "preserve", "r1", least=0)
        check_numbers(self, "discriminator_lr", "from_level", "salient", above=0)
        check_numbers(self, "from_level", "salient", most=1)
        check_numbers(self, "preserve_from", "momentum", least=0, most=0.999)
        check_choice(self, form=Form)
        if self.batch_size > 2 * self.refill:
            raise ValueError(
                f"batch_size must be at most twice refill, the pairs that are kept, got "
                f"{self.batch_size} and refill {self.refill}"
            )

    def check(self, backbone: Backbone) -> None:
        from expunge.eraser.adversary import seen_levels

        super().check(backbone)
        seen_levels(backbone.levels(self.sampling(backbone)), self.from_level, self.tail)

    def _run(self, backbone: Backbone, concepts: Sequence[Concept], folder: Path | None) -> Result:
        if self.steps <= self.head_start * len(concepts):
            raise ValueError(
                f"steps must exceed head_start for each concept, got {self.steps} steps, "
                f"head_start {self.head_start} and {len(concepts)} concepts"
            )
        result = super()._run(backbone, concepts, folder)
        if self.leakage:
            from expunge.erasure import Erasure
            from expunge.leakage import leakage

            made = Erasure(result.parts, {})
            result.notes["leakage"] = {c.name: leakage(backbone, made, c) for c in concepts}
        return result

    def fresh(self, backbone: Backbone, concept: Concept, generator: torch.Generator) -> Changes:
        if self.salient == 1 and self.form == "low-rank":
            return super().fresh(backbone, concept, generator)
        from expunge.change import Dense, LowRank
        from expunge.eraser.saliency import saliency, salient_layers, salient_masks

        layers, start = backbone.select(self.attention), f"{backbone.denoiser_name}/"
        pairs = self.training_pairs(concept, self.batch_size)
        found = saliency(backbone, pairs, layers, self.sampling(backbone), seed=self.seed)
        if self.form == "dense":
            masks = salient_masks(found, self.salient)
            return {start + n: Dense.fresh(layers[n], mask) for n, mask in masks.items()}
        chosen = salient_layers(found, self.salient)
        return {start + n: LowRank.fresh(layers[n], self.rank, generator) for n in chosen}

    def objective(self, backbone: Backbone, students: Students) -> Objective:
        from expunge.eraser.adversary import Adversarial, Lesson

        gone = [student.concept for student in students.values()]
        lessons = {}
        for name, student in students.items():
            pairs = self.training_pairs(student.concept, self._pairs)
            kept = self._kept(backbone, student.concept, gone) if self.preserve else None
            lessons[name] = Lesson(pairs, kept)
        return Adversarial(self, backbone, lessons)

    @property
    def _pairs(self) -> int:
        """Distinct prompts that runs ask for: enough that no refill repeats another's."""
        return 10 * self.refill

    def _kept(self, backbone: Backbone, concept: Concept, gone: Sequence[Concept]) -> Points:
        """¬c: prompts with the anchor, and others that shall go on as before."""
        from expunge.eraser.points import Points, predictions, walk
        from expunge.hooks import original

        half = self.trajectories // 2
        pairs = concept.training_pairs(self.trajectories - half, synonyms=False)
        anchors = [text for _, text in pairs if not any(c.mentions(text) for c in gone)]
        prompts = [*anchors, *self.others(concept, gone, half)]
        with original():
            seen = walk(backbone, prompts, self.sampling(backbone), seed=self.seed * 1000 + 1)
            seen = seen.above(self.preserve_from)
            told = seen.told(prompts)
            with backbone.exact():
                targets = predictions(backbone, seen.latents, seen.levels, told)
        return Points(seen.latents, seen.levels, told, targets)

    def players(self, students: Students, objective: Objective) -> dict[str, Player]:
        from expunge.eraser.adversary import DISCRIMINATOR, Adversarial
        from expunge.run.objective import Player

        assert isinstance(objective, Adversarial) and DISCRIMINATOR not in students
        betas = (self.momentum, 0.99)
        tells = Player(objective.discriminator, self.discriminator_lr, betas, clip=None)
        return {DISCRIMINATOR: tells, **super().players(students, objective)}
