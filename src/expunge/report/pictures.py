"""Stored pictures as parts of a page: read with care, reduced, embedded."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

LONGEST_SIDE = 320
"""Pixels: larger pictures are embedded reduced to this, so that the file stays one to mail."""
SMALL = 128
"""Pixels: pictures up to this size are shown enlarged, pixel by pixel."""
AMPLIFIED = 10
"""Times that a difference of two pictures is enlarged, around mid-grey."""

_DIGITS = 32  # hexadecimal, of a name that a store gives


@dataclass(frozen=True)
class Picture:
    """A picture in a page: `uri` is None, and `width` 0, where it cannot be shown, and `why`."""

    uri: str | None
    path: str
    width: int
    why: str = "missing"


def embedded(images: Path, path: str | None) -> Picture:
    """A stored picture, whose path is relative to `images`, as a data URI."""
    path = path or "no path"
    found = read(images, path)
    if found is None:
        return Picture(None, path, 0)
    data, picture = found
    if picture.format != "PNG" or max(picture.size) > LONGEST_SIDE:
        data = _reduced(picture)
    return Picture(uri(data), path, min(picture.width, LONGEST_SIDE))


def matches_name(path: str, data: bytes) -> bool:
    """Whether a file of a store is what its name says: the beginning of its SHA-256."""
    stem = PurePosixPath(path).stem
    return len(stem) >= _DIGITS and hashlib.sha256(data).hexdigest().startswith(stem)


def change(images: Path, first: str | None, second: str | None) -> Picture:
    """Second minus first picture, amplified around mid-grey: grey is where nothing changed."""
    names = (first or "no path", second or "no path")
    path = " and ".join(dict.fromkeys(names))
    found = [read(images, name) for name in names]
    if found[0] is None or found[1] is None or found[0][1].size != found[1][1].size:
        return Picture(None, path, 0)
    one, two = (np.asarray(each[1].convert("RGB"), np.float32) for each in found if each)
    grey = np.clip(np.rint(127.5 + AMPLIFIED * (two - one)), 0, 255).astype(np.uint8)
    picture = Image.fromarray(grey)
    return Picture(uri(_reduced(picture)), path, min(picture.width, LONGEST_SIDE))


def read(images: Path, path: str) -> tuple[bytes, Image.Image] | None:
    """A stored picture's bytes and pixels; None where it cannot be read."""
    inside = PurePosixPath(path)
    # A log may come from a stranger: it must not pull other files into a report that is shared.
    if inside.is_absolute() or ".." in inside.parts:
        return None
    try:
        data = (images / inside).read_bytes()
        picture = Image.open(io.BytesIO(data))
        picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return data, picture


def _reduced(picture: Image.Image) -> bytes:
    copy = picture.convert("RGB")
    copy.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    copy.save(buffer, "PNG")
    return buffer.getvalue()


def uri(data: bytes, kind: str = "png") -> str:
    """Bytes of a picture as a data URI."""
    return f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
