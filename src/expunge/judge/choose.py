"""Judges by name: the usual ones of a model, one that a user names, one that a log recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge import names
from expunge.backbone.base import Backbone
from expunge.judge.base import Judge
from expunge.judge.miniature import WEIGHTS

SECOND = {"miniature-conv": "miniature-patch", "miniature-patch": "miniature-conv"}
"""Where a model has two judges, both are reported."""


def judge(text: str) -> Judge:
    """The judge that `name[:setting=value,…]` names.

    `miniature-conv`, or `clip:labels=Claude Monet|Van Gogh,template=a painting by {}`. A comma ends
    a value only where a setting's name and an equals sign follow, so captions may hold commas.

    Raises:
        ValueError: an unknown name or setting, or the judge cannot be made.
    """
    made = names.make("judge", text)
    assert isinstance(made, Judge)
    return made


def from_record(record: Mapping[str, Any]) -> Judge:
    """The judge of a log, made again from what [`Judge.record`][expunge.judge.base.Judge] said.

    Raises:
        ValueError: it cannot be made, or what was made is not the judge that was recorded.
    """
    name, settings = str(record["name"]).partition(":")[0], dict(record["settings"])
    kind = names.find("judge", name)
    strange = [key for key in settings if key not in names.settings(kind)]
    if strange:
        known = ", ".join(names.settings(kind))
        raise ValueError(
            f"the record of the judge {name} has a setting {strange[0]!r}, expected one of {known}"
        )
    made: Judge = kind(**settings)
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


def text_and_picture(backbone: Backbone, model: str | None = None) -> Judge | None:
    """The CLIP that says how well pictures of a model fit a text; None where none is known.

    Args:
        backbone: the model. Those of the miniature have a CLIP of their own, whose text half they
            read prompts with, as Stable Diffusion does.
        model: hub id or folder of another CLIP.

    Raises:
        ValueError: it cannot be loaded.
    """
    from expunge.judge.clip import CLIPJudge

    if model is None and backbone.profile.judge not in SECOND:
        return None
    return CLIPJudge(captions=("a picture",), model=model or WEIGHTS.parent / "clip")
