"""The judges of the miniature: what two networks read off a picture, by a concept's name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.judge.base import Features, Images, Judge, unknown_concept, weights_hash
from expunge.judge.networks import SIDE, Variant, Verdict, build
from expunge.miniature.data import (
    MASK_LABELS,
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

BATCH = 64
WEIGHTS = Path(__file__).parents[1] / "miniature" / "weights" / "judges"

Head = Literal["objects", "person", "style", "sign"]
_WHERE: Mapping[Head, str] = {"person": "face", "sign": "sign"}

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


def _pixels(images: Images) -> Tensor:
    """Pictures of any size and mode as float32 in [-1, 1], (n, 3, 64, 64)."""
    arrays = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
    for index, image in enumerate(images):
        rgb = image.convert("RGB")
        if rgb.size != (SIDE, SIDE):
            rgb = rgb.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        arrays[index] = np.asarray(rgb)
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class MiniatureJudge(Judge, Features):
    """Reads objects, people, styles, signs and brokenness off pictures of the miniature world.

    It takes the names that stand in captions, in any case and with or without an article: objects
    and their synonyms, people by full name or surname, styles by artist or technique, signs, and
    `"person"`, `"face"`, `"sign"` for any of them. Pictures that are not 64x64 are resized
    (bicubic). It judges on the CPU in float32, 64 pictures at a time.

    Args:
        variant: which network.
        network: the network with its weights.
        folder: where the weights lie; None for the bundled ones.
    """

    version = "2"
    threshold = 0.5

    def __init__(self, variant: Variant, network: nn.Module, folder: Path | None = None) -> None:
        self.name = f"miniature-{variant}"
        self._folder = folder
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
        return cls(variant, network, folder)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights, in hexadecimal."""
        return weights_hash(self.network)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The folder of the weights, if they are not the bundled ones."""
        return {} if self._folder is None else {"folder": str(self._folder)}

    def knows(self, concept_name: str) -> bool:
        """Whether the name belongs to something in the miniature world that has a label."""
        return _key(concept_name) in _MEANINGS

    @torch.inference_mode()
    def _judge(self, images: Images) -> Verdict:
        chunks = [self.network(_pixels(images[at : at + BATCH])) for at in _starts(len(images))]
        return Verdict(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))

    def score(self, images: Images, concept_name: str) -> np.ndarray:
        """How surely each picture shows the concept, float32 in [0, 1], (n,).

        Raises:
            ValueError: the concept has no label in the miniature world.
        """
        return self._score(self._judge(images), self._meaning(concept_name))

    def mask(self, images: Images, concept_name: str) -> np.ndarray:
        """Where each picture shows the concept, float32 in [0, 1], (n, 16, 16).

        Every cell says how much of it belongs to the concept: to an object of that name, or to the
        face or the sign where one is asked for; near 0 everywhere in a picture without it.

        Raises:
            ValueError: the concept has no label in the miniature world, or no place in a picture,
                as styles.
        """
        meaning = head, index, _ = self._meaning(concept_name)
        if head == "style":
            raise ValueError(f"a style is everywhere in a picture, so {concept_name!r} has no mask")
        verdict = self._judge(images)
        label = OBJECT_LABELS[index] if head == "objects" else _WHERE[head]
        masks: np.ndarray = verdict.masks[:, MASK_LABELS.index(label)].sigmoid().numpy()
        if head == "objects":
            return masks
        return np.asarray(masks * self._score(verdict, meaning)[:, None, None])

    def _meaning(self, concept_name: str) -> Meaning:
        if not self.knows(concept_name):
            raise unknown_concept(concept_name, self.name, _MEANINGS)
        return _MEANINGS[_key(concept_name)]

    @staticmethod
    def _score(verdict: Verdict, meaning: Meaning) -> np.ndarray:
        head, index, negated = meaning
        logits: Tensor = getattr(verdict, head)
        shown = logits.sigmoid() if head == "objects" else logits.softmax(dim=1)
        score = shown[:, index].numpy()
        return np.asarray(1 - score if negated else score)

    def broken(self, images: Images) -> np.ndarray:
        """How surely each picture is noise, a jumble or a blur of several, (n,)."""
        return self._judge(images).broken[:, 0].sigmoid().numpy()

    def features(self, images: Images) -> np.ndarray:
        """The vector that the heads read, float32, (n, 128)."""
        return self._judge(images).features.numpy()


def _starts(count: int) -> range:
    """Where batches begin; an empty list of pictures is one empty batch."""
    return range(0, max(count, 1), BATCH)


def conv(folder: str | Path | None = None) -> MiniatureJudge:
    """The miniature's judge that sees whole pictures, by convolutions.

    Args:
        folder: of its weights, None for the bundled ones.
    """
    return MiniatureJudge.load("conv", None if folder is None else Path(folder))


def patch(folder: str | Path | None = None) -> MiniatureJudge:
    """The miniature's second judge, of another make: it reads patches.

    Args:
        folder: of its weights, None for the bundled ones.
    """
    return MiniatureJudge.load("patch", None if folder is None else Path(folder))
