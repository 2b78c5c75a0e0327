"""Intervals of a proportion, and the checks of what they are made from.

Sources:
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    JASA 22 (1927), 209-212.
    C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the
    case of the binomial", Biometrika 26 (1934), 404-413.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binomtest, norm

Interval = tuple[float, float]


def flags_of(name: str, values: Sequence[bool] | NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Outcomes as an array.

    Raises:
        ValueError: none, or no booleans.
    """
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


def check_confidence(confidence: float) -> None:
    """Refuse a confidence outside 0..1.

    Raises:
        ValueError: it is.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}; 0.95 is usual")


def check_counts(k: int, n: int) -> None:
    """Refuse counts that are none.

    Raises:
        ValueError: no outcome, or more events than outcomes.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}; a rate needs at least one outcome")
    if not 0 <= k <= n:
        raise ValueError(f"k must lie between 0 and n = {n}, got {k}; it counts events among n")


def wilson(value: float, n: float, confidence: float) -> Interval:
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
    check_counts(k, n)
    check_confidence(confidence)
    alternatives = {"two-sided": "two-sided", "lower": "greater", "upper": "less"}
    if side not in alternatives:
        raise ValueError(f"side must be one of {', '.join(alternatives)}, got {side!r}")
    test = binomtest(k, n, alternative=alternatives[side])
    low, high = test.proportion_ci(confidence_level=confidence, method="exact")
    return float(low), float(high)


def exact(value: float, n: float, confidence: float) -> Interval:
    """Clopper and Pearson's interval of a rate out of an n that is not whole."""
    k, error = value * n, (1 - confidence) / 2
    low = float(beta.ppf(error, k, n - k + 1)) if value > 0 else 0.0
    high = float(beta.ppf(1 - error, k + 1, n - k)) if value < 1 else 1.0
    return low, high
