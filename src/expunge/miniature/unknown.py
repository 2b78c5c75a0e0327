"""Scenes with things that the miniature world does not have, drawn and captioned like its own.

Judges learn from them what none of the ten objects looks like, and are measured on kinds that were
held out. The snail is such a kind: no network of the miniature ever saw one, so it is the control
of attacks that claim to bring a concept back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from expunge.miniature.captions import describe
from expunge.miniature.data import Pair, Pictures, pictures
from expunge.miniature.held_out_shapes import HELD_OUT_SHAPES
from expunge.miniature.unknown_shapes import TRAINED_SHAPES
from expunge.miniature.world import COLORS, OBJECTS, PLACES, PLAIN, STYLES, Scene, Thing

HELD_OUT = tuple(HELD_OUT_SHAPES)
"""Kinds of things that no network is trained on."""
TRAINED = tuple(TRAINED_SHAPES) + ("blob",) * 3 + ("contraption",) * 7
"""Kinds that judges learn from; those that are never twice the same come more often."""
SNAIL = "snail"

BESIDE_KNOWN = 0.2
"""How many scenes show one of the ten objects as well."""


def random_scene(kinds: Sequence[str], beside: float, rng: Random) -> Scene:
    """A thing of one of the kinds, alone in any style or beside one of the ten objects."""
    place, kind, seed = rng.choice(tuple(PLACES)), rng.choice(kinds), rng.randrange(2**31)
    colors = tuple(COLORS)
    if rng.random() < beside:
        names = [kind, rng.choice(tuple(OBJECTS))]
        rng.shuffle(names)
        things = tuple(
            Thing(name, rng.choice(colors), rng.uniform(0.46, 0.52), x)
            for name, x in zip(names, (0.27, 0.73), strict=True)
        )
        return Scene(place, things=things, seed=seed)
    style = rng.choice(tuple(STYLES)) if rng.random() < 0.4 else PLAIN
    thing = Thing(kind, rng.choice(colors), rng.uniform(0.5, 0.98), rng.uniform(0.45, 0.55))
    return Scene(place, style, things=(thing,), seed=seed)


def pairs(kinds: Sequence[str], beside: float = 0.0) -> Callable[[Random], Pair]:
    """A source of scenes and captions for [`pictures`][expunge.miniature.data.pictures].

    Args:
        kinds: of things, such as `HELD_OUT` or `("snail",)`.
        beside: share of the scenes that show one of the ten objects as well.

    Raises:
        ValueError: no kinds, or one that cannot be drawn.
    """
    strange = [kind for kind in kinds if kind not in TRAINED_SHAPES | HELD_OUT_SHAPES]
    if strange or not kinds:
        known = ", ".join(TRAINED_SHAPES | HELD_OUT_SHAPES)
        raise ValueError(f"kinds must be some of {known}, got {strange or 'none'}")

    def pair(rng: Random) -> Pair:
        scene = random_scene(kinds, beside, rng)
        return scene, describe(scene, rng)

    return pair


def unknown(count: int, seed: int) -> Pictures:
    """Pictures of the kinds that judges learn from, some beside one of the ten objects."""
    return pictures(count, seed, pair=pairs(TRAINED, BESIDE_KNOWN))


def snails(count: int, seed: int) -> Pictures:
    """Pictures of snails, alone, with captions such as "a photo of a snail on the grass"."""
    return pictures(count, seed, pair=pairs((SNAIL,)))
