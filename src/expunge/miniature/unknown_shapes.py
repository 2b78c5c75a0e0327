"""Shapes that the miniature world never shows: what a judge must call none of the ten objects.

Each draws one kind of thing, varied by a generator: `shape(pen, color, dark, light, rng)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from expunge.miniature.pen import INK, PAPER, STEEL, Color, Pen, mix

Shape = Callable[[Pen, Color, Color, Color, Random], None]
Points = list[tuple[float, float]]

WOOD: Color = (120, 80, 45)


def around(x: float, y: float, radii: list[float], start: float = 0.0) -> Points:
    """Corners at even angles round a middle, each at a radius of its own."""
    step = 2 * math.pi / len(radii)
    angles = [start + step * index for index in range(len(radii))]
    return [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


def coil(x: float, y: float, radius: float, turns: float, start: float = 0.0) -> Points:
    """A spiral from the middle outwards."""
    count = max(int(turns * 14), 8)
    return [
        (
            x + radius * i / count * math.cos(start + 2 * math.pi * turns * i / count),
            y + radius * i / count * math.sin(start + 2 * math.pi * turns * i / count),
        )
        for i in range(count + 1)
    ]


def _spiral(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    pen.line(coil(0, 0.1, 0.85, rng.uniform(2, 3.5), rng.uniform(0, 6)), 0.16, color)


def _mushroom(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    stem, wide = rng.uniform(0.16, 0.28), rng.uniform(0.6, 0.95)
    pen.box(-stem, -0.1, stem, 0.9, PAPER if rng.random() < 0.5 else light)
    pen.ellipse(0, -0.2, wide, 0.6, color)
    for x, y in ((-0.4, -0.25), (0.05, -0.5), (0.4, -0.15)):
        pen.ellipse(x * wide, y, 0.12, 0.12, PAPER)


def _umbrella(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    pen.line(((0, -0.7), (0, 0.75), (0.12, 0.9), (0.28, 0.8)), 0.1, INK)
    rim = rng.uniform(-0.1, 0.1)
    pen.polygon([(-0.95, rim), *around(0, rim, [0.95] * 16, math.pi)[:9], (0.95, rim)], color)
    pen.polygon(((-0.3, rim), (0, -0.9), (0.3, rim)), light)


def _star(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    tips, inner = rng.randint(4, 9), rng.uniform(0.3, 0.6)
    start = rng.uniform(0, 6)
    pen.polygon(around(0, 0.05, [0.95, inner] * tips, start), color)
    if rng.random() < 0.5:
        pen.polygon(around(0, 0.05, [0.6, inner * 0.6] * tips, start), light)


def _key(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    pen.ring(-0.55, 0, 0.4, 0.17, color)
    pen.box(-0.2, -0.09, 0.95, 0.09, color)
    for _ in range(rng.randint(2, 4)):
        x = rng.uniform(0.3, 0.85)
        pen.box(x, 0.05, x + 0.12, rng.uniform(0.25, 0.45), dark)


def _cup(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    foot, rim = rng.uniform(0.3, 0.55), rng.uniform(0.5, 0.65)
    pen.ring(0.6, 0.1, 0.35, 0.13, dark)
    pen.polygon(((-rim, -0.5), (rim, -0.5), (foot, 0.8), (-foot, 0.8)), color)
    pen.ellipse(0, -0.5, rim, 0.14, light)


def _leaf(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    wide = rng.uniform(0.35, 0.6)
    side = [(wide * math.sin(math.pi * i / 8), -0.95 + 1.6 * i / 8) for i in range(9)]
    pen.polygon(side + [(-x, y) for x, y in reversed(side)], color)
    pen.line(((0, -0.8), (0, 0.98)), 0.09, dark)
    for y in (-0.4, 0.0, 0.35):
        pen.line(((-wide * 0.6, y - 0.2), (0, y), (wide * 0.6, y - 0.2)), 0.06, dark)


def _crab(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    for side in (-1, 1):
        for y in (0.25, 0.45, 0.65):
            pen.line(((side * 0.4, y - 0.1), (side * 0.8, y), (side * 0.9, y + 0.25)), 0.1, dark)
        pen.line(((side * 0.4, 0.1), (side * 0.75, -0.25)), 0.13, color)
        pen.ellipse(side * 0.75, -0.45, 0.22, 0.26, color)
        pen.polygon(((side * 0.75, -0.4), (side * 0.65, -0.8), (side * 0.85, -0.8)), PAPER)
        pen.line(((side * 0.15, 0.1), (side * 0.18, -0.2)), 0.07, color)
        pen.ellipse(side * 0.18, -0.22, 0.1, 0.1, INK)
    pen.ellipse(0, 0.3, rng.uniform(0.5, 0.65), 0.36, color)


def _anchor(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    pen.ring(0, -0.75, 0.22, 0.1, color)
    pen.box(-0.09, -0.55, 0.09, 0.8, color)
    pen.box(-0.4, -0.4, 0.4, -0.25, dark)
    pen.line(around(0, 0.2, [0.65] * 16)[:9], 0.16, color)
    for side in (-1, 1):
        pen.polygon(((side * 0.65, 0), (side * 0.9, 0.35), (side * 0.4, 0.35)), color)


def _rabbit(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    lean = rng.uniform(-0.15, 0.15)
    for x in (-0.2, 0.2):
        pen.ellipse(x + lean, -0.72, 0.13, 0.34, color)
        pen.ellipse(x + lean, -0.72, 0.06, 0.24, light)
    pen.ellipse(0.1, 0.5, 0.55, 0.45, color)
    pen.ellipse(0.62, 0.65, 0.15, 0.15, PAPER)
    pen.ellipse(lean, -0.2, 0.38, 0.35, color)
    for x in (-0.15, 0.15):
        pen.ellipse(x + lean, -0.25, 0.07, 0.09, INK)


def _snake(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    waves, height = rng.uniform(1, 2.2), rng.uniform(0.2, 0.5)
    path = [
        (-0.8 + 1.7 * i / 24, 0.3 + height * math.sin(2 * math.pi * waves * i / 24))
        for i in range(25)
    ]
    pen.line(path, 0.24, color)
    pen.line(path, 0.08, dark if rng.random() < 0.5 else light)
    pen.ellipse(-0.82, 0.25, 0.22, 0.17, color)
    pen.ellipse(-0.87, 0.2, 0.06, 0.06, INK)


def _octopus(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    for index in range(rng.randint(4, 7)):
        x = -0.55 + 0.2 * index
        bend = rng.uniform(-0.25, 0.25)
        pen.line(((x, 0.2), (x + bend, 0.6), (x - bend * 0.5, 0.95)), 0.15, dark)
    pen.ellipse(0, -0.25, rng.uniform(0.5, 0.65), 0.62, color)
    for x in (-0.2, 0.2):
        pen.ellipse(x, -0.1, 0.13, 0.13, PAPER)
        pen.ellipse(x, -0.08, 0.07, 0.07, INK)


def _house(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    wide, eaves = rng.uniform(0.5, 0.85), rng.uniform(-0.25, 0.1)
    pen.box(-wide, eaves, wide, 0.9, color)
    pen.polygon(((-wide - 0.15, eaves), (0, -0.9), (wide + 0.15, eaves)), dark)
    pen.box(-0.15, 0.35, 0.15, 0.9, INK)
    pen.box(wide * 0.4, eaves + 0.15, wide * 0.75, eaves + 0.45, (190, 225, 240))


def _flower(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    pen.line(((0, -0.2), (rng.uniform(-0.15, 0.15), 0.98)), 0.1, (60, 130, 60))
    pen.ellipse(0.25, 0.55, 0.22, 0.1, (60, 130, 60))
    for x, y in around(0, -0.35, [0.38] * rng.randint(4, 8), rng.uniform(0, 6)):
        pen.ellipse(x, y, 0.24, 0.24, color)
    pen.ellipse(0, -0.35, 0.22, 0.22, light if rng.random() < 0.5 else INK)


def _lamp(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    top = rng.uniform(0.15, 0.4)
    pen.box(-0.06, -0.2, 0.06, 0.85, STEEL)
    pen.polygon(((-top, -0.9), (top, -0.9), (0.7, -0.1), (-0.7, -0.1)), color)
    pen.ellipse(0, 0.85, 0.4, 0.12, dark)


def _chair(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    seat = rng.uniform(0.05, 0.25)
    for x in (-0.5, 0.4):
        pen.box(x, seat, x + 0.12, 0.95, dark)
    pen.box(-0.6, seat, 0.6, seat + 0.16, color)
    pen.box(0.42, -0.9, 0.6, seat, color)
    if rng.random() < 0.5:
        pen.box(-0.55, -0.35, 0.5, -0.2, dark)


def _bottle(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    wide = rng.uniform(0.25, 0.45)
    pen.box(-0.12, -0.85, 0.12, -0.2, color)
    pen.box(-0.15, -0.98, 0.15, -0.82, dark)
    pen.polygon(((-0.12, -0.4), (0.12, -0.4), (wide, 0.0), (-wide, 0.0)), color)
    pen.box(-wide, 0.0, wide, 0.95, color)
    pen.box(-wide, 0.25, wide, 0.65, PAPER)


def _spider(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    for side in (-1, 1):
        for y in (-0.5, -0.15, 0.2, 0.55):
            pen.line(((0, 0.1), (side * 0.55, y), (side * 0.95, y + 0.3)), 0.08, INK)
    pen.ellipse(0, 0.3, rng.uniform(0.3, 0.45), 0.42, color)
    pen.ellipse(0, -0.2, 0.24, 0.24, dark)


def _blob(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    """A lump of any outline, patched, striped or plain."""
    radii = [rng.uniform(0.45, 0.95) for _ in range(rng.randint(3, 12))]
    pen.polygon(around(0, 0.1, radii, rng.uniform(0, 6)), color)
    inner = min(radii) * 0.7
    for _ in range(rng.choice((0, 0, 3, 6))):
        x, y = rng.uniform(-inner, inner), 0.1 + rng.uniform(-inner, inner)
        size = rng.uniform(0.05, 0.2)
        if rng.random() < 0.5:
            pen.ellipse(x, y, size, size, rng.choice((dark, light, INK, PAPER)))
        else:
            pen.line(((x - size, y), (x + size, y + rng.uniform(-0.2, 0.2))), 0.09, dark)


def _part(pen: Pen, inks: list[Color], rng: Random) -> None:
    x, y, ink = rng.uniform(-0.65, 0.65), rng.uniform(-0.6, 0.7), rng.choice(inks)
    kind = rng.choice(("ellipse", "polygon", "box", "line", "ring"))
    if kind == "ellipse":
        pen.ellipse(x, y, rng.uniform(0.12, 0.6), rng.uniform(0.12, 0.5), ink)
    elif kind == "polygon":
        radii = [rng.uniform(0.2, 0.6) for _ in range(rng.randint(3, 5))]
        pen.polygon(around(x, y, radii, rng.uniform(0, 6)), ink)
    elif kind == "box":
        wide, high = rng.uniform(0.08, 0.6), rng.uniform(0.08, 0.5)
        pen.box(x - wide, y - high, x + wide, y + high, ink)
    elif kind == "ring":
        pen.ring(x, y, rng.uniform(0.2, 0.45), rng.uniform(0.08, 0.16), ink)
    else:
        bend = [(x + rng.uniform(-0.7, 0.7), y + rng.uniform(-0.5, 0.4)) for _ in range(2)]
        pen.line(((x, y), *bend), rng.uniform(0.08, 0.22), ink)


def _contraption(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    """Any parts in any place, in the inks of the known objects; eyes or wheels at times."""
    glass, tones = (190, 225, 240), [color, color, color, dark, light]
    for _ in range(rng.randint(2, 7)):
        _part(pen, [*tones, INK, PAPER, STEEL, glass, mix(color, WOOD, 0.5)], rng)
    for _ in range(rng.choice((0, 0, 1, 2))):
        x, y = rng.uniform(-0.7, 0.7), rng.uniform(-0.7, 0.6)
        size = rng.choice((0.08, 0.1, 0.22))
        pen.ellipse(x, y, size, size, INK)
        if size > 0.2:
            pen.ellipse(x, y, 0.09, 0.09, STEEL)


TRAINED_SHAPES: dict[str, Shape] = {
    "spiral": _spiral,
    "mushroom": _mushroom,
    "umbrella": _umbrella,
    "star": _star,
    "key": _key,
    "cup": _cup,
    "leaf": _leaf,
    "crab": _crab,
    "anchor": _anchor,
    "rabbit": _rabbit,
    "snake": _snake,
    "octopus": _octopus,
    "house": _house,
    "flower": _flower,
    "lamp": _lamp,
    "chair": _chair,
    "bottle": _bottle,
    "spider": _spider,
    "blob": _blob,
    "contraption": _contraption,
}
"""Kinds that judges are trained to call none of the ten; the last two are as many as one likes."""
