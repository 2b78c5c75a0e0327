"""Differences between two conditions on the same prompts and seeds, with their intervals.

Sources:
    Q. McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947), 153-157.
    R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions
    based on paired data", Statistics in Medicine 17 (1998), 2635-2650: method 10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from expunge.measure.intervals import Interval, check_confidence, flags_of, wilson
from expunge.measure.rates import Rate


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
        one, two = flags_of("first", first), flags_of("second", second)
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
        check_confidence(confidence)
        p1, p2, phi = self.first.value, self.second.value, self._correlation()
        low1, high1 = wilson(p1, self.n, confidence)
        low2, high2 = wilson(p2, self.n, confidence)

        def reach(x: float, y: float) -> float:
            return math.sqrt(x * x - 2 * phi * x * y + y * y)

        low = self.difference - reach(p2 - low2, high1 - p1)
        high = self.difference + reach(high2 - p2, p1 - low1)
        return max(-1.0, low), min(1.0, high)
