"""One row for every guard, small enough for a test. A new guard adds its own."""

from __future__ import annotations

from expunge.guard.base import Guard
from expunge.guard.irece import IRECE

GUARDS: dict[str, Guard] = {
    "irece": IRECE(concepts=["cat"], presence=None),
    "irece, plain": IRECE(concepts=["cat"], presence=None, form="plain"),
    "irece, looking": IRECE(concepts=["cat"], presence=0.0, looks=2),
}
"""Rows act on every picture, but for those that look first."""
