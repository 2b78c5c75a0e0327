"""Where the pictures of a bench come from: a folder, or the miniature world."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.miniature.captions import describe, random_scene
from expunge.miniature.render import SIZE, render
from expunge.prompts import split_of
from expunge.run.progress import progress_bar
from expunge.watermark.scheme.base import Batch

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
_EIGHT_BIT = {"RGB", "L", "P", "1"}


BATCH = 100
"""Most pictures in a batch."""
PIXELS = BATCH * 512 * 512
"""Most pixels in a batch."""


@dataclass(frozen=True)
class Host:
    """A picture that will carry a mark.

    Attributes:
        name: what names it, such as its file.
        size: height and width in pixels.
        caption: what it shows, empty where nobody said.
        digest: SHA-256 of its pixels.
        load: gives the pixels, uint8, (3, height, width).
    """

    name: str
    size: tuple[int, int]
    caption: str
    digest: str
    load: Callable[[], Tensor]

    @property
    def seed(self) -> int:
        """Seed of everything random done to it: 63 bits of SHA-256 over name and pixels."""
        text = f"{self.name}\0{self.digest}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:8]) >> 1

    @classmethod
    def of(cls, name: str, caption: str, pixels: Tensor) -> Host:
        """A picture held in memory."""
        return cls(name, size_of(pixels), caption, digest_of(pixels), lambda: pixels)


def size_of(pixels: Tensor) -> tuple[int, int]:
    """Height and width of (3, height, width)."""
    return pixels.shape[-2], pixels.shape[-1]


def digest_of(pixels: Tensor) -> str:
    """SHA-256 of pixels and their shape."""
    header = f"{tuple(pixels.shape)}".encode()
    return hashlib.sha256(header + pixels.contiguous().numpy().tobytes()).hexdigest()


def folder(path: Path) -> list[Host]:
    """The pictures of a folder, in the order of their names, every one read once to check it.

    A file `NAME.txt` beside a picture is its caption.

    Raises:
        ValueError: no folder, no picture in it, or a picture that is corrupt, has an alpha
            channel, more than 8 bits, or another colour space than RGB or grey.
    """
    if not path.is_dir():
        raise ValueError(f"no folder {path}; --images takes a folder of pictures")
    files = sorted(each for each in path.iterdir() if each.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"no picture in {path}; expected {', '.join(sorted(SUFFIXES))} files")
    hosts = []
    with progress_bar("reading pictures", len(files)) as advance:
        for file in files:
            pixels = read(file)
            caption = _caption(file.with_suffix(".txt"))
            digest, size = digest_of(pixels), size_of(pixels)
            hosts.append(Host(file.name, size, caption, digest, _reader(file)))
            advance(1, "")
    return hosts


def _caption(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    except ValueError:
        raise ValueError(f"{file} is no UTF-8 text; save it as such, or leave it out") from None


def _reader(file: Path) -> Callable[[], Tensor]:
    return lambda: read(file)


def read(file: Path) -> Tensor:
    """One picture as uint8, (3, height, width), turned as its EXIF data says.

    Raises:
        ValueError: it cannot be read, or is of a kind that would have to be changed first.
    """
    try:
        with Image.open(file) as picture:
            # Pillow opens 16-bit colour as RGB and cuts it to 8 bits in silence.
            deep = any("16" in str(tile[-1]) for tile in picture.tile)
            picture.load()
            problem = _problem(picture, deep)
            upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{file} cannot be read as a picture ({error}); leave it out") from None
    if problem:
        raise ValueError(f"{file} has {problem}, or leave it out")
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()


def _problem(picture: Image.Image, deep: bool) -> str | None:
    """What would have to be changed before a mark can be embedded."""
    mode = picture.mode
    if mode in {"RGBA", "LA", "PA"} or "transparency" in picture.info:
        return "an alpha channel, which no mark covers: flatten it"
    if deep or mode.startswith("I") or mode == "F":
        return "more than 8 bits a channel: convert it to 8 bits"
    return None if mode in _EIGHT_BIT else f"the colour space {mode}: convert it to RGB"


def world(count: int, size: int = SIZE, first: int = 0) -> list[Host]:
    """Renders of the miniature world with held-out captions, the same ones every time.

    Args:
        count: how many.
        size: pixels along a side.
        first: number of the first; other numbers are other pictures.
    """
    hosts = []
    with progress_bar("rendering", count) as advance:
        for number in range(first, first + count):
            rng = random.Random(f"watermark {number}")
            scene = random_scene(rng)
            caption = describe(scene, rng)
            while split_of(caption) != "test":
                scene = random_scene(rng)
                caption = describe(scene, rng)
            pixels = torch.from_numpy(np.array(render(scene, size).image)).permute(2, 0, 1)
            hosts.append(Host.of(f"world {number}", caption, pixels.contiguous()))
            advance(1, "")
    return hosts


def batches(hosts: Sequence[Host], backbone: Backbone | None) -> Iterator[HostBatch]:
    """Runs of pictures of one size, in order: 100 small ones at once, or as many as fit memory."""
    for (height, width), run in groupby(hosts, key=lambda host: host.size):
        alike = list(run)
        size = max(1, min(BATCH, PIXELS // (height * width)))
        for start in range(0, len(alike), size):
            yield HostBatch(alike[start : start + size], backbone)


@dataclass(frozen=True)
class HostBatch:
    """Hosts of one size, whose pixels are read when they are needed."""

    hosts: list[Host]
    backbone: Backbone | None

    def load(self) -> Batch:
        """Read the pixels."""
        return Batch(
            torch.stack([host.load() for host in self.hosts]),
            [host.seed for host in self.hosts],
            [host.caption for host in self.hosts],
            self.backbone,
        )
