"""The one call that needs to know names as well as objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge import names
from expunge.concept import Concept
from expunge.eraser.base import Eraser
from expunge.presets import Choice, choose
from expunge.settings import shown

if TYPE_CHECKING:
    from expunge.erasure import Erasure


def erase(
    pipe: Any,
    concepts: str | Concept | Sequence[str | Concept],
    eraser: str | Eraser = "trace",
    *,
    folder: str | Path | None = None,
) -> Erasure:
    """Erase concepts from a pipeline, whose weights stay untouched.

    Args:
        pipe: a diffusers pipeline or a backbone.
        concepts: names or `Concept`s. A name the model's profile knows brings its synonyms, anchor
            and neighbours; any other becomes an object with generic prompts.
        eraser: a method's name, tuned for the model at hand where a preset is known for it, with
            settings as in `"trace:steps=200"`: what `expunge erase --method` does. Or an object
            such as `expunge.UCE(prompts=20)`, which runs exactly as it is written.
        folder: where a long method keeps checkpoints.

    Raises:
        ValueError: a name, a concept or a hyperparameter makes no sense; said before any heavy
            work.
    """
    if not isinstance(eraser, (str, Eraser)):
        raise ValueError(_no_eraser(eraser))
    named = names.parsed("eraser", eraser) if isinstance(eraser, str) else None
    asked = _asked(concepts)
    from expunge.backbone.load import as_backbone

    backbone = as_backbone(pipe)
    vocabulary = backbone.profile.vocabulary
    known = [each if isinstance(each, Concept) else vocabulary.resolve(each) for each in asked]
    if named is None:
        choice = Choice(eraser, None)  # type: ignore[arg-type]
    else:
        family = backbone.profile.preset or backbone.architecture
        choice = choose(family, named[0], known, named[1])
    return choice.erase(backbone, known, Path(folder) if folder else None)


def _no_eraser(eraser: object) -> str:
    if isinstance(eraser, type) and issubclass(eraser, Eraser):
        return f"eraser is the class {eraser.__name__}; make it: expunge.{eraser.__name__}()"
    known = ", ".join(names.ERASERS)
    return (
        f"eraser must be a name ({known}) or an object such as expunge.UCE(), got {shown(eraser)}"
    )


def _asked(concepts: object) -> list[str | Concept]:
    one = isinstance(concepts, (str, Concept))
    asked = [concepts] if one else list(concepts) if isinstance(concepts, Sequence) else None
    if asked is None or not all(isinstance(each, (str, Concept)) for each in asked):
        raise ValueError(
            f"concepts must be a name, a Concept or a list of them, got {shown(concepts)}"
        )
    return asked  # type: ignore[return-value]
