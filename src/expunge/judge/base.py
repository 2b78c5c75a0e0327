"""What every judge can be asked."""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image
from torch import nn


class Judge(ABC):
    """Says how surely a picture shows a concept.

    Attributes:
        name: short name, as it stands in logs.
        version: changes when the same picture may get another score.
        threshold: a concept counts as shown where its score is at least this.
    """

    name: str
    version: str
    threshold: float

    @property
    @abstractmethod
    def hash(self) -> str:
        """SHA-256 of the weights, in hexadecimal."""

    @abstractmethod
    def knows(self, concept_name: str) -> bool:
        """Whether `score` accepts this name."""

    @abstractmethod
    def score(self, images: Sequence[Image.Image], concept_name: str) -> np.ndarray:
        """How surely each picture shows the concept, float in [0, 1], (n,).

        Raises:
            ValueError: the judge does not know the concept.
        """

    @abstractmethod
    def broken(self, images: Sequence[Image.Image]) -> np.ndarray:
        """How surely each picture is no proper picture at all, float in [0, 1], (n,)."""

    @abstractmethod
    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """What a Fréchet distance is computed on, float32, (n, d)."""


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
