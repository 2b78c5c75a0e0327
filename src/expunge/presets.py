"""Hyperparameters that were tuned, one set per (model family, method, kind of concept)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.concept import Concept, Kind

if TYPE_CHECKING:
    from expunge.eraser.base import Eraser
    from expunge.erasure import Erasure

Options = dict[str, Any]

_SUFFIX: Options = {"prompts": 20, "tokens": "suffix", "synonyms": True}

_MINIATURE: dict[str, Options] = {
    "UCE": {**_SUFFIX, "to_anchor": True, "ridge": 0.1, "preserved": 300},
    "ESD": {"steps": 200, "lr": 1e-3, "batch_size": 8, "rank": 8},
    "TRACE": {
        **_SUFFIX,
        "steps": 150,
        "lr": 1e-3,
        "batch_size": 8,
        "trajectories": 48,
        "preserved": 800,
        "preserve": 2.0,
    },
}
"""Chosen on validation prompts of the miniature world; see docs/figures.md."""

_FADE: Options = {
    "steps": 200,
    "lr": 3e-3,
    "discriminator_lr": 1e-3,
    "batch_size": 8,
    "preserve": 1000.0,
    "preserve_from": 0.0,
    "trajectories": 160,
    "salient": 1.0,
    "head_start": 10,
}
"""See docs/fade.md."""

_NAMES: Options = {"name_weight": 4.0, "padding_weight": 1 / 32}
_SD: dict[str, Options] = {
    "UCE": {**_MINIATURE["UCE"], **_NAMES, "preserve_weight": 2.0},
    "SPEED": {**_SUFFIX, **_NAMES, "preserved": 300, "threshold": 100.0},
    "SPM": {"steps": 300, "lr": 3e-3, "batch_size": 4, "synonyms": True, "keep": 10.0},
    "Receler": {
        "steps": 120,
        "lr": 1e-3,
        "batch_size": 4,
        "synonyms": True,
        "hidden": 32,
        "inner_steps": 5,
        "vectors": 4,
        "local": 1.0,
    },
    "FADE": _FADE,
}
"""For miniature-sd alone; see docs/figures.md and docs/closed-forms.md."""

_MILDER: Options = {"steps": 200, "preserved": 300, "preserve": 1.0}
_FLUX = _MINIATURE | {"TRACE": _MINIATURE["TRACE"] | _MILDER}

PRESETS: dict[tuple[str, str], Options] = {
    (model, name): options
    for model, methods in (
        ("miniature-sd", _MINIATURE | _SD),
        ("miniature-flux", _FLUX),
    )
    for name, options in methods.items()
}

_EVEN: Options = {"preserve_weight": 1.0, "name_weight": 1.0, "padding_weight": 1.0}
"""A style's name ends its prompt, so all that carries it stands behind the text's end."""

_KINDS: dict[tuple[str, str, Kind], Options] = {
    ("miniature-sd", "UCE", "style"): _EVEN,
    **{("miniature-sd", "TRACE", kind): _MILDER for kind in ("identity", "style", "explicit")},
    ("miniature-flux", "TRACE", "identity"): {"preserved": 100, "preserve": 0.5},
}
"""What differs from a preset for one kind of concept."""


def preset(family: str, method: str, kinds: Collection[Kind]) -> tuple[Options, str | None]:
    """What was tuned for a model, a method and what goes, and what it is called in records.

    Nothing is tuned for a model that no preset knows: the method's own defaults stand then. Where
    concepts of several kinds go together, what is particular to one kind is left out.

    Args:
        family: `preset` of the model's profile, or its architecture.
        method: an eraser's name, such as `TRACE`.
        kinds: of the concepts.

    Returns:
        Hyperparameters that differ from the method's defaults; and a name, None for no preset.
    """
    options = PRESETS.get((family, method))
    if options is None:
        return {}, None
    kind = next(iter(kinds)) if len(set(kinds)) == 1 else None
    changes = _KINDS.get((family, method, kind)) if kind else None
    name = f"{method} on {family}"
    return (options, name) if changes is None else (options | changes, f"{name}, {kind}")


@dataclass(frozen=True)
class Choice:
    """An eraser, and where its hyperparameters come from.

    Attributes:
        eraser: ready to run.
        preset: name of the preset they start from, None for the method's own defaults.
    """

    eraser: Eraser
    preset: str | None

    def erase(self, pipe: Any, concepts: Sequence[Concept], folder: Path | None) -> Erasure:
        """Run the eraser; the record says from which preset."""
        erasure = self.eraser.erase(pipe, concepts, folder=folder)
        erasure.record["preset"] = self.preset
        return erasure


def choose(
    family: str,
    method: type[Eraser],
    concepts: Sequence[Concept],
    given: Mapping[str, Any] | None = None,
) -> Choice:
    """An eraser as it is tuned for a model, with whatever is given by hand.

    Raises:
        ValueError: a hyperparameter makes no sense.
    """
    options, name = preset(family, method.__name__, [concept.kind for concept in concepts])
    return Choice(method(**(options | dict(given or {}))), name)
