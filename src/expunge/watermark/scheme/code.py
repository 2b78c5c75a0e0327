"""Error correction between a payload and the bits in a picture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.watermark.scheme.missing import optional

Bits = NDArray[np.bool_]


@dataclass(frozen=True)
class Decoded:
    """Payloads after error correction.

    Attributes:
        payloads: (n, payload bits); meaningless where not `sure`.
        sure: whether the code vouches for the payload, (n,); a code that cannot tell always does.
    """

    payloads: Bits
    sure: Bits


class Code(ABC):
    """From payloads to raw bits and back.

    Attributes:
        payload_bits: what a user chooses.
        raw_bits: what is embedded.
    """

    payload_bits: int
    raw_bits: int

    @abstractmethod
    def encode(self, payloads: Bits) -> Bits:
        """Raw bits of n payloads, (n, raw bits)."""

    @abstractmethod
    def decode(self, bits: Bits) -> Decoded:
        """Payloads of n readings, (n, raw bits)."""


@dataclass(frozen=True)
class Plain(Code):
    """No error correction: raw bits are the payload."""

    payload_bits: int

    @property
    def raw_bits(self) -> int:  # type: ignore[override]
        return self.payload_bits

    def encode(self, payloads: Bits) -> Bits:
        return payloads

    def decode(self, bits: Bits) -> Decoded:
        return Decoded(bits, np.ones(len(bits), np.bool_))


@dataclass(frozen=True)
class BCH(Code):
    """A shortened binary BCH code, laid out as StegaStamp published it.

    Payload bytes, then the code's parity filled up with zeros to whole bytes, then zeros up to
    `raw_bits`. Needs the package `bchlib`. The package alone would also accept readings that no
    `t` flips explain, as it does not check what its correction leads to; here a reading is sure
    only within `t` flips of a word of the code.

    Attributes:
        payload_bits: a multiple of 8.
        t: flipped bits that are corrected.
        prim_poly: primitive polynomial of the field GF(2^m), as bits of an integer.
        raw_bits: of the padded word.
    """

    payload_bits: int = 56
    t: int = 5
    prim_poly: int = 137
    raw_bits: int = 100

    def __post_init__(self) -> None:
        m = self.prim_poly.bit_length() - 1
        if self.payload_bits < 1 or self.payload_bits % 8:
            raise ValueError(f"payload_bits must be a multiple of 8, got {self.payload_bits}")
        if self.payload_bits + self.t * m > 2**m - 1:
            raise ValueError(
                f"a BCH code of degree {m} that corrects {self.t} flips holds at most "
                f"{2**m - 1 - self.t * m} bits, got payload_bits {self.payload_bits}"
            )
        if (needed := self.payload_bits + 8 * -(-self.t * m // 8)) > self.raw_bits:
            raise ValueError(f"raw_bits must be at least {needed}, got {self.raw_bits}")

    @cached_property
    def _library(self) -> Any:
        return optional("bchlib", "watermark", "the BCH code").BCH(self.t, self.prim_poly)

    @property
    def _bytes(self) -> int:
        """Of payload and parity."""
        return self.payload_bits // 8 + int(self._library.ecc_bytes)

    def encode(self, payloads: Bits) -> Bits:
        data = np.packbits(payloads, axis=1)
        words = [row.tobytes() + bytes(self._library.encode(row.tobytes())) for row in data]
        packed = np.frombuffer(b"".join(words), np.uint8).reshape(len(words), self._bytes)
        bits = np.unpackbits(packed, axis=1).astype(np.bool_)
        return np.pad(bits, ((0, 0), (0, self.raw_bits - bits.shape[1])))

    def decode(self, bits: Bits) -> Decoded:
        payloads = np.array([self._corrected(row) for row in bits], np.bool_)
        payloads = payloads.reshape(len(bits), self.payload_bits)
        word = self.payload_bits + self._library.ecc_bits
        flips = (self.encode(payloads) != bits)[:, :word].sum(axis=1)
        return Decoded(payloads, flips <= self.t)

    def _corrected(self, bits: Bits) -> Bits:
        """The payload of one reading, left as it is where the library finds no correction."""
        packed = np.packbits(bits[: 8 * self._bytes]).tobytes()
        data = bytearray(packed[: self.payload_bits // 8])
        ecc = bytearray(packed[self.payload_bits // 8 :])
        if self._library.decode(data, ecc) > 0:
            self._library.correct(data, ecc)
        return np.unpackbits(np.frombuffer(data, np.uint8)).astype(np.bool_)
