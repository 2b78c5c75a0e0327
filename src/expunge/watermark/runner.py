"""The units of a bench: one batch of pictures under one scheme and one edit."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.erasure import Erasure
from expunge.measure import quality
from expunge.run.store import Store, unit_id
from expunge.watermark import survival
from expunge.watermark.edit.base import Distortion, Edit, Subject
from expunge.watermark.pictures import HostBatch
from expunge.watermark.scheme.base import Batch, Bits, Scheme
from expunge.watermark.survival import PAIRS, Record


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
class Runner:
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

    def unit(self, marked: Marked, edit: Edit, shown: int) -> Record:
        """One batch under one edit."""
        spec = self._spec("watermark", marked.scheme, edit, marked.hosts) | {"shown": shown}
        name = unit_id(spec)
        done = self.store.get(name)
        if done is None:
            done = {"spec": spec, **self._do(marked, edit, shown)}
            self.store.put(name, done)
        return done

    def _do(self, marked: Marked, edit: Edit, shown: int) -> Record:
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
