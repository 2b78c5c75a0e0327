"""One offline HTML file from an audit's log: the verdict, the pictures, the tables.

The log is the only input: nothing here loads a model, draws or judges.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from expunge.run.files import write_text

Record = Mapping[str, Any]
"""An object of the log."""

SCHEMA = "expunge.audit/1"
KEYS = (
    *("target", "cells", "differences", "broken", "frechet", "flags", "pairs"),
    *("judge", "sampling", "erasure", "made"),
)
PROBES = {
    "plain": "asked by name",
    "synonym": "asked by a synonym",
    "implied": "evoked without its name",
}
ROLES = {"target": "Target", "neighbour": "Neighbours", "unrelated": "Unrelated"}
LONGEST_SIDE = 320
"""Pixels: larger pictures are embedded reduced to this, so that the file stays one to mail."""
SMALL = 128
"""Pixels: pictures up to this size are shown enlarged, pixel by pixel."""
FAILURES = 48
"""Most pairs that a gallery of failures shows."""
MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Picture:
    """One picture of a pair: `uri` is None where the file is missing or unreadable."""

    uri: str | None
    path: str
    width: int
    score: float | None
    shown: bool


@dataclass(frozen=True)
class Pair:
    """Both pictures of one prompt and seed; where `veiled`, blurred until clicked."""

    record: Record
    original: Picture
    erased: Picture
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
    _check(log, examples)
    text = _render(log, Path(images), examples)
    out = Path(out)
    write_text(out, text)
    return out


def _check(log: Record, examples: int) -> None:
    if examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}")
    schema = log.get("schema")
    if not re.fullmatch(r"expunge\.audit/\d+", str(schema)):
        raise ValueError(f"log has schema {schema!r}, expected {SCHEMA!r}: pass an audit's log")
    if schema != SCHEMA:
        raise ValueError(f"log has schema {schema!r}, expected {SCHEMA!r}: upgrade expunge")
    if lacking := [key for key in KEYS if key not in log]:
        raise ValueError(f"log lacks {', '.join(lacking)}: audit again, or pass a complete log")


def _render(log: Record, images: Path, examples: int) -> str:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (rate, difference, p_value, number)
    environment.filters |= {each.__name__: each for each in filters}
    source = files("expunge.report").joinpath("report.html.jinja").read_text(encoding="utf-8")
    album = _Album(log, images)
    return environment.from_string(source).render(
        log=log,
        examples=album.examples(examples),
        failures=album.failures(),
        rows=rows(log),
        roles=ROLES,
        limits={"failures": FAILURES, "small": SMALL, "side": LONGEST_SIDE},
    )


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


def rate(cell: Record) -> str:
    """A cell's rate and 95 % interval."""
    if cell.get("rate") is None:
        return MISSING
    low, high = cell.get("ci") or (None, None)
    interval = MISSING if low is None else f"{_share(low)}\N{EN DASH}{_share(high)}"
    return f"{_share(cell['rate'])}\N{NARROW NO-BREAK SPACE}% [{interval}]"


def points(value: float | None) -> str:
    """A difference of two rates in percentage points, with its sign."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(round(100 * value, 6))
    text = f"{size:.{1 if 0 < size < 9.95 else 0}f}"
    return ("" if float(text) == 0 else "+" if value > 0 else "\N{MINUS SIGN}") + text


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
        original, erased = self._picture(record["original"]), self._picture(record["erased"])
        return Pair(record, original, erased, self._explicit and record["role"] == "target")

    def _picture(self, record: Record) -> Picture:
        path, score = record.get("image") or "no path", record.get("score")
        uri, width = _embed(self._images, path)
        return Picture(uri, path, width, score, score is not None and score >= self._threshold)


def _embed(images: Path, path: str) -> tuple[str | None, int]:
    """A picture as a data URI and its width in pixels; (None, 0) where it cannot be read."""
    inside = PurePosixPath(path)
    # A log may come from a stranger: it must not pull other files into a report that is shared.
    if inside.is_absolute() or ".." in inside.parts:
        return None, 0
    try:
        data = (images / inside).read_bytes()
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            if picture.format != "PNG" or max(picture.size) > LONGEST_SIDE:
                data = _reduced(picture)
            width = min(picture.width, LONGEST_SIDE)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None, 0
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii"), width


def _reduced(picture: Image.Image) -> bytes:
    copy = picture.convert("RGB")
    copy.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    copy.save(buffer, "PNG")
    return buffer.getvalue()
