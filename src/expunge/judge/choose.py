"""Judges by name: the usual ones of a model, one that a user names, one that a log recorded."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from expunge.backbone.base import Backbone
from expunge.judge.base import Judge


def _miniature(variant: str) -> Callable[..., Judge]:
    def made(folder: str | None = None) -> Judge:
        from expunge.judge.miniature import MiniatureJudge

        where = None if folder is None else Path(folder)
        return MiniatureJudge.load(variant, where)  # type: ignore[arg-type]

    return made


def _clip(**settings: Any) -> Judge:
    from expunge.judge.clip import CLIPJudge

    return CLIPJudge(**settings)


JUDGES: Mapping[str, tuple[Callable[..., Judge], tuple[str, ...]]] = {
    "miniature-conv": (_miniature("conv"), ("folder",)),
    "miniature-patch": (_miniature("patch"), ("folder",)),
    "clip": (_clip, ("model", "labels", "captions", "template")),
}
"""Every judge: what makes it, and its settings."""

LISTS = ("labels", "captions")
"""Settings that hold several texts, with `|` between them."""

SECOND = {"miniature-conv": "miniature-patch", "miniature-patch": "miniature-conv"}
"""Where a model has two judges, both are reported."""


def judge(text: str) -> Judge:
    """The judge that `name[:setting=value,…]` names.

    `miniature-conv`, or `clip:labels=Claude Monet|Van Gogh,template=a painting by {}`. A comma ends
    a value only where a setting's name and an equals sign follow, so captions may hold commas.

    Raises:
        ValueError: an unknown name or setting, or the judge cannot be made.
    """
    name, _, rest = text.strip().partition(":")
    known = _settings_of(name)
    settings: dict[str, Any] = {}
    for part in re.split(r",(?=\s*\w+=)", rest) if rest else ():
        key, equals, value = part.strip().partition("=")
        if not equals:
            raise ValueError(f"the judge {name} wants setting=value, got {part.strip()!r}")
        if key not in known:
            raise ValueError(f"the judge {name} has no setting {key!r}{_hint(key, known)}")
        if key in settings:
            raise ValueError(f"the judge {name} is given {key} twice; give it once")
        texts = [each.strip() for each in value.split("|")]
        settings[key] = [each for each in texts if each] if key in LISTS else value.strip()
    return JUDGES[name][0](**settings)


def from_record(record: Mapping[str, Any]) -> Judge:
    """The judge of a log, made again from what [`Judge.record`][expunge.judge.base.Judge] said.

    Raises:
        ValueError: it cannot be made, or what was made is not the judge that was recorded.
    """
    name, settings = str(record["name"]).partition(":")[0], dict(record["settings"])
    known = _settings_of(name)
    strange = [key for key in settings if key not in known]
    if strange:
        raise ValueError(
            f"the record of the judge {name} has a setting {strange[0]!r}{_hint(strange[0], known)}"
        )
    made = JUDGES[name][0](**settings)
    for what in ("version", "hash"):
        if getattr(made, what) != record[what]:
            raise ValueError(
                f"the judge {made.name} now has {what} {getattr(made, what)}, but the record says "
                f"{record[what]}, so its scores would be others"
            )
    made.threshold = float(record["threshold"])
    return made


def default_judge(backbone: Backbone) -> Judge:
    """The judge that a model's profile names.

    Raises:
        ValueError: it names none, so one has to be given.
    """
    named = backbone.profile.judge
    if named is None:
        raise ValueError(
            f"no judge is known for {backbone.name}; pass judge=expunge.CLIPJudge(…), on the "
            "command line --judge clip:labels=…"
        )
    return judge(named)


def second_judge(backbone: Backbone) -> Judge | None:
    """A judge of another make for the same pictures, or None where the model has only one."""
    named = SECOND.get(backbone.profile.judge or "")
    return None if named is None else judge(named)


def _settings_of(name: str) -> tuple[str, ...]:
    if name not in JUDGES:
        raise ValueError(f"no judge {name!r}{_hint(name, JUDGES)}")
    return JUDGES[name][1]


def _hint(word: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(word, names, 1, 0.5)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return f", expected one of {', '.join(names)}{meant}"
