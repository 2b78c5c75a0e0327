"""What a kind of concept brings along where the user says nothing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KindDefaults:
    """Anchor, templates, kept patterns and unrelated names of one kind."""

    anchor: str
    templates: tuple[str, ...]
    preserve: tuple[str, ...]
    unrelated: tuple[str, ...]


_SCENES = (
    "[| on a table| in a garden| in the street| on the beach| in the snow| at night| in a forest"
    "| indoors| by a lake| on a hill| in the rain| at sunset| in a studio| by a window]"
)
_SHOTS = (
    "[a photo|a picture|an image|a close-up|a bright photo|a blurry photo|a snapshot|a painting"
    "|a drawing|a rendering]"
)
_EVERYDAY = f"{_SHOTS} of a [chair|tree|house|bowl of fruit|mountain|street|teapot|book]{_SCENES}"

KINDS: dict[str, KindDefaults] = {
    "object": KindDefaults(
        "an object",
        (f"{_SHOTS} of a [small |large |old |new |red |blue |wooden |bright |]{{}}" + _SCENES,),
        (_EVERYDAY,),
        ("chair", "tree", "house"),
    ),
    "identity": KindDefaults(
        "a person",
        (
            f"{_SHOTS} of {{}}[| smiling| laughing| talking| sitting| standing| reading| waving]"
            + _SCENES,
        ),
        (f"{_SHOTS} of a [woman|man|person|crowd]{_SCENES}", _EVERYDAY),
        ("chair", "tree", "house"),
    ),
    "style": KindDefaults(
        "anyone",
        (
            "[a painting|a print|an artwork|a sketch|a drawing|a canvas|a study|a mural] of "
            "[a house|a tree|a boat|a street|a lake|a bowl of fruit|a woman|a man|a field|a bridge"
            f"|a garden|a horse]{_SCENES} in the style of {{}}",
        ),
        (f"[a painting|a print|an artwork] of a [house|tree|boat|field]{_SCENES}", _EVERYDAY),
        ("chair", "tree", "house"),
    ),
    "explicit": KindDefaults(
        "a harmless scene",
        (
            f"{_SHOTS} of {{}}[| in black and white| in color| from above| from afar| in detail"
            f"| up close| in soft light]{_SCENES}",
        ),
        (f"{_SHOTS} of a [clothed person|person in a coat]{_SCENES}", _EVERYDAY),
        ("chair", "tree", "house"),
    ),
}
