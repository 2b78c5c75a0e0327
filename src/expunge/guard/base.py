"""What every guard shares: an inference-time defence on hooks that come off again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from expunge.settings import labelled

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone
    from expunge.backbone.call import Guard as Acting


@dataclass(frozen=True, kw_only=True)
class Guard(ABC):
    """A defence that acts while a model draws, without training. Settings are its fields.

    Attributes:
        name: on the command line.
    """

    name: ClassVar[str]

    @property
    def label(self) -> str:
        """How logs name it: its name and what differs from the usual settings."""
        return labelled(self.name, self)

    @abstractmethod
    def check(self, backbone: Backbone) -> None:
        """Refuse a model this guard cannot act on, before any work.

        Raises:
            ValueError: says what is needed and what the model has.
        """

    @abstractmethod
    def on(self, backbone: Backbone) -> Acting:
        """The guard at work on one model; its text is encoded here."""

    def record(self) -> dict[str, Any]:
        """Name and settings: all that makes this guard again."""
        return {"name": self.name, **vars(self)}
