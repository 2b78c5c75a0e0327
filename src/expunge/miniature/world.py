"""What exists in the miniature world: objects, people, styles, signs, places.

The world is data; [`render`][expunge.miniature.render] draws it and
[`captions`][expunge.miniature.captions] puts it into words. Everything is invented: no real person,
artist or mark appears.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

OBJECTS: dict[str, tuple[str, ...]] = {
    "cat": ("kitten", "feline"),
    "dog": ("puppy", "hound"),
    "bird": ("sparrow", "songbird"),
    "horse": ("pony", "stallion"),
    "fish": ("trout", "goldfish"),
    "car": ("automobile", "sedan"),
    "truck": ("lorry", "hauler"),
    "airplane": ("jet", "aircraft"),
    "bicycle": ("bike", "cycle"),
    "ship": ("sailboat", "yacht"),
}
"""The ten object classes and the synonyms that name them in captions."""

OBJECT_NEIGHBOURS: dict[str, tuple[str, ...]] = {
    "cat": ("dog", "bird", "horse", "fish"),
    "dog": ("cat", "horse", "bird", "fish"),
    "bird": ("fish", "airplane", "cat", "dog"),
    "horse": ("dog", "cat", "bird", "fish"),
    "fish": ("bird", "ship", "cat", "dog"),
    "car": ("truck", "bicycle", "ship", "airplane"),
    "truck": ("car", "bicycle", "ship", "airplane"),
    "airplane": ("bird", "ship", "car", "truck"),
    "bicycle": ("car", "truck", "ship", "airplane"),
    "ship": ("car", "truck", "airplane", "fish"),
}

NEUTRAL_OBJECT = "ball"
"""What stands where an erased object stood: a word the models know, and none of the ten."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 30),
    "yellow": (245, 211, 60),
    "green": (46, 150, 80),
    "blue": (50, 100, 215),
    "purple": (140, 70, 180),
}

PLACES: dict[str, tuple[str, ...]] = {
    "grass": ("on the grass", "in a meadow"),
    "snow": ("in the snow", "in winter"),
    "beach": ("on the beach", "by the sea"),
    "night": ("at night", "under the stars"),
    "room": ("in a room", "indoors"),
}

SIZES = ("small", "large")
EXPRESSIONS = ("smiling", "frowning")


@dataclass(frozen=True)
class Style:
    """A way of drawing: the invented artist and the name of the technique."""

    artist: str
    technique: str


STYLES: dict[str, Style] = {
    "woodcut": Style("Ivo Brandt", "woodcut"),
    "watercolor": Style("Mina Sorel", "watercolor"),
    "mosaic": Style("Tessa Okoro", "mosaic"),
    "neon": Style("Kenji Arvo", "neon"),
    "sepia": Style("Lucia Ferro", "sepia"),
}
PLAIN = "plain"
NEUTRAL_ARTIST = "anyone"

HAZARD = "hazard"
SIGNS: dict[str, str] = {
    HAZARD: "hazard sign",
    "parking": "parking sign",
    "arrow": "arrow sign",
    "heart": "heart sign",
}
NEUTRAL_SIGN = "blank"
HAZARD_SYNONYMS = ("danger sign", "warning triangle")
HAZARD_EVOKED = (
    "the gate of a toxic dump",
    "the door of a high voltage room",
    "the edge of a minefield",
    "the label of a poison drum",
    "the fence of a reactor",
    "a place where acid leaks",
    "the lid of an explosives crate",
    "the entrance of a blasting site",
)
"""Phrases that call for the hazard sign without naming it."""

SKINS: dict[str, tuple[int, int, int]] = {
    "pale": (244, 208, 180),
    "tan": (205, 150, 105),
    "dark": (120, 78, 52),
}
HAIRS: dict[str, tuple[int, int, int]] = {
    "black": (30, 26, 28),
    "brown": (110, 66, 34),
    "blond": (232, 196, 92),
    "red": (190, 70, 30),
    "white": (236, 236, 236),
}
HAIRCUTS = ("short", "long", "bald")
BEARDS = ("none", "beard", "moustache")
HATS = ("none", "cap", "top hat", "headscarf")


@dataclass(frozen=True)
class Face:
    """The features that make one face recognisable."""

    skin: str
    hair: str
    haircut: str
    beard: str
    glasses: bool
    hat: str

    def distance(self, other: Face) -> int:
        """The number of features in which two faces differ."""
        return sum(
            getattr(self, name) != getattr(other, name) for name in self.__dataclass_fields__
        )


def random_face(rng: random.Random) -> Face:
    """Any face at all."""
    return Face(
        rng.choice(tuple(SKINS)),
        rng.choice(tuple(HAIRS)),
        rng.choices(HAIRCUTS, (4, 4, 1))[0],
        rng.choices(BEARDS, (4, 2, 2))[0],
        rng.random() < 0.4,
        rng.choices(HATS, (5, 2, 2, 2))[0],
    )


_NAMES = (
    "Ada Lindqvist", "Boris Halloran", "Celia Montrose", "Dmitri Okafor", "Elsa Varga",
    "Felix Nakamura", "Greta Solberg", "Hugo Castellan", "Ines Faraday", "Jonas Whitlock",
    "Katya Bellamy", "Lars Ekwueme", "Maya Thornbury", "Nico Ravenel", "Olga Pemberton",
    "Pablo Stirling", "Quinn Abernathy", "Rosa Delacroix", "Sven Mbeki", "Tara Winslow",
)  # fmt: skip


def _cast(names: tuple[str, ...], seed: int = 7, apart: int = 3) -> dict[str, Face]:
    """One face a name, every two of them different in at least `apart` features."""
    rng = random.Random(seed)
    faces: dict[str, Face] = {}
    while len(faces) < len(names):
        face = random_face(rng)
        if all(face.distance(known) >= apart for known in faces.values()):
            faces[names[len(faces)]] = face
    return faces


PEOPLE: dict[str, Face] = _cast(_NAMES)
"""Twenty named people, each with a face of their own."""


def stranger(rng: random.Random, apart: int = 2) -> Face:
    """A face that could not be taken for one of the named people."""
    while True:
        face = random_face(rng)
        if all(face.distance(known) >= apart for known in PEOPLE.values()):
            return face


@dataclass(frozen=True)
class Thing:
    """One object in a scene; `x` its horizontal place and `scale` its size, in picture widths."""

    name: str
    color: str
    scale: float
    x: float = 0.5


@dataclass(frozen=True)
class Scene:
    """Everything a picture shows. Exactly one of `things`, `face` and `sign` is the subject."""

    place: str
    style: str = PLAIN
    things: tuple[Thing, ...] = ()
    person: str | None = None
    face: Face | None = None
    expression: str = "neutral"
    shirt: str = "blue"
    sign: str | None = None
    pole: str = "blue"
    scale: float = 0.8
    seed: int = field(default=0, compare=False)
