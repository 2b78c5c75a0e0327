"""Shapes that no network of the miniature ever sees, not even as something unknown."""

from __future__ import annotations

from random import Random

from expunge.miniature.pen import INK, Color, Pen
from expunge.miniature.unknown_shapes import WOOD, Shape, coil


def _snail(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    pen.line(((-0.95, 0.75), (0.75, 0.75)), 0.3, light)
    pen.ellipse(-0.85, 0.5, 0.17, 0.35, light)
    for x in (-0.98, -0.72):
        pen.line(((-0.85, 0.3), (x, -0.1)), 0.08, light)
        pen.ellipse(x, -0.12, 0.09, 0.09, INK)
    pen.ellipse(0.15, 0.15, 0.62, 0.6, color)
    pen.line(coil(0.15, 0.15, 0.48, rng.uniform(1.8, 2.4), rng.uniform(0, 6)), 0.12, dark)


def _hourglass(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    waist, wide = rng.uniform(0.04, 0.12), rng.uniform(0.45, 0.65)
    pen.polygon(((-wide, -0.8), (wide, -0.8), (waist, 0.05), (-waist, 0.05)), light)
    pen.polygon(((-wide, 0.9), (wide, 0.9), (waist, 0.05), (-waist, 0.05)), light)
    pen.polygon(((-wide * 0.7, 0.85), (wide * 0.7, 0.85), (0, 0.4)), color)
    pen.polygon(((-wide * 0.6, -0.45), (wide * 0.6, -0.45), (0, 0.05)), color)
    for y in (-0.85, 0.85):
        pen.box(-wide - 0.15, y - 0.1, wide + 0.15, y + 0.1, dark)


def _guitar(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    pen.box(-0.1, -0.95, 0.1, 0.2, WOOD)
    pen.box(-0.17, -1.0, 0.17, -0.78, dark)
    pen.ellipse(0, 0.05, 0.38, 0.35, color)
    pen.ellipse(0, 0.52, rng.uniform(0.48, 0.6), 0.45, color)
    pen.ellipse(0, 0.28, 0.16, 0.16, INK)
    pen.box(-0.2, 0.65, 0.2, 0.75, dark)


def _butterfly(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    wide = rng.uniform(0.38, 0.48)
    for side in (-1, 1):
        pen.ellipse(side * 0.5, -0.35, wide, 0.5, color)
        pen.ellipse(side * 0.42, 0.45, wide * 0.8, 0.4, dark)
        pen.ellipse(side * 0.55, -0.35, 0.18, 0.22, light)
        pen.line(((0, -0.6), (side * 0.25, -0.98)), 0.06, INK)
    pen.ellipse(0, 0, 0.11, 0.7, INK)


def _teapot(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    pen.ring(0.65, 0.15, 0.35, 0.13, dark)
    pen.polygon(((-0.4, 0.45), (-0.95, -0.25), (-0.8, -0.3), (-0.3, 0.05)), dark)
    pen.ellipse(0, 0.25, rng.uniform(0.58, 0.68), 0.55, color)
    pen.ellipse(0, -0.27, 0.3, 0.12, light)
    pen.ellipse(0, -0.42, 0.1, 0.1, dark)
    pen.box(-0.35, 0.72, 0.35, 0.85, dark)


def _tree(pen: Pen, color: Color, dark: Color, light: Color, rng: Random) -> None:
    pen.box(-0.13, 0.1, 0.13, 0.95, WOOD)
    if rng.random() < 0.5:
        for y in (0.35, -0.05, -0.45):
            pen.polygon(((0, y - 0.55), (0.65 + y * 0.4, y), (-0.65 - y * 0.4, y)), color)
    else:
        for x, y in ((-0.4, -0.1), (0.4, -0.15), (0, -0.5)):
            pen.ellipse(x, y, 0.42, 0.4, color if x else light)


HELD_OUT_SHAPES: dict[str, Shape] = {
    "snail": _snail,
    "hourglass": _hourglass,
    "guitar": _guitar,
    "butterfly": _butterfly,
    "teapot": _teapot,
    "tree": _tree,
}
"""What judges are measured on, so that the figures hold for shapes nobody thought of."""
