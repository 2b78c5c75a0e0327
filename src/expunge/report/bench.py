"""A bench's tables: Markdown, and one offline HTML file. Its log is the only input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.report.format import MISSING, PERCENT, Record, decimal, percent, share
from expunge.report.page import Form, write_page

FORM = Form(
    "expunge.bench/1",
    (
        *("protocol", "model", "judge", "methods", "concepts", "rows", "matrix", "sources"),
        *("flags", "made", "sampling", "prompts", "split", "clip"),
    ),
    "a bench's log",
    "run the bench again",
)

MEASURES = {
    "acc_e": "what was erased, shown when asked by name (Acc_e); lower is better",
    "acc_s": "all else of the domain, shown when asked by name (Acc_s)",
    "acc_g": "what was erased, shown when asked by synonym (Acc_g); lower is better",
    "h_o": "H_o = 3 / ((1 − Acc_e)⁻¹ + Acc_s⁻¹ + (1 − Acc_g)⁻¹), of MACE and TRACE",
    "h_c": "H_c = 2 / ((1 − Acc_e)⁻¹ + Acc_s⁻¹), of MACE and TRACE",
    "face_rate": "a face, anybody's, where what was erased was asked for",
    "style_removed": "pictures without the style when asked by name",
    "detected": "found where a prompt evokes it without naming it; lower is better",
    "h_fade": "FADE's H = 2EF/(E + F), E = 1 − Acc_e, F of CLIP score and Fréchet distance",
    "fid": "Fréchet distance of pictures of all else from real ones; lower is better",
    "clip": "CLIP score (100 × cosine) of pictures and their texts",
    "broken": "pictures that are none; lower is better",
    "seconds": "to erase one concept",
    "bytes": "of the changes of one concept",
}
"""What every measure says, in words, in the order of tables."""

_PLAIN = {"fid": 2, "clip": 2, "seconds": 1, "bytes": 0}
"""Measures that are no fractions, and how many decimals they have."""


def figure(row: Record) -> str:
    """A row's value with its interval, as tables have it."""
    digits = _PLAIN.get(row["measure"])
    if digits is None:
        return share(row["value"], row["ci"]) if row["ci"] else percent(row["value"])
    if row["value"] is None:
        return MISSING
    shown = f"{row['value']:,.{digits}f}"
    if row["ci"] is None:
        return shown
    low, high = (decimal(each, digits) for each in row["ci"])
    return f"{shown} [{low}–{high}]"


def told(row: Record) -> str:
    """What papers report of the same, each with its source."""
    plain = row["measure"] in _PLAIN
    found = (row["reported"] or {}).items()
    shown = [
        f"{paper} {each:g}" if plain else f"{paper} {100 * each:.4g}{PERCENT}"
        for paper, each in found
    ]
    return "; ".join(shown)


def place(row: Record) -> tuple[int, str]:
    """Where a row stands, so that methods are side by side."""
    order = list(MEASURES)
    measure, scenario = row["measure"], row["scenario"] or ""
    return order.index(measure) if measure in order else len(order), scenario


@dataclass(frozen=True)
class Line:
    """One measure under one method."""

    method: str
    n: str
    measured: str
    reported: str


@dataclass(frozen=True)
class Section:
    """One measure, methods side by side."""

    title: str
    short: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Matrix:
    """What one method erased, against what was asked by name."""

    method: str
    asked: Sequence[str]
    lines: Sequence[tuple[str, Sequence[Record | None]]]


def sections(log: Record, concept: str | None) -> list[Section]:
    """Every measure of one erased concept; None for the means over all."""
    groups: dict[tuple[str, str | None], list[Line]] = {}
    for row in sorted(log["rows"], key=place):
        if row["concept"] == concept:
            line = Line(row["method"], f"{row['n']:,}", figure(row), told(row))
            groups.setdefault((row["measure"], row["scenario"]), []).append(line)
    return [
        Section(MEASURES.get(measure, measure) + of, measure + of, lines)
        for (measure, scenario), lines in groups.items()
        for of in [f" ({scenario})" if scenario else ""]
    ]


def _measured(log: Record) -> list[tuple[str, str]]:
    """The measures of a log in words."""
    found = {row["measure"] for row in log["rows"]}
    return [(measure, text) for measure, text in MEASURES.items() if measure in found]


def matrices(log: Record) -> list[Matrix]:
    """Interference: what was erased × what was asked, under the original and every method."""
    return [_matrix(method, log["matrix"]) for method in _distinct(log["matrix"], "method")]


def _matrix(method: str, cells: Sequence[Record]) -> Matrix:
    own = [cell for cell in cells if cell["method"] == method]
    # What was erased first, so that the diagonal is what should be gone.
    first = [name for name in _distinct(cells, "erased") if name]
    asked = list(dict.fromkeys([*first, *_distinct(own, "asked")]))
    at = {(cell["erased"], cell["asked"]): cell for cell in own}
    lines = [
        (erased or "nothing", [at.get((erased, name)) for name in asked])
        for erased in _distinct(own, "erased")
    ]
    return Matrix(method, asked, lines)


def _distinct(cells: Sequence[Record], key: str) -> list[Any]:
    return list(dict.fromkeys(cell[key] for cell in cells))


def markdown(log: Mapping[str, Any]) -> str:
    """All tables, for a README or a paper's draft."""
    return "\n".join(_markdown(log)) + "\n"


def _markdown(log: Record) -> Iterator[str]:
    yield f"# Bench of {log['protocol']} on {log['model']['name']}"
    yield ""
    yield _basis(log)
    for flag in log["flags"]:
        kind = "Not measured" if flag["kind"] == "unmeasured" else "Note"
        yield f"- {kind}: {flag['text']}"
    yield ""
    yield from (f"- `{measure}`: {text}" for measure, text in _measured(log))
    yield ""
    for concept in (None, *log["concepts"]):
        yield "## Means over concepts" if concept is None else f"## {_cell(concept)} erased"
        yield ""
        head = ("measure", "method", "n", "measured [95 %]", "reported")
        body: list[Sequence[str]] = [
            (section.short, line.method, line.n, line.measured, line.reported)
            for section in sections(log, concept)
            for line in section.lines
        ]
        yield from _rows(head, body)
    for matrix in matrices(log):
        yield f"## Erased × asked: {_cell(matrix.method)}"
        yield ""
        body = [(erased, *map(_rate, cells)) for erased, cells in matrix.lines]
        yield from _rows(("erased", *matrix.asked), body)
    yield "Reported figures are of other models, judges and prompts: compare columns, not numbers."
    yield ""
    yield from (f"- {name}: {text}" for name, text in _cited(log))


def _basis(log: Record) -> str:
    clip = f", CLIP score by {log['clip']['name']}" if log["clip"] else ""
    return (
        f"At most {log['prompts']:,} distinct {log['split']} prompts for each concept and way of "
        f"asking, one picture each, the same seeds throughout; judged by {log['judge']['name']}, "
        f"on whose features Fréchet distances are measured{clip}.\n"
    )


def _cited(log: Record) -> list[tuple[str, str]]:
    """Sources of the reported figures that are there."""
    papers = {paper for row in log["rows"] for paper in row["reported"] or ()}
    return [(name, text) for name, text in log["sources"].items() if name in papers]


def _rate(cell: Record | None) -> str:
    return MISSING if cell is None else percent(cell["rate"])


def _rows(head: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_cell, head))} |"
    yield f"|{' --- |' * len(head)}"
    for row in body:
        yield f"| {' | '.join(map(_cell, row))} |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def write_bench_report(log: Mapping[str, Any], out: Path) -> Path:
    """Write a bench's tables as one HTML file.

    Args:
        log: the bench's log, an object of schema `expunge.bench/1`.
        out: the file to write; its folder is made where needed.

    Returns:
        `out`.

    Raises:
        ValueError: the log has another schema or lacks a part.
    """
    FORM.check(log, 1)
    tables = [("Means over concepts", sections(log, None))]
    tables += [(f"{name} erased", sections(log, name)) for name in log["concepts"]]
    return write_page(
        Path(out),
        "bench.html.jinja",
        log=log,
        heading=f"Bench of {log['protocol']} on {log['model']['name']}",
        basis=_basis(log),
        tables=tables,
        matrices=matrices(log),
        cited=_cited(log),
    )
