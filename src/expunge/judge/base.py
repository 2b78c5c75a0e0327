"""What every judge can be asked."""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import numpy as np
from PIL import Image
from torch import nn

BROKEN = 0.5
"""From this on a picture counts as broken, whatever the judge."""

Images = Sequence[Image.Image]


class Judge(ABC):
    """Says how surely a picture shows a concept, and whether it is a picture at all.

    Attributes:
        name: short name, as it stands in logs; up to a colon it is one that
            [`judge`][expunge.judge.choose.judge] knows.
        version: changes when the same picture may get another score.
        threshold: a concept counts as shown where its score is at least this, and the picture is
            not broken.
    """

    name: str
    version: str
    threshold: float

    @property
    @abstractmethod
    def hash(self) -> str:
        """SHA-256, in hexadecimal, of the weights and of all settings that a score depends on."""

    @property
    @abstractmethod
    def settings(self) -> Mapping[str, Any]:
        """What the judge is made with again, of JSON values."""

    @abstractmethod
    def knows(self, concept_name: str) -> bool:
        """Whether `score` accepts this name."""

    @abstractmethod
    def score(self, images: Images, concept_name: str) -> np.ndarray:
        """How surely each picture shows the concept, float in [0, 1], (n,).

        Raises:
            ValueError: the judge does not know the concept.
        """

    @abstractmethod
    def broken(self, images: Images) -> np.ndarray:
        """How surely each picture is no proper picture at all, float in [0, 1], (n,)."""

    @final
    def counts(self, scores: np.ndarray, broken: np.ndarray) -> np.ndarray:
        """Where a concept counts as shown, of what `score` and `broken` said; bool, (n,).

        This is the only definition of it: the score reaches the threshold, and the picture is not
        broken. NaN counts as shown, for a score that says nothing must never read as erased.
        """
        proper = ~(np.asarray(broken) >= BROKEN)
        return np.asarray(~(np.asarray(scores) < self.threshold) & proper)

    @final
    def shown(self, images: Images, concept_name: str) -> np.ndarray:
        """Which pictures show the concept, bool, (n,).

        Raises:
            ValueError: the judge does not know the concept.
        """
        return self.counts(self.score(images, concept_name), self.broken(images))

    @final
    def record(self) -> dict[str, Any]:
        """What a log says of the judge; `expunge.judge.choose.from_record` makes it again."""
        return {
            "name": self.name,
            "version": self.version,
            "hash": self.hash,
            "threshold": self.threshold,
            "settings": dict(self.settings),
        }


class Features(ABC):
    """Turns pictures into vectors that a Fréchet distance can be computed on."""

    @abstractmethod
    def features(self, images: Images) -> np.ndarray:
        """One vector a picture, float32, (n, d)."""


def unknown_concept(concept_name: str, judge: str, known: Iterable[str]) -> ValueError:
    """The error for a name outside a closed list: the near names, or else some of the list."""
    names = sorted(known)
    near = difflib.get_close_matches(concept_name.casefold(), names, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"e.g. {_some(names)}"
    return ValueError(
        f"concept {concept_name!r} is unknown to the judge {judge}, which knows "
        f"{len(names)} names; {hint}"
    )


def _some(names: Sequence[str], count: int = 8) -> str:
    return ", ".join(map(repr, names[:: max(len(names) // count, 1)][:count]))


def weights_hash(network: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights, in alphabetical order."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
