"""The networks of the miniature's judges: two of different make, with the same heads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.miniature.data import (
    MASK_LABELS,
    OBJECT_LABELS,
    PERSON_LABELS,
    SIGN_LABELS,
    STYLE_LABELS,
)
from expunge.run.files import write_atomically

SIDE = 64
"""Width and height of the pictures the networks read; others are resized to it."""
GRID = 16
"""Width and height of a mask."""
WIDTH = 128
"""Length of the feature vector."""
NEAR, FAR = 64, 128
"""Channels of the two maps a mask is made of: of 16x16, and of 4x4 or 8x8 cells."""

Variant = Literal["conv", "patch"]


class Verdict(NamedTuple):
    """What a network says of n pictures; all but the features are logits.

    Attributes:
        features: (n, 128).
        objects: (n, 10), one sigmoid each.
        person: (n, 22), softmax over `PERSON_LABELS`.
        style: (n, 6), softmax over `STYLE_LABELS`.
        sign: (n, 6), softmax over `SIGN_LABELS`.
        broken: (n, 1), sigmoid.
        masks: (n, 12, 16, 16), a sigmoid each: where the things of `MASK_LABELS` are.
    """

    features: Tensor
    objects: Tensor
    person: Tensor
    style: Tensor
    sign: Tensor
    broken: Tensor
    masks: Tensor


_HEADS = [len(OBJECT_LABELS), len(PERSON_LABELS), len(STYLE_LABELS), len(SIGN_LABELS), 1]


class Trunk(nn.Module):
    """Turns pictures into a fine map, a coarse map, and a vector, each made of the one before."""

    def __init__(self, near: nn.Module, far: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.near, self.far, self.last = near, far, last

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (n, 64, 16, 16) and (n, 128, h, w), and vectors (n, 128)."""
        near = self.near(images)
        far = self.far(near)
        return near, far, self.last(far)


class _Masks(nn.Module):
    """Says of every cell of the fine map whose it is, from both maps there and from the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(NEAR + FAR + WIDTH, 64)
        self.out = nn.Linear(64, len(MASK_LABELS))

    def forward(self, near: Tensor, far: Tensor, features: Tensor) -> Tensor:
        size = near.shape[-2:]
        spread = F.interpolate(far, size, mode="bilinear")
        whole = features[:, :, None, None].expand(-1, -1, *size)
        cells = torch.cat([near, spread, whole], dim=1).permute(0, 2, 3, 1)
        logits: Tensor = self.out(F.silu(self.hidden(cells)))
        return logits.permute(0, 3, 1, 2)


class JudgeNet(nn.Module):
    """A trunk that reads pictures in [-1, 1], and the heads on top."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.Linear(WIDTH, sum(_HEADS))
        self.masks = _Masks()

    def forward(self, images: Tensor) -> Verdict:
        """Judge a batch, (n, 3, 64, 64), float in [-1, 1]."""
        near, far, features = self.trunk(images)
        heads = torch.split(self.heads(features), _HEADS, dim=1)
        objects, person, style, sign, broken = heads
        masks = self.masks(near, far, features)
        return Verdict(features, objects, person, style, sign, broken, masks)


class _Residual(nn.Module):
    """Adds to its input what `branch` makes of it."""

    def __init__(self, *branch: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.branch(x)
        return x + change


def _convolution(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(inplace=True),
    )


def _features(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, WIDTH), nn.SiLU())


def _conv() -> Trunk:
    """A residual network that halves the resolution four times, the first time at once."""
    near = nn.Sequential(
        _convolution(3, 32, stride=2, kernel=5),
        _convolution(32, NEAR, stride=2),
        _Residual(_convolution(NEAR, NEAR)),
    )
    far = nn.Sequential(
        _convolution(NEAR, 96, stride=2),
        _Residual(_convolution(96, 96), _convolution(96, 96)),
        _convolution(96, FAR, stride=2),
        _Residual(_convolution(FAR, FAR)),
    )
    return Trunk(near, far, _features(FAR * 4 * 4))


class _Patches(nn.Module):
    """Lays `size` x `size` neighbours side by side: (n, h, w, c) to (n, h/size, w/size, size²c)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        rows, columns = height // self.size, width // self.size
        x = x.reshape(n, rows, self.size, columns, self.size, channels).transpose(2, 3)
        return x.reshape(n, rows, columns, self.size**2 * channels)


class _ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class _ChannelsFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class _Shift(nn.Module):
    """Moves nine groups of channels by one step in the nine directions of a 3x3 neighbourhood."""

    def forward(self, x: Tensor) -> Tensor:
        groups = enumerate(x.chunk(9, dim=-1))
        moved = [torch.roll(group, (at // 3 - 1, at % 3 - 1), dims=(1, 2)) for at, group in groups]
        return torch.cat(moved, dim=-1)


def _shift_block(width: int, hidden: int) -> nn.Module:
    return _Residual(
        nn.LayerNorm(width),
        nn.Linear(width, hidden),
        _Shift(),
        nn.GELU(),
        nn.Linear(hidden, width),
    )


def _patch() -> Trunk:
    """Perceptrons on 4x4 patches that see their neighbours by shifts only; no convolution.

    Source: Yu et al., "S²-MLP: Spatial-Shift MLP Architecture for Vision", arXiv:2106.07477.
    """
    near = nn.Sequential(
        _ChannelsLast(),
        _Patches(4),
        nn.Linear(3 * 16, NEAR),
        *(_shift_block(NEAR, 144) for _ in range(2)),
        _ChannelsFirst(),
    )
    far = nn.Sequential(
        _ChannelsLast(),
        _Patches(2),
        nn.Linear(4 * NEAR, FAR),
        *(_shift_block(FAR, 288) for _ in range(4)),
        _ChannelsFirst(),
    )
    last = nn.Sequential(
        _ChannelsLast(),
        _Patches(2),
        nn.LayerNorm(4 * FAR),
        nn.Linear(4 * FAR, 64),
        _features(64 * 4 * 4),
    )
    return Trunk(near, far, last)


_TRUNKS: dict[str, Callable[[], Trunk]] = {"conv": _conv, "patch": _patch}


def build(variant: Variant) -> JudgeNet:
    """An untrained network.

    Raises:
        ValueError: there is no such variant.
    """
    if variant not in _TRUNKS:
        raise ValueError(f"variant must be one of {', '.join(_TRUNKS)}, got {variant!r}")
    return JudgeNet(_TRUNKS[variant]())


def save(network: nn.Module, path: Path) -> None:
    """Write the weights as fp16 safetensors."""
    tensors = {k: v.detach().cpu().half().contiguous() for k, v in network.state_dict().items()}
    write_atomically(path, lambda target: save_file(tensors, target))
