"""EraseAnything (Gao et al., ICML 2025): erasing and keeping take turns on FLUX."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from expunge.concept import Concept
from expunge.concept_checks import several
from expunge.eraser.base import Result, check_names
from expunge.eraser.finetune import FineTuner, Students
from expunge.lazy import torch
from expunge.mentions import Mentions, occurrences
from expunge.minors import refuse_minors
from expunge.prompts import split_of
from expunge.run.objective import Loss, Objective, Step
from expunge.settings import check_counts, check_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.backbone.base import Backbone
    from expunge.change import Changes
    from expunge.eraser.points import Points


@dataclass(frozen=True)
class Lesson:
    """What one student learns from.

    Attributes:
        points: where it forgets, and what it shall predict there.
        names: the one that each point's prompt holds.
        alike: words the concept's attention shall not be like: its own names.
        irrelevant: words it shall be like.
        kept: prompts of pictures that stay.
        pictures: their clean latents, on the CPU.
    """

    points: Points
    names: list[str]
    alike: Sequence[str]
    irrelevant: Sequence[str]
    kept: Sequence[str]
    pictures: Tensor


@dataclass(frozen=True, kw_only=True)
class EraseAnything(FineTuner):
    """Low-rank changes of the queries and keys that text alone has, on models of joint attention.

    The lower level erases: ‖v_θ(x_t, c) − (v₀(a) − η[v₀(c) − v₀(a)])‖² + β ‖A_θ[:, c]‖, a the
    anchor's prompt and A the last two-stream block's attention to the concept's tokens. The upper
    level keeps: the flow-matching loss ‖v_θ − (noise − clean)‖² on pictures that stay, plus
    −log(Σ_irrelevant exp(s/τ) / Σ_all exp(s/τ)), s the cosine of the student's attention to the
    concept with the original's to single words: irrelevant ones, and the concept's names. `inner`
    steps of the lower level, then one of the upper, by the same optimiser; the upper level's
    gradient is taken where the lower one arrived, without second derivatives.

    Words of prompts change places, so that no order of them brings the concept back; half of the
    prompts name it by a synonym. Every target comes from the original; published code takes them
    from the model in training. Gradient checkpointing has to be off: attention maps carry the
    gradient. Each concept has a student of its own, in turns.

    Attributes:
        trajectories: sampling runs per concept, and pictures that stay.
        negative_guidance: η, how far past the anchor the target lies.
        quiet: β.
        contrast: weight of the contrastive loss.
        temperature: τ.
        words: at most so many names and so many irrelevant words are compared in a step.
        irrelevant: words that have nothing to do with the concept; where none are given, its
            neighbours and its anchor.
        inner: steps of the lower level for each of the upper one.
        shuffle: probability that a prompt's words change places; the name stays whole.
        swap: probability that a prompt has a synonym for the name, where there is one.
    """

    architectures: ClassVar[tuple[str, ...]] = ("sd3", "flux")

    steps: int = 300
    lr: float = 1e-3
    batch_size: int = 1
    rank: int = 8
    synonyms: bool = True
    trajectories: int = 32
    negative_guidance: float = 1.0
    quiet: float = 0.001
    contrast: float = 0.1
    temperature: float = 0.07
    words: int = 3
    irrelevant: tuple[str, ...] = ()
    inner: int = 1
    shuffle: float = 0.9
    swap: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "irrelevant", several("irrelevant", self.irrelevant))
        check_counts(self, "trajectories", "words", "inner", least=1)
        check_numbers(self, "negative_guidance", "quiet", "contrast", least=0)
        check_numbers(self, "temperature", above=0)
        check_numbers(self, "shuffle", "swap", least=0, most=1)

    def check(self, backbone: Backbone) -> None:
        super().check(backbone)
        if not backbone.text_projections():
            raise ValueError(
                "EraseAnything changes the projections that text alone has in joint attention "
                f"(FLUX, SD3), and {backbone.name} ({backbone.architecture}) has none; take "
                "another method, such as esd"
            )
        if getattr(backbone.denoiser, "gradient_checkpointing", False):
            raise ValueError(
                "EraseAnything trains through attention maps, which gradient checkpointing would "
                f"lose: call pipe.{backbone.denoiser_name}.disable_gradient_checkpointing() first"
            )

    def _run(self, backbone: Backbone, concepts: Sequence[Concept], folder: Path | None) -> Result:
        check_names(backbone, self.irrelevant)
        for concept in concepts:
            refuse_minors(concept.kind, self.irrelevant)
            named = [word for word in self.irrelevant if concept.mentions(word)]
            if named:
                raise ValueError(
                    f"irrelevant names {concept.name!r} itself ({named[0]!r}), and its attention "
                    "is led there; leave it out"
                )
        return super()._run(backbone, concepts, folder)

    def fresh(self, backbone: Backbone, concept: Concept, generator: torch.Generator) -> Changes:
        from expunge.change import LowRank

        return {
            f"{backbone.denoiser_name}/{name}": LowRank.fresh(layer, self.rank, generator)
            for name, layer in backbone.text_projections(("q", "k")).items()
        }

    def objective(self, backbone: Backbone, students: Students) -> Objective:
        from expunge.hooks import original

        gone = [student.concept for student in students.values()]
        with original():
            lessons = {n: self.lesson(backbone, s.concept, gone) for n, s in students.items()}
        return _Bilevel(self, backbone, lessons)

    def lesson(self, backbone: Backbone, concept: Concept, gone: Sequence[Concept]) -> Lesson:
        """Everything that comes from the original, which is asked once."""
        from expunge.eraser.points import Points, predictions, walk

        told, names, anchors = map(list, zip(*self.worded(concept), strict=True))
        sampling, seed = self.sampling(backbone), self.seed * 1000
        seen = walk(backbone, told, sampling, seed=seed)
        at, prompts = (seen.latents, seen.levels), seen.told(told)
        neutral = predictions(backbone, *at, seen.told(anchors))
        toward = predictions(backbone, *at, prompts)
        targets = neutral - self.negative_guidance * (toward - neutral)
        kept = self.others(concept, gone, self.trajectories)
        seeds = [(seed + 1) * 100_000 + i for i in range(len(kept))]
        size = sampling.batch_size
        pictures = [
            backbone.sample(kept[i : i + size], seeds[i : i + size], sampling).cpu()
            for i in range(0, len(kept), size)
        ]
        going = Mentions(name for each in gone for name in each.names)
        far = self.irrelevant or (*concept.neighbours, concept.anchor)
        words = [word for word in far if not going(word)] or [concept.anchor]
        points = Points(*at, prompts, targets)
        return Lesson(points, seen.told(names), concept.names, words, kept, torch.cat(pictures))

    def worded(self, concept: Concept) -> list[tuple[str, str, str]]:
        """Prompts as they are told, the name in each, and the anchor's; all of them for training.

        Raises:
            ValueError: words in another order would name a minor beside an explicit concept.
        """
        rng, found = random.Random(self.seed), []
        own = concept.training_pairs(self.trajectories, synonyms=False, plurals=self.plurals)
        names = concept.synonyms if self.synonyms else ()
        others = {n: concept.pairs("train", self.trajectories, n) for n in names}
        others = {name: pairs for name, pairs in others.items() if pairs}
        for text, anchor in own:
            name = concept.name
            if others and rng.random() < self.swap:
                name = rng.choice(list(others))
                text, anchor = rng.choice(others[name])
            if rng.random() < self.shuffle:
                text = shuffled(text, name, rng)
            found.append((text, name, anchor))
        refuse_minors(concept.kind, [text for text, _, _ in found])
        return found


def shuffled(text: str, name: str, rng: random.Random) -> str:
    """The words in another order that is a training prompt as well; the name stays whole."""
    start, stop = occurrences(text, name)[0]
    parts = [*text[:start].split(), text[start:stop], *text[stop:].split()]
    for _ in range(20):
        rng.shuffle(parts)
        if split_of(found := " ".join(parts)) == "train":
            return found
    return text


class _Bilevel(Objective):
    """Steps that erase and steps that keep, in turns; students take turns as well."""

    def __init__(
        self, method: EraseAnything, backbone: Backbone, lessons: Mapping[str, Lesson]
    ) -> None:
        self.method, self.backbone, self.lessons = method, backbone, lessons
        self.names = list(lessons)
        keys = backbone.text_projections(("k",))
        self.last = list(keys)[-1].rpartition(".")[0]

    def loss(self, step: Step, player: str) -> Loss:
        turn, index = divmod(step.number, len(self.names))
        if player != self.names[index]:
            return None
        erases = turn % (self.method.inner + 1) < self.method.inner
        return (self._lower if erases else self._upper)(self.lessons[player], step)

    def _lower(self, lesson: Lesson, step: Step) -> Loss:
        some, names = self._some(lesson, step)
        predicted, attention = self._attending(some.latents, some.levels, some.prompts, names)
        error = (predicted - some.targets.to(predicted)).float().square().mean()
        return {"erase": error, "quiet": self.method.quiet * attention.norm(dim=1).mean()}

    def _upper(self, lesson: Lesson, step: Step) -> Loss:
        method, backbone, size = self.method, self.backbone, self.method.batch_size
        index = torch.randint(len(lesson.kept), (size,), generator=step.generator)
        clean = lesson.pictures[index]
        noise = torch.randn(clean.shape, generator=step.generator).to(clean)
        levels = torch.rand(size, generator=step.generator, dtype=torch.float64)
        states = backbone.encode_prompts([lesson.kept[i] for i in index.tolist()])
        latents = backbone.add_noise(clean, noise, levels).to(backbone.device)
        velocity = (noise - clean).to(backbone.device)
        error = (backbone.predict(latents, levels, states) - velocity).float().square().mean()
        contrast = method.contrast * self._contrast(lesson, step) if method.contrast else None
        return {"keep": error} | ({} if contrast is None else {"contrast": contrast})

    def _contrast(self, lesson: Lesson, step: Step) -> Tensor:
        """How much the concept's attention is like that to its names, not to irrelevant words."""
        from expunge.hooks import original

        some, names = self._some(lesson, step)
        _, attention = self._attending(some.latents, some.levels, some.prompts, names)
        irrelevant, alike = self._drawn(lesson.irrelevant, step), self._drawn(lesson.alike, step)
        found = []
        for word in (*irrelevant, *alike):
            texts = [word] * len(names)
            with torch.no_grad(), original():
                _, other = self._attending(some.latents, some.levels, texts, texts)
            found.append(torch.nn.functional.cosine_similarity(attention, other, dim=1))
        return contrastive(torch.stack(found, dim=1), len(irrelevant), self.method.temperature)

    def _drawn(self, words: Sequence[str], step: Step) -> list[str]:
        order = torch.randperm(len(words), generator=step.generator)[: self.method.words]
        return [words[i] for i in order.tolist()]

    def _some(self, lesson: Lesson, step: Step) -> tuple[Points, list[str]]:
        count = len(lesson.names)
        index = torch.randint(count, (self.method.batch_size,), generator=step.generator)
        return lesson.points.pick(index), [lesson.names[i] for i in index.tolist()]

    def _attending(
        self, latents: Tensor, levels: Tensor, prompts: Sequence[str], names: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """Predictions, and attention to a name in each prompt, summed over its tokens, (n, places);
        the mean over the heads of the last block in which text has projections of its own."""
        from expunge.backbone.attention import AttentionMaps, token_places

        backbone = self.backbone
        places = [token_places(backbone, [p], n) for p, n in zip(prompts, names, strict=True)]
        with AttentionMaps(backbone.denoiser, only=self.last.__eq__) as maps:
            states = backbone.encode_prompts(prompts)
            predicted = backbone.predict(latents.to(backbone.device), levels, states)
        [found] = maps.layers.values()
        chosen = torch.cat(places).to(found)
        return predicted, torch.einsum("nhpt,nt->np", found, chosen) / found.shape[1]


def contrastive(likeness: Tensor, irrelevant: int, temperature: float) -> Tensor:
    """−log of the share that irrelevant words, the first columns of (n, words), have; a scalar."""
    logits = likeness / temperature
    return (logits.logsumexp(1) - logits[:, :irrelevant].logsumexp(1)).mean()
