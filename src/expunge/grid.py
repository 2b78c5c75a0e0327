"""Pictures in labelled rows."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP = 4
_LABEL = 18


def grid(rows: Sequence[tuple[str, Sequence[Image.Image]]], scale: int = 1) -> Image.Image:
    """Lay rows of pictures out on white, each under its label.

    Args:
        rows: label and pictures, all of one size.
        scale: enlarge every picture so many times, without smoothing.

    Raises:
        ValueError: no row, an empty row, or a scale below 1.
    """
    if not rows or not all(pictures for _, pictures in rows):
        raise ValueError("a grid needs at least one picture in every row")
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    first = rows[0][1][0]
    width, height = first.width * scale, first.height * scale
    columns = max(len(pictures) for _, pictures in rows)
    page = Image.new(
        "RGB",
        (_GAP + columns * (width + _GAP), _GAP + len(rows) * (height + _LABEL + _GAP)),
        "white",
    )
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for number, (label, pictures) in enumerate(rows):
        top = _GAP + number * (height + _LABEL + _GAP)
        pen.text((_GAP, top), label, fill=(60, 60, 60), font=font)
        for column, picture in enumerate(pictures):
            large = picture.resize((width, height), Image.Resampling.NEAREST)
            page.paste(large, (_GAP + column * (width + _GAP), top + _LABEL))
    return page
