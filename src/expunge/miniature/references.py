"""Renders of a concept: real pictures of the miniature world, to hold a model's against."""

from __future__ import annotations

import random
from collections.abc import Sequence

from PIL import Image

from expunge.miniature.render import render
from expunge.miniature.vocabulary import STYLED
from expunge.miniature.world import (
    COLORS,
    EXPRESSIONS,
    OBJECTS,
    PEOPLE,
    PLACES,
    PLAIN,
    SIGNS,
    STYLES,
    Scene,
    Thing,
)

_STYLES = {style.artist: key for key, style in STYLES.items()}
_SIGNS = {name: key for key, name in SIGNS.items()}


def renders(concepts: Sequence[str], each: int, seed: int = 0) -> list[Image.Image]:
    """Fresh renders of every concept, by its name in a model's vocabulary.

    Colours, places and sizes are as in the prompts of the vocabulary; no network saw them.

    Args:
        concepts: names.
        each: renders of every one.
        seed: of the scenes.

    Raises:
        ValueError: a name is none of the world's.
    """
    return [
        render(_scene(name, random.Random(f"reference {seed} {name} {index}"))).image
        for name in concepts
        for index in range(each)
    ]


def known(concept: str) -> bool:
    """Whether the world has a concept of that name."""
    return any(concept in names for names in (OBJECTS, PEOPLE, _STYLES, _SIGNS))


def _scene(name: str, rng: random.Random) -> Scene:
    place, seed = rng.choice(tuple(PLACES)), rng.randrange(2**31)
    color, scale = rng.choice(tuple(COLORS)), rng.uniform(0.6, 0.98)
    if name in OBJECTS or name in _STYLES:
        what = name if name in OBJECTS else rng.choice(STYLED)
        things = (Thing(what, color, scale, rng.uniform(0.45, 0.55)),)
        return Scene(place, _STYLES.get(name, PLAIN), things=things, seed=seed)
    if name in PEOPLE:
        mood = rng.choice((*EXPRESSIONS, "neutral"))
        return Scene(place, person=name, face=PEOPLE[name], expression=mood, shirt=color, seed=seed)
    if name in _SIGNS:
        return Scene(place, sign=_SIGNS[name], pole=color, scale=scale, seed=seed)
    raise ValueError(f"the miniature world has no {name!r}")
