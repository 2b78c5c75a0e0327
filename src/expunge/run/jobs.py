"""The smallest pieces of a run worth repeating, and what becomes of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from expunge.run.digest import digest
from expunge.run.store import Record


class Job(ABC):
    """Something to be done once, and kept under the digest of all that determines it.

    Fields of a frozen dataclass are a good place for what it is told.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        """Ids of the jobs whose records are handed to `run`."""
        return ()

    @property
    def group(self) -> str:
        """Jobs of one group are run together, for example those that draw under one condition."""
        return ""

    @property
    @abstractmethod
    def spec(self) -> Mapping[str, Any]:
        """Everything that determines the result but its needs, of JSON values.

        Names things so that a reader can find them again, beside their hashes.
        """

    @abstractmethod
    def run(self, worker: Any, needs: Mapping[str, Record]) -> Mapping[str, Any]:
        """Do it.

        Args:
            worker: what the executor lends: models, a store for pictures.
            needs: the records of what it needs, by id.

        Returns:
            The record, of JSON values.
        """

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{type(self).__name__} {self.id[:8]}"

    @final
    @cached_property
    def id(self) -> str:
        """Digest of `kept_spec`."""
        return digest(self.kept_spec, "spec")

    @final
    @property
    def kept_spec(self) -> dict[str, Any]:
        """The spec and the ids of what is needed."""
        return {**self.spec, "needs": list(self.needs)} if self.needs else dict(self.spec)


@dataclass(frozen=True)
class Failure:
    """A job that was not done.

    Attributes:
        reason: why, in a sentence.
        need: id of what it needed and did not get, None where it failed by itself.
        error: what was raised, None where a need failed.
    """

    reason: str
    need: str | None = None
    error: BaseException | None = None


class JobsError(ValueError):
    """Some jobs of a run failed; all that did not depend on them are done and kept."""


Wave = Callable[[Mapping[str, Record]], Sequence[Job]]
"""The next jobs from the records so far, by id; none ends the run."""
