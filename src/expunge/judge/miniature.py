"""The judges of the miniature: two networks of different make that read a picture's labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.judge.base import Judge, unknown_concept, weights_hash
from expunge.miniature.data import (
    NO_SIGN,
    NOBODY,
    OBJECT_LABELS,
    PERSON_LABELS,
    SIGN_LABELS,
    STYLE_LABELS,
)
from expunge.miniature.world import (
    HAZARD,
    HAZARD_SYNONYMS,
    NEUTRAL_SIGN,
    OBJECTS,
    PEOPLE,
    SIGNS,
    STYLES,
)
from expunge.run.files import write_atomically

SIDE = 64
"""Width and height of the pictures the networks read; others are resized to it."""
WIDTH = 128
"""Length of the feature vector."""
BATCH = 64
WEIGHTS = Path(__file__).parents[1] / "miniature" / "weights" / "judges"

Variant = Literal["conv", "patch"]
Head = Literal["objects", "person", "style", "sign"]


class Verdict(NamedTuple):
    """What a network says of n pictures; all but the features are logits.

    Attributes:
        features: (n, 128).
        objects: (n, 10), one sigmoid each.
        person: (n, 22), softmax over `PERSON_LABELS`.
        style: (n, 6), softmax over `STYLE_LABELS`.
        sign: (n, 6), softmax over `SIGN_LABELS`.
        broken: (n, 1), sigmoid.
    """

    features: Tensor
    objects: Tensor
    person: Tensor
    style: Tensor
    sign: Tensor
    broken: Tensor


_HEADS = [len(OBJECT_LABELS), len(PERSON_LABELS), len(STYLE_LABELS), len(SIGN_LABELS), 1]


class JudgeNet(nn.Module):
    """A trunk that turns pictures in [-1, 1] into feature vectors, and the heads on top."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.Linear(WIDTH, sum(_HEADS))

    def forward(self, images: Tensor) -> Verdict:
        """Judge a batch, (n, 3, 64, 64), float in [-1, 1]."""
        features = self.trunk(images)
        return Verdict(features, *torch.split(self.heads(features), _HEADS, dim=1))


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


def _conv() -> nn.Module:
    """A residual network that halves the resolution four times, the first time at once."""
    return nn.Sequential(
        _convolution(3, 32, stride=2, kernel=5),
        _convolution(32, 64, stride=2),
        _Residual(_convolution(64, 64)),
        _convolution(64, 96, stride=2),
        _Residual(_convolution(96, 96), _convolution(96, 96)),
        _convolution(96, 128, stride=2),
        _Residual(_convolution(128, 128)),
        _features(128 * 4 * 4),
    )


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


def _patch() -> nn.Module:
    """Perceptrons on 4x4 patches that see their neighbours by shifts only; no convolution.

    Source: Yu et al., "S²-MLP: Spatial-Shift MLP Architecture for Vision", arXiv:2106.07477.
    """
    return nn.Sequential(
        _ChannelsLast(),
        _Patches(4),
        nn.Linear(3 * 16, 64),
        *(_shift_block(64, 144) for _ in range(2)),
        _Patches(2),
        nn.Linear(4 * 64, 128),
        *(_shift_block(128, 288) for _ in range(4)),
        _Patches(2),
        nn.LayerNorm(4 * 128),
        nn.Linear(4 * 128, 64),
        _features(64 * 4 * 4),
    )


_TRUNKS: dict[str, Callable[[], nn.Module]] = {"conv": _conv, "patch": _patch}


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


Meaning = tuple[Head, int, bool]
"""Head, label index, and whether the concept is everything but that label."""


def _meanings() -> dict[str, Meaning]:
    """Every name that can be asked for, in lower case and without an article."""
    names: dict[str, Meaning] = {}
    for name, synonyms in OBJECTS.items():
        at = OBJECT_LABELS.index(name)
        names |= dict.fromkeys((name, *synonyms), ("objects", at, False))
    for person in PEOPLE:
        at = PERSON_LABELS.index(person)
        names |= dict.fromkeys((person, person.split()[-1]), ("person", at, False))
    for key, style in STYLES.items():
        at = STYLE_LABELS.index(key)
        names |= dict.fromkeys((key, style.artist, style.technique), ("style", at, False))
    for sign in (*SIGNS, NEUTRAL_SIGN):
        at = SIGN_LABELS.index(sign)
        names |= dict.fromkeys((sign, f"{sign} sign"), ("sign", at, False))
    hazard = SIGN_LABELS.index(HAZARD)
    names |= dict.fromkeys(HAZARD_SYNONYMS, ("sign", hazard, False))
    nobody, nothing = PERSON_LABELS.index(NOBODY), SIGN_LABELS.index(NO_SIGN)
    names |= dict.fromkeys(("person", "face"), ("person", nobody, True))
    names["sign"] = ("sign", nothing, True)
    return {name.casefold(): meaning for name, meaning in names.items()}


_MEANINGS: Mapping[str, Meaning] = _meanings()


def _key(concept_name: str) -> str:
    words = concept_name.casefold().split()
    return " ".join(words[1:] if words[:1] in (["a"], ["an"], ["the"]) else words)


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    """Pictures of any size and mode as float32 in [-1, 1], (n, 3, 64, 64)."""
    arrays = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
    for index, image in enumerate(images):
        rgb = image.convert("RGB")
        if rgb.size != (SIDE, SIDE):
            rgb = rgb.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        arrays[index] = np.asarray(rgb)
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class MiniatureJudge(Judge):
    """Reads objects, people, styles, signs and brokenness off pictures of the miniature world.

    It takes the names that stand in captions, in any case and with or without an article: objects
    and their synonyms, people by full name or surname, styles by artist or technique, signs, and
    `"person"`, `"face"`, `"sign"` for any of them. Pictures that are not 64x64 are resized
    (bicubic). It judges on the CPU in float32, 64 pictures at a time.
    """

    version = "1"
    threshold = 0.5

    def __init__(self, variant: Variant, network: nn.Module) -> None:
        self.name = f"miniature-{variant}"
        self.network = network.cpu().float().eval().requires_grad_(False)

    @classmethod
    def load(cls, variant: Variant, folder: Path | None = None) -> MiniatureJudge:
        """Read `<folder>/<variant>.safetensors`; without a folder, the one in the package.

        Raises:
            ValueError: no such variant, or the file is missing, damaged, or of another network.
        """
        network = build(variant)
        path = (folder or WEIGHTS) / f"{variant}.safetensors"
        try:
            network.load_state_dict(load_file(path))
        except FileNotFoundError:
            raise ValueError(
                f"no judge at {path}; `expunge miniature train` makes one, or name another folder"
            ) from None
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{path} holds no judge of variant {variant!r}: {error}") from error
        return cls(variant, network)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights, in hexadecimal."""
        return weights_hash(self.network)

    def knows(self, concept_name: str) -> bool:
        """Whether the name belongs to something in the miniature world that has a label."""
        return _key(concept_name) in _MEANINGS

    @torch.inference_mode()
    def _judge(self, images: Sequence[Image.Image]) -> Verdict:
        chunks = [self.network(_pixels(images[at : at + BATCH])) for at in _starts(len(images))]
        return Verdict(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))

    def score(self, images: Sequence[Image.Image], concept_name: str) -> np.ndarray:
        """How surely each picture shows the concept, float32 in [0, 1], (n,).

        Raises:
            ValueError: the concept has no label in the miniature world.
        """
        if not self.knows(concept_name):
            raise unknown_concept(concept_name, self.name, _MEANINGS)
        head, index, negated = _MEANINGS[_key(concept_name)]
        logits: Tensor = getattr(self._judge(images), head)
        shown = logits.sigmoid() if head == "objects" else logits.softmax(dim=1)
        score = shown[:, index].numpy()
        return 1 - score if negated else score

    def broken(self, images: Sequence[Image.Image]) -> np.ndarray:
        """How surely each picture is noise, a jumble or a blur of several, (n,)."""
        return self._judge(images).broken[:, 0].sigmoid().numpy()

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """The vector that the heads read, float32, (n, 128)."""
        return self._judge(images).features.numpy()


def _starts(count: int) -> range:
    """Where batches begin; an empty list of pictures is one empty batch."""
    return range(0, max(count, 1), BATCH)
