"""Thresholds, and the check that can fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from torch import Tensor

from expunge.watermark.detection import false_positives, false_positives_zero_bit
from expunge.watermark.scheme.base import Bits, PictureScheme, Reading
from expunge.watermark.scheme.code import Code, Plain


@dataclass(frozen=True, kw_only=True)
class _Coins(PictureScheme):
    """A scheme of so many bits that never marks anything."""

    name: ClassVar[str] = "coins"
    source: ClassVar[str] = "this test"
    bits: int = 32

    @property
    def code(self) -> Code:
        return Plain(self.bits)

    def _embed(self, pixels: Tensor, bits: Bits) -> Tensor:
        raise NotImplementedError

    def extract(self, pixels: Tensor) -> Reading:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("bits", "threshold", "law"),
    [(32, 26, 2.7e-4), (48, 36, 3.6e-4), (100, 66, 8.9e-4), (256, 154, 6.9e-4)],
)
def test_thresholds_are_the_smallest_that_keep_the_rate(
    bits: int, threshold: int, law: float
) -> None:
    scheme = _Coins(bits=bits)
    assert scheme.threshold(1e-3) == threshold
    read = np.random.default_rng(0).integers(0, 2, (50, bits)).astype(np.bool_)
    assert false_positives(scheme, read, 1e-3)["law"] == pytest.approx(law, rel=0.03)


def test_fair_coins_pass() -> None:
    held = []
    for seed in range(20):
        read = np.random.default_rng(seed).integers(0, 2, (3000, 32)).astype(np.bool_)
        found = false_positives(_Coins(), read, 1e-3)
        held.append(found["mean_ci"][0] <= found["law"] <= found["mean_ci"][1])
        assert found["worst_ci"][0] <= found["worst"] <= found["worst_ci"][1]
        assert not found["alarm"]
    assert sum(held) >= 17, "an interval of 95 %"


@pytest.mark.parametrize("bits", [48, 64, 100, 256])
def test_decoders_without_bias_raise_no_alarm(bits: int) -> None:
    for seed in range(4):
        read = np.random.default_rng(seed).integers(0, 2, (3000, bits)).astype(np.bool_)
        assert not false_positives(_Coins(bits=bits), read, 1e-3)["alarm"]


def test_a_biased_decoder_is_found_out() -> None:
    """Bits that come out alike on every picture make single keys match far too often."""
    rng = np.random.default_rng(2)
    read = rng.random((3000, 32)) < rng.choice([0.1, 0.9], 32)
    found = false_positives(_Coins(), read, 1e-3)
    assert found["worst"] > 10 * found["law_worst_high"]
    assert found["bias"] > 0.3 and found["alarm"]


def test_every_key_counts_its_own_payload() -> None:
    scheme = _Coins(bits=48)
    payloads = scheme.payloads([2**32 + key for key in range(1000)])
    found = false_positives(scheme, payloads[:1].repeat(200, axis=0), 1e-3)
    assert found["worst"] == 1.0
    assert found["mean"] >= 1 / 1000


def test_a_test_of_one_key_is_counted_by_picture() -> None:
    values = np.random.default_rng(3).random(4000)
    found = false_positives_zero_bit(_Coins(), values.tolist(), 1e-2)
    assert found["mean"] == np.mean(values <= 1e-2)
    assert found["mean_ci"][0] < 1e-2 < found["mean_ci"][1]
