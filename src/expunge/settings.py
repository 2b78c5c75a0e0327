"""Hyperparameters: the choices they share, and checks that need nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, get_args

Branch = Literal["cross", "self", "attention", "not-cross", "transformer", "all"]
"""Layers of a denoiser: attention to text, the picture's to itself, both, all but attention to
text, all of the transformer blocks, all there are."""
Form = Literal["low-rank", "dense"]
"""A low-rank change of whole layers, or a change of single weights."""
TokenChoice = Literal["last", "concept", "suffix", "end"]
"""`last`: the name's last token; `concept`: all of the name's; `suffix`: those and all that follow,
end-of-text and padding included; `end`: the end-of-text token alone. A pooled state stands for the
whole text and is always taken."""
Hold = Literal["states", "names", "none"]
"""What stays: every state of kept prompts and of the empty one; the last token of kept names alone,
as the published UCE has it; nothing."""

Format = Literal["lora", "diffusers", "kohya", "full", "merged", "components", "single"]
"""What an erasure can be written as for other tools."""
ARCHITECTURES = ("sd", "sdxl", "sd3", "flux")
"""Families of models that there is a backbone for."""

MOST_STRENGTH = 100.0
"""Of an erasure; beyond it numbers overflow in half precision."""

_SHOWN = 60
"""Characters of a value that a message repeats."""


def shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def labelled(name: str, made: Any) -> str:
    """A name with the settings that differ from the usual ones, as `names.make` reads them.

    Args:
        name: of what was made.
        made: a dataclass all of whose fields are settings.
    """
    found = [
        f"{each.name}={_said(getattr(made, each.name))}"
        for each in fields(made)
        if getattr(made, each.name) != each.default
    ]
    return name + (":" + ",".join(found) if found else "")


def _said(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return "|".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def check_counts(settings: Any, *names: str, least: int = 0) -> None:
    """Refuse what is no whole number, or too small.

    Raises:
        ValueError: names the field.
    """
    for name in names:
        value = getattr(settings, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least:
            got = shown(value)
            raise ValueError(f"{name} must be at least {least} and a whole number, got {got}")


def check_choice(settings: Any, **choices: Any) -> None:
    """Refuse what is not on a list.

    Args:
        settings: whose fields they are.
        choices: name of a field -> the `Literal` of what it may be.

    Raises:
        ValueError: names the field and the list.
    """
    for name, choice in choices.items():
        known: Sequence[str] = get_args(choice)
        value = getattr(settings, name)
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {shown(value)}")


def check_numbers(
    settings: Any,
    *names: str,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> None:
    """Refuse numbers that are not finite or out of range.

    Raises:
        ValueError: names the field and the range.
    """
    for name in names:
        value = getattr(settings, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not abs(value) < 1e30:
            raise ValueError(f"{name} must be a finite number, got {shown(value)}")
        if above is not None and not value > above:
            sense = "positive" if above == 0 else f"above {above:g}"
            raise ValueError(f"{name} must be {sense}, got {value:g}")
        if least is not None and value < least:
            sense = "not be negative" if least == 0 else f"be at least {least:g}"
            raise ValueError(f"{name} must {sense}, got {value:g}")
        if most is not None and value > most:
            raise ValueError(f"{name} must be at most {most:g}, got {value:g}")
