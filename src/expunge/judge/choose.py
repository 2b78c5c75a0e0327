"""Which judge a model gets when the user names none."""

from __future__ import annotations

from expunge.backbone.base import Backbone
from expunge.judge.base import Judge


def default_judge(backbone: Backbone) -> Judge:
    """The judge that a model's profile names.

    Raises:
        ValueError: it names none, so one has to be given.
    """
    named = backbone.profile.judge
    if named is None:
        raise ValueError(
            f"no judge is known for {backbone.name}; pass judge=…, such as expunge.CLIPJudge(…)"
        )
    from expunge.judge.miniature import MiniatureJudge

    return MiniatureJudge.load(named.removeprefix("miniature-"))  # type: ignore[arg-type]
