"""The schemes of the package `invisible-watermark`: DwtDct, DwtDctSvd and RivaGAN."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from expunge.watermark.scheme.base import Bits, PictureScheme, Reading
from expunge.watermark.scheme.code import Code, Plain
from expunge.watermark.scheme.missing import optional

Method = Literal["dwtDct", "dwtDctSvd", "rivaGan"]


@dataclass(frozen=True, kw_only=True)
class InvisibleWatermark(PictureScheme):
    """What the package's three methods share: it works on one BGR picture at a time.

    Attributes:
        method: the package's name for it.
    """

    method: ClassVar[Method]
    minimum_size: ClassVar[int] = 256

    @cached_property
    def _package(self) -> Any:
        return optional("imwatermark", "watermark", self.name)

    def prepare(self) -> None:
        _ = self._package

    def _embed(self, pixels: Tensor, bits: Bits) -> Tensor:
        def mark(picture: NDArray[np.uint8], message: NDArray[np.bool_]) -> NDArray[np.uint8]:
            encoder = self._package.WatermarkEncoder()
            encoder.set_watermark("bits", message.astype(int).tolist())
            marked: NDArray[np.uint8] = encoder.encode(picture, self.method)
            return marked

        marked = [mark(*each) for each in zip(_bgr(pixels), bits, strict=True)]
        return torch.from_numpy(np.stack(marked)[..., ::-1].copy()).permute(0, 3, 1, 2)

    def extract(self, pixels: Tensor) -> Reading:
        decoder = self._package.WatermarkDecoder("bits", self.raw_bits)
        read = [decoder.decode(picture, self.method) for picture in _bgr(pixels)]
        return Reading(np.array(read, dtype=np.bool_).reshape(len(read), self.raw_bits))


def _bgr(pixels: Tensor) -> NDArray[np.uint8]:
    """As OpenCV holds pictures, (n, height, width, 3)."""
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy()[..., ::-1])


@dataclass(frozen=True, kw_only=True)
class _AnyLength(InvisibleWatermark):
    """A method that repeats a message of any length over blocks of the picture.

    Attributes:
        bits: of a payload.
    """

    bits: int = 48

    def __post_init__(self) -> None:
        if self.bits < 1:
            raise ValueError(f"{self.name} needs at least 1 bit, got {self.bits}")

    @property
    def code(self) -> Code:
        return Plain(self.bits)


@dataclass(frozen=True, kw_only=True)
class DwtDct(_AnyLength):
    """The largest coefficient of wavelet blocks, quantised.

    Despite its name the package applies no cosine transform in this method.
    """

    name: ClassVar[str] = "dwtdct"
    method: ClassVar[Method] = "dwtDct"
    source: ClassVar[str] = "Cox et al., Digital Watermarking and Steganography, 2007"


@dataclass(frozen=True, kw_only=True)
class DwtDctSvd(_AnyLength):
    """The largest singular value of wavelet blocks' cosine transforms, quantised."""

    name: ClassVar[str] = "dwtdctsvd"
    method: ClassVar[Method] = "dwtDctSvd"
    source: ClassVar[str] = "Navas et al., DWT-DCT-SVD Based Watermarking, COMSWARE 2008"


@dataclass(frozen=True, kw_only=True)
class RivaGAN(InvisibleWatermark):
    """An attention network that the package runs with onnxruntime; 32 bits."""

    name: ClassVar[str] = "rivagan"
    method: ClassVar[Method] = "rivaGan"
    source: ClassVar[str] = "Zhang et al., Robust Invisible Video Watermarking with Attention, 2019"

    @property
    def code(self) -> Code:
        return Plain(32)

    @cached_property
    def _package(self) -> Any:
        optional("onnxruntime", "watermark", self.name)
        package = optional("imwatermark", "watermark", self.name)
        package.WatermarkEncoder.loadModel()
        return package
