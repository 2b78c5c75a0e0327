"""What was seen in the pictures of one model, from which one concept was erased or none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.auditing.cases import Asked

Flags = NDArray[np.bool_]
Strata = dict[str, Flags]
"""What was asked, in a word -> an outcome for each of its prompts."""

OWN, BARE = "own prompts", "own prompts without the name"
"""Which text an erased concept's pictures are held against."""


@dataclass(frozen=True)
class Look:
    """Pictures of one concept, asked for in one way.

    Attributes:
        asked: how; its prompts are in the order of all else here.
        shown: what was looked for -> where it is.
        broken: where there is no proper picture.
        clip: 100 times the cosine of picture and prompt; None where nothing scores it.
        bare: the same, of the prompt without the concept's name; of erased concepts alone.
        features: one vector a picture, for a Fréchet distance; None where none is measured.
    """

    asked: Asked
    shown: Mapping[str, Flags]
    broken: Flags
    clip: NDArray[np.float64] | None = None
    bare: NDArray[np.float64] | None = None
    features: NDArray[np.float32] | None = None

    @property
    def stratum(self) -> str:
        """What was asked, in a word: the same whoever drew."""
        return f"{self.asked.concept}, {self.asked.probe}"


@dataclass(frozen=True)
class Seen:
    """All that one model was asked, with one concept in mind.

    Attributes:
        concept: what was erased, or will be.
        looks: by what was asked.
    """

    concept: str
    looks: tuple[Look, ...]

    def own(self, *probes: str) -> list[Look]:
        """Where the concept itself was asked for."""
        return [e for e in self.looks if e.asked.role == "target" and e.asked.probe in probes]

    def others(self) -> list[Look]:
        """Where something else was asked for, by its name."""
        return [each for each in self.looks if each.asked.role != "target"]


def shown(looks: Iterable[Look], what: str | None = None, within: str | None = None) -> Strata:
    """Where a thing is shown.

    Args:
        looks: in which pictures.
        what: the thing; None for what was asked for.
        within: count only the pictures that show this too.
    """
    found: Strata = {}
    for look in looks:
        flags = look.shown[what or look.asked.concept]
        if within is None:
            found[look.stratum] = flags
        elif look.shown[within].any():
            found[f"{look.stratum}, {within}"] = flags[look.shown[within]]
    return found


def texts(looks: Iterable[Look], within: str | None = None) -> Iterator[str]:
    """The prompts of what `shown` finds, in its order."""
    for look in looks:
        kept = np.ones(len(look.broken), bool) if within is None else look.shown[within]
        yield from (p.text for p, keep in zip(look.asked.prompts, kept, strict=True) if keep)
