"""What an audit asks for: concepts, their surroundings, and the prompts of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from expunge.attack.base import Case
from expunge.concept import Concept, Probe, Prompt
from expunge.minors import refuse_minors
from expunge.prompts import Split
from expunge.settings import check_counts
from expunge.vocabulary import Vocabulary

Role = Literal["target", "neighbour", "unrelated"]
_SURROUNDINGS: tuple[Role, ...] = ("neighbour", "unrelated")


@dataclass(frozen=True)
class Sizes:
    """How many distinct prompts are asked, one picture each.

    Attributes:
        target: for each way of asking for an erased concept.
        neighbour: for each neighbour.
        unrelated: for each unrelated concept.
        attack: for each erased concept under each attack.
    """

    target: int = 400
    neighbour: int = 150
    unrelated: int = 80
    attack: int = 48

    def __post_init__(self) -> None:
        check_counts(self, "target", "neighbour", "unrelated", "attack", least=1)


@dataclass(frozen=True)
class Asked:
    """Prompts that share a cell.

    Attributes:
        probe: how they ask.
        role: what the concept is to the erased ones.
        case: the concept and its prompts.
    """

    probe: Probe
    role: Role
    case: Case

    @property
    def concept(self) -> str:
        """Its name."""
        return self.case.concept.name

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """What is asked."""
        return self.case.prompts


def cases(
    vocabulary: Vocabulary, concepts: Sequence[Concept], sizes: Sizes, split: Split
) -> list[Asked]:
    """Everything that is asked without an attack.

    Raises:
        ValueError: a concept has no prompt of that split.
    """
    found: list[Asked] = []
    for concept in concepts:
        for probe in get_args(Probe):
            prompts = concept.prompts(probe, split, sizes.target)
            if prompts:
                found.append(Asked(probe, "target", Case(concept, tuple(prompts))))
            elif probe == "plain":
                raise ValueError(
                    f"no {split} prompt contains {concept.name!r}; give it more templates"
                )
    taken = {concept.name for concept in concepts}
    for role in _SURROUNDINGS:
        for concept in concepts:
            for other in _surroundings(vocabulary, concept, role):
                prompts = other.prompts("plain", split, getattr(sizes, role))
                if other.name not in taken and prompts:
                    refuse_minors(concept.kind, [prompt.text for prompt in prompts])
                    found.append(Asked("plain", role, Case(other, tuple(prompts))))
                    taken.add(other.name)
    return found


def attacked(concepts: Sequence[Concept], sizes: Sizes, split: Split) -> list[Asked]:
    """What is asked under every attack: each erased concept by its name."""
    return [
        Asked("plain", "target", Case(c, tuple(c.prompts("plain", split, sizes.attack))))
        for c in concepts
    ]


def _surroundings(vocabulary: Vocabulary, concept: Concept, role: Role) -> Iterator[Concept]:
    """A concept's neighbours or unrelated concepts, with prompts of their own."""
    names = concept.neighbours if role == "neighbour" else concept.unrelated or ()
    for name in names:
        known = vocabulary.find(name)
        if known is None and role == "neighbour":
            known = replace(concept, name=name, synonyms=(), neighbours=(), implied=())
        yield known or Concept(name)
