"""StegaStamp's encoder or decoder, as an ONNX file with whatever names and layout."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.watermark.scheme.code import Bits
from expunge.watermark.scheme.missing import optional

SIDE = 400
"""Pixels along a side, where a file leaves it open."""


class StegaStampNetwork:
    """An ONNX file that hides bits in pictures, reads them, or both.

    What its outputs are is read off a grey picture: a marked picture stays near it, a change is
    near 0, and only logits leave [0, 1]. Pictures run one by one, so that nothing depends on what
    else is in a batch.

    Args:
        path: of the file.
        bits: of a message.

    Raises:
        ValueError: onnxruntime or the file is missing, or the file takes something else.
    """

    def __init__(self, path: str, bits: int) -> None:
        self._path, self._bits, self._session = path, bits, _session(path)
        inputs = self._session.get_inputs()
        pictures = [i for i in inputs if len(i.shape) == 4 and 3 in (i.shape[1], i.shape[3])]
        messages = [i for i in inputs if len(i.shape) == 2 and _may_be(i.shape[1], bits)]
        fits = len(pictures) == 1 and len(messages) <= 1 and len(inputs) <= 1 + len(messages)
        if not fits or any(i.type != "tensor(float)" or not _may_be(i.shape[0], 1) for i in inputs):
            raise self._refused(f"should take one picture of 3 channels and at most {bits} bits")
        self._picture, self._message = pictures[0], next(iter(messages), None)
        self._last = self._picture.shape[3] == 3
        sides = self._picture.shape[1:3] if self._last else self._picture.shape[2:]
        self._size = tuple(side if isinstance(side, int) else SIDE for side in sides)

    @cached_property
    def marks(self) -> tuple[int, bool]:
        """Which output carries the mark, and whether it is a change rather than a picture."""
        found = [
            (i, bool(output.abs().mean() < (output - 0.5).abs().mean()))
            for i, output in enumerate(self._grey)
            if output.ndim == 4
        ]
        if self._message is None or not found:
            raise self._refused(f"should hide {self._bits} bits in a picture")
        return max(found, key=lambda each: each[1])

    @cached_property
    def reads(self) -> tuple[int, float]:
        """Which output holds bits, and above which value one is set."""
        for i, output in enumerate(self._grey):
            if tuple(output.shape) == (1, self._bits):
                return i, 0.5 if output.min() >= 0 and output.max() <= 1 else 0.0
        raise self._refused(f"should read {self._bits} bits in a picture")

    def change(self, pixels: Tensor, bits: Bits) -> Tensor:
        """What marks pictures in [0, 1] when it is added, at the network's own size."""
        index, is_change = self.marks
        hosts = resized(pixels.cpu(), self._size).clamp(0, 1)
        outputs = torch.cat([self._run(*each)[index] for each in zip(hosts, bits, strict=True)])
        return outputs if is_change else outputs - hosts

    def bits_in(self, pixels: Tensor) -> Bits:
        """What pictures in [0, 1] carry, (n, bits)."""
        index, threshold = self.reads
        hosts = resized(pixels.cpu(), self._size).clamp(0, 1)
        return np.concatenate([self._run(host)[index].numpy() > threshold for host in hosts])

    @cached_property
    def _grey(self) -> list[Tensor]:
        try:
            return self._run(torch.full((3, *self._size), 0.5))
        except Exception as error:  # the only base that onnxruntime's errors have
            raise self._refused("should run on one grey picture") from error

    def _run(self, picture: Tensor, bits: Bits | None = None) -> list[Tensor]:
        """All outputs for one picture, (3, height, width); pictures among them channels first."""
        host = picture.permute(1, 2, 0) if self._last else picture
        feed = {self._picture.name: host[None].numpy()}
        if self._message is not None:
            message = np.zeros(self._bits) if bits is None else bits
            feed[self._message.name] = message[None].astype(np.float32)
        outputs = [torch.from_numpy(output).float() for output in self._session.run(None, feed)]
        return [o.permute(0, 3, 1, 2) if o.ndim == 4 and o.shape[3] == 3 else o for o in outputs]

    def _refused(self, wish: str) -> ValueError:
        got = ", ".join(
            f"{each.name} {each.shape}"
            for each in (*self._session.get_inputs(), *self._session.get_outputs())
        )
        return ValueError(
            f"{self._path} does not fit StegaStamp: it {wish}, in float32; it has {got}"
        )


def _session(path: str) -> Any:
    runtime = optional("onnxruntime", "watermark", "stegastamp")
    if not Path(path).is_file():
        raise ValueError(f"stegastamp needs its encoder and decoder as ONNX files; {path} is none")
    try:
        return runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # the only base that onnxruntime's errors have
        raise ValueError(f"onnxruntime cannot read {path}: {error}") from error


def _may_be(declared: Any, size: int) -> bool:
    """Whether a declared dimension, a number or a name, allows this size."""
    return not isinstance(declared, int) or declared == size


def resized(pixels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Pictures brought to (height, width), smoothed where they shrink."""
    if tuple(pixels.shape[-2:]) == size:
        return pixels
    return F.interpolate(pixels, size, mode="bicubic", antialias=True)
