"""Rates of yes-or-no outcomes, clustered or not, with their intervals.

Sources:
    E. L. Korn and B. I. Graubard, "Confidence intervals for proportions with small expected number
    of positive counts estimated from survey data", Survey Methodology 24 (1998), 193-201.
    R. G. Newcombe, "Interval estimation for the difference between independent proportions",
    Statistics in Medicine 17 (1998), 873-890: method 10.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from expunge.measure.intervals import (
    Interval,
    check_confidence,
    check_counts,
    exact,
    flags_of,
    wilson,
)


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
        check_counts(self.k, self.n)

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
        outcomes = flags_of("flags", flags)
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
            check_counts(k, n)
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
        check_confidence(confidence)
        if 0 < self.k < self.n:
            if not self.worth:
                return wilson(self.value, self.n, confidence)
            return exact(self.value, max(w.at(confidence) for w in self.worth), confidence)
        return exact(self.value, self.worth[0].n if self.worth else self.n, confidence)


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
