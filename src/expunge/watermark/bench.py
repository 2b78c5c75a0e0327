"""Embed, edit, extract: what is left of a mark, scheme by scheme and edit by edit."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.eraser.base import versions
from expunge.erasure import Erasure
from expunge.measure import quality
from expunge.run.fit import progress_bar
from expunge.run.store import Store, unit_id
from expunge.watermark import survival
from expunge.watermark.detection import false_positives, false_positives_zero_bit
from expunge.watermark.edit.base import Distortion, Edit, Subject
from expunge.watermark.edit.distortions import JPEG, Blur, Crop, NoEdit, Noise
from expunge.watermark.log import SCHEMA, WatermarkLog
from expunge.watermark.pictures import Host, HostBatch, batches
from expunge.watermark.reported import table
from expunge.watermark.scheme.base import Batch, Bits, Scheme
from expunge.watermark.survival import PAIRS, Record

BATCH = 100
"""Pictures in a unit."""
UNMARKED_EDITS: tuple[Distortion, ...] = (NoEdit(), JPEG(50), Noise(), Crop(), Blur())
"""What unmarked pictures went through before they were read, a fifth of them each."""


class _Marked:
    """A batch under one scheme: marked when first needed, once for all edits."""

    def __init__(self, hosts: HostBatch, scheme: Scheme, psnr: float | None) -> None:
        self.hosts, self.scheme, self.psnr = hosts, scheme, psnr

    @cached_property
    def batch(self) -> Batch:
        return self.hosts.load()

    @cached_property
    def payloads(self) -> Bits:
        return self.scheme.payloads([host.seed for host in self.hosts.hosts])

    @cached_property
    def pair(self) -> tuple[Tensor, Tensor]:
        original, marked = self.scheme.mark(self.batch, self.payloads)
        return original, marked if self.psnr is None else at_psnr(original, marked, self.psnr)

    def subject(self) -> Subject:
        batch = self.batch
        return Subject(self.pair[1], batch.seeds, batch.captions, batch.backbone, self.scheme)


def at_psnr(original: Tensor, marked: Tensor, psnr: float) -> Tensor:
    """Scale every change so that it lies at a given distance, to compare schemes fairly.

    Args:
        original: uint8, (n, 3, height, width).
        marked: of the same shape.
        psnr: dB before rounding and cutting off.
    """
    change = (marked.float() - original.float()) / 255
    energy = change.square().mean(dim=(1, 2, 3), keepdim=True).add(1e-12).sqrt()
    scaled = original.float() / 255 + change / energy * 10 ** (-psnr / 20)
    return (scaled.clamp(0, 1) * 255).round().to(torch.uint8)


@dataclass(frozen=True)
class Changes:
    """An erasure at a strength, applied to the model while it draws or edits."""

    erasure: Erasure
    strength: float = 1.0

    @property
    def hash(self) -> str:
        """Of the changed weights."""
        return self.erasure.weights_hash(self.strength)


def _changed(
    backbone: Backbone | None, changes: Changes | None
) -> contextlib.AbstractContextManager[Any]:
    if changes is None or backbone is None:
        return contextlib.nullcontext()
    return changes.erasure.applied(backbone, changes.strength)


@dataclass(frozen=True)
class _Runner:
    """Does what is missing, unit by unit, each kept on disk as soon as it is done.

    Attributes:
        backbone: the model.
        store: where units go.
        rate: false positive rate of detection.
        psnr: dB at which every scheme's change is scaled to.
        shown: pictures kept for each scheme and edit.
        drawn_by: changes while a scheme draws marked pictures.
        edited_by: changes while the model edits.
    """

    backbone: Backbone | None
    store: Store
    rate: float
    psnr: float | None = None
    shown: int = 0
    drawn_by: Changes | None = None
    edited_by: Changes | None = None

    @cached_property
    def model(self) -> dict[str, Any] | None:
        """What the log says of the model."""
        return None if self.backbone is None else model_of(self.backbone)

    def _spec(self, job: str, scheme: Scheme, edit: Edit, hosts: HostBatch) -> dict[str, Any]:
        return {
            "job": job,
            "scheme": scheme.spec,
            "edit": edit.spec,
            "model": self.model,
            "pictures": [[host.name, host.digest] for host in hosts.hosts],
            "captions": [host.caption for host in hosts.hosts],
            "rate": self.rate,
            "psnr": self.psnr,
            "drawn_by": self.drawn_by and self.drawn_by.hash,
            "edited_by": self.edited_by and self.edited_by.hash,
        }

    def unit(self, marked: _Marked, edit: Edit, shown: int) -> Record:
        """One batch under one edit."""
        spec = self._spec("watermark", marked.scheme, edit, marked.hosts) | {"shown": shown}
        name = unit_id(spec)
        done = self.store.get(name)
        if done is None:
            done = {"spec": spec, **self._do(marked, edit, shown)}
            self.store.put(name, done)
        return done

    def _do(self, marked: _Marked, edit: Edit, shown: int) -> Record:
        with _changed(self.backbone, self.drawn_by):
            original, pixels = marked.pair
        with _changed(self.backbone, self.edited_by):
            edited = edit(marked.subject())
        reading = marked.scheme.read(edited, self.backbone)
        found = survival.outcomes(marked.scheme, reading, marked.payloads, self.rate)
        pairs = ((original, pixels), (pixels, edited), (original, edited))
        found["quality"] = {name: _measured(*pair) for name, pair in zip(PAIRS, pairs, strict=True)}
        found["images"] = [
            [self.store.put_image(_image(each[index])) for each in (original, pixels, edited)]
            for index in range(min(shown, len(original)))
        ]
        return found

    def unmarked(self, scheme: Scheme, edit: Distortion, hosts: HostBatch) -> Record:
        """What is read of pictures that carry no mark."""
        spec = self._spec("unmarked", scheme, edit, hosts)
        name = unit_id(spec)
        done = self.store.get(name)
        if done is None:
            batch = hosts.load()
            edited = edit(Subject(batch.pixels, batch.seeds, batch.captions, batch.backbone))
            reading = scheme.read(edited, self.backbone)
            found = (
                {"bits": np.packbits(reading.bits, axis=1).tolist()}
                if reading.p_values is None
                else {"p_values": reading.p_values.tolist()}
            )
            done = {"spec": spec, **found}
            self.store.put(name, done)
        return done


def model_of(backbone: Backbone) -> dict[str, Any]:
    """What a log says of a model."""
    return {
        "name": backbone.name,
        "architecture": backbone.architecture,
        "hash": backbone.weight_hash(),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "precision": backbone.precision,
    }


def _measured(first: Tensor, second: Tensor) -> dict[str, list[float]]:
    return {
        "psnr": quality.psnr(first, second).tolist(),
        "ssim": quality.ssim(first, second).tolist(),
        "lpips": quality.lpips(first, second).tolist() if quality.lpips_available() else [],
    }


def _image(pixels: Tensor) -> Image.Image:
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


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
    silent = [host.name for host in hosts if not host.caption]
    for name in (each.label for each in (*schemes, *edits) if silent and each.reads_captions):
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
    check(schemes, edits, pictures, backbone)
    if not 0 < false_positive_rate < 0.5:
        raise ValueError(
            f"false_positive_rate must lie between 0 and 0.5, got {false_positive_rate}"
        )
    store = Store(Path(folder))
    store.check_writable()
    runner = _Runner(backbone, store, false_positive_rate, psnr, examples, drawn_by, edited_by)
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
    runner: _Runner, schemes: Sequence[Scheme], edits: Sequence[Edit], pictures: Sequence[Host]
) -> Records:
    found: dict[tuple[int, int], list[Record]] = {}
    with progress_bar("watermarks", len(schemes) * len(edits) * len(pictures)) as advance:
        shown = runner.shown
        for hosts in batches(pictures, BATCH, runner.backbone):
            for i, scheme in enumerate(schemes):
                marked = _Marked(hosts, scheme, runner.psnr)
                for j, edit in enumerate(edits):
                    found.setdefault((i, j), []).append(runner.unit(marked, edit, shown))
                    advance(len(hosts.hosts), f"{scheme.label} {edit.label}")
            shown = max(0, shown - len(hosts.hosts))
    return {key: _joined(records) for key, records in found.items()}


def _checked(
    runner: _Runner, schemes: Sequence[Scheme], unmarked: Sequence[Host]
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
