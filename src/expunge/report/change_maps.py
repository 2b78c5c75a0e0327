"""Where pictures changed: mean absolute difference of pixels, original against erased."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from expunge.auditing.figures import ERASED, ORIGINAL
from expunge.auditing.log import Sample
from expunge.report.album import Album
from expunge.report.pictures import uri

SIDE = 64
"""Pixels that pictures are brought to before they are compared."""
MOST = 60
"""Pairs of a concept that are compared, the first of the log."""
_CIVIDIS = ("00224e", "21406e", "575d6d", "7c7b78", "a69d75", "d3c164", "fee838")


@dataclass(frozen=True)
class Change:
    """Mean change over pairs, in 0 to 255 (SIDE, SIDE), and the sample that changed most."""

    mean: NDArray[np.float64]
    most: Sample
    count: int

    @property
    def average(self) -> float:
        """Over all pixels."""
        return float(self.mean.mean())


def change(album: Album, samples: Iterable[Sample]) -> Change | None:
    """The change of the first pairs whose pictures can be shown; None where there are none."""
    total, most, largest, count = np.zeros((SIDE, SIDE)), None, -1.0, 0
    for sample in list(samples)[:MOST]:
        sides = [_pixels(album, sample, side) for side in (ORIGINAL, ERASED)]
        if sides[0] is None or sides[1] is None:
            continue
        apart = np.abs(sides[1] - sides[0]).mean(axis=2)
        total, count = total + apart, count + 1
        if apart.mean() > largest:
            most, largest = sample, float(apart.mean())
    return None if most is None else Change(total / count, most, count)


def scale(changes: Sequence[Change | None]) -> float:
    """The one upper end for all maps of a page: the largest mean change of any pixel."""
    return max((float(each.mean.max()) for each in changes if each is not None), default=0.0)


def drawn(each: Change, top: float) -> str:
    """A map as a data URI, dark blue for 0 and yellow for `top` (the colours of cividis)."""
    anchors = np.array([[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in _CIVIDIS], float)
    place = np.clip(each.mean / top if top else each.mean, 0, 1) * (len(anchors) - 1)
    steps = np.arange(len(anchors))
    colors = np.stack([np.interp(place, steps, anchors[:, c]) for c in range(3)], axis=2)
    buffer = io.BytesIO()
    Image.fromarray(np.rint(colors).astype(np.uint8)).save(buffer, "PNG")
    return uri(buffer.getvalue())


def _pixels(album: Album, sample: Sample, condition: str) -> NDArray[np.float64] | None:
    drawn = sample.pictures.get(condition)
    found = None if drawn is None else album.checked(drawn.image)
    if found is None or isinstance(found, str):
        return None
    small = found[1].convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(small, np.float64)
