"""The units of a bench: one batch of pictures under one scheme and one edit."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.condition import Condition, original
from expunge.measure import quality
from expunge.run.store import Store
from expunge.watermark.edit.base import Distortion, Edit, Subject
from expunge.watermark.pictures import HostBatch
from expunge.watermark.scheme.base import Batch, Bits, Reading, Scheme, seeds_for
from expunge.watermark.survival import PAIRS, Record

KEPT = 12
"""Pictures that are kept for each scheme and edit."""
CUT = 320
"""Most pixels along a side of a picture that is kept."""


class Marked:
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

    @cached_property
    def distance(self) -> dict[str, list[float]]:
        """How far marked pictures lie from the originals."""
        return _measured(*self.pair)

    def subject(self) -> Subject:
        batch = self.batch
        seeds = seeds_for("edit", batch.seeds)
        return Subject(self.pair[1], seeds, batch.captions, batch.backbone, self.scheme)


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


def _under(
    condition: Condition, backbone: Backbone | None
) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if backbone is None else condition.on(backbone)


@dataclass(frozen=True)
class Runner:
    """Does what is missing, unit by unit, each kept on disk as soon as it is done.

    A unit holds what was read and how far pictures lie apart; rates are computed from it later, so
    that another false positive rate costs nothing.

    Attributes:
        backbone: the model.
        store: where units go.
        psnr: dB at which every scheme's change is scaled to.
        whole: keep every picture as it is, rather than the middle of the first ones.
        drawn_by: what a scheme draws marked pictures with.
        edited_by: what edits.
    """

    backbone: Backbone | None
    store: Store
    psnr: float | None = None
    whole: bool = False
    drawn_by: Condition = field(default_factory=original)
    edited_by: Condition = field(default_factory=original)

    @cached_property
    def model(self) -> dict[str, Any] | None:
        """What the log says of the model."""
        return None if self.backbone is None else model_of(self.backbone)

    def _spec(self, job: str, scheme: Scheme, edit: Edit, hosts: HostBatch) -> dict[str, Any]:
        return {
            "job": job,
            "scheme": scheme.spec,
            "edit": edit.spec,
            "model": self.backbone and self.backbone.identity(),
            "pictures": [[host.name, host.digest, host.caption] for host in hosts.hosts],
        }

    def unit(self, marked: Marked, edit: Edit, *, first: bool) -> Record:
        """One batch under one edit; of the first batch some pictures are kept."""
        kept = len(marked.hosts.hosts) if self.whole else KEPT * first
        spec = self._spec("watermark", marked.scheme, edit, marked.hosts) | {
            "psnr": self.psnr,
            "drawn_by": self.drawn_by.spec(),
            "edited_by": self.edited_by.spec(),
            "kept": kept,
            "whole": self.whole,
            "lpips": quality.lpips_available(),
        }
        return self.store.once(spec, lambda: self._do(marked, edit, kept))

    def _do(self, marked: Marked, edit: Edit, kept: int) -> Record:
        with _under(self.drawn_by, self.backbone):
            original, pixels = marked.pair
        with _under(self.edited_by, self.backbone):
            edited = edit(marked.subject())
        distances = (marked.distance, _measured(pixels, edited), _measured(original, edited))
        return {
            **_told(marked.scheme.read(edited, self.backbone)),
            "quality": dict(zip(PAIRS, distances, strict=True)),
            "images": [
                [self._put(each[index]) for each in (original, pixels, edited)]
                for index in range(min(kept, len(original)))
            ],
        }

    def _put(self, pixels: Tensor) -> str:
        """Keep a picture, or its middle: a bench shows what happened and returns no pictures."""
        if not self.whole:
            height, width = pixels.shape[-2:]
            top, left = max(0, height - CUT) // 2, max(0, width - CUT) // 2
            pixels = pixels[:, top : top + CUT, left : left + CUT]
        return self.store.put_image(Image.fromarray(pixels.permute(1, 2, 0).numpy()))

    def unmarked(self, scheme: Scheme, edit: Distortion, hosts: HostBatch) -> Record:
        """What is read of pictures that carry no mark."""

        def work() -> Record:
            batch = hosts.load()
            seeds = seeds_for("edit", batch.seeds)
            edited = edit(Subject(batch.pixels, seeds, batch.captions, batch.backbone))
            return _told(scheme.read(edited, self.backbone))

        return self.store.once(self._spec("unmarked", scheme, edit, hosts), work)


def _told(reading: Reading) -> Record:
    """A reading as JSON: bits packed into bytes."""
    found: Record = {"bits": np.packbits(reading.bits, axis=1).tolist()}
    return found if reading.p_values is None else found | {"p_values": reading.p_values.tolist()}


def reading_of(scheme: Scheme, record: Record) -> Reading:
    """The reading that a record tells of."""
    if not scheme.raw_bits:
        values = np.array(record["p_values"], np.float64)
        return Reading(np.zeros((len(values), 0), np.bool_), values)
    packed = np.array(record["bits"], np.uint8)
    return Reading(np.unpackbits(packed, axis=1, count=scheme.raw_bits).astype(np.bool_))


def model_of(backbone: Backbone) -> dict[str, Any]:
    """What a log says of a model."""
    return {
        "name": backbone.name,
        "architecture": backbone.architecture,
        "hash": backbone.content_hash(),
        "sampling": asdict(backbone.profile.sampling),
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "precision": backbone.precision,
    }


def _measured(first: Tensor, second: Tensor) -> dict[str, list[float]]:
    return {
        "psnr": quality.psnr(first, second).tolist(),
        "ssim": quality.ssim(first, second).tolist(),
        "lpips": quality.lpips(first, second).tolist() if quality.lpips_available() else [],
    }
