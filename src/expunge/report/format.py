"""Figures as text, the same in every report: shares, differences, decibels, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]
"""An object of a log."""

MISSING = "\N{EN DASH}"
MINUS = "\N{MINUS SIGN}"
PERCENT = "\N{NARROW NO-BREAK SPACE}%"
IDENTICAL = 100.0
"""dB that a log gives two pictures which do not differ."""


def _share(value: float | None) -> str:
    """A fraction as a percentage without its sign, never rounded onto 0 or 100."""
    if value is None or not math.isfinite(value):
        return MISSING
    percentage = abs(round(100 * value, 6))
    if 0 < percentage < 0.05:
        return "<0.1"
    if 99.95 <= percentage < 100:
        return ">99.9"
    plain = percentage in (0, 100) or 10 <= percentage <= 99
    return f"{percentage:.{0 if plain else 1}f}"


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    text = _share(value)
    return text if text == MISSING else text + PERCENT


def share(value: float | None, ci: Sequence[float] | None) -> str:
    """A fraction as a percentage with its 95 % interval."""
    if value is None:
        return MISSING
    low, high = ci or (None, None)
    interval = MISSING if low is None else f"{_share(low)}\N{EN DASH}{_share(high)}"
    return f"{_share(value)}{PERCENT} [{interval}]"


def span(ci: Sequence[float]) -> str:
    """A 95 % interval in percent, as prose has it."""
    low, high = _share(ci[0]), _share(ci[1])
    return f"{low}\N{EN DASH}{high}{PERCENT}" if low != high else high + PERCENT


def of(k: int, n: int) -> str:
    """A count out of a number."""
    return f"{k:,} of {n:,}"


def rate(cell: Record) -> str:
    """A cell's rate and 95 % interval."""
    return share(cell.get("rate"), cell.get("ci"))


def _rare(value: float) -> str:
    return f"{100 * value:.2g}" if value >= 1e-7 or value == 0 else "<0.00001"


def rare(value: float | None, ci: Sequence[float] | None = None) -> str:
    """A fraction that may be far below a percent, with two digits that count."""
    if value is None or not math.isfinite(value):
        return MISSING
    interval = f" [{_rare(ci[0])}\N{EN DASH}{_rare(ci[1])}]" if ci else ""
    return f"{_rare(value)}{PERCENT}{interval}"


def points(value: float | None) -> str:
    """A difference of two rates in percentage points, with its sign."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(round(100 * value, 6))
    text = f"{size:.{1 if 0 < size < 9.95 else 0}f}"
    return ("" if float(text) == 0 else "+" if value > 0 else MINUS) + text


def difference(record: Record) -> str:
    """A paired difference and its interval, in percentage points."""
    if record.get("difference") is None:
        return MISSING
    low, high = record.get("ci") or (None, None)
    interval = MISSING if low is None else f"{points(low)}, {points(high)}"
    return f"{points(record['difference'])} [{interval}]"


def p_value(value: float | None) -> str:
    """A p value with two digits that count, or `<0.001`."""
    if value is None:
        return MISSING
    return "<0.001" if value < 0.001 else f"{value:.2g}"


def decimal(value: float | None, digits: int = 3) -> str:
    """A plain number with so many decimals."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")


def decibels(value: float | None, half_width: float | None = None) -> str:
    """A PSNR and half the width of its 95 % interval, or `identical`."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value >= IDENTICAL:
        return "identical"
    if half_width is None:
        return decimal(value, 1)
    return f"{decimal(value, 1)} \N{PLUS-MINUS SIGN} {half_width:.{1 if half_width >= 0.1 else 2}f}"


def number(value: Any) -> str:
    """Any setting or measurement as text, with at most five digits that count."""
    if value is None:
        return MISSING
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {number(each)}" for key, each in value.items()) or MISSING
    if isinstance(value, list | tuple):
        return ", ".join(number(each) for each in value) or MISSING
    return str(value)


def when(text: str) -> str:
    """A time as logs write it, for people."""
    return text.replace("T", " ").replace("+00:00", " UTC").replace("Z", " UTC")


def listed(names: Sequence[str]) -> str:
    """Names as a sentence lists them."""
    *others, last = names or (MISSING,)
    return f"{', '.join(others)} and {last}" if others else last


FILTERS = (
    *(percent, share, span, rate, rare, points, difference, p_value),
    *(decimal, decibels, number, when, listed),
)
"""What templates may pipe figures through, by their own names."""
