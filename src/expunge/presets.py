"""Hyperparameters that were tuned, one set per (model family, method, kind of concept)."""

from __future__ import annotations

from typing import Any

from expunge.backbone.base import Backbone
from expunge.concept import Kind

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

_MILDER: Options = {"steps": 200, "preserved": 300, "preserve": 1.0}
_FLUX = _MINIATURE | {"TRACE": _MINIATURE["TRACE"] | _MILDER}

PRESETS: dict[tuple[str, str], Options] = {
    (model, name): options
    for model, methods in (("miniature-sd", _MINIATURE), ("miniature-flux", _FLUX))
    for name, options in methods.items()
}

_KINDS: dict[tuple[str, str, Kind], Options] = {
    **{("miniature-sd", "TRACE", kind): _MILDER for kind in ("identity", "style", "explicit")},
    ("miniature-flux", "TRACE", "identity"): {"preserved": 100, "preserve": 0.5},
}
"""What differs from a preset for one kind of concept."""


def preset(backbone: Backbone, method: str, kind: Kind) -> Options:
    """Hyperparameters for a model, a method and a kind; the paper's own where none were tuned."""
    family = backbone.profile.preset or backbone.architecture
    return PRESETS.get((family, method), {}) | _KINDS.get((family, method, kind), {})
