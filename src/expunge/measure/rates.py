"""Rates of yes-or-no outcomes, and differences between paired ones, with their intervals.

Sources:
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927), 209-212.
    C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the
    case of the binomial", Biometrika 26 (1934), 404-413.
    L. Kish, "Survey Sampling" (1965), ch. 8.2: design effect of clusters of unequal size.
    M. S. Ridout, C. G. B. Demétrio and D. Firth, "Estimating intraclass correlation for binary
    data", Biometrics 55 (1999), 137-148: the analysis-of-variance estimator.
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947), 153-157.
    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions
    based on paired data", Statistics in Medicine 17 (1998), 2635-2650: method 10.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

Interval = tuple[float, float]


def _flags(name: str, values: Sequence[bool] | NDArray[np.bool_]) -> NDArray[np.bool_]:
    flags = np.asarray(values)
    if flags.ndim != 1 or flags.size < 1:
        raise ValueError(
            f"{name} must be a non-empty sequence of booleans, got shape {flags.shape}; "
            "pass one outcome per image"
        )
    if flags.dtype != np.bool_:
        raise ValueError(
            f"{name} must hold booleans, got {flags.dtype}; compare scores with the threshold first"
        )
    return flags


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 is usual")


def _check_counts(k: int, n: int) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}; a rate needs at least one outcome")
    if not 0 <= k <= n:
        raise ValueError(f"k must lie between 0 and n = {n}, got {k}; it counts events among n")


def _wilson(value: float, n: float, confidence: float) -> Interval:
    """Wilson's score interval. Unlike scipy's it takes an n that is not whole."""
    z2 = float(norm.ppf((1 + confidence) / 2)) ** 2
    centre = (value + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (value * (1 - value) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson(
    k: int,
    n: int,
    confidence: float = 0.95,
    side: Literal["two-sided", "lower", "upper"] = "two-sided",
) -> Interval:
    """The exact interval of a binomial rate, for bounds that are claimed (Clopper-Pearson 1934).

    Args:
        k: events.
        n: outcomes, at least 1.
        confidence: probability with which the interval holds, at least.
        side: "upper" spends all of the error on the upper bound and returns (0, bound), "lower"
            returns (bound, 1).

    Returns:
        Low and high end, as fractions.

    Raises:
        ValueError: a count, the confidence or the side out of range.
    """
    _check_counts(k, n)
    _check_confidence(confidence)
    alternatives = {"two-sided": "two-sided", "lower": "greater", "upper": "less"}
    if side not in alternatives:
        raise ValueError(f"side must be one of {', '.join(alternatives)}, got {side!r}")
    test = binomtest(k, n, alternative=alternatives[side])
    low, high = test.proportion_ci(confidence_level=confidence, method="exact")
    return float(low), float(high)


def design_effect(flags: Sequence[bool] | NDArray[np.bool_], clusters: Sequence[Hashable]) -> float:
    """How many times the variance of a rate grows because outcomes share a cluster.

    Kish's 1 + (m - 1) * icc, with m the size of the cluster that a random outcome lies in and icc
    the one-way analysis-of-variance estimate (Ridout et al. 1999), negative estimates taken as 0.
    Where no correlation can be estimated (all outcomes alike, or a single cluster) the worst case
    is taken: a cluster counts as one outcome.

    Args:
        flags: outcomes, one per image.
        clusters: what each outcome belongs to, such as its prompt.

    Returns:
        The design effect, from 1 (independent) to n.

    Raises:
        ValueError: nothing given, no booleans, or lengths that differ.
    """
    outcomes = _flags("flags", flags)
    n = outcomes.size
    if len(clusters) != n:
        raise ValueError(
            f"clusters must be as long as flags, got {len(clusters)} and {n}; name the prompt of "
            "every image"
        )
    index = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
    members = np.array([index[cluster] for cluster in clusters])
    return _design_effect(
        np.bincount(members[outcomes], minlength=len(index)), np.bincount(members)
    )


def _design_effect(events: NDArray[np.integer], sizes: NDArray[np.integer]) -> float:
    """The design effect from events and outcomes of each cluster."""
    n, count = int(sizes.sum()), len(sizes)
    if count == n:
        return 1.0
    mean = float(events.sum()) / n
    if count == 1 or mean in (0.0, 1.0):
        return n / count
    rates = events / sizes
    between = float(sizes @ (rates - mean) ** 2) / (count - 1)
    within = float(sizes @ (rates * (1 - rates))) / (n - count)
    kish = float(sizes @ sizes) / n
    typical = (n - kish) / (count - 1)
    icc = (between - within) / (between + (typical - 1) * within)
    return 1 + (kish - 1) * max(icc, 0.0)


@dataclass(frozen=True)
class Rate:
    """A share of events among outcomes.

    Attributes:
        k: events.
        n: outcomes, at least 1.
        effective_n: how many independent outcomes the n are worth (n divided by the design
            effect), between 1 and n; None when all are independent.
    """

    k: int
    n: int
    effective_n: float | None = None

    def __post_init__(self) -> None:
        _check_counts(self.k, self.n)
        if self.effective_n is not None and not 1 <= self.effective_n <= self.n:
            raise ValueError(
                f"effective_n must lie between 1 and n = {self.n}, got {self.effective_n}; divide "
                "n by the design effect"
            )

    @classmethod
    def of(
        cls,
        flags: Sequence[bool] | NDArray[np.bool_],
        clusters: Sequence[Hashable] | None = None,
    ) -> Self:
        """Count outcomes, one flag per image.

        Args:
            flags: whether the event happened.
            clusters: what each outcome belongs to, such as its prompt, if some share one.

        Raises:
            ValueError: nothing given, no booleans, or lengths that differ.
        """
        outcomes = _flags("flags", flags)
        n = outcomes.size
        effective_n = None if clusters is None else n / design_effect(outcomes, clusters)
        return cls(int(outcomes.sum()), n, effective_n)

    @classmethod
    def of_counts(cls, events: Sequence[int], sizes: Sequence[int]) -> Self:
        """Count outcomes that come in clusters, such as the bits of a picture.

        Args:
            events: in each cluster.
            sizes: outcomes in each cluster, at least 1.

        Raises:
            ValueError: no cluster, lengths that differ, or a count out of range.
        """
        if not len(events) or len(events) != len(sizes):
            raise ValueError(
                f"events and sizes must be equally long and not empty, got {len(events)} and "
                f"{len(sizes)}; pass one count per cluster"
            )
        for k, n in zip(events, sizes, strict=True):
            _check_counts(k, n)
        total = int(sum(sizes))
        effect = _design_effect(np.asarray(events), np.asarray(sizes))
        return cls(int(sum(events)), total, total / effect)

    @property
    def value(self) -> float:
        """The rate, as a fraction."""
        return self.k / self.n

    def interval(self, confidence: float = 0.95) -> Interval:
        """Two-sided interval: Wilson's, at zero or all events Clopper and Pearson's.

        With `effective_n` both take it for n (Clopper-Pearson rounded to a whole number; after
        `of` it is the number of clusters there).

        Returns:
            Low and high end, as fractions.

        Raises:
            ValueError: a confidence outside 0..1.
        """
        _check_confidence(confidence)
        n = self.n if self.effective_n is None else self.effective_n
        if 0 < self.k < self.n:
            return _wilson(self.value, n, confidence)
        return clopper_pearson(round(n) if self.k else 0, round(n), confidence)


@dataclass(frozen=True)
class Paired:
    """Outcomes of two conditions on the same prompts and seeds, as counts of pairs.

    Attributes:
        both: pairs with the event under both conditions.
        only_first: pairs with the event under the first condition only.
        only_second: pairs with the event under the second condition only.
        neither: pairs with the event under neither.
    """

    both: int
    only_first: int
    only_second: int
    neither: int

    def __post_init__(self) -> None:
        counts = (self.both, self.only_first, self.only_second, self.neither)
        if min(counts) < 0 or sum(counts) < 1:
            raise ValueError(f"counts of pairs must be at least 0 and not all 0, got {counts}")

    @classmethod
    def of(
        cls,
        first: Sequence[bool] | NDArray[np.bool_],
        second: Sequence[bool] | NDArray[np.bool_],
    ) -> Self:
        """Count pairs; the flags at one position belong to one prompt and seed.

        Raises:
            ValueError: nothing given, no booleans, or lengths that differ.
        """
        one, two = _flags("first", first), _flags("second", second)
        if one.size != two.size:
            raise ValueError(
                f"first and second must be equally long, got {one.size} and {two.size}; pass the "
                "outcomes of the same prompts and seeds in the same order"
            )
        cells = (one & two, one & ~two, ~one & two, ~one & ~two)
        return cls(*(int(cell.sum()) for cell in cells))

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def first(self) -> Rate:
        """The rate under the first condition."""
        return Rate(self.both + self.only_first, self.n)

    @property
    def second(self) -> Rate:
        """The rate under the second condition."""
        return Rate(self.both + self.only_second, self.n)

    @property
    def difference(self) -> float:
        """Rate of the second condition minus that of the first, as a fraction."""
        return (self.only_second - self.only_first) / self.n

    @property
    def p_value(self) -> float:
        """McNemar's exact two-sided test that both rates are equal; 1 when no pair differs."""
        discordant = self.only_first + self.only_second
        return float(binomtest(self.only_first, discordant).pvalue) if discordant else 1.0

    def _correlation(self) -> float:
        """Newcombe's phi: a positive cross product is shrunk by n/2, but not below 0."""
        a, b, c, d = self.both, self.only_first, self.only_second, self.neither
        product = a * d - b * c
        scale = math.sqrt((a + b) * (c + d) * (a + c) * (b + d))
        if scale == 0:
            return 0.0
        return (product if product < 0 else max(product - self.n / 2, 0)) / scale

    def interval(self, confidence: float = 0.95) -> Interval:
        """Two-sided interval of `difference` (Newcombe 1998, method 10).

        Returns:
            Low and high end, as fractions between -1 and 1.

        Raises:
            ValueError: a confidence outside 0..1.
        """
        _check_confidence(confidence)
        p1, p2, phi = self.first.value, self.second.value, self._correlation()
        low1, high1 = _wilson(p1, self.n, confidence)
        low2, high2 = _wilson(p2, self.n, confidence)

        def reach(x: float, y: float) -> float:
            return math.sqrt(x * x - 2 * phi * x * y + y * y)

        low = self.difference - reach(p2 - low2, high1 - p1)
        high = self.difference + reach(high2 - p2, p1 - low1)
        return max(-1.0, low), min(1.0, high)
