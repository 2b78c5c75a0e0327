"""How often unmarked pictures are taken for marked ones: the check of detection's threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from expunge.measure.intervals import clopper_pearson
from expunge.measure.rates import Rate
from expunge.watermark.scheme.base import Bits, Scheme

KEYS = 1000
"""Fixed payloads that every unmarked picture is matched against."""
SURE = 0.999
"""How sure an alarm is, so that a decoder without bias hardly ever raises one."""


def false_positives(scheme: Scheme, bits: Bits, rate: float, keys: int = KEYS) -> dict[str, Any]:
    """Match readings of unmarked pictures against fixed payloads.

    With a payload drawn anew for every picture the matches would be binomial for any decoder, a
    biased one too; only fixed payloads can show a bias.

    Args:
        scheme: whose threshold is checked.
        bits: read from unmarked pictures, (n, raw bits).
        rate: false positive rate that the threshold is for.
        keys: fixed payloads.

    Returns:
        The threshold and the rate a fair coin gives it; mean rate over all keys with an interval
        clustered by picture; the worst key's rate with an interval that holds for all keys at once
        (Clopper-Pearson at 5 % over their number), beside what the worst of as many keys is under
        the binomial law (median, and the 97.5 % point); and whether either is a surprise under it.
    """
    threshold, raw = scheme.threshold(rate), scheme.raw_bits
    payloads = scheme.payloads([2**32 + key for key in range(keys)])
    words = scheme.code.encode(payloads).astype(np.float32) * 2 - 1
    agreement = (raw + (bits.astype(np.float32) * 2 - 1) @ words.T) / 2
    found: NDArray[np.bool_] = np.rint(agreement) >= threshold
    n = len(bits)
    mean = Rate.of_counts(found.sum(axis=1).tolist(), [keys] * n)
    worst = int(found.sum(axis=0).max())
    law = float(binom.sf(threshold - 1, raw, 0.5))
    surprising = worst / n > _largest_of(keys, n, law, SURE)
    return {
        "scheme": scheme.label,
        "n": n,
        "keys": keys,
        "asked": rate,
        "threshold": threshold,
        "raw_bits": raw,
        "law": law,
        "mean": mean.value,
        "mean_ci": list(mean.interval()),
        "worst": worst / n,
        "worst_ci": list(clopper_pearson(worst, n, 1 - 0.05 / keys)),
        "law_worst": _largest_of(keys, n, law, 0.5),
        "law_worst_high": _largest_of(keys, n, law, 0.975),
        "bias": _bias(bits),
        "alarm": bool(surprising or mean.interval(SURE)[0] > law),
    }


def _largest_of(keys: int, n: int, law: float, quantile: float) -> float:
    """A quantile of the largest rate among independent keys that follow the law."""
    return float(binom.ppf(quantile ** (1 / keys), n, law)) / n


def _bias(bits: Bits) -> float:
    """How far the share of ones lies from a half in the most biased bit."""
    return float(np.abs(bits.mean(axis=0) - 0.5).max())


def false_positives_zero_bit(
    scheme: Scheme, p_values: Sequence[float], rate: float
) -> dict[str, Any]:
    """The same for a mark that is only there or not: how often the test of its key rejects."""
    found = np.asarray(p_values) <= rate
    measured = Rate.of(found)
    interval = list(measured.interval())
    return {
        "scheme": scheme.label,
        "n": len(found),
        "keys": 1,
        "asked": rate,
        "threshold": None,
        "raw_bits": 0,
        "law": rate,
        "mean": measured.value,
        "mean_ci": interval,
        "worst": measured.value,
        "worst_ci": interval,
        "law_worst": _largest_of(1, len(found), rate, 0.5),
        "law_worst_high": _largest_of(1, len(found), rate, 0.975),
        "bias": None,
        "alarm": measured.interval(SURE)[0] > rate,
    }
