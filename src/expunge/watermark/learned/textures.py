"""Made-up photographs: dead leaves with shading and noise, whose statistics are a photograph's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from expunge.miniature.render import SIZE

_SHAPES = 90
_SUPERSAMPLING = 2


def dead_leaves(seed: int, size: int = SIZE) -> Image.Image:
    """Opaque shapes of all sizes, one over the other, each with a shade and a grain of its own.

    Args:
        seed: the same seed gives the same picture.
        size: pixels along a side.

    Source: A. B. Lee, D. Mumford and J. Huang, "Occlusion models for natural images", IJCV 41
    (2001): discs whose radii follow an inverse cubic law have the spectra and edges of photographs.
    """
    rng = np.random.default_rng([seed, 2001])
    side = size * _SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), _color(rng))
    pen = ImageDraw.Draw(canvas)
    smallest, largest = 0.02, rng.uniform(0.3, 0.9)
    uniform = rng.random(_SHAPES)
    # The inverse of the distribution function of a density proportional to r^-3.
    radii = (smallest**-2 - uniform * (smallest**-2 - largest**-2)) ** -0.5
    for radius in radii[np.argsort(rng.random(_SHAPES) - 2 * radii)]:
        x, y = rng.uniform(0, side, 2)
        reach = radius * side
        box = (x - reach, y - reach * rng.uniform(0.3, 1), x + reach, y + reach)
        (pen.ellipse if rng.random() < 0.6 else pen.rectangle)(box, fill=_color(rng))
    reduced = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), np.float32)
    shaded = reduced * _slow(rng, size)[..., None] + rng.uniform(0, 30) * _grain(rng, size)
    return Image.fromarray(shaded.clip(0, 255).round().astype(np.uint8))


def _color(rng: np.random.Generator) -> tuple[int, ...]:
    grey = rng.uniform(0, 255)
    return tuple(np.clip(grey + rng.normal(0, 45, 3), 0, 255).astype(int).tolist())


def _slow(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Light that changes slowly over the picture, around 1."""
    coarse = rng.normal(0, 1, (4, 4))
    return 1 + rng.uniform(0, 0.3) * np.asarray(ndimage.zoom(coarse, size / 4, order=3))


def _grain(rng: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Noise of a random coarseness, in some places only."""
    grain = ndimage.gaussian_filter(
        rng.normal(0, 1, (size, size, 3)), (s := rng.uniform(0, 2), s, 0)
    )
    where = ndimage.zoom(rng.random((3, 3)) < 0.5, size / 3, order=1, output=np.float64)
    result: NDArray[np.float64] = grain / (grain.std() + 1e-6) * where[..., None]
    return result
