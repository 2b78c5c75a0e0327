"""Harmonic means of rates, with a bootstrap that resamples prompts.

Sources:
    Lu et al., "MACE: Mass Concept Erasure in Diffusion Models", CVPR 2024: H_o and H_c.
    Fu et al., "FADE: Adversarial Concept Erasure in Flow Models", appendix: H of E and F.
    B. Efron, "Bootstrap methods: another look at the jackknife", Ann. Statist. 7 (1979), 1-26.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.measure.intervals import Interval, flags_of
from expunge.measure.rates import Rate

DRAWS = 1000
"""Resamples of the prompts."""

Values = NDArray[np.float64]


def harmonic(*parts: float) -> float:
    """The harmonic mean of fractions; 0 where one of them is 0."""
    return float(_harmonic([np.array(part, float) for part in parts]))


def fidelity(clip: float, clip_before: float, fid: float, fid_before: float) -> float:
    """FADE's F: the mean of CLIP/CLIP₀ and max(FID₀ − (FID − FID₀), 0)/FID₀."""
    return (clip / clip_before + max(2 * fid_before - fid, 0.0) / fid_before) / 2


def _harmonic(parts: Sequence[Values]) -> Values:
    stacked = np.stack(np.broadcast_arrays(*parts))
    with np.errstate(divide="ignore"):
        return np.asarray(np.where((stacked > 0).all(0), len(stacked) / (1 / stacked).sum(0), 0.0))


class Resamples:
    """Draws prompts again with replacement, the same ones for all that was asked with them.

    Prompts that ask for one thing in one way are a stratum. Whatever is measured on them, under
    the original and under every method, shares its draws, so figures stay paired by prompt. They
    hang on the seed and the stratum's name alone. `scipy.stats.bootstrap` pairs all samples or
    none, and here strata of several sizes are shared by several figures.

    Args:
        draws: how many.
        seed: of all of them.
    """

    def __init__(self, draws: int = DRAWS, seed: int = 0) -> None:
        self.draws, self.seed = draws, seed
        self._known: dict[tuple[str, int], NDArray[np.int64]] = {}

    def counts(self, stratum: str, n: int) -> NDArray[np.int64]:
        """How often each of n prompts is drawn, (draws, n); every row sums to n."""
        if (stratum, n) not in self._known:
            key = int.from_bytes(hashlib.sha256(stratum.encode()).digest()[:8], "big")
            rng = np.random.default_rng([self.seed, key])
            self._known[stratum, n] = rng.multinomial(n, np.full(n, 1 / n), size=self.draws)
        return self._known[stratum, n]

    def means(self, values: Mapping[str, NDArray[np.generic]]) -> Values:
        """Means over all of several strata, one a draw: stratum -> a value for each prompt."""
        total = sum(len(each) for each in values.values())
        sums = [self.counts(name, len(each)) @ np.asarray(each, float)
                for name, each in values.items()]  # fmt: skip
        return np.asarray(np.sum(sums, axis=0) / total)


@dataclass(frozen=True)
class Estimate:
    """A figure with what resampling makes of it.

    Attributes:
        value: as measured.
        drawn: one a resample.
        least: below it chance could lie where resampling cannot see it; else `value`.
        most: the same above.
        n: outcomes that it rests on.
    """

    value: float
    drawn: Values
    least: float
    most: float
    n: int

    @property
    def interval(self) -> Interval:
        """95 %: percentiles of the resamples, and no narrower than `least` to `most`."""
        low, high = np.percentile(self.drawn, (2.5, 97.5))
        return min(float(low), self.least), max(float(high), self.most)

    @classmethod
    def of_flags(
        cls, flags: Mapping[str, NDArray[np.bool_]], resamples: Resamples, *, against: bool = False
    ) -> Estimate:
        """A rate of outcomes by stratum.

        Resamples of outcomes that are all alike are all alike, as if 0 of 3 said as much as 0 of
        3,000: there Clopper and Pearson's interval bounds what chance could have hidden.

        Args:
            flags: stratum -> an outcome for each prompt.
            resamples: of the prompts.
            against: count the outcomes that are not.
        """
        told = {name: flags_of("flags", each) ^ against for name, each in flags.items()}
        rate = Rate.of(np.concatenate(list(told.values())))
        low, high = rate.interval() if rate.k in (0, rate.n) else (rate.value, rate.value)
        return cls(rate.value, resamples.means(told), low, high, rate.n)


def combined(
    parts: Sequence[Estimate], of: Callable[[Sequence[Values]], Values], n: int | None = None
) -> Estimate:
    """A figure that rises with each of its parts, from theirs.

    Args:
        parts: what it is made of.
        of: from the parts' values to its own, elementwise.
        n: outcomes that it rests on; None for those of all parts.
    """

    def at(values: Sequence[float]) -> float:
        return float(of([np.array(value, float) for value in values]))

    return Estimate(
        at([part.value for part in parts]),
        of([part.drawn for part in parts]),
        at([part.least for part in parts]),
        at([part.most for part in parts]),
        sum(part.n for part in parts) if n is None else n,
    )


def harmonic_of(*parts: Estimate) -> Estimate:
    """The harmonic mean of rates that are better the higher they are."""
    return combined(parts, _harmonic)


def mean_of(parts: Sequence[Estimate]) -> Estimate:
    """The mean of a figure over concepts, as the papers' tables have it."""
    return combined(parts, lambda values: np.asarray(np.mean(np.stack(values), axis=0)))
