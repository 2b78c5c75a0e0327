"""Rates of yes-or-no outcomes, and differences between paired ones, with their intervals.

Sources:
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927), 209-212.
    C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the
    case of the binomial", Biometrika 26 (1934), 404-413.
    E. L. Korn and B. I. Graubard, "Confidence intervals for proportions with small expected number
    of positive counts estimated from survey data", Survey Methodology 24 (1998), 193-201.
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947), 153-157.
    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions
    based on paired data", Statistics in Medicine 17 (1998), 2635-2650: method 10; and "Interval
    estimation for the difference between independent proportions", 873-890: method 10.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binomtest, norm, t

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


@dataclass(frozen=True)
class Worth:
    """How many independent outcomes clustered ones are worth.

    Attributes:
        n: independent outcomes, at least 1.
        freedom: degrees of freedom of the estimate of that number, at least 1.
    """

    n: float
    freedom: int

    def __post_init__(self) -> None:
        if not (self.n >= 1 and self.freedom >= 1):
            raise ValueError(f"n and freedom must be at least 1, got {self.n} and {self.freedom}")

    def at(self, confidence: float) -> float:
        """The number less what its own uncertainty costs (Korn and Graubard 1998)."""
        quantile = (1 + confidence) / 2
        return max(1.0, self.n * float(norm.ppf(quantile) / t.ppf(quantile, self.freedom)) ** 2)


def _worth(events: NDArray[np.integer], sizes: NDArray[np.integer]) -> tuple[Worth, ...]:
    """Two estimates of what clustered outcomes are worth; none where all are independent.

    The first takes the clusters' spread as seen, with as many degrees of freedom as clusters hold
    the rarer outcome, less one: near 0 or 1 the spread rests on these few, and may miss the one
    that fails as a whole. The second adds such a cluster, as large as the others are on average.
    Either covers; the one that is worth more is not needlessly wide.
    """
    n, count = int(sizes.sum()), len(sizes)
    if count == n:
        return ()
    mean = float(events.sum()) / n
    if count == 1 or mean in (0.0, 1.0):
        return (Worth(count, max(1, count - 1)),)
    rare = min(int((events > 0).sum()), int((events < sizes).sum()))
    size = n / count
    wider = np.append(sizes, size)
    fallen = min(_effective(np.append(events, whole), wider) for whole in (0.0, size))
    return Worth(_effective(events, sizes), max(1, rare - 1)), Worth(fallen, count - 1)


def _effective(events: NDArray[Any], sizes: NDArray[Any]) -> float:
    """p (1 - p) over the variance of the rate that the clusters' spread gives."""
    n, count = float(sizes.sum()), len(sizes)
    mean = float(events.sum()) / n
    variance = count / (count - 1) * float(((events - mean * sizes) ** 2).sum()) / n**2
    worth = mean * (1 - mean) / variance if variance else n
    return max(1.0, min(worth, n))


def _exact(value: float, n: float, confidence: float) -> Interval:
    """Clopper and Pearson's interval of a rate out of an n that is not whole."""
    k, error = value * n, (1 - confidence) / 2
    low = float(beta.ppf(error, k, n - k + 1)) if value > 0 else 0.0
    high = float(beta.ppf(1 - error, k + 1, n - k)) if value < 1 else 1.0
    return low, high


@dataclass(frozen=True)
class Rate:
    """A share of events among outcomes.

    Attributes:
        k: events.
        n: outcomes, at least 1.
        worth: how many independent outcomes the n are worth, at the most; empty when all are
            independent.
    """

    k: int
    n: int
    worth: tuple[Worth, ...] = ()

    def __post_init__(self) -> None:
        _check_counts(self.k, self.n)

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
        if clusters is None:
            return cls(int(outcomes.sum()), n)
        if len(clusters) != n:
            raise ValueError(
                f"clusters must be as long as flags, got {len(clusters)} and {n}; name the prompt "
                "of every image"
            )
        index = {cluster: number for number, cluster in enumerate(dict.fromkeys(clusters))}
        members = np.array([index[cluster] for cluster in clusters])
        events = np.bincount(members[outcomes], minlength=len(index))
        return cls.of_counts(events.tolist(), np.bincount(members).tolist())

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
        worth = _worth(np.asarray(events), np.asarray(sizes))
        return cls(int(sum(events)), int(sum(sizes)), worth)

    @property
    def value(self) -> float:
        """The rate, as a fraction."""
        return self.k / self.n

    def interval(self, confidence: float = 0.95) -> Interval:
        """Two-sided interval: Wilson's, at zero or all events Clopper and Pearson's.

        Outcomes that share clusters get Clopper and Pearson's of what they are worth, after
        Korn and Graubard; where all are alike, a cluster counts as one outcome.

        Returns:
            Low and high end, as fractions.

        Raises:
            ValueError: a confidence outside 0..1.
        """
        _check_confidence(confidence)
        if 0 < self.k < self.n:
            if not self.worth:
                return _wilson(self.value, self.n, confidence)
            return _exact(self.value, max(w.at(confidence) for w in self.worth), confidence)
        return _exact(self.value, self.worth[0].n if self.worth else self.n, confidence)


def newcombe(first: Rate, second: Rate, confidence: float = 0.95) -> Interval:
    """Interval of second minus first, of outcomes that share nothing (Newcombe 1998, method 10).

    Raises:
        ValueError: a confidence outside 0..1.
    """
    (low1, high1), (low2, high2) = first.interval(confidence), second.interval(confidence)
    one, two = first.value, second.value
    low = two - one - math.hypot(two - low2, high1 - one)
    high = two - one + math.hypot(high2 - two, one - low1)
    return max(-1.0, low), min(1.0, high)


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
