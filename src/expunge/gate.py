"""Strengths that depend on the prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn


class Gate(ABC):
    """How strongly a concept's changes act, by what the denoiser is told at each call.

    Attributes:
        kind: name of this kind in files.
    """

    kind: ClassVar[str]

    @abstractmethod
    def watch(self, networks: Mapping[str, nn.Module]) -> None:
        """Follow what text encoders and denoiser are given, until `unwatch`.

        Raises:
            ValueError: the networks hold nothing that this gate can read.
        """

    @abstractmethod
    def unwatch(self) -> None:
        """Leave the networks as they were."""

    @abstractmethod
    def rows(self, count: int) -> Tensor | None:
        """Strength of each of the `count` rows of the call that runs now, (count,).

        None stands for 1 everywhere: where nothing is known of the text, an erasure acts.
        """

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """All that makes this gate again, of JSON values; its `kind` among them."""

    @classmethod
    @abstractmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        """The gate that `record` described."""
