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
from expunge.measure import quality
from expunge.run.progress import progress_bar
from expunge.run.store import Store
from expunge.run.versions import versions
from expunge.watermark import survival
from expunge.watermark.detection import false_positives, false_positives_zero_bit
from expunge.watermark.edit.base import Distortion, Edit
from expunge.watermark.edit.distortions import JPEG, Blur, Crop, NoEdit, Noise
from expunge.watermark.log import SCHEMA, WatermarkLog
from expunge.watermark.pictures import Host, batches
from expunge.watermark.reported import table
from expunge.watermark.runner import KEPT, Marked, Runner, reading_of
from expunge.watermark.scheme.base import Scheme
from expunge.watermark.scheme.latent import LatentScheme, needed, own_size
from expunge.watermark.survival import PAIRS, Record

UNMARKED_EDITS: tuple[Distortion, ...] = (NoEdit(), JPEG(50), Noise(), Crop(), Blur())
"""What unmarked pictures went through before they were read, a fifth of them each."""


def _joined(records: Sequence[Record]) -> Record:
    """Several units' lists as one."""
    first = records[0]
    joined: Record = {
        key: [value for record in records for value in record[key]]
        for key in first
        if key != "quality"
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
    *,
    unmarked: Sequence[Host] = (),
    psnr: float | None = None,
    rate: float = 1e-3,
) -> None:
    """Refuse what cannot be done before any heavy work.

    Raises:
        ValueError: nothing to do, a picture too small or without the caption it needs, a package,
            file or model missing, an edit that needs what a scheme does not have, or a number out
            of range.
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
    if not 0 < rate < 0.5:
        raise ValueError(f"false_positive_rate must lie between 0 and 0.5, got {rate:g}")
    if psnr is not None and not 10 <= psnr <= 60:
        raise ValueError(f"psnr must lie between 10 and 60 dB, got {psnr:g}")
    _check_captions(schemes, edits, hosts)
    for scheme in schemes:
        for edit in edits:
            edit.check(scheme, backbone)
        _check_pictures(scheme, hosts, unmarked, backbone, psnr)
    for scheme in schemes:
        scheme.check(backbone)
        if scheme.raw_bits and 0.5**scheme.raw_bits > rate:
            raise ValueError(
                f"{scheme.label} has {scheme.raw_bits} bits, which a fair coin gets all right more "
                f"often than the false positive rate of {rate:g}; choose more bits or another rate"
            )


def _check_captions(
    schemes: Sequence[Scheme], edits: Sequence[Edit], hosts: Sequence[Host]
) -> None:
    silent = [host.name for host in hosts if not host.caption]
    readers = [scheme.label for scheme in schemes if scheme.reads_captions]
    readers += [edit.label for edit in edits if edit.reads_captions]
    for name in readers if silent else ():
        raise ValueError(
            f"{name} reads captions, and {len(silent)} pictures have none ({silent[0]} first): put "
            "NAME.txt beside each picture, or leave it out"
        )


def _check_pictures(
    scheme: Scheme,
    hosts: Sequence[Host],
    unmarked: Sequence[Host],
    backbone: Backbone | None,
    psnr: float | None,
) -> None:
    sizes = {host.size for host in unmarked}
    if isinstance(scheme, LatentScheme):
        own = own_size(needed(scheme.name, backbone))
        if psnr is not None:
            raise ValueError(
                f"psnr scales the change a scheme makes to a picture, and {scheme.name} draws "
                "another picture; leave one of the two out"
            )
        for height, width in sizes - {own}:
            raise ValueError(
                f"{scheme.name} reads pictures of the model's own size, {own[1]} x {own[0]}, and "
                f"an unmarked one has {width} x {height}; bring unmarked pictures to that size, or "
                "ask for none"
            )
        return
    for size in sizes | {host.size for host in hosts}:
        scheme.check_size(*size)


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
        examples: pictures shown for each scheme and edit, at most 12; of large ones the middle.
        folder: where log and units go.
        command: how to run this again, for the report.

    Raises:
        ValueError: something cannot be done; see `check`.
        StoreError: the folder cannot be written.
    """
    backbone = None if pipe is None else as_backbone(pipe)
    if not 0 <= examples <= KEPT:
        raise ValueError(f"examples must lie between 0 and {KEPT}, got {examples}")
    check(
        schemes,
        edits,
        pictures,
        backbone,
        unmarked=unmarked,
        psnr=psnr,
        rate=false_positive_rate,
    )
    store = Store(Path(folder))
    store.check_writable()
    runner = Runner(backbone, store, psnr)
    data = measure(runner, schemes, edits, pictures, unmarked, false_positive_rate)
    shown = [each for each in data["examples"] if each["number"] < examples]
    data["made"]["command"] = command
    log = WatermarkLog({**data, "examples": shown}, store.folder)
    log.save(Path(folder))
    return log


def measure(
    runner: Runner,
    schemes: Sequence[Scheme],
    edits: Sequence[Edit],
    pictures: Sequence[Host],
    unmarked: Sequence[Host],
    rate: float,
) -> dict[str, Any]:
    """Everything a log says, from units done or found; nothing but units is written."""
    start, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    pictures = sorted(pictures, key=lambda host: host.size)  # alike ones go through together
    records = _survived(runner, schemes, edits, pictures, rate)
    checked = _checked(runner, schemes, unmarked, rate)
    editor = {"editor": runner.edited_by.name}
    cells = [
        survival.cell(scheme, edit, records[i, j], runner.backbone) | editor
        for i, scheme in enumerate(schemes)
        for j, edit in enumerate(edits)
    ]
    lpips = quality.lpips_available()
    return {
        "schema": SCHEMA,
        "pictures": _about(pictures),
        "model": runner.model,
        "schemes": [about_scheme(scheme, rate) for scheme in schemes],
        "edits": [edit.spec | {"label": edit.label, "unit": edit.unit} for edit in edits],
        "false_positive_rate": rate,
        "psnr": runner.psnr,
        "cells": cells,
        "unmarked": checked,
        "examples": _examples(schemes, edits, pictures, records),
        "reported": table(),
        "flags": survival.flags(cells, checked, schemes, runner.backbone, rate, lpips),
        "made": {
            "command": "",
            "started": started,
            "seconds": round(time.monotonic() - start, 1),
            "versions": versions(),
        },
    }


Records = dict[tuple[int, int], Record]
"""What was found, by the numbers of scheme and edit."""


def _survived(
    runner: Runner,
    schemes: Sequence[Scheme],
    edits: Sequence[Edit],
    pictures: Sequence[Host],
    rate: float,
) -> Records:
    found: dict[tuple[int, int], list[Record]] = {}
    with progress_bar("watermarks", len(schemes) * len(edits) * len(pictures)) as advance:
        for number, hosts in enumerate(batches(pictures, runner.backbone)):
            for i, scheme in enumerate(schemes):
                marked = Marked(hosts, scheme, runner.psnr)
                for j, edit in enumerate(edits):
                    record = runner.unit(marked, edit, first=number == 0)
                    reading = reading_of(scheme, record)
                    told = survival.outcomes(scheme, reading, marked.payloads, rate)
                    found.setdefault((i, j), []).append(record | told)
                    advance(len(hosts.hosts), f"{scheme.label} {edit.label}")
    return {key: _joined(records) for key, records in found.items()}


def _checked(
    runner: Runner, schemes: Sequence[Scheme], unmarked: Sequence[Host], rate: float
) -> list[dict[str, Any]]:
    if not unmarked:
        return []
    ordered = sorted(unmarked, key=lambda host: host.size)
    results = []
    with progress_bar("unmarked pictures", len(schemes) * len(unmarked)) as advance:
        for scheme in schemes:
            records = []
            for number, edit in enumerate(UNMARKED_EDITS):
                share = ordered[number :: len(UNMARKED_EDITS)]
                for hosts in batches(share, runner.backbone):
                    records.append(runner.unmarked(scheme, edit, hosts))
                    advance(len(hosts.hosts), scheme.label)
            readings = [reading_of(scheme, record) for record in records]
            if scheme.raw_bits:
                bits = np.concatenate([reading.bits for reading in readings])
                results.append(false_positives(scheme, bits, rate))
            else:
                values = [p for record in records for p in record["p_values"]]
                results.append(false_positives_zero_bit(scheme, values, rate))
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
                    "number": index,
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
