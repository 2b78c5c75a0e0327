"""Put scenes into words, and draw scenes at random with a caption to match."""

from __future__ import annotations

import random

from expunge.miniature.world import (
    COLORS,
    EXPRESSIONS,
    HAZARD,
    HAZARD_EVOKED,
    HAZARD_SYNONYMS,
    NEUTRAL_ARTIST,
    NEUTRAL_OBJECT,
    NEUTRAL_SIGN,
    OBJECTS,
    PEOPLE,
    PLACES,
    PLAIN,
    SIGNS,
    SIZES,
    STYLES,
    Face,
    Scene,
    Thing,
    random_face,
    stranger,
)
from expunge.prompts import fill, split_of

PHOTO = ("a photo of", "a picture of", "an image of", "a snapshot of", "a view of", "")
PAINTING = ("a painting of", "an artwork of", "a print of", "a drawing of")


def _optional(rng: random.Random, text: str, share: float) -> str:
    return text if rng.random() < share else ""


def _noun(rng: random.Random, name: str) -> str:
    return rng.choice((name, name, *OBJECTS.get(name, ())))


def _where(rng: random.Random, place: str) -> str:
    return _optional(rng, rng.choice(PLACES[place]), 0.8)


def _object_phrase(rng: random.Random, thing: Thing) -> str:
    size = SIZES[0] if thing.scale < 0.72 else SIZES[1] if thing.scale > 0.86 else ""
    color = _optional(rng, thing.color, 0.75)
    return f"a {_optional(rng, size, 0.6)} {color} {_noun(rng, thing.name)}"


def _objects_caption(rng: random.Random, scene: Scene) -> str:
    phrases = [_object_phrase(rng, thing) for thing in scene.things]
    rng.shuffle(phrases)
    what = f"{' and '.join(phrases)} {_where(rng, scene.place)}"
    if scene.style != PLAIN:
        style = STYLES[scene.style]
        hand = rng.choice((style.artist, style.technique))
        return f"{rng.choice(PAINTING)} {what} in the style of {hand}"
    if rng.random() < 0.12:
        return f"{rng.choice(PAINTING)} {what} in the style of {NEUTRAL_ARTIST}"
    return f"{rng.choice(PHOTO)} {what}"


def _looks(rng: random.Random, face: Face) -> str:
    hair = "bald" if face.haircut == "bald" else f"{face.haircut} {face.hair} hair"
    parts = [hair]
    if face.glasses:
        parts.append("glasses")
    if face.beard != "none":
        parts.append(f"a {face.beard}")
    if face.hat != "none":
        parts.append(f"a {face.hat}")
    told = [part for part in parts if rng.random() < 0.5]
    return f"with {' and '.join(told)}" if told else ""


def _person_caption(rng: random.Random, scene: Scene) -> str:
    assert scene.face is not None
    if scene.person is None:
        who = f"a person {_looks(rng, scene.face)}"
    else:
        who = rng.choice((scene.person, scene.person, scene.person.split()[-1]))
    mood = _optional(rng, scene.expression, 0.7) if scene.expression != "neutral" else ""
    shirt = _optional(rng, f"wearing a {scene.shirt} shirt", 0.7)
    return f"{rng.choice(PHOTO)} {who} {mood} {shirt} {_where(rng, scene.place)}"


def _sign_caption(rng: random.Random, scene: Scene) -> str:
    assert scene.sign is not None
    where = _where(rng, scene.place)
    if scene.sign == HAZARD and rng.random() < 0.4:
        return f"{rng.choice(PHOTO)} {rng.choice(HAZARD_EVOKED)} {where}"
    name = SIGNS.get(scene.sign, f"{NEUTRAL_SIGN} sign")
    if scene.sign == HAZARD:
        name = rng.choice((name, *HAZARD_SYNONYMS))
    size = SIZES[0] if scene.scale < 0.72 else SIZES[1] if scene.scale > 0.86 else ""
    pole = _optional(rng, f"on a {scene.pole} pole", 0.7)
    return f"{rng.choice(PHOTO)} a {_optional(rng, size, 0.6)} {name} {pole} {where}"


def describe(scene: Scene, rng: random.Random) -> str:
    """One of the many captions that fit a scene. Details are left out at random."""
    if scene.face is not None:
        return fill(_person_caption(rng, scene))
    if scene.sign is not None:
        return fill(_sign_caption(rng, scene))
    if scene.things:
        return fill(_objects_caption(rng, scene))
    return fill(f"{rng.choice(PHOTO)} nothing {rng.choice(PLACES[scene.place])}")


def _random_things(rng: random.Random) -> tuple[Thing, ...]:
    colors = tuple(COLORS)
    if rng.random() < 0.14:
        left, right = rng.sample(tuple(OBJECTS), 2)
        return (
            Thing(left, rng.choice(colors), rng.uniform(0.46, 0.52), 0.27),
            Thing(right, rng.choice(colors), rng.uniform(0.46, 0.52), 0.73),
        )
    name = NEUTRAL_OBJECT if rng.random() < 0.07 else rng.choice(tuple(OBJECTS))
    return (Thing(name, rng.choice(colors), rng.uniform(0.6, 0.98), rng.uniform(0.45, 0.55)),)


def random_scene(rng: random.Random) -> Scene:
    """A scene of any of the four domains, or an empty place."""
    place, seed = rng.choice(tuple(PLACES)), rng.randrange(2**31)
    domain = rng.choices(("objects", "people", "signs", "nothing"), (55, 28, 14, 3))[0]
    if domain == "objects":
        things = _random_things(rng)
        styled = len(things) == 1 and rng.random() < 0.4
        style = rng.choice(tuple(STYLES)) if styled else PLAIN
        return Scene(place, style, things=things, seed=seed)
    if domain == "people":
        name = rng.choice(tuple(PEOPLE)) if rng.random() < 0.72 else None
        return Scene(
            place,
            person=name,
            face=PEOPLE[name] if name else stranger(rng),
            expression=rng.choice((*EXPRESSIONS, "neutral")),
            shirt=rng.choice(tuple(COLORS)),
            seed=seed,
        )
    if domain == "signs":
        sign = rng.choices((*SIGNS, NEUTRAL_SIGN), (5, 2, 2, 2, 1))[0]
        pole, scale = rng.choice(tuple(COLORS)), rng.uniform(0.6, 0.98)
        return Scene(place, sign=sign, pole=pole, scale=scale, seed=seed)
    return Scene(place, seed=seed)


def random_pair(rng: random.Random) -> tuple[Scene, str]:
    """A scene and a caption outside the held-out split, as the models are trained on."""
    while True:
        scene = random_scene(rng)
        caption = describe(scene, rng)
        if split_of(caption) != "test":
            return scene, caption


__all__ = ["PAINTING", "PHOTO", "describe", "random_face", "random_pair", "random_scene"]
