"""Pictures, captions and labels of the miniature world, as arrays to train on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expunge.miniature.captions import random_pair
from expunge.miniature.render import SIZE, Picture, render
from expunge.miniature.world import NEUTRAL_SIGN, OBJECTS, PEOPLE, PLAIN, SIGNS, STYLES, Scene
from expunge.run.progress import progress_bar

STRANGER = "someone else"
NOBODY = "no face"
NO_SIGN = "no sign"

OBJECT_LABELS = tuple(OBJECTS)
PERSON_LABELS = (*PEOPLE, STRANGER, NOBODY)
STYLE_LABELS = (PLAIN, *STYLES)
SIGN_LABELS = (*SIGNS, NEUTRAL_SIGN, NO_SIGN)
MASK_LABELS = (*OBJECT_LABELS, "face", "sign")
"""What has a place in a picture, so that a mask can show where."""

Pair = tuple[Scene, str]
"""A scene and a caption that fits it."""


def labels(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """What a scene shows: ten 0/1 object flags, and the indices of person, style and sign."""
    shown = {thing.name for thing in scene.things}
    objects = np.array([name in shown for name in OBJECT_LABELS], np.float32)
    person = NOBODY if scene.face is None else scene.person or STRANGER
    choices = (
        PERSON_LABELS.index(person),
        STYLE_LABELS.index(scene.style),
        SIGN_LABELS.index(scene.sign or NO_SIGN),
    )
    return objects, np.array(choices, np.int64)


def owners(picture: Picture) -> np.ndarray:
    """Whose every pixel is, uint8, (size, size): 0 for none, else 1 + index in `MASK_LABELS`."""
    found = np.zeros(picture.image.size[::-1], np.uint8)
    for name, mask in picture.masks.items():  # in the order of drawing: the last one is in front
        label = MASK_LABELS.index(name) + 1 if name in MASK_LABELS else 0
        found[np.asarray(mask) > 127] = label
    return found


@dataclass(frozen=True)
class Pictures:
    """A rendered data set.

    Attributes:
        pixels: uint8, (n, 3, size, size), channels last in memory.
        captions: n captions.
        objects: float32, (n, 10), 1 where the object is shown.
        choices: int64, (n, 3), indices of person, style and sign.
        owners: uint8, (n, size, size), whose every pixel is; see `owners`.
    """

    pixels: Tensor
    captions: list[str]
    objects: Tensor
    choices: Tensor
    owners: Tensor

    def images(self, index: Tensor) -> Tensor:
        """The chosen pictures as float32 in [-1, 1]."""
        return signed(self.pixels[index])

    def mixed(self, other: Pictures, seed: int) -> Pictures:
        """These and others, in an order that the seed settles."""
        count = len(self.captions) + len(other.captions)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        captions = self.captions + other.captions
        ours, theirs = self._arrays(), other._arrays()
        pixels, *rest = (torch.cat(two)[order] for two in zip(ours, theirs, strict=True))
        objects, choices, whose = rest
        return Pictures(pixels, [captions[i] for i in order.tolist()], objects, choices, whose)

    def _arrays(self) -> tuple[Tensor, ...]:
        return self.pixels, self.objects, self.choices, self.owners


def signed(pixels: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def unsigned(images: Tensor) -> Tensor:
    """Pictures in [-1, 1] as uint8 pixels on the CPU."""
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu()


def pictures(
    count: int, seed: int, size: int = SIZE, pair: Callable[[random.Random], Pair] = random_pair
) -> Pictures:
    """Render `count` scenes; the same seed gives the same pictures.

    Args:
        count: how many.
        seed: of the scenes.
        size: width and height in pixels.
        pair: makes a scene and its caption; by default any scene of the world, with captions
            outside the held-out split.
    """
    rng = random.Random(seed)
    pixels = np.empty((count, size, size, 3), np.uint8)
    whose = np.empty((count, size, size), np.uint8)
    captions, objects, choices = [], [], []
    with progress_bar("rendering", count) as advance:
        for index in range(count):
            scene, caption = pair(rng)
            picture = render(scene, size)
            pixels[index], whose[index] = np.asarray(picture.image), owners(picture)
            captions.append(caption)
            shown, chosen = labels(scene)
            objects.append(shown)
            choices.append(chosen)
            advance(1, "")
    return Pictures(
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
        captions,
        torch.from_numpy(np.stack(objects)),
        torch.from_numpy(np.stack(choices)),
        torch.from_numpy(whose),
    )
