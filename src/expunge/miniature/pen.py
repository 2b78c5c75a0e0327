"""A pen that draws on a canvas and on a mask at once, and the colours that many things share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw

Color = tuple[int, int, int]
INK: Color = (28, 26, 32)
PAPER: Color = (250, 248, 240)
STEEL: Color = (150, 155, 165)


class Pen:
    """Draws in subject coordinates, -1 to 1 with y pointing down, onto canvas and mask at once."""

    def __init__(
        self, canvas: Image.Image, center: tuple[float, float], radius: float, flip: bool
    ) -> None:
        self.mask = Image.new("L", canvas.size)
        self._surfaces = ((ImageDraw.Draw(canvas), False), (ImageDraw.Draw(self.mask), True))
        self._center, self._radius, self._flip = center, radius, -1.0 if flip else 1.0

    def _point(self, x: float, y: float) -> tuple[float, float]:
        return (
            self._center[0] + self._flip * x * self._radius,
            self._center[1] + y * self._radius,
        )

    def _draw(self, shape: str, points: Sequence[Any], fill: Color | None, **more: Any) -> None:
        for draw, is_mask in self._surfaces:
            paint = dict(more)
            if fill is not None:
                paint["fill"] = 255 if is_mask else fill
            if "outline" in paint:
                paint["outline"] = 255 if is_mask else paint["outline"]
            getattr(draw, shape)(points, **paint)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color) -> None:
        cx, cy = self._point(x, y)
        rx, ry = rx * self._radius, ry * self._radius
        self._draw("ellipse", (cx - rx, cy - ry, cx + rx, cy + ry), fill)

    def ring(self, x: float, y: float, r: float, width: float, color: Color) -> None:
        cx, cy = self._point(x, y)
        r *= self._radius
        box = (cx - r, cy - r, cx + r, cy + r)
        self._draw("ellipse", box, None, outline=color, width=round(width * self._radius))

    def polygon(self, points: Sequence[tuple[float, float]], fill: Color) -> None:
        self._draw("polygon", [self._point(*point) for point in points], fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: Color) -> None:
        self.polygon(((left, top), (right, top), (right, bottom), (left, bottom)), fill)

    def line(self, points: Sequence[tuple[float, float]], width: float, fill: Color) -> None:
        placed = [self._point(*point) for point in points]
        self._draw("line", placed, fill, width=round(width * self._radius), joint="curve")


def mix(a: Color, b: Color, share: float) -> Color:
    """A colour between two; `share` is how much of `b`."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]
