"""What every watermark can be asked: embed, extract, detect."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.watermark.scheme.code import Code

Bits = NDArray[np.bool_]
"""One row a picture."""


def label(name: str, settings: Any, *ignored: str) -> str:
    """A name, followed by the settings that differ from their defaults: `name:key=value,…`.

    Args:
        name: what comes first.
        settings: a dataclass instance.
        ignored: fields that are told elsewhere.
    """
    changed = [
        f"{each.name}={getattr(settings, each.name)}"
        for each in fields(settings)
        if each.name not in ignored and getattr(settings, each.name) != each.default
    ]
    return f"{name}:{','.join(changed)}" if changed else name


def seeds_for(purpose: str, seeds: Sequence[int]) -> list[int]:
    """Seeds of one purpose, unrelated to those of any other: 63 bits of SHA-256.

    The noise an edit adds must not be the noise a picture was drawn from.
    """
    digests = (hashlib.sha256(f"{purpose}\0{seed}".encode()).digest() for seed in seeds)
    return [int.from_bytes(digest[:8]) >> 1 for digest in digests]


@dataclass(frozen=True)
class Batch:
    """Pictures of one size that go through a bench together.

    Attributes:
        pixels: uint8, (n, 3, height, width).
        seeds: one a picture, of everything random that is done to it.
        captions: what each picture shows, empty where nobody said.
        backbone: the model at hand, None where there is none.
    """

    pixels: Tensor
    seeds: Sequence[int]
    captions: Sequence[str]
    backbone: Backbone | None = None

    def __len__(self) -> int:
        return len(self.pixels)

    def part(self, chosen: slice) -> Self:
        """Some of the pictures."""
        return replace(
            self,
            pixels=self.pixels[chosen],
            seeds=self.seeds[chosen],
            captions=self.captions[chosen],
        )


@dataclass(frozen=True)
class Reading:
    """What was extracted from n pictures.

    Attributes:
        bits: as read, before error correction, (n, raw bits); no columns for a zero-bit scheme.
        p_values: of the hypothesis that no mark of this key is there, (n,), for zero-bit schemes.
    """

    bits: Bits
    p_values: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.bits)


@dataclass(frozen=True, kw_only=True)
class Scheme(ABC):
    """A watermark with its settings and its key.

    Fields are settings; networks are loaded when they are first needed.

    Attributes:
        name: as logs and the command line know it.
        source: where the scheme was published.
        terms: what its weights' licence asks of a user, empty where nothing unusual.
        minimum_size: pixels along the shorter side of a picture it can mark.
        reads_captions: whether it draws its pictures of their captions.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    terms: ClassVar[str] = ""
    minimum_size: ClassVar[int] = 1
    reads_captions: ClassVar[bool] = False

    @property
    def label(self) -> str:
        """What a log calls it: the name, and settings that are not the usual ones."""
        return label(self.name, self)

    @property
    @abstractmethod
    def code(self) -> Code:
        """The error correction between payload and raw bits."""

    @property
    def payload_bits(self) -> int:
        """Bits of a payload; 0 for a mark that is only there or not."""
        return self.code.payload_bits

    @property
    def raw_bits(self) -> int:
        """Bits in the picture."""
        return self.code.raw_bits

    @property
    def spec(self) -> dict[str, Any]:
        """All that determines the scheme, weights included, as plain data."""
        return {"scheme": self.label, **asdict(self), "weights": self.weights_hash}

    @property
    def weights_hash(self) -> str | None:
        """SHA-256 of its weights, None where there are none."""
        return None

    def prepare(self) -> None:  # noqa: B027  most schemes need nothing
        """Load what it needs.

        Raises:
            ValueError: a package or a file is missing; says which and how to get it.
        """

    def check(self, backbone: Backbone | None) -> None:
        """Load what it needs and refuse what it cannot do.

        Raises:
            ValueError: a package, a file or a model is missing; says which and how to get it.
        """
        self.prepare()

    @abstractmethod
    def mark(self, batch: Batch, payloads: Bits) -> tuple[Tensor, Tensor]:
        """Pictures without and with the mark, uint8, (n, 3, height, width) each.

        Args:
            batch: pictures; a scheme that marks noise draws its own of their captions.
            payloads: booleans, (n, payload bits).
        """

    @abstractmethod
    def read(self, pixels: Tensor, backbone: Backbone | None) -> Reading:
        """Read pictures, uint8, (n, 3, height, width)."""

    def payloads(self, seeds: Sequence[int]) -> Bits:
        """Random payloads, one a seed, (n, payload bits)."""
        size, own = self.payload_bits, seeds_for("payload", seeds)
        drawn = [np.random.default_rng(seed).integers(0, 2, size) for seed in own]
        return np.array(drawn, dtype=np.bool_).reshape(len(seeds), size)

    def check_payloads(self, payloads: Bits, count: int) -> None:
        """Refuse payloads of the wrong number or length.

        Raises:
            ValueError: they are not booleans of shape (count, payload bits).
        """
        if payloads.shape != (count, self.payload_bits) or payloads.dtype != np.bool_:
            raise ValueError(
                f"{self.name} takes {self.payload_bits} bits for each of {count} pictures, "
                f"got {payloads.dtype} of shape {payloads.shape}"
            )

    def check_size(self, height: int, width: int) -> None:
        """Refuse pictures it cannot mark.

        Raises:
            ValueError: a side is too short.
        """
        if min(height, width) < self.minimum_size:
            raise ValueError(
                f"{self.name} needs pictures of at least {self.minimum_size} x "
                f"{self.minimum_size} pixels, got {width} x {height}; leave the scheme out or "
                "enlarge the pictures"
            )

    def threshold(self, false_positive_rate: float) -> int:
        """Right raw bits from which on a picture counts as marked.

        The smallest count that a fair coin reaches with at most that probability.
        """
        return int(binom.isf(false_positive_rate, self.raw_bits, 0.5)) + 1

    def detect(self, reading: Reading, payloads: Bits, false_positive_rate: float = 1e-3) -> Bits:
        """Whether each picture carries its payload, by the number of raw bits that agree, (n,)."""
        right = (reading.bits == self.code.encode(payloads)).sum(axis=1)
        found: Bits = right >= self.threshold(false_positive_rate)
        return found


@dataclass(frozen=True, kw_only=True)
class PictureScheme(Scheme):
    """A scheme that marks pictures which are already there."""

    def embed(self, pixels: Tensor, payloads: Bits) -> Tensor:
        """Mark pictures.

        Args:
            pixels: uint8, (n, 3, height, width).
            payloads: booleans, (n, payload bits).

        Returns:
            Marked pictures, uint8, of the same shape.

        Raises:
            ValueError: pictures too small, or payloads of the wrong shape.
        """
        self.check_size(*pixels.shape[-2:])
        self.check_payloads(payloads, len(pixels))
        return self._embed(pixels, self.code.encode(payloads))

    @abstractmethod
    def _embed(self, pixels: Tensor, bits: Bits) -> Tensor:
        """Mark pictures with raw bits."""

    @abstractmethod
    def extract(self, pixels: Tensor) -> Reading:
        """Read pictures, uint8, (n, 3, height, width)."""

    def mark(self, batch: Batch, payloads: Bits) -> tuple[Tensor, Tensor]:
        return batch.pixels, self.embed(batch.pixels, payloads)

    def read(self, pixels: Tensor, backbone: Backbone | None) -> Reading:
        return self.extract(pixels)


@dataclass(frozen=True, kw_only=True)
class DifferentiableScheme(PictureScheme):
    """A scheme whose decoder is a torch network, so that its gradient can be followed."""

    @abstractmethod
    def logits(self, pixels: Tensor) -> Tensor:
        """Log-odds of every raw bit, with a gradient.

        Args:
            pixels: float in [0, 1], (n, 3, height, width).

        Returns:
            (n, raw bits).
        """
