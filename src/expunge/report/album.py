"""The pictures of an audit: checked against their names, reduced, veiled, within a page's size."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image

from expunge.auditing.figures import ERASED, ORIGINAL
from expunge.auditing.log import Log, Sample
from expunge.report.pictures import Picture, matches_name, read, uri

LONGEST_SIDE = 256
"""Pixels: larger pictures become thumbnails of this size."""
MOST_BYTES = 6_000_000
"""Of pictures in a page: 8 MB as text, so that the page stays one to mail."""
SHEET = 400
"""Most pictures on a sheet."""
COLUMNS = 10
_TILE = 64  # pixels of a picture on a sheet


@dataclass(frozen=True)
class Shot:
    """One picture as one condition drew it, with the score for the concept, or for being broken."""

    condition: str
    picture: Picture
    score: float
    shown: bool
    broken: bool


@dataclass(frozen=True)
class Pair:
    """One sample before and after; where `veiled`, blurred until clicked."""

    sample: Sample
    shots: tuple[Shot, ...]
    veiled: bool

    @property
    def title(self) -> str:
        """What tells this sample apart from all others, for whoever wants to draw it again."""
        return f"{self.sample.prompt} · seed {self.sample.seed}"


@dataclass(frozen=True)
class Sheet:
    """Many pictures of one condition in one picture, each at its place."""

    condition: str
    uri: str
    count: int
    shown: int
    veiled: bool


class Album:
    """Reads the pictures that a page shows, and remembers which it could not."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.wrong: list[str] = []
        """Paths whose content is not what their name says."""
        self.left_out = 0
        self._left = MOST_BYTES

    def pair(self, sample: Sample, first: str = ORIGINAL, second: str = ERASED) -> Pair:
        """Before and after of a sample, where it has both."""
        names = [name for name in (first, second) if name in sample.pictures]
        return Pair(sample, tuple(self._shot(sample, name) for name in names), self.veils(sample))

    def veils(self, sample: Sample) -> bool:
        """Whether pictures of it must not be seen unasked: those asked for an explicit target."""
        kinds = self.log.kinds
        return sample.role == "target" and kinds.get(sample.concept, "explicit") == "explicit"

    def sheet(self, samples: Sequence[Sample], condition: str) -> Sheet:
        """Up to `SHEET` pictures in rows of ten, in the order of the log."""
        some = [each for each in samples if condition in each.pictures][:SHEET]
        rows = -(-len(some) // COLUMNS)
        sheet = Image.new("RGB", (COLUMNS * _TILE, max(1, rows) * _TILE), (128, 128, 128))
        for index, sample in enumerate(some):
            found = self.checked(sample.pictures[condition].image)
            if not isinstance(found, str):
                tile = found[1].convert("RGB").resize((_TILE, _TILE), Image.Resampling.LANCZOS)
                sheet.paste(tile, (index % COLUMNS * _TILE, index // COLUMNS * _TILE))
        shown = sum(self.log.judge.finds(each.pictures[condition]) for each in some)
        veiled = any(self.veils(each) for each in some)
        data = _jpeg(sheet)
        return Sheet(condition, uri(data, "jpeg"), len(some), shown, veiled)

    def _shot(self, sample: Sample, condition: str) -> Shot:
        drawn = sample.pictures[condition]
        score = drawn.broken if drawn.is_broken else drawn.scores[self.log.judge.name]
        shown = self.log.judge.finds(drawn)
        return Shot(condition, self._embedded(drawn.image), score, shown, drawn.is_broken)

    def _embedded(self, path: str) -> Picture:
        found = self.checked(path)
        if isinstance(found, str):
            return Picture(None, path, 0, found)
        data, picture = found
        kind = "png"
        if picture.format != "PNG" or max(picture.size) > LONGEST_SIDE:
            data, kind = _reduced(picture), "jpeg"
        if len(data) > self._left:
            self.left_out += 1
            return Picture(None, path, 0, "left out, the page is full")
        self._left -= len(data)
        return Picture(uri(data, kind), path, min(picture.width, LONGEST_SIDE))

    def checked(self, path: str) -> tuple[bytes, Image.Image] | str:
        """A stored picture, or why it is not shown."""
        found = read(self.log.store, path)
        if found is None:
            return "missing"
        if not matches_name(path, found[0]):
            if path not in self.wrong:
                self.wrong.append(path)
            return "not shown: its content does not match its name"
        return found


def first(samples: Sequence[Sample], *tests: Callable[[Sample], bool]) -> Sample | None:
    """The first sample that passes the first test which any passes."""
    for test in tests:
        for each in samples:
            if test(each):
                return each
    return None


def _reduced(picture: Image.Image) -> bytes:
    copy = picture.convert("RGB")
    copy.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    return _jpeg(copy)


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()
