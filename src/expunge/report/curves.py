"""Where lines and marks of survival against level go: plain numbers for inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from expunge.report.format import Record, percent, share
from expunge.report.survival import CHANCE, Standing, level, name

WIDTH, HEIGHT = 340, 214
LEFT, RIGHT, TOP, BOTTOM = 78, 12, 10, 42
"""Margins of a panel; its units are CSS pixels at its usual size."""
SHAPES = (
    "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0-9 0z",
    "M-4-4h8v8h-8z",
    "M0-5.5L5.2 4H-5.2z",
    "M0-5.8L5.8 0L0 5.8L-5.8 0z",
    "M0 5.5L5.2-4H-5.2z",
    "M-1.7-5h3.4v3.3h3.3v3.4h-3.3V5h-3.4V1.7H-5v-3.4h3.3z",
    "M0-6L1.6-1.9L5.7-1.9L2.4.8L3.5 4.9L0 2.5L-3.5 4.9L-2.4.8L-5.7-1.9L-1.6-1.9z",
    "M-5.4 0L-2.7-4.7H2.7L5.4 0L2.7 4.7H-2.7z",
    "M-4.6-2.4l2.2-2.2L0-2.2l2.4-2.4 2.2 2.2L2.2 0l2.4 2.4-2.2 2.2L0 2.2l-2.4 2.4-2.2-2.2L-2.2 0z",
    "M-6-2.5h12v5h-12z",
)
"""Outlines about a mark's place: schemes differ in shape, not in colour alone."""
MEASURES = {
    "bits": ("Bit accuracy", "bit_accuracy", "ci"),
    "payload": ("Payload after error correction", "payload_rate", "payload_ci"),
    "detection": ("Detection", "detection_rate", "detection_ci"),
}


@dataclass(frozen=True)
class Look:
    """How one scheme is drawn: the number of its colour, and its shape."""

    color: int
    shape: str


def look(index: int) -> Look:
    """The look of the scheme with that number; ten colours, and a shape more at each round."""
    count = len(SHAPES)
    return Look(index % count, SHAPES[(index + index // count) % count])


@dataclass(frozen=True)
class Axis:
    """A straight scale: values from `low` to `high` fall on pixels from `start` to `stop`."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        """Where a value lies; values outside lie on the rim."""
        inside = min(max(value, self.low), self.high)
        part = (inside - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(self.start + part * (self.stop - self.start), 1)


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    text: str
    chance: bool = False


@dataclass(frozen=True)
class Mark:
    """A rate in a panel, and the ends of its interval."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One scheme's marks."""

    look: Look
    marks: list[Mark]


@dataclass(frozen=True)
class Panel:
    """One measure against level, all schemes; `text` says the same in words."""

    title: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    text: str


@dataclass(frozen=True)
class Curves:
    """All panels of one edit."""

    edit: str
    unit: str
    white_box: bool
    control: bool
    panels: list[Panel]


def curves(standings: Sequence[Standing]) -> list[Curves]:
    """One for each edit of two or more levels, ordinary ones first."""
    found = []
    for white_box in (False, True):
        groups = [_cells(standing, white_box) for standing in standings]
        for edit in dict.fromkeys(_edit(cell) for cells in groups for cell in cells):
            of_it = [[cell for cell in cells if _edit(cell) == edit] for cells in groups]
            if len({cell["level"] for cells in of_it for cell in cells} - {None}) > 1:
                found.append(_curves(edit, standings, of_it, white_box))
    return found


def _edit(cell: Record) -> str:
    return name({**cell, "level": None}, {})


def _cells(standing: Standing, white_box: bool) -> list[Record]:
    plain = [*standing.distortions, *standing.redrawn]
    return standing.white_box if white_box else plain


def _curves(
    edit: str, standings: Sequence[Standing], groups: list[list[Record]], white_box: bool
) -> Curves:
    unit = next(cell["unit"] for cells in groups for cell in cells)
    # An edit by a model at noise level 0 is the round trip through the autoencoder alone.
    control = unit == "noise level" and not white_box and any(each.control for each in standings)
    rows = [
        [*_at_zero(standing.control if control else None), *_rising(cells)]
        for standing, cells in zip(standings, groups, strict=True)
    ]
    panels = [panel for measure in MEASURES if (panel := _panel(measure, standings, rows, unit))]
    return Curves(edit, unit, white_box, control, panels)


def _at_zero(control: Record | None) -> list[Record]:
    return [] if control is None else [{**control, "level": 0.0}]


def _rising(cells: list[Record]) -> list[Record]:
    return sorted((c for c in cells if c["level"] is not None), key=lambda cell: cell["level"])


def _panel(
    measure: str, standings: Sequence[Standing], rows: list[list[Record]], unit: str
) -> Panel | None:
    title, value, ci = MEASURES[measure]
    rows = [[cell for cell in cells if cell[value] is not None] for cells in rows]
    levels = sorted({cell["level"] for cells in rows for cell in cells})
    if not levels:
        return None
    x = Axis(levels[0], levels[-1], LEFT + 14, WIDTH - RIGHT - 14)
    y, y_ticks = rate_axis([c[value] for cells in rows for c in cells], measure, HEIGHT - BOTTOM)
    lines = []
    for index, cells in enumerate(rows):
        # Side by side, so that schemes with like figures do not hide each other.
        shift = 5 * (index - (len(rows) - 1) / 2) if len(rows) < 7 else 0
        marks = [_mark(x.at(c["level"]) + shift, y, c[value], c[ci]) for c in cells]
        lines.append(Line(look(index), marks))
    return Panel(title, lines, _x_ticks(levels, x, unit), y_ticks, _text(measure, standings, rows))


def rate_axis(values: Sequence[float], measure: str, bottom: float) -> tuple[Axis, list[Tick]]:
    """The axis of a rate: bits from 40 % (less if a cell has less) with chance marked, or all."""
    bits = measure == "bits"
    low = min([0.4, *(int(10 * value) / 10 for value in values)]) if bits else 0.0
    y = Axis(low, 1.0, bottom, TOP)
    ticks = [Tick(y.at(at), percent(at)) for at in (0, 0.2, 0.4, 0.6, 0.8, 1) if at >= low]
    return y, ticks + [Tick(y.at(CHANCE), f"chance {percent(CHANCE)}", True)] * bits


def _mark(x: float, y: Axis, value: float, ci: Sequence[float] | None) -> Mark:
    low, high = ci or (value, value)
    return Mark(round(x, 1), y.at(value), y.at(low), y.at(high))


def _x_ticks(levels: Sequence[float], x: Axis, unit: str) -> list[Tick]:
    """Labels of levels, leaving out those that would touch the one before."""
    ticks = [Tick(x.at(each), level(each, unit)) for each in levels]
    kept = ticks[:1]
    for _, tick in pairwise(ticks):
        if tick.at - kept[-1].at > 6 * max(len(tick.text), len(kept[-1].text)) + 4:
            kept.append(tick)
    return kept


def _text(measure: str, standings: Sequence[Standing], rows: list[list[Record]]) -> str:
    title, value, ci = MEASURES[measure]
    said = [
        f"{standing.scheme['scheme']} "
        + ", ".join(f"{share(c[value], c[ci])} at {c['level']:.3g}" for c in cells)
        for standing, cells in zip(standings, rows, strict=True)
        if cells
    ]
    return f"{title}: {'; '.join(said)}"
