"""One offline HTML file from an audit's log: the verdict, the pictures, the tables.

The log is the only input: nothing here loads a model, draws or judges.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.report.format import Record
from expunge.report.page import Form, write_page
from expunge.report.pictures import Picture, embedded

FORM = Form(
    "expunge.audit/1",
    (
        *("target", "cells", "differences", "broken", "frechet", "flags", "pairs"),
        *("judge", "sampling", "erasure", "made"),
    ),
    "an audit's log",
    "audit again",
)
PROBES = {
    "plain": "asked by name",
    "synonym": "asked by a synonym",
    "implied": "evoked without its name",
}
ROLES = {"target": "Target", "neighbour": "Neighbours", "unrelated": "Unrelated"}
FAILURES = 48
"""Most pairs that a gallery of failures shows."""


@dataclass(frozen=True)
class Judged:
    """One picture of a pair and the judge's score; `shown` where it reaches the threshold."""

    picture: Picture
    score: float | None
    shown: bool


@dataclass(frozen=True)
class Pair:
    """Both pictures of one prompt and seed; where `veiled`, blurred until clicked."""

    record: Record
    original: Judged
    erased: Judged
    veiled: bool


@dataclass(frozen=True)
class Gallery:
    """Some of the log's pairs, and how many there were to choose from."""

    title: str
    pairs: list[Pair]
    total: int


@dataclass(frozen=True)
class Row:
    """All figures of one (probe, concept, role); a part the log lacks is an empty record."""

    probe: str
    concept: str
    role: str
    original: Record
    erased: Record
    difference: Record


def write_report(log: Mapping[str, Any], images: Path, out: Path, *, examples: int = 12) -> Path:
    """Write the report of an audit.

    Args:
        log: the audit's log, an object of schema `expunge.audit/1`.
        images: the folder that the log's image paths are relative to.
        out: the HTML file to write; its folder is made where needed.
        examples: pairs shown per target concept and probe; neighbours share as many, rounded up
            to threes, and so do unrelated concepts.

    Returns:
        `out`.

    Raises:
        ValueError: the log has another schema or lacks a part, or `examples` is below 1.
    """
    FORM.check(log, examples)
    album = _Album(log, Path(images))
    return write_page(
        Path(out),
        "report.html.jinja",
        log=log,
        examples=album.examples(examples),
        failures=album.failures(),
        rows=rows(log),
        roles=ROLES,
        most_failures=FAILURES,
    )


def rows(log: Record) -> list[Row]:
    """One row per (probe, concept, role): targets first, then in the order of the log."""
    cells = {(*_key(cell), cell["condition"]): cell for cell in log["cells"]}
    differences = {_key(record): record for record in log["differences"]}
    keys = dict.fromkeys([*map(_key, log["cells"]), *differences])
    return [
        Row(
            *key,
            original=cells.get((*key, "original"), {}),
            erased=cells.get((*key, "erased"), {}),
            difference=differences.get(key, {}),
        )
        for key in sorted(keys, key=lambda key: list(ROLES).index(key[2]))
    ]


def _key(record: Record) -> tuple[str, str, str]:
    return record["probe"], record["concept"], record["role"]


class _Album:
    """Chooses pairs from the log, always the same ones, and reads only the pictures chosen."""

    def __init__(self, log: Record, images: Path) -> None:
        self._records: list[Record] = log["pairs"]
        self._images = images
        self._threshold: float = log["judge"]["threshold"]
        concepts = log["erasure"].get("concepts", [])
        self._explicit = any(each.get("kind") == "explicit" for each in concepts)

    def examples(self, count: int) -> dict[str, list[Gallery]]:
        """Galleries per role: the first pairs of each concept (and probe, for targets)."""
        groups: dict[str, dict[tuple[str, str], list[Record]]] = {role: {} for role in ROLES}
        for each in self._records:
            groups[each["role"]].setdefault((each["concept"], each["probe"]), []).append(each)
        return {
            role: [
                self._gallery(
                    f"{concept}, {PROBES.get(probe, probe)}",
                    records,
                    count if role == "target" else 3 * math.ceil(count / (3 * len(group))),
                )
                for (concept, probe), records in group.items()
            ]
            for role, group in groups.items()
        }

    def failures(self) -> dict[str, Gallery]:
        """What came back and what broke, worst first."""
        asked = [each for each in self._records if each["role"] == "target"]
        return {
            "back": self._worst("What came back", asked, "score"),
            "broken": self._worst("Broken pictures", self._records, "broken"),
        }

    def _worst(self, title: str, records: list[Record], measure: str) -> Gallery:
        def value(record: Record) -> float:
            return record["erased"].get(measure) or 0.0

        found = [each for each in records if value(each) >= self._threshold]
        return self._gallery(title, sorted(found, key=value, reverse=True), FAILURES)

    def _gallery(self, title: str, records: list[Record], most: int) -> Gallery:
        return Gallery(title, [self._pair(record) for record in records[:most]], len(records))

    def _pair(self, record: Record) -> Pair:
        original, erased = self._judged(record["original"]), self._judged(record["erased"])
        return Pair(record, original, erased, self._explicit and record["role"] == "target")

    def _judged(self, record: Record) -> Judged:
        score = record.get("score")
        shown = score is not None and score >= self._threshold
        return Judged(embedded(self._images, record.get("image")), score, shown)
