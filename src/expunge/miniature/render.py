"""Draw a scene: one picture, with a mask for everything in it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from expunge.miniature.held_out_shapes import HELD_OUT_SHAPES
from expunge.miniature.objects import SHAPES
from expunge.miniature.pen import INK, PAPER, STEEL, Pen, mix
from expunge.miniature.unknown_shapes import TRAINED_SHAPES
from expunge.miniature.world import COLORS, HAIRS, PLAIN, SKINS, Scene, Thing

SIZE = 64
_OVERSAMPLE = 4
_UNKNOWN = TRAINED_SHAPES | HELD_OUT_SHAPES


@dataclass(frozen=True)
class Picture:
    """A rendered scene.

    Attributes:
        image: RGB, `size` x `size`.
        masks: for every thing by name (an object, `"face"`, `"sign"`) an 8-bit coverage mask.
    """

    image: Image.Image
    masks: dict[str, Image.Image]


def _place(canvas: Image.Image, place: str, rng: random.Random) -> None:
    """Sky above, ground below, and what makes the place this one."""
    side = canvas.width
    draw = ImageDraw.Draw(canvas)
    sky, ground = {
        "grass": ((150, 205, 245), (120, 195, 90)),
        "snow": ((190, 205, 220), (245, 248, 252)),
        "beach": ((130, 210, 250), (238, 214, 160)),
        "night": ((22, 26, 66), (44, 48, 72)),
        "room": ((226, 205, 180), (150, 105, 70)),
    }[place]
    horizon = side * (0.62 + rng.uniform(-0.05, 0.05))
    draw.rectangle((0, 0, side, horizon), fill=sky)
    draw.rectangle((0, horizon, side, side), fill=ground)
    if place == "beach":
        draw.rectangle((0, horizon - 0.14 * side, side, horizon), fill=(40, 130, 200))
    elif place == "night":
        x, y, r = side * rng.uniform(0.1, 0.9), side * 0.14, side * 0.07
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 245, 200))
    elif place == "room":
        x = side * rng.choice((0.14, 0.82))
        draw.rectangle(
            (x - 0.1 * side, 0.1 * side, x + 0.1 * side, 0.32 * side), fill=(170, 215, 240)
        )
        draw.rectangle((0, horizon, side, horizon + 0.04 * side), fill=(110, 75, 50))
    elif place == "snow":
        for x in (0.12, 0.86):
            x = side * (x + rng.uniform(-0.04, 0.04))
            top = (x, horizon - 0.26 * side)
            foot = (x + 0.09 * side, horizon), (x - 0.09 * side, horizon)
            draw.polygon((top, *foot), fill=(50, 105, 85))
    else:
        for x in (0.2, 0.75):
            x, y = side * (x + rng.uniform(-0.1, 0.1)), side * rng.uniform(0.08, 0.16)
            draw.ellipse(
                (x - 0.1 * side, y - 0.035 * side, x + 0.1 * side, y + 0.035 * side), fill=PAPER
            )


def _thing(canvas: Image.Image, thing: Thing, rng: random.Random) -> Image.Image:
    side = canvas.width
    radius = side * thing.scale / 2
    center = (
        side * (thing.x + rng.uniform(-0.04, 0.04)),
        min(side * (0.58 + rng.uniform(-0.05, 0.05)), side - radius * 0.98),
    )
    pen = Pen(canvas, center, radius, flip=rng.random() < 0.5)
    color = COLORS[thing.color]
    paint = color, mix(color, INK, 0.4), mix(color, PAPER, 0.55)
    if thing.name in SHAPES:
        SHAPES[thing.name](pen, *paint)
    else:
        _UNKNOWN[thing.name](pen, *paint, rng)
    return pen.mask


def _hat(pen: Pen, hat: str) -> None:
    if hat == "cap":
        pen.box(-0.55, -0.95, 0.55, -0.55, (40, 90, 200))
        pen.box(-0.95, -0.65, 0.2, -0.52, (25, 60, 150))
    elif hat == "top hat":
        pen.box(-0.42, -1.25, 0.42, -0.6, INK)
        pen.box(-0.75, -0.7, 0.75, -0.55, INK)
        pen.box(-0.42, -0.82, 0.42, -0.7, (200, 40, 50))
    elif hat == "headscarf":
        pen.ellipse(0, -0.6, 0.62, 0.4, (225, 60, 140))
        pen.polygon(((0.5, -0.6), (0.95, -0.3), (0.75, -0.1), (0.45, -0.4)), (225, 60, 140))


def _face(canvas: Image.Image, scene: Scene, rng: random.Random) -> Image.Image:
    assert scene.face is not None
    face, side = scene.face, canvas.width
    center = (side * (0.5 + rng.uniform(-0.05, 0.05)), side * (0.52 + rng.uniform(-0.03, 0.03)))
    pen = Pen(canvas, center, side * rng.uniform(0.36, 0.4), flip=rng.random() < 0.5)
    skin, hair, shirt = SKINS[face.skin], HAIRS[face.hair], COLORS[scene.shirt]
    if face.haircut == "long":
        pen.ellipse(0, -0.1, 0.8, 0.75, hair)
        pen.box(-0.8, -0.1, 0.8, 0.75, hair)
    pen.ellipse(0, 1.25, 0.95, 0.55, shirt)
    pen.box(-0.95, 1.2, 0.95, 1.8, shirt)
    pen.box(-0.2, 0.4, 0.2, 0.85, mix(skin, INK, 0.15))
    if face.haircut != "bald":
        pen.ellipse(0, -0.3, 0.64, 0.55, hair)
    pen.ellipse(0, 0.0, 0.55, 0.68, skin)
    if face.haircut != "bald":
        pen.polygon(((-0.56, -0.2), (-0.5, -0.62), (0.5, -0.62), (0.56, -0.2), (0, -0.42)), hair)
    if face.beard == "beard":
        pen.polygon(((-0.54, 0.1), (-0.42, 0.62), (0, 0.85), (0.42, 0.62), (0.54, 0.1)), hair)
        pen.ellipse(0, 0.05, 0.42, 0.28, skin)
    for x in (-0.23, 0.23):
        pen.ellipse(x, -0.08, 0.11, 0.1, PAPER)
        pen.ellipse(x, -0.08, 0.07, 0.08, INK)
    if face.glasses:
        for x in (-0.25, 0.25):
            pen.ring(x, -0.08, 0.23, 0.08, (20, 20, 20))
    mouth = {"smiling": (0.3, 0.42), "frowning": (0.45, 0.32), "neutral": (0.38, 0.38)}
    corner, middle = mouth[scene.expression]
    pen.line(((-0.22, corner), (0, middle), (0.22, corner)), 0.1, (170, 50, 60))
    if face.beard == "moustache":
        pen.line(((-0.3, 0.27), (0, 0.18), (0.3, 0.27)), 0.14, hair)
    _hat(pen, face.hat)
    return pen.mask


def _sign(canvas: Image.Image, scene: Scene, rng: random.Random) -> Image.Image:
    side = canvas.width
    radius = side * scene.scale * 0.42
    center = (side * (0.5 + rng.uniform(-0.06, 0.06)), side * (0.42 + rng.uniform(-0.03, 0.03)))
    pole = COLORS[scene.pole]
    ImageDraw.Draw(canvas).rectangle(
        (center[0] - side * 0.035, center[1], center[0] + side * 0.035, side * 0.95), fill=pole
    )
    pen = Pen(canvas, center, radius, flip=False)
    if scene.sign == "hazard":
        pen.polygon(((0, -1.0), (1.0, 0.75), (-1.0, 0.75)), INK)
        pen.polygon(((0, -0.72), (0.76, 0.6), (-0.76, 0.6)), (255, 205, 0))
        pen.polygon(((-0.14, -0.35), (0.14, -0.35), (0.07, 0.2), (-0.07, 0.2)), INK)
        pen.ellipse(0, 0.4, 0.12, 0.12, INK)
    elif scene.sign == "parking":
        pen.box(-0.8, -0.8, 0.8, 0.8, PAPER)
        pen.box(-0.7, -0.7, 0.7, 0.7, (30, 90, 190))
        pen.box(-0.35, -0.5, -0.1, 0.55, PAPER)
        pen.ring(0.02, -0.18, 0.36, 0.2, PAPER)
    elif scene.sign == "arrow":
        pen.box(-1.0, -0.55, 1.0, 0.55, (25, 130, 70))
        pen.box(-0.75, -0.12, 0.2, 0.12, PAPER)
        pen.polygon(((0.15, -0.4), (0.8, 0), (0.15, 0.4)), PAPER)
    elif scene.sign == "heart":
        pen.ellipse(0, 0, 0.9, 0.9, PAPER)
        for x in (-0.25, 0.25):
            pen.ellipse(x, -0.18, 0.3, 0.3, (225, 40, 90))
        pen.polygon(((-0.53, -0.05), (0.53, -0.05), (0, 0.6)), (225, 40, 90))
    else:
        pen.box(-0.85, -0.55, 0.85, 0.55, STEEL)
        pen.box(-0.75, -0.45, 0.75, 0.45, PAPER)
    return pen.mask


def _woodcut(image: Image.Image) -> Image.Image:
    gray = np.asarray(image.convert("L").filter(ImageFilter.GaussianBlur(1)), np.float32)
    dark = 1 / (1 + np.exp((gray - 120) / 10))[..., None]
    return _from_array(dark * (35, 25, 25) + (1 - dark) * (240, 228, 200))


def _watercolor(image: Image.Image) -> Image.Image:
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(image.width / 40)), np.float32)
    return _from_array(0.45 * soft + 0.55 * np.array((255, 250, 240)))


def _mosaic(image: Image.Image) -> Image.Image:
    tiles = image.resize((16, 16), Image.Resampling.BOX)
    large = np.asarray(tiles.resize(image.size, Image.Resampling.NEAREST), np.float32)
    step = image.width // 16
    edge = np.zeros(image.size[::-1], bool)
    edge[::step], edge[:, ::step] = True, True
    return _from_array(np.where(edge[..., None], large * 0.7, large))


def _neon(image: Image.Image) -> Image.Image:
    array = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)), np.float32)
    slope = np.abs(np.gradient(array, axis=0)) + np.abs(np.gradient(array, axis=1))
    edge = np.clip(slope.max(-1, keepdims=True) / 45, 0, 1)
    hue = array / (array.max(-1, keepdims=True) + 1)
    glow = edge * (80 + 175 * hue) + (1 - edge) * (array * 0.18)
    return _from_array(glow + (1 - edge) * (18, 4, 36))


def _sepia(image: Image.Image) -> Image.Image:
    gray = np.asarray(image.convert("L"), np.float32)[..., None] / 255
    yy, xx = np.mgrid[-1 : 1 : gray.shape[0] * 1j, -1 : 1 : gray.shape[1] * 1j]
    vignette = np.clip(1.25 - 0.45 * (xx**2 + yy**2), 0, 1)[..., None]
    return _from_array((np.array((60, 35, 15)) + gray * (180, 165, 130)) * vignette)


def _from_array(array: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(array, 0, 255).astype(np.uint8))


_STYLES: dict[str, Callable[[Image.Image], Image.Image]] = {
    PLAIN: lambda image: image,
    "woodcut": _woodcut,
    "watercolor": _watercolor,
    "mosaic": _mosaic,
    "neon": _neon,
    "sepia": _sepia,
}


def render(scene: Scene, size: int = SIZE) -> Picture:
    """Draw a scene.

    Args:
        scene: what to show; `scene.seed` settles everything it leaves open (exact place, pose).
        size: width and height in pixels, a multiple of 16.

    Raises:
        ValueError: `size` is not a positive multiple of 16.
    """
    if size <= 0 or size % 16:
        raise ValueError(f"size must be a positive multiple of 16, got {size}")
    rng = random.Random(scene.seed)
    canvas = Image.new("RGB", (size * _OVERSAMPLE,) * 2)
    _place(canvas, scene.place, rng)
    masks = {}
    for thing in scene.things:
        masks[thing.name] = _thing(canvas, thing, rng)
    if scene.face is not None:
        masks["face"] = _face(canvas, scene, rng)
    if scene.sign is not None:
        masks["sign"] = _sign(canvas, scene, rng)
    small = canvas.resize((size, size), Image.Resampling.BOX)
    image = _STYLES[scene.style](small)
    return Picture(
        image,
        {name: mask.resize((size, size), Image.Resampling.BOX) for name, mask in masks.items()},
    )


def sheet(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Lay pictures of one size out in rows, on a white ground."""
    if not images:
        raise ValueError("a sheet needs at least one picture, got none")
    width, height = images[0].size
    rows = math.ceil(len(images) / columns)
    page = Image.new(
        "RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), (255, 255, 255)
    )
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        page.paste(image, (column * (width + gap), row * (height + gap)))
    return page
