"""An audit's figures as a table to sort elsewhere: CSV in the page itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from expunge.auditing.log import Log

MOST_SAMPLES = 5000
"""Rows of samples that a page carries; the log has them all."""


def downloads(log: Log) -> dict[str, str]:
    """All that a page offers."""
    return {"rates": cells(log), "pictures": samples(log), "notes": flags(log)}


def cells(log: Log) -> str:
    """Every cell as a data URI of CSV."""
    head = ("condition", "attack", "probe", "concept", "role", "judge", "budget", "n", "k", "rate")
    rows = [(*(getattr(cell, name) for name in head), *cell.ci) for cell in log.cells]
    return _uri([(*head, "low", "high"), *rows])


def samples(log: Log) -> str:
    """Every sample with prompt, seed and scores, one picture a row."""
    head = ("attack", "probe", "concept", "role", "prompt", "seed")
    judges = tuple(judge.name for judge in log.judges)
    rows: list[Sequence[object]] = [
        (
            *(getattr(each, name) for name in head),
            *(side, shot.image, *(shot.scores[name] for name in judges), shot.broken),
        )
        for each in log.samples[:MOST_SAMPLES]
        for side, shot in each.pictures.items()
    ]
    return _uri([(*head, "condition", "picture", *judges, "broken"), *rows])


def flags(log: Log) -> str:
    """Every note with its code."""
    rows = [(flag.code, flag.kind, flag.concept, flag.text) for flag in log.flags]
    return _uri([("code", "kind", "concept", "text"), *rows])


def _uri(rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([_plain(v) for v in row] for row in rows)
    return "data:text/csv;charset=utf-8," + quote(buffer.getvalue())


def _plain(value: object) -> object:
    """Text that a spreadsheet would run as a formula is kept from it by an apostrophe."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value
