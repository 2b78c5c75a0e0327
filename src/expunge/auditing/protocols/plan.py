"""What a bench will do, laid out and checked before any of it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge import names
from expunge.attack.base import Case
from expunge.auditing.cases import Asked
from expunge.auditing.flags import FRECHET_IMAGES
from expunge.auditing.jobs import Draw, Score, batches
from expunge.auditing.protocols.base import Domain
from expunge.auditing.protocols.jobs import Align, Describe, Erase
from expunge.backbone.base import Backbone
from expunge.backbone.profile import Sampling
from expunge.concept import Concept, Probe, Prompt
from expunge.condition import Condition, erased, original
from expunge.eraser.base import check_concepts, check_readable
from expunge.judge.base import Features, Judge
from expunge.mentions import occurrences
from expunge.miniature import references
from expunge.minors import refuse_minors
from expunge.presets import Choice, choose
from expunge.prompts import Split
from expunge.run.jobs import Job
from expunge.run.store import Store

ORIGINAL = "original"
SPLIT: Split = "test"


@dataclass(frozen=True)
class Batch:
    """One batch: its drawing, and what is made of its pictures."""

    draw: Draw
    scores: Mapping[str, Score]
    aligned: Align | None
    bare: Align | None
    described: Describe | None

    @property
    def jobs(self) -> list[Job]:
        """All of it."""
        more = [job for job in (self.aligned, self.bare, self.described) if job is not None]
        return [self.draw, *self.scores.values(), *more]


Drawn = list[tuple[Asked, list[Batch]]]
"""Everything asked of one model with one erased concept in mind."""


@dataclass(frozen=True)
class Plan:
    """Everything a bench will do.

    Attributes:
        backbone: the model.
        domain: the protocol.
        methods: label -> eraser with the preset it starts from.
        asked: erased concept -> what is asked of it and of all else.
        sampling: how pictures are drawn.
        judge: says what they show.
        clip: says how well they fit a text; None for nothing.
        erasing: every method with every concept.
        proposals: attempts of attacks; a bench makes none.
    """

    backbone: Backbone
    domain: Domain
    methods: Mapping[str, Choice]
    asked: Mapping[str, Sequence[Asked]]
    sampling: Sampling
    judge: Judge
    clip: Judge | None
    erasing: Sequence[Erase]
    proposals: Sequence[object] = ()

    def before(self, concept: str) -> Drawn:
        """What the original is asked."""
        return self._drawn(concept, original())

    def after(self, erase: Erase) -> Drawn:
        """What an erased model is asked; the erasure must be there."""
        return self._drawn(erase.concept.name, erased(erase.erasure()))

    def others(self, concept: str) -> list[Asked]:
        """What is asked beside it."""
        return [each for each in self.asked[concept] if each.role != "target"]

    def referenced(self, concept: str) -> bool:
        """Whether a Fréchet distance from real pictures is measured."""
        enough = sum(len(each.prompts) for each in self.others(concept)) >= FRECHET_IMAGES
        return enough and self.has_references(concept) and isinstance(self.judge, Features)

    def has_references(self, concept: str) -> bool:
        """Whether there are real pictures of everything beside a concept."""
        world = (self.backbone.profile.judge or "").startswith("miniature")
        return world and all(references.known(each.concept) for each in self.others(concept))

    @property
    def pictures(self) -> int:
        """That are drawn, each once."""
        own = {draw.id: len(draw.prompts) for draw in self._originals()}
        each = {name: sum(len(a.prompts) for a in asked) for name, asked in self.asked.items()}
        return sum(own.values()) + sum(each[erase.concept.name] for erase in self.erasing)

    def left(self, store: Store) -> int:
        """Pictures that are not in the store yet.

        Raises:
            ValueError: a record or an erasure is damaged.
        """
        draws = self._originals()
        missing = 0
        for erase in self.erasing:
            if erase.done:
                draws += [b.draw for _, some in self.after(erase) for b in some]
            else:
                missing += sum(len(a.prompts) for a in self.asked[erase.concept.name])
        once = {draw.id: draw for draw in draws}.values()
        return missing + sum(len(d.prompts) for d in once if store.get(d.id) is None)

    def _originals(self) -> list[Draw]:
        return [b.draw for name in self.asked for _, some in self.before(name) for b in some]

    def _drawn(self, concept: str, condition: Condition) -> Drawn:
        return [
            (asked, list(self._batches(asked, condition, self.referenced(concept))))
            for asked in self.asked[concept]
        ]

    def _batches(self, asked: Asked, condition: Condition, described: bool) -> Iterator[Batch]:
        identity, record = self.backbone.identity(), self.judge.record()
        target, concept = asked.role == "target", asked.case.concept
        for first, prompts in batches(asked.prompts, self.sampling.batch_size):
            draw = Draw(identity, condition, prompts, self.sampling, first)
            scores = {
                name: Score(record, name, draw.id) for name in (concept.name, *self.domain.also)
            }
            yield Batch(
                draw,
                scores,
                self._align([prompt.text for prompt in prompts], draw),
                self._align([without(prompt, concept) for prompt in prompts], draw)
                if target and asked.probe == "plain"
                else None,
                Describe(record, draw.id) if described and not target else None,
            )

    def _align(self, texts: Sequence[str], draw: Draw) -> Align | None:
        if self.clip is None:
            return None
        record = self.clip.record()  # the hash says it all; where it lies is of no matter
        named = {key: record[key] for key in ("name", "version", "hash")}
        return Align(named, tuple(texts), draw.id)


def without(prompt: Prompt, concept: Concept) -> str:
    """A prompt's text without the concept's name."""
    text, rest = prompt.text, len(prompt.text)
    for start, end in reversed(occurrences(text, concept.name)):
        if end <= rest:  # a name within a longer form of it goes with that
            text, rest = f"{text[:start]} {text[end:]}", start
    return " ".join(text.split())


def plan(
    backbone: Backbone,
    domain: Domain,
    methods: Sequence[str],
    concepts: Sequence[Concept],
    *,
    prompts: int,
    sampling: Sampling,
    judge: Judge,
    clip: Judge | None,
    runs: Path,
    preset: bool = True,
) -> Plan:
    """Lay out a bench and check all of it before any heavy work.

    Args:
        backbone: the model.
        domain: the protocol.
        methods: names, with settings as in `esd:steps=200`.
        concepts: erased one after the other.
        prompts: distinct ones for each concept and way of asking.
        sampling: how pictures are drawn.
        judge: says what they show.
        clip: says how well they fit a text.
        runs: where erasures go.
        preset: start from what is tuned for the model.

    Raises:
        ValueError: a method, a concept, the judge or the model does not fit.
    """
    check_concepts(concepts)
    check_readable(backbone, concepts)
    original().check(backbone)
    asked = {c.name: _asked(backbone, domain, c, concepts, prompts) for c in concepts}
    looked = {each.concept for some in asked.values() for each in some} | {*domain.also}
    unknown = sorted(name for name in looked if not judge.knows(name))
    if unknown:
        raise ValueError(
            f"the judge {judge.name} does not know {', '.join(unknown)}; name another one (--judge)"
        )
    chosen = {text: chosen_method(backbone, text, concepts, preset) for text in methods}
    for choice in chosen.values():
        choice.eraser.check_fits(backbone)
    identity = backbone.identity()
    erasing = [
        Erase(identity, label, choice, concept, runs)
        for label, choice in chosen.items()
        for concept in concepts
    ]
    return Plan(backbone, domain, chosen, asked, sampling, judge, clip, erasing)


def chosen_method(
    backbone: Backbone, text: str, concepts: Sequence[Concept], preset: bool
) -> Choice:
    """The eraser that a text names, tuned for the model where something is."""
    found, given = names.parsed("eraser", text)
    if not preset:
        return Choice(found(**given), None)
    family = backbone.profile.preset or backbone.architecture
    return choose(family, found, concepts, given)


def _asked(
    backbone: Backbone, domain: Domain, concept: Concept, erased: Sequence[Concept], prompts: int
) -> list[Asked]:
    """An erased concept by its name and otherwise, and everything else of the domain.

    Raises:
        ValueError: no prompt names the concept, or there is nothing else.
    """
    probes: tuple[Probe, ...] = ("plain", "synonym", *(("implied",) if domain.implied else ()))
    found = []
    for probe in probes:
        own = concept.prompts(probe, SPLIT, prompts)
        if own:
            found.append(Asked(probe, "target", Case(concept, tuple(own))))
        elif probe == "plain":
            raise ValueError(f"no {SPLIT} prompt contains {concept.name!r}; give it more templates")
    for other in domain.others(backbone.profile.vocabulary, concept, erased):
        own = other.prompts("plain", SPLIT, prompts)
        refuse_minors(concept.kind, [prompt.text for prompt in own])
        if own:
            found.append(Asked("plain", "neighbour", Case(other, tuple(own))))
    return found


def method_record(choice: Choice) -> dict[str, Any]:
    """What a log says of a method."""
    from dataclasses import asdict

    eraser = choice.eraser
    return {
        "eraser": eraser.name,
        "hyperparameters": asdict(eraser),
        "preset": choice.preset,
    }
