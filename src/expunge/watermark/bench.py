"""Embed, edit, extract: what is left of a mark, scheme by scheme and edit by edit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.eraser.base import versions
from expunge.measure import quality
from expunge.run.fit import progress_bar
from expunge.run.store import Store
from expunge.watermark import survival
from expunge.watermark.detection import false_positives, false_positives_zero_bit
from expunge.watermark.edit.base import Distortion, Edit
from expunge.watermark.edit.distortions import JPEG, Blur, Crop, NoEdit, Noise
from expunge.watermark.log import SCHEMA, WatermarkLog
from expunge.watermark.pictures import Host, batches
from expunge.watermark.reported import table
from expunge.watermark.runner import Changes, Marked, Runner
from expunge.watermark.scheme.base import PictureScheme, Scheme
from expunge.watermark.survival import PAIRS, Record

BATCH = 100
"""Pictures in a unit."""
UNMARKED_EDITS: tuple[Distortion, ...] = (NoEdit(), JPEG(50), Noise(), Crop(), Blur())
"""What unmarked pictures went through before they were read, a fifth of them each."""


def _joined(records: Sequence[Record]) -> Record:
    """Several units' lists as one."""
    first = records[0]
    joined: Record = {
        key: [value for record in records for value in record[key]]
        for key in first
        if key not in {"spec", "quality"}
    }
    joined["quality"] = {
        pair: {
            name: [value for record in records for value in record["quality"][pair][name]]
            for name in first["quality"][pair]
        }
        for pair in PAIRS
    }
    return joined


def check(
    schemes: Sequence[Scheme],
    edits: Sequence[Edit],
    hosts: Sequence[Host],
    backbone: Backbone | None,
    psnr: float | None = None,
) -> None:
    """Refuse what cannot be done before any heavy work.

    Raises:
        ValueError: nothing to do, a picture too small, a package, file or model missing, or an
            edit that needs what a scheme does not have.
    """
    for name, given in (("schemes", schemes), ("edits", edits), ("pictures", hosts)):
        if not given:
            raise ValueError(f"{name} must not be empty: name at least one")
    for what, names in (
        ("scheme", [scheme.label for scheme in schemes]),
        ("edit", [f"{edit.label} {edit.strength}" for edit in edits]),
    ):
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"the {what} {min(twice)} is named twice; name it once")
    for scheme in schemes:
        if psnr is not None and not isinstance(scheme, PictureScheme):
            raise ValueError(
                f"psnr scales the change a scheme makes to a picture, and {scheme.name} draws "
                "another picture; leave one of the two out"
            )
    silent = [host.name for host in hosts if not host.caption]
    readers = [scheme.label for scheme in schemes if scheme.reads_captions]
    readers += [edit.label for edit in edits if edit.reads_captions]
    for name in readers if silent else ():
        raise ValueError(
            f"{name} reads captions, and {len(silent)} pictures have none ({silent[0]} first): put "
            "NAME.txt beside each picture, or leave it out"
        )
    for scheme in schemes:
        for size in {host.size for host in hosts}:
            scheme.check_size(*size)
        for edit in edits:
            edit.check(scheme, backbone)
    for scheme in schemes:
        scheme.check(backbone)


def bench(
    schemes: Sequence[Scheme],
    edits: Sequence[Edit],
    pictures: Sequence[Host],
    *,
    pipe: Any = None,
    unmarked: Sequence[Host] = (),
    false_positive_rate: float = 1e-3,
    psnr: float | None = None,
    examples: int = 6,
    drawn_by: Changes | None = None,
    edited_by: Changes | None = None,
    folder: str | Path = "runs/watermark",
    command: str = "",
) -> WatermarkLog:
    """Mark pictures with random payloads, edit them, read them again.

    Every unit is kept as soon as it is done: the same call after a stop does only what is missing.

    Args:
        schemes: what marks.
        edits: what is done to marked pictures.
        pictures: what is marked; of any sizes.
        pipe: the model that edits and that latent schemes draw with, a diffusers pipeline or a
            backbone.
        unmarked: pictures for the check of detection's threshold, at least 3,000 for one that
            shows something.
        false_positive_rate: of detection.
        psnr: dB at which every scheme's change is scaled to, None for each scheme's own.
        examples: pictures shown for each scheme and edit.
        drawn_by: applied to the model while a latent scheme draws; None for the model as it is.
        edited_by: applied to the model while it edits; None for the model as it is.
        folder: where log and units go.
        command: how to run this again, for the report.

    Raises:
        ValueError: something cannot be done; see `check`.
        StoreError: the folder cannot be written.
    """
    start, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    backbone = None if pipe is None else as_backbone(pipe)
    check(schemes, edits, pictures, backbone, psnr)
    if not 0 < false_positive_rate < 0.5:
        raise ValueError(
            f"false_positive_rate must lie between 0 and 0.5, got {false_positive_rate}"
        )
    store = Store(Path(folder))
    store.check_writable()
    runner = Runner(backbone, store, false_positive_rate, psnr, examples, drawn_by, edited_by)
    records = _survived(runner, schemes, edits, pictures)
    checked = _checked(runner, schemes, unmarked)
    cells = [
        survival.cell(scheme, edit, records[i, j], backbone)
        | {"editor": "original" if edited_by is None else "erased"}
        for i, scheme in enumerate(schemes)
        for j, edit in enumerate(edits)
    ]
    data = {
        "schema": SCHEMA,
        "pictures": _about(pictures),
        "model": runner.model,
        "schemes": [about_scheme(scheme, false_positive_rate) for scheme in schemes],
        "edits": [edit.spec | {"label": edit.label, "unit": edit.unit} for edit in edits],
        "psnr": psnr,
        "cells": cells,
        "unmarked": checked,
        "examples": _examples(schemes, edits, pictures, records),
        "reported": table(),
        "flags": survival.flags(cells, checked, edits, backbone, quality.lpips_available()),
        "made": {
            "command": command,
            "started": started,
            "seconds": round(time.monotonic() - start, 1),
            "versions": versions(),
        },
    }
    log = WatermarkLog(data, store.folder)
    log.save(Path(folder))
    return log


Records = dict[tuple[int, int], Record]
"""What was found, by the numbers of scheme and edit."""


def _survived(
    runner: Runner, schemes: Sequence[Scheme], edits: Sequence[Edit], pictures: Sequence[Host]
) -> Records:
    found: dict[tuple[int, int], list[Record]] = {}
    with progress_bar("watermarks", len(schemes) * len(edits) * len(pictures)) as advance:
        shown = runner.shown
        for hosts in batches(pictures, BATCH, runner.backbone):
            for i, scheme in enumerate(schemes):
                marked = Marked(hosts, scheme, runner.psnr)
                for j, edit in enumerate(edits):
                    found.setdefault((i, j), []).append(runner.unit(marked, edit, shown))
                    advance(len(hosts.hosts), f"{scheme.label} {edit.label}")
            shown = max(0, shown - len(hosts.hosts))
    return {key: _joined(records) for key, records in found.items()}


def _checked(
    runner: Runner, schemes: Sequence[Scheme], unmarked: Sequence[Host]
) -> list[dict[str, Any]]:
    if not unmarked:
        return []
    results = []
    with progress_bar("unmarked pictures", len(schemes) * len(unmarked)) as advance:
        for scheme in schemes:
            records = []
            for number, edit in enumerate(UNMARKED_EDITS):
                share = unmarked[number :: len(UNMARKED_EDITS)]
                for hosts in batches(share, BATCH, runner.backbone):
                    records.append(runner.unmarked(scheme, edit, hosts))
                    advance(len(hosts.hosts), scheme.label)
            if scheme.raw_bits:
                packed = np.array([row for r in records for row in r["bits"]], np.uint8)
                bits = np.unpackbits(packed, axis=1, count=scheme.raw_bits).astype(np.bool_)
                results.append(false_positives(scheme, bits, runner.rate))
            else:
                values = [value for record in records for value in record["p_values"]]
                results.append(false_positives_zero_bit(scheme, values, runner.rate))
    return results


def _about(pictures: Sequence[Host]) -> dict[str, Any]:
    sizes: dict[tuple[int, int], int] = {}
    for host in pictures:
        sizes[host.size] = sizes.get(host.size, 0) + 1
    return {
        "n": len(pictures),
        "sizes": [{"height": h, "width": w, "n": n} for (h, w), n in sizes.items()],
        "captions": sum(bool(host.caption) for host in pictures),
    }


def about_scheme(scheme: Scheme, rate: float) -> dict[str, Any]:
    """What a log says of a scheme."""
    return {
        **scheme.spec,
        "source": scheme.source,
        "terms": scheme.terms,
        "payload_bits": scheme.payload_bits,
        "raw_bits": scheme.raw_bits,
        "threshold": scheme.threshold(rate) if scheme.raw_bits else None,
    }


def _examples(
    schemes: Sequence[Scheme],
    edits: Sequence[Edit],
    pictures: Sequence[Host],
    records: Mapping[tuple[int, int], Record],
) -> list[dict[str, Any]]:
    examples = []
    for (i, j), record in sorted(records.items()):
        scheme, edit = schemes[i], edits[j]
        for index, (original, marked, edited) in enumerate(record["images"]):
            right = record["right"][index] / scheme.raw_bits if scheme.raw_bits else None
            examples.append(
                {
                    "scheme": scheme.label,
                    "edit": edit.label,
                    "level": edit.strength,
                    "picture": pictures[index].name,
                    "caption": pictures[index].caption,
                    "original": original,
                    "marked": marked,
                    "edited": edited,
                    "bit_accuracy": right,
                    "detected": record["detected"][index],
                    "psnr": record["quality"]["marked_edited"]["psnr"][index],
                }
            )
    return examples
