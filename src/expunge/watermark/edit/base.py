"""What is done to a marked picture: the bases every edit completes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.watermark.scheme.base import Batch, Scheme, label


@dataclass(frozen=True)
class Subject(Batch):
    """What an edit is given: marked pictures.

    Attributes:
        scheme: how they were marked, None where they are not. Only an edit that says so may look
            at it.
    """

    scheme: Scheme | None = None


@dataclass(frozen=True)
class Edit(ABC):
    """Something done to a picture after it was marked.

    Attributes:
        name: as logs and the command line know it.
        unit: what `level` counts; empty where there is no level.
    """

    name: ClassVar[str]
    unit: ClassVar[str] = ""

    @property
    def spec(self) -> dict[str, Any]:
        """All that determines the edit, as plain data."""
        return {"edit": self.name, **asdict(self)}

    @property
    def label(self) -> str:
        """What a log calls it: the name, and settings that are not the usual ones."""
        return label(self.name, self, "level")

    @property
    def strength(self) -> float | None:
        """How strong it is, in `unit`s; None where there is nothing to choose."""
        level = getattr(self, "level", None)
        return None if level is None else float(level)

    @property
    def redraws(self) -> bool:
        """Whether a model draws in it."""
        return False

    @property
    def white_box(self) -> bool:
        """Whether it holds the scheme's own decoder."""
        return False

    @property
    def reads_captions(self) -> bool:
        """Whether it is told what each picture shows."""
        return getattr(self, "prompt", "empty") == "caption"

    def check(self, scheme: Scheme, backbone: Backbone | None) -> None:  # noqa: B027
        """Refuse what the edit cannot work on, before any heavy work.

        Raises:
            ValueError: it needs a model, or something of the scheme.
        """

    @abstractmethod
    def __call__(self, subject: Subject) -> Tensor:
        """The edited pictures, uint8, of the same shape."""


@dataclass(frozen=True)
class Distortion(Edit):
    """An edit of pixels alone, with a gradient, so that a scheme can be trained against it."""

    @abstractmethod
    def distort(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        """Distort pictures.

        Args:
            pixels: float in [0, 1], (n, 3, height, width).
            seeds: one a picture.

        Returns:
            Float, of the same shape; values outside [0, 1] are cut off by the caller.
        """

    def __call__(self, subject: Subject) -> Tensor:
        return to_uint8(self.distort(to_float(subject.pixels), subject.seeds))


def to_float(pixels: Tensor) -> Tensor:
    """Eight-bit pixels as float32 in [0, 1]."""
    return pixels.float() / 255


def to_uint8(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as they would be saved, cut off and rounded."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
