"""How the things of the miniature world look: the ten objects, and the ball."""

from __future__ import annotations

from collections.abc import Callable

from expunge.miniature.pen import INK, PAPER, STEEL, Color, Pen


def _cat(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    pen.line(((0.45, 0.8), (0.95, 0.6), (0.9, 0.1)), 0.2, dark)
    pen.ellipse(0, 0.5, 0.55, 0.5, color)
    pen.ellipse(0, 0.6, 0.28, 0.35, light)
    pen.polygon(((-0.6, -0.95), (-0.55, -0.2), (-0.05, -0.5)), color)
    pen.polygon(((0.6, -0.95), (0.55, -0.2), (0.05, -0.5)), color)
    pen.ellipse(0, -0.25, 0.6, 0.48, color)
    for side in (-1, 1):
        pen.ellipse(side * 0.25, -0.32, 0.1, 0.13, INK)
    pen.polygon(((-0.1, -0.1), (0.1, -0.1), (0, 0.03)), dark)


def _dog(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    pen.line(((0.65, -0.05), (0.98, -0.5)), 0.18, color)
    for x in (-0.5, -0.25, 0.35, 0.6):
        pen.box(x - 0.1, 0.2, x + 0.1, 0.95, dark if x in (-0.25, 0.35) else color)
    pen.ellipse(0.05, 0.1, 0.75, 0.34, color)
    pen.ellipse(-0.6, -0.35, 0.35, 0.33, color)
    pen.box(-1.0, -0.35, -0.6, -0.08, light)
    pen.ellipse(-1.0, -0.3, 0.1, 0.1, INK)
    pen.ellipse(-0.38, -0.3, 0.16, 0.36, dark)
    pen.ellipse(-0.68, -0.45, 0.08, 0.08, INK)


def _bird(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    for x in (-0.1, 0.15):
        pen.line(((x, 0.4), (x, 0.95)), 0.09, (230, 150, 40))
    pen.polygon(((0.4, 0.0), (1.0, -0.35), (1.0, 0.15), (0.5, 0.4)), dark)
    pen.ellipse(0.05, 0.12, 0.6, 0.42, color)
    pen.ellipse(-0.5, -0.35, 0.32, 0.32, color)
    pen.polygon(((-0.78, -0.45), (-1.05, -0.3), (-0.78, -0.2)), (240, 160, 40))
    pen.ellipse(0.15, 0.05, 0.38, 0.24, dark)
    pen.ellipse(-0.15, 0.3, 0.25, 0.2, light)
    pen.ellipse(-0.56, -0.42, 0.09, 0.09, INK)


def _horse(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    pen.line(((0.7, -0.05), (0.95, 0.5)), 0.18, dark)
    for x in (-0.4, -0.2, 0.4, 0.6):
        pen.box(x - 0.08, 0.15, x + 0.08, 0.98, dark if x in (-0.2, 0.4) else color)
    pen.ellipse(0.12, 0.08, 0.65, 0.3, color)
    pen.polygon(((-0.55, 0.15), (-0.1, -0.1), (-0.4, -0.95), (-0.7, -0.85)), color)
    pen.line(((-0.35, -0.9), (-0.05, -0.1)), 0.17, dark)
    pen.polygon(((-0.4, -0.98), (-0.95, -0.6), (-0.95, -0.4), (-0.72, -0.38), (-0.45, -0.6)), color)
    pen.ellipse(-0.92, -0.48, 0.1, 0.12, light)
    pen.ellipse(-0.6, -0.72, 0.07, 0.07, INK)


def _fish(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    pen.polygon(((0.4, 0.0), (1.0, -0.5), (0.85, 0.0), (1.0, 0.5)), dark)
    pen.polygon(((-0.2, -0.3), (0.35, -0.75), (0.35, -0.2)), dark)
    pen.ellipse(-0.15, 0.0, 0.8, 0.45, color)
    pen.ellipse(-0.15, 0.17, 0.6, 0.2, light)
    pen.polygon(((-0.1, 0.05), (0.3, 0.35), (0.25, -0.05)), dark)
    pen.ellipse(-0.6, -0.1, 0.13, 0.13, PAPER)
    pen.ellipse(-0.62, -0.1, 0.07, 0.07, INK)


def _car(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    pen.polygon(((-0.55, 0.05), (-0.35, -0.45), (0.35, -0.45), (0.6, 0.05)), color)
    pen.polygon(((-0.42, 0.0), (-0.28, -0.33), (-0.02, -0.33), (-0.02, 0.0)), (190, 225, 240))
    pen.polygon(((0.06, 0.0), (0.06, -0.33), (0.29, -0.33), (0.46, 0.0)), (190, 225, 240))
    pen.box(-1.0, 0.0, 1.0, 0.42, color)
    pen.box(-1.0, 0.3, 1.0, 0.42, dark)
    pen.box(-1.0, 0.05, -0.85, 0.2, (255, 240, 150))
    for x in (-0.55, 0.55):
        pen.ellipse(x, 0.45, 0.25, 0.25, INK)
        pen.ellipse(x, 0.45, 0.1, 0.1, STEEL)


def _truck(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    pen.box(-0.25, -0.75, 1.0, 0.4, light)
    pen.box(-0.25, -0.75, 1.0, -0.6, dark)
    pen.polygon(((-1.0, 0.4), (-1.0, -0.05), (-0.8, -0.4), (-0.32, -0.4), (-0.32, 0.4)), color)
    pen.polygon(((-0.9, -0.03), (-0.74, -0.3), (-0.5, -0.3), (-0.5, -0.03)), (190, 225, 240))
    pen.box(-1.0, 0.3, 1.0, 0.45, dark)
    for x in (-0.65, 0.3, 0.75):
        pen.ellipse(x, 0.5, 0.22, 0.22, INK)
        pen.ellipse(x, 0.5, 0.08, 0.08, STEEL)


def _airplane(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    pen.polygon(((0.0, -0.05), (0.45, -0.7), (0.65, -0.7), (0.4, -0.05)), dark)
    pen.polygon(((0.7, -0.1), (0.85, -0.6), (1.0, -0.6), (0.98, -0.05)), dark)
    pen.ellipse(0, 0, 1.0, 0.23, color)
    pen.polygon(((-0.1, 0.05), (0.35, 0.75), (0.58, 0.75), (0.35, 0.05)), dark)
    pen.ellipse(-0.72, -0.05, 0.14, 0.09, (190, 225, 240))
    for x in (-0.4, -0.15, 0.1, 0.35):
        pen.ellipse(x, -0.06, 0.07, 0.07, PAPER)


def _bicycle(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    for x in (-0.55, 0.55):
        pen.ring(x, 0.35, 0.45, 0.13, INK)
    frame = 0.15
    pen.line(((-0.55, 0.35), (-0.2, -0.3), (0.38, -0.3), (0.05, 0.35), (-0.55, 0.35)), frame, color)
    pen.line(((-0.25, -0.42), (0.05, 0.35)), frame, color)
    pen.line(((0.55, 0.35), (0.35, -0.55), (0.65, -0.62)), frame, color)
    pen.box(-0.45, -0.55, -0.05, -0.4, INK)


def _ship(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    pen.line(((0.0, 0.4), (0.0, -1.0)), 0.12, (110, 75, 45))
    pen.polygon(((0.1, -0.95), (0.1, 0.2), (0.8, 0.2)), PAPER)
    pen.polygon(((-0.1, -0.75), (-0.1, 0.2), (-0.65, 0.2)), light)
    pen.polygon(((-1.0, 0.32), (1.0, 0.32), (0.65, 0.85), (-0.65, 0.85)), color)
    pen.box(-0.95, 0.32, 0.95, 0.46, dark)


def _ball(pen: Pen, color: Color, dark: Color, light: Color) -> None:
    pen.ellipse(0, 0.25, 0.65, 0.65, dark)
    pen.ellipse(-0.04, 0.2, 0.58, 0.58, color)
    pen.ellipse(-0.22, 0.0, 0.18, 0.15, light)


SHAPES: dict[str, Callable[[Pen, Color, Color, Color], None]] = {
    "cat": _cat,
    "dog": _dog,
    "bird": _bird,
    "horse": _horse,
    "fish": _fish,
    "car": _car,
    "truck": _truck,
    "airplane": _airplane,
    "bicycle": _bicycle,
    "ship": _ship,
    "ball": _ball,
}
"""How each of the ten objects is drawn, and the neutral one that stands in their place."""
