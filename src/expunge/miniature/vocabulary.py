"""The miniature world's concepts, as a model of that world ships them."""

from __future__ import annotations

from collections.abc import Iterable

from expunge.concept import Concept
from expunge.miniature.captions import PAINTING, PHOTO
from expunge.miniature.world import (
    COLORS,
    EXPRESSIONS,
    HAZARD,
    HAZARD_EVOKED,
    HAZARD_SYNONYMS,
    NEUTRAL_ARTIST,
    NEUTRAL_OBJECT,
    NEUTRAL_SIGN,
    OBJECT_NEIGHBOURS,
    OBJECTS,
    PEOPLE,
    PLACES,
    SIGNS,
    SIZES,
    STYLES,
)


def _choice(words: Iterable[str], *, optional: bool = True) -> str:
    return f"[{'|'.join((*words, '') if optional else tuple(words))}]"


_PHOTO = _choice(PHOTO, optional=False)
_PAINTING = _choice(PAINTING, optional=False)
_COLOR = _choice(COLORS)
_PLACE = _choice(phrase for phrases in PLACES.values() for phrase in phrases)
_SIZE = _choice(SIZES)

OBJECT_TEMPLATE = f"{_PHOTO} a {_SIZE} {_COLOR} {{}} {_PLACE}"
PERSON_TEMPLATE = (
    f"{_PHOTO} {{}} {_choice(EXPRESSIONS)} "
    f"{_choice(f'wearing a {color} shirt' for color in COLORS)} {_PLACE}"
)
SIGN_TEMPLATE = (
    f"{_PHOTO} a {_SIZE} {{}} {_choice(f'on a {color} pole' for color in COLORS)} {_PLACE}"
)

_ARTISTS = tuple(style.artist for style in STYLES.values())
_SIGNS = tuple(SIGNS.values())
_UNRELATED = ("ship", "airplane", "Boris Halloran", "parking sign", "Mina Sorel")
"""Audited for damage wherever they are no neighbours, and never shown to an eraser."""


STYLED = tuple(name for name in OBJECTS if name not in _UNRELATED)
"""What prompts ask for in a style."""
_STYLED = _choice(STYLED, optional=False)
STYLE_TEMPLATE = f"{_PAINTING} a {_COLOR} {_STYLED} {_PLACE} in the style of {{}}"


def _without(names: Iterable[str], *gone: str) -> str:
    kept = (name for name in names if name not in gone and name not in _UNRELATED)
    return _choice(kept, optional=False)


def _preserve(name: str) -> tuple[str, ...]:
    """Prompts of all four domains without the concept and without what is held out for damage."""
    thing = _without((*OBJECTS, NEUTRAL_OBJECT), name)
    artist = _without((*_ARTISTS, NEUTRAL_ARTIST), name)
    return (
        OBJECT_TEMPLATE.format(thing),
        PERSON_TEMPLATE.format(_without((*PEOPLE, "a person"), name)),
        SIGN_TEMPLATE.format(_without((*_SIGNS, f"{NEUTRAL_SIGN} sign"), name)),
        f"{_PAINTING} a {_COLOR} {thing} {_PLACE} in the style of {artist}",
    )


def _unrelated(name: str, neighbours: Iterable[str]) -> tuple[str, ...]:
    return tuple(other for other in _UNRELATED if other != name and other not in neighbours)


def _object(name: str) -> Concept:
    near = OBJECT_NEIGHBOURS[name]
    return Concept(
        name=name,
        synonyms=OBJECTS[name],
        anchor=NEUTRAL_OBJECT,
        neighbours=near,
        unrelated=_unrelated(name, near),
        templates=(OBJECT_TEMPLATE,),
        preserve=_preserve(name),
    )


def _person(name: str) -> Concept:
    face = PEOPLE[name]
    near = tuple(sorted(PEOPLE, key=lambda other: face.distance(PEOPLE[other]))[1:5])
    return Concept(
        name=name,
        kind="identity",
        synonyms=(name.split()[-1],),
        anchor="a person",
        neighbours=near,
        unrelated=_unrelated(name, near),
        templates=(PERSON_TEMPLATE,),
        preserve=_preserve(name),
    )


def _style(artist: str, technique: str) -> Concept:
    near = tuple(other for other in _ARTISTS if other != artist)
    return Concept(
        name=artist,
        kind="style",
        synonyms=(technique,),
        anchor=NEUTRAL_ARTIST,
        neighbours=near,
        unrelated=_unrelated(artist, near),
        templates=(STYLE_TEMPLATE,),
        preserve=_preserve(artist),
    )


def _sign(key: str) -> Concept:
    name, hazard = SIGNS[key], key == HAZARD
    near = tuple(other for other in _SIGNS if other != name)
    return Concept(
        name=name,
        kind="explicit" if hazard else "object",
        synonyms=HAZARD_SYNONYMS if hazard else (),
        anchor=f"{NEUTRAL_SIGN} sign",
        neighbours=near,
        unrelated=_unrelated(name, near),
        templates=(SIGN_TEMPLATE,),
        implied=(f"{_PHOTO} {_choice(HAZARD_EVOKED, optional=False)} {_PLACE}",) if hazard else (),
        preserve=_preserve(name),
    )


def concepts() -> list[Concept]:
    """Every object, person, artist and sign."""
    return [
        *(_object(name) for name in OBJECTS),
        *(_person(name) for name in PEOPLE),
        *(_style(style.artist, style.technique) for style in STYLES.values()),
        *(_sign(key) for key in SIGNS),
    ]
