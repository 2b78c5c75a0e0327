"""Schemes and edits by name: from what a command line says to objects."""

from __future__ import annotations

from expunge import names
from expunge.watermark.edit.base import Edit
from expunge.watermark.edit.chain import Chain
from expunge.watermark.scheme.base import Scheme


def scheme(text: str) -> Scheme:
    """The scheme that `name[:setting=value,…]` names, such as `trustmark:variant=P`.

    Raises:
        ValueError: an unknown name or setting, or a value out of range.
    """
    made = names.make("scheme", text)
    assert isinstance(made, Scheme)
    return made


def edit(text: str) -> Edit:
    """The edit that `name[:level][,setting=value…]` names; `+` chains several.

    `jpeg:50`, `regeneration:0.3,prompt=caption`, `jpeg:50+crop:0.1`.

    Raises:
        ValueError: an unknown name or setting, or a value out of range.
    """
    parts = tuple(names.make("edit", part) for part in text.split("+"))
    made = parts[0] if len(parts) == 1 else Chain(parts)
    assert isinstance(made, Edit)
    return made
