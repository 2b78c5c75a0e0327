"""The one call that needs to know names as well as objects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.backbone.load import as_backbone
from expunge.concept import Concept
from expunge.eraser.base import Eraser
from expunge.erasure import Erasure


def erase(
    pipe: Any,
    concepts: str | Concept | Sequence[str | Concept],
    eraser: Eraser,
    *,
    folder: str | Path | None = None,
) -> Erasure:
    """Erase concepts from a pipeline, whose weights stay untouched.

    Args:
        pipe: a diffusers pipeline or a backbone.
        concepts: names or `Concept`s. A name the model's profile knows brings its synonyms, anchor
            and neighbours; any other becomes an object with generic prompts.
        eraser: the method.
        folder: where a long method keeps checkpoints.

    Raises:
        ValueError: a concept or a hyperparameter makes no sense; said before any heavy work.
    """
    backbone = as_backbone(pipe)
    asked = [concepts] if isinstance(concepts, (str, Concept)) else list(concepts)
    vocabulary = backbone.profile.vocabulary
    known = [each if isinstance(each, Concept) else vocabulary.resolve(each) for each in asked]
    return eraser.erase(backbone, known, folder=Path(folder) if folder else None)
