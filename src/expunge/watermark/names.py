"""Schemes and edits by name: from what a command line says to objects."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from expunge.watermark.edit.base import Edit
from expunge.watermark.edit.chain import Chain
from expunge.watermark.scheme.base import Scheme

_SCHEMES = "expunge.watermark.scheme"
_EDITS = "expunge.watermark.edit"

SCHEMES = {
    "learned": f"{_SCHEMES}.learned:Learned",
    "learned-vae": f"{_SCHEMES}.learned:LearnedVAE",
    "dwtdct": f"{_SCHEMES}.invisible:DwtDct",
    "dwtdctsvd": f"{_SCHEMES}.invisible:DwtDctSvd",
    "rivagan": f"{_SCHEMES}.invisible:RivaGAN",
    "trustmark": f"{_SCHEMES}.trustmark:TrustMark",
    "stegastamp": f"{_SCHEMES}.stegastamp:StegaStamp",
    "vine": f"{_SCHEMES}.vine:VINE",
    "tree-ring": f"{_SCHEMES}.tree_ring:TreeRing",
    "gaussian-shading": f"{_SCHEMES}.gaussian_shading:GaussianShading",
}
"""Where every scheme lives."""

EDITS = {
    "none": f"{_EDITS}.distortions:NoEdit",
    "jpeg": f"{_EDITS}.distortions:JPEG",
    "crop": f"{_EDITS}.distortions:Crop",
    "noise": f"{_EDITS}.distortions:Noise",
    "rotation": f"{_EDITS}.distortions:Rotation",
    "scaling": f"{_EDITS}.distortions:Scaling",
    "blur": f"{_EDITS}.distortions:Blur",
    "sharpening": f"{_EDITS}.distortions:Sharpening",
    "brightness": f"{_EDITS}.distortions:Brightness",
    "contrast": f"{_EDITS}.distortions:Contrast",
    "vae": f"{_EDITS}.vae:VAE",
    "regeneration": f"{_EDITS}.regeneration:Regeneration",
    "img2img": f"{_EDITS}.regeneration:ImageToImage",
    "inversion": f"{_EDITS}.inversion:Inversion",
    "inpainting": f"{_EDITS}.inpainting:Inpainting",
    "guided": f"{_EDITS}.guided:Guided",
}
"""Where every edit lives."""


def scheme(text: str) -> Scheme:
    """The scheme that `name[:setting=value]…` names, such as `trustmark:variant=P`.

    Raises:
        ValueError: an unknown name or setting, or a value out of range.
    """
    made = _made("scheme", SCHEMES, text)
    assert isinstance(made, Scheme)
    return made


def edit(text: str) -> Edit:
    """The edit that `name[:level][:setting=value]…` names; `+` chains several.

    `jpeg:50`, `regeneration:0.3:prompt=caption`, `jpeg:50+crop:0.1`.

    Raises:
        ValueError: an unknown name or setting, or a value out of range.
    """
    parts = tuple(_made("edit", EDITS, part) for part in text.split("+"))
    made = parts[0] if len(parts) == 1 else Chain(parts)
    assert isinstance(made, Edit)
    return made


def listed(texts: Sequence[str]) -> list[str]:
    """Words separated by spaces or commas."""
    return [word for text in texts for word in text.replace(",", " ").split()]


def _made(kind: str, homes: Mapping[str, str], text: str) -> Any:
    name, *settings = text.strip().split(":")
    if name not in homes:
        near = difflib.get_close_matches(name, homes, 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no {kind} {name!r}, expected one of {', '.join(homes)}{hint}")
    module, _, attribute = homes[name].partition(":")
    made: type[Any] = getattr(importlib.import_module(module), attribute)
    types = typing.get_type_hints(made)
    known = [field.name for field in dataclasses.fields(made) if field.init]
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key, value = (key, value) if equals else ("level", key)
        if key in values:
            raise ValueError(f"the {kind} {name} is given {key} twice; give it once")
        if key not in known:
            raise ValueError(
                f"the {kind} {name} has no setting {key!r}; "
                + (f"it has {', '.join(known)}" if known else "it has none")
            )
        values[key] = _value(f"{name}'s {key}", types[key], value)
    lacking = [
        field.name
        for field in dataclasses.fields(made)
        if field.default is dataclasses.MISSING and field.name not in values
    ]
    if lacking:
        example = ":".join(f"{each}=…" for each in lacking)
        raise ValueError(f"the {kind} {name} needs {', '.join(lacking)}: say {name}:{example}")
    return made(**values)


def _value(what: str, wanted: Any, text: str) -> Any:
    if get_origin(wanted) is Literal:
        if text not in get_args(wanted):
            raise ValueError(f"{what} must be one of {', '.join(get_args(wanted))}, got {text!r}")
        return text
    try:
        return wanted(text)
    except (TypeError, ValueError):
        raise ValueError(f"{what} must be a {wanted.__name__}, got {text!r}") from None
