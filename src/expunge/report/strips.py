"""Strips of pictures of a watermark bench: original, marked, edited, and what changed between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from expunge.report.format import Record
from expunge.report.pictures import Picture, change, embedded
from expunge.report.survival import BEFORE, Standing


@dataclass(frozen=True)
class Edited:
    """A marked picture after an edit: the log's record, the picture, edited minus marked."""

    record: Record
    white_box: bool
    picture: Picture
    change: Picture


@dataclass(frozen=True)
class Strip:
    """One picture under one scheme, and what edits made of it."""

    name: str
    caption: str
    original: Picture
    marked: Picture
    change: Picture
    edits: list[Edited]


def strips(standing: Standing, examples: Sequence[Record], images: Path, count: int) -> list[Strip]:
    """Strips of one scheme.

    The first picture is shown after as many edits as `count` allows, chosen to differ; if edits run
    out the next picture follows.

    Args:
        standing: of the scheme.
        examples: the log's examples.
        images: the folder that the log's image paths are relative to.
        count: edited pictures shown.
    """
    ours = [each for each in examples if each["scheme"] == standing.scheme["scheme"]]
    chosen = chosen_edits(standing, count)
    found: list[Strip] = []
    for picture in dict.fromkeys(each["picture"] for each in ours):
        of_it = [each for each in ours if each["picture"] == picture]
        records = [record for edit in chosen for record in of_it if edit == _key(record)][:count]
        if records:
            found.append(_strip(records, standing, images))
            count -= len(records)
    return found


def chosen_edits(standing: Standing, count: int) -> list[tuple[str, float | None]]:
    """Edits whose pictures differ most, in the order of the log.

    The hardest distortion, the autoencoder, each edit by a model and each white-box one; then
    their further levels; then further distortions. No edit at all only where there is no other.
    """
    families: dict[str, list[Record]] = {}
    hardest, control = standing.hardest, standing.control
    first = [cell for cell in (hardest, control) if cell is not None]
    for cell in [*first, *standing.redrawn, *standing.white_box]:
        families.setdefault(cell["edit"], []).append(cell)
    rounds = zip_longest(*families.values())
    wanted = [cell for each in rounds for cell in each if cell is not None]
    wanted += [cell for cell in standing.distortions if cell is not hardest]
    keys = list(dict.fromkeys(map(_key, wanted)))[:count] or [(BEFORE, None)]
    order = [*first, *standing.distortions, *standing.redrawn, *standing.white_box]
    return sorted(keys, key=[_key(cell) for cell in order].index) if wanted else keys


def _key(record: Record) -> tuple[str, float | None]:
    return record["edit"], record["level"]


def _strip(records: Sequence[Record], standing: Standing, images: Path) -> Strip:
    first, hidden = records[0], {_key(cell) for cell in standing.white_box}
    return Strip(
        name=first["picture"],
        caption=first["caption"],
        original=embedded(images, first["original"]),
        marked=embedded(images, first["marked"]),
        change=change(images, first["original"], first["marked"]),
        edits=[
            Edited(
                record,
                _key(record) in hidden,
                embedded(images, record["edited"]),
                change(images, record["marked"], record["edited"]),
            )
            for record in records
        ],
    )
