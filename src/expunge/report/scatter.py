"""Survival against quality: a panel for each scheme, every edit a labelled mark in it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, hypot

from expunge.report.curves import Axis, Look, Tick, look, rate_axis
from expunge.report.format import IDENTICAL, Record, decibels, percent
from expunge.report.survival import CHANCE, Standing, name

WIDTH, HEIGHT = 400, 320
LEFT, RIGHT, TOP, BOTTOM = 78, 12, 10, 42
SLOT = 56
"""Width kept at the right for edits that change nothing, whose PSNR is no number."""
LETTER, LINE = 6.4, 12
"""Width of a letter and height of a line in a label, about."""
REACH = tuple(
    (radius * across, radius * along)
    for radius in (10, 18, 30, 44, 60, 80)
    for across, along in ((1, 0), (-1, 0), (0.7, -0.8), (0.7, 0.8), (-0.7, -0.8), (-0.7, 0.8))
) + tuple((0, sign * radius) for radius in (14, 28, 44, 64) for sign in (-1, 1))
"""Where a label may stand, counted from its mark, best first."""


@dataclass(frozen=True)
class Label:
    """A text beside a mark, with a leader where it stands too far off to be read without."""

    text: str
    x: float
    y: float
    anchor: str
    leader: bool


@dataclass(frozen=True)
class Spot:
    """A cell in a panel."""

    x: float
    y: float
    white_box: bool
    label: Label


@dataclass(frozen=True)
class Scatter:
    """One scheme's cells; `others` are the places of all other schemes' cells."""

    scheme: str
    look: Look
    bits: bool
    spots: list[Spot]
    others: list[tuple[float, float]]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    text: str


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def scatters(
    standings: Sequence[Standing], cells: Sequence[Record], units: Record
) -> list[Scatter]:
    """One panel per scheme, all with the same axes as far as they measure the same."""
    x, ticks = _quality_axis([cell["psnr"] for cell in cells])
    return [_scatter(index, standings, cells, units, x, ticks) for index in range(len(standings))]


def _quality_axis(values: Sequence[float]) -> tuple[Axis, list[Tick]]:
    """Decibels in steps of five or ten; pictures that do not differ have a slot of their own."""
    known = [value for value in values if value < IDENTICAL] or [20.0, 40.0]
    low, high = 5 * floor(min(known) / 5), 5 * ceil(max(known) / 5)
    high = max(high, low + 5)
    slot = SLOT * any(value >= IDENTICAL for value in values)
    axis = Axis(low, high, LEFT + 10, WIDTH - RIGHT - 14 - slot)
    step = 5 if high - low <= 30 else 10
    ticks = [Tick(axis.at(at), str(at)) for at in range(low, high + 1, step)]
    return axis, ticks + [Tick(WIDTH - RIGHT - 26, "identical")] * bool(slot)


def _scatter(
    index: int,
    standings: Sequence[Standing],
    cells: Sequence[Record],
    units: Record,
    x: Axis,
    ticks: list[Tick],
) -> Scatter:
    standing = standings[index]
    scheme, bits = standing.scheme["scheme"], standing.bits
    value = "bit_accuracy" if bits else "detection_rate"
    shown = [c for c in cells if c[value] is not None and (bits or c["scheme"] == scheme)]
    y, y_ticks = rate_axis([c[value] for c in shown], "bits" if bits else "", HEIGHT - BOTTOM)

    def place(cell: Record) -> tuple[float, float]:
        return _across(x, cell["psnr"]), y.at(cell[value])

    own = [cell for cell in shown if cell["scheme"] == scheme]
    others = [place(cell) for cell in shown if cell["scheme"] != scheme]
    names = [name(cell, units) + ", white box" * cell["white_box"] for cell in own]
    spots = _spots(own, names, [place(cell) for cell in own], y.at(CHANCE))
    figures = [f"{percent(cell[value])} at PSNR {decibels(cell['psnr'])}" for cell in own]
    text = ", ".join(f"{each} {said}" for each, said in zip(names, figures, strict=True))
    return Scatter(scheme, look(index), bits, spots, others, ticks, y_ticks, text)


def _across(x: Axis, psnr: float) -> float:
    return x.at(psnr) if psnr < IDENTICAL else WIDTH - RIGHT - 26.0


def _spots(
    cells: Sequence[Record],
    names: Sequence[str],
    places: Sequence[tuple[float, float]],
    chance: float,
) -> list[Spot]:
    """Marks with labels that touch neither marks nor each other, as far as there is room."""
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    taken.append((LEFT, chance - 1, WIDTH - RIGHT, chance + 1))
    spots = []
    for cell, text, (x, y) in zip(cells, names, places, strict=True):
        choices = [_label(text, x, y, dx, dy) for dx, dy in REACH]
        label, box = min(choices, key=lambda choice: _cost(choice[1], taken))
        taken.append(box)
        spots.append(Spot(x, y, cell["white_box"], label))
    return spots


def _label(text: str, x: float, y: float, dx: float, dy: float) -> tuple[Label, Box]:
    wide, left, middle = LETTER * len(text), x + dx, y + dy
    anchor = "middle" if dx == 0 else "start" if dx > 0 else "end"
    left -= {"middle": wide / 2, "start": 0, "end": wide}[anchor]
    label = Label(text, round(x + dx, 1), round(middle + 4, 1), anchor, hypot(dx, dy) > 17)
    return label, (left, middle - LINE / 2, left + wide, middle + LINE / 2)


def _cost(box: Box, taken: Iterable[Box]) -> float:
    """Area that a label shares with others, and far more for what would be cut off."""
    left, top, right, bottom = box
    outside = max(0.0, LEFT - left) + max(0.0, right - WIDTH + 2) + max(0.0, TOP - top)
    outside += max(0.0, bottom - HEIGHT + BOTTOM)
    shared = sum(
        max(0.0, min(right, x1) - max(left, x0)) * max(0.0, min(bottom, y1) - max(top, y0))
        for x0, y0, x1, y1 in taken
    )
    return shared + 100 * outside
