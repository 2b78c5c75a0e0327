"""Harmonic means of rates, and what resampling prompts says of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from expunge.measure.harmonic import (
    Estimate,
    Resamples,
    fidelity,
    harmonic,
    harmonic_of,
    mean_of,
)
from expunge.measure.rates import Rate


def _flags(k: int, n: int) -> np.ndarray:
    return np.arange(n) < k


def _rate(k: int, n: int, name: str = "a", *, against: bool = False) -> Estimate:
    return Estimate.of_flags({name: _flags(k, n)}, Resamples(), against=against)


def test_harmonic_means_are_the_papers() -> None:
    acc_e, acc_s, acc_g = 0.085, 0.974, 0.105
    wanted = 3 / (1 / (1 - acc_e) + 1 / acc_s + 1 / (1 - acc_g))
    assert harmonic(1 - acc_e, acc_s, 1 - acc_g) == pytest.approx(wanted)
    assert wanted == pytest.approx(0.926, abs=0.002), "MACE's own table"
    assert harmonic(1.0, 0.0) == 0.0, "a model that draws nothing else has erased nothing"


def test_fidelity_is_fades() -> None:
    assert fidelity(30, 30, 12, 12) == 1
    assert fidelity(15, 30, 12, 12) == 0.75
    assert fidelity(30, 30, 18, 12) == 0.75, "half of FID₀ more is half of its term"
    assert fidelity(30, 30, 60, 12) == 0.5, "it is not less than none"


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_an_interval_holds_its_value(a: int, b: int, c: int) -> None:
    parts = [_rate(k, 30, name) for k, name in ((a, "a"), (b, "b"), (c, "c"))]
    found = harmonic_of(*parts)
    low, high = found.interval
    assert 0 <= low <= found.value <= high <= 1
    assert found.value == pytest.approx(harmonic(*(part.value for part in parts)))
    assert found.n == 90


def test_outcomes_that_are_all_alike_are_no_certainty() -> None:
    """Resampling 0 of 20 gives 0 for ever."""
    gone, stays = _rate(0, 20, against=True), _rate(20, 20, "b")
    low, high = harmonic_of(gone, stays).interval
    least = Rate(20, 20).interval()[0]
    assert high == 1 and low == pytest.approx(least)
    assert harmonic_of(_rate(0, 200, against=True), _rate(200, 200, "b")).interval[0] > low


def test_an_interval_is_about_as_wide_as_that_of_the_rate() -> None:
    low, high = _rate(60, 100).interval
    wanted = Rate(60, 100).interval()
    assert (low, high) == pytest.approx(wanted, abs=0.02)


def test_the_same_prompts_are_drawn_for_every_figure() -> None:
    """Else the difference of two methods on the same prompts would be noise."""
    one, two = Resamples(), Resamples()
    assert np.array_equal(one.counts("cat, plain", 30), two.counts("cat, plain", 30))
    assert not np.array_equal(one.counts("cat, plain", 30), one.counts("dog, plain", 30))
    assert (one.counts("cat, plain", 30).sum(1) == 30).all()
    kept, lost = _rate(20, 30), _rate(10, 30, against=True)
    assert np.allclose(kept.drawn, lost.drawn) is False
    assert np.allclose(1 - kept.drawn, _rate(20, 30, against=True).drawn)


def test_a_mean_over_concepts_is_the_mean_of_theirs() -> None:
    """MACE's tables: not the harmonic mean of means."""
    first, second = (_rate(k, 30) for k in (30, 15))
    found = mean_of([harmonic_of(first, first), harmonic_of(second, second)])
    assert found.value == pytest.approx(0.75)
    assert found.n == 120
