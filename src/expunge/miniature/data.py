"""Pictures, captions and labels of the miniature world, as arrays to train on."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from expunge.miniature.captions import random_pair
from expunge.miniature.render import SIZE, render
from expunge.miniature.world import NEUTRAL_SIGN, OBJECTS, PEOPLE, PLAIN, SIGNS, STYLES, Scene
from expunge.run.progress import progress_bar

STRANGER = "someone else"
NOBODY = "no face"
NO_SIGN = "no sign"

OBJECT_LABELS = tuple(OBJECTS)
PERSON_LABELS = (*PEOPLE, STRANGER, NOBODY)
STYLE_LABELS = (PLAIN, *STYLES)
SIGN_LABELS = (*SIGNS, NEUTRAL_SIGN, NO_SIGN)


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


@dataclass(frozen=True)
class Pictures:
    """A rendered data set.

    Attributes:
        pixels: uint8, (n, 3, size, size), channels last in memory.
        captions: n captions, none of them held out.
        objects: float32, (n, 10), 1 where the object is shown.
        choices: int64, (n, 3), indices of person, style and sign.
    """

    pixels: Tensor
    captions: list[str]
    objects: Tensor
    choices: Tensor

    def images(self, index: Tensor) -> Tensor:
        """The chosen pictures as float32 in [-1, 1]."""
        return self.pixels[index].float().div_(127.5).sub_(1)


def pictures(count: int, seed: int, size: int = SIZE) -> Pictures:
    """Render `count` random scenes; the same seed gives the same pictures."""
    rng = random.Random(seed)
    pixels = np.empty((count, size, size, 3), np.uint8)
    captions, objects, choices = [], [], []
    with progress_bar("rendering", count) as advance:
        for index in range(count):
            scene, caption = random_pair(rng)
            pixels[index] = np.asarray(render(scene, size).image)
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
    )
