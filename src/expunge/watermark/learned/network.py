"""The learned scheme's encoder and decoder."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 64
"""Pixels along a side of what both networks see; larger pictures are reduced to it."""


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(width), _block(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + cast("Tensor", self.body(x))


class Encoder(nn.Module):
    """What to add to a picture so that it carries a message.

    One carrier a bit, learned, signed by the message and summed; a convolutional network that sees
    picture and sum corrects it. The result has no scale: the caller gives it its energy.

    Args:
        bits: of the message.
        width: channels.
    """

    def __init__(self, bits: int, width: int = 32) -> None:
        super().__init__()
        half = SIDE // 2
        self.carriers = nn.Parameter(torch.randn(bits, 3, half // 2, half // 2))
        self.message = nn.Linear(bits, width * 64)
        self.picture = nn.Conv2d(3, width, 4, stride=2, padding=1)
        self.join = nn.Conv2d(2 * width + 3, width, 1)
        self.body = nn.Sequential(*(_Residual(width) for _ in range(2)), _block(width))
        self.head = nn.Conv2d(width, 12, 3, padding=1)
        nn.init.zeros_(self.head.weight)

    def forward(self, pixels: Tensor, message: Tensor) -> Tensor:
        """Find the change.

        Args:
            pixels: [-1, 1], (n, 3, 64, 64).
            message: -1 or 1, (n, bits).

        Returns:
            The change, of root mean square 1, (n, 3, 64, 64).
        """
        half = SIDE // 2
        carriers = torch.einsum("nb,bchw->nchw", message, self.carriers) / len(self.carriers) ** 0.5
        spread = self.message(message).view(len(message), -1, 8, 8)
        seen = [
            self.picture(pixels),
            F.interpolate(spread, (half, half), mode="bilinear"),
            F.interpolate(carriers, (half, half), mode="bilinear"),
        ]
        features = self.body(self.join(torch.cat(seen, dim=1)))
        change = F.interpolate(carriers, (SIDE, SIDE), mode="bicubic") + F.pixel_shuffle(
            self.head(features), 2
        )
        return unit_energy(change.float())


class Decoder(nn.Module):
    """The message in a picture.

    Args:
        bits: of the message.
        widths: channels at 32, 16, 8 and 4 pixels a side.
    """

    def __init__(self, bits: int, widths: tuple[int, ...] = (32, 64, 96, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), _Residual(width)]
            before = width
        self.body = nn.Sequential(*layers, nn.GroupNorm(8, before), nn.SiLU())
        self.head = nn.Linear(before * 16, bits)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of every bit, (n, bits), of pictures in [-1, 1], (n, 3, 64, 64)."""
        return cast("Tensor", self.head(self.body(pixels).flatten(1)).float())


def unit_energy(change: Tensor) -> Tensor:
    """Scale every change to a root mean square of 1."""
    return change / change.square().mean(dim=(1, 2, 3), keepdim=True).add(1e-12).sqrt()


def seen(pixels: Tensor) -> Tensor:
    """Pictures as the networks see them: reduced or enlarged to 64 pixels, in [-1, 1].

    Args:
        pixels: float in [0, 1], (n, 3, height, width).
    """
    if pixels.shape[-2:] != (SIDE, SIDE):
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", antialias=True)
    return pixels * 2 - 1


def add_mark(pixels: Tensor, change: Tensor, psnr: float | Tensor) -> Tensor:
    """Add a change to pictures of any size, at a given distance from them.

    Args:
        pixels: float in [0, 1], (n, 3, height, width).
        change: (n, 3, 64, 64), enlarged where the picture is larger.
        psnr: dB before values outside [0, 1] are cut off, one for all or (n, 1, 1, 1).

    Returns:
        Float in [0, 1], shaped like `pixels`.
    """
    if pixels.shape[-2:] != change.shape[-2:]:
        size = tuple(pixels.shape[-2:])
        change = unit_energy(F.interpolate(change, size, mode="bicubic", antialias=True))
    return (pixels + change * 10 ** (-psnr / 20)).clamp(0, 1)
