"""What pictures meet without any model: compression, noise, cropping, filters, light."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torch.nn import functional as F

from expunge.watermark.edit.base import Distortion, to_uint8


@dataclass(frozen=True)
class NoEdit(Distortion):
    """The marked picture as it was saved."""

    name: ClassVar[str] = "none"

    def distort(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        return pixels


@dataclass(frozen=True)
class JPEG(Distortion):
    """Compression by Pillow's encoder, chroma halved as it does by default.

    Attributes:
        level: quality, 1 to 95.
    """

    name: ClassVar[str] = "jpeg"
    unit: ClassVar[str] = "quality"
    level: int = 50

    def __post_init__(self) -> None:
        if not 1 <= self.level <= 95 or self.level != int(self.level):
            raise ValueError(f"jpeg's level is a whole quality from 1 to 95, got {self.level}")
        object.__setattr__(self, "level", int(self.level))

    def distort(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        def compress(image: Image.Image) -> Image.Image:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=self.level)
            return Image.open(buffer)

        return _through_pillow(pixels, compress)


@dataclass(frozen=True)
class Noise(Distortion):
    """Gaussian noise on every value.

    Attributes:
        level: standard deviation, as a share of 255.
    """

    name: ClassVar[str] = "noise"
    unit: ClassVar[str] = "σ/255"
    level: float = 10 / 255

    def __post_init__(self) -> None:
        _check("noise", self.level, 0, 1)

    def distort(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        drawn = [
            torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        return pixels + self.level * torch.stack(drawn).to(pixels)


@dataclass(frozen=True)
class Crop(Distortion):
    """Cut the borders off and enlarge what is left to the old size.

    Attributes:
        level: share of each side cut off; how much of it on which end is random.
    """

    name: ClassVar[str] = "crop"
    unit: ClassVar[str] = "share of each side"
    level: float = 0.1

    def __post_init__(self) -> None:
        _check("crop", self.level, 0, 0.9)

    def distort(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        shift = np.stack([np.random.default_rng(seed).uniform(-1, 1, 2) for seed in seeds])
        window = torch.eye(2).expand(len(pixels), 2, 2) * (1 - self.level)
        return _resample(pixels, window, torch.from_numpy(shift * self.level))


@dataclass(frozen=True)
class Rotation(Distortion):
    """Turn about the middle, corners filled with the border's colour.

    Attributes:
        level: degrees, counter-clockwise.
    """

    name: ClassVar[str] = "rotation"
    unit: ClassVar[str] = "degrees"
    level: float = 5.0

    def __post_init__(self) -> None:
        _check("rotation", self.level, -180, 180)

    def distort(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        height, width = pixels.shape[-2:]
        angle = math.radians(self.level)
        cos, sin, ratio = math.cos(angle), math.sin(angle), height / width
        turn = torch.tensor([[cos, -sin * ratio], [sin / ratio, cos]])
        return _resample(pixels, turn.expand(len(pixels), 2, 2), torch.zeros(len(pixels), 2))


@dataclass(frozen=True)
class Scaling(Distortion):
    """Make the picture smaller, and as large as before again.

    Attributes:
        level: share of each side that the small picture has.
    """

    name: ClassVar[str] = "scaling"
    unit: ClassVar[str] = "share of each side"
    level: float = 0.75

    def __post_init__(self) -> None:
        _check("scaling", self.level, 0.05, 1)

    def distort(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        size = tuple(pixels.shape[-2:])
        small = [max(1, round(self.level * side)) for side in size]
        shrunk = F.interpolate(pixels, small, mode="bicubic", antialias=True)
        return F.interpolate(shrunk, size, mode="bicubic", antialias=True)


@dataclass(frozen=True)
class Blur(Distortion):
    """Pillow's Gaussian blur.

    Attributes:
        level: standard deviation in pixels.
    """

    name: ClassVar[str] = "blur"
    unit: ClassVar[str] = "σ in pixels"
    level: float = 1.0

    def __post_init__(self) -> None:
        _check("blur", self.level, 0, 100)

    def distort(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        return _through_pillow(pixels, lambda i: i.filter(ImageFilter.GaussianBlur(self.level)))


@dataclass(frozen=True)
class Sharpening(Distortion):
    """Pillow's unsharp mask with a radius of two pixels.

    Attributes:
        level: share of the difference to the blurred picture that is added.
    """

    name: ClassVar[str] = "sharpening"
    unit: ClassVar[str] = "amount"
    level: float = 1.0

    def __post_init__(self) -> None:
        _check("sharpening", self.level, 0, 10)

    def distort(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        mask = ImageFilter.UnsharpMask(radius=2, percent=round(100 * self.level), threshold=0)
        return _through_pillow(pixels, lambda image: image.filter(mask))


@dataclass(frozen=True)
class Brightness(Distortion):
    """Multiply every value.

    Attributes:
        level: by what.
    """

    name: ClassVar[str] = "brightness"
    unit: ClassVar[str] = "factor"
    level: float = 1.3

    def __post_init__(self) -> None:
        _check("brightness", self.level, 0, 10)

    def distort(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        return _through_pillow(pixels, lambda i: ImageEnhance.Brightness(i).enhance(self.level))


@dataclass(frozen=True)
class Contrast(Distortion):
    """Stretch values away from the picture's mean grey.

    Attributes:
        level: by what factor.
    """

    name: ClassVar[str] = "contrast"
    unit: ClassVar[str] = "factor"
    level: float = 1.3

    def __post_init__(self) -> None:
        _check("contrast", self.level, 0, 10)

    def distort(self, pixels: Tensor, seeds: Sequence[int]) -> Tensor:
        return _through_pillow(pixels, lambda i: ImageEnhance.Contrast(i).enhance(self.level))


def _check(name: str, level: float, low: float, high: float) -> None:
    if not low <= level <= high:
        raise ValueError(f"{name}'s level must lie between {low:g} and {high:g}, got {level:g}")


def _through_pillow(pixels: Tensor, edit: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Edit eight-bit copies; the gradient passes as if nothing had been done."""
    array = to_uint8(pixels.detach()).permute(0, 2, 3, 1).cpu().numpy()
    edited = np.stack([np.asarray(edit(Image.fromarray(picture))) for picture in array])
    result = torch.from_numpy(edited).permute(0, 3, 1, 2).to(pixels) / 255
    return pixels + (result - pixels).detach()


def _resample(pixels: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Read every picture through an affine window, in coordinates from -1 to 1, border repeated."""
    theta = torch.cat([matrix, shift[..., None]], dim=-1).to(pixels)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)
