"""Hyperparameters that were tuned, one set per (model family, method, kind of concept)."""

from __future__ import annotations

from typing import Any

from expunge.backbone.base import Backbone
from expunge.concept import Kind

Options = dict[str, Any]

_MINIATURE: dict[str, Options] = {
    "UCE": {"prompts": 20, "tokens": "suffix", "to_anchor": True, "synonyms": True, "ridge": 0.1},
    "ESD": {"steps": 200, "lr": 1e-3, "batch_size": 8, "rank": 8},
    "TRACE": {"steps": 200, "lr": 1e-3, "batch_size": 8, "rank": 4, "synonyms": True},
}
"""Chosen on validation prompts of the miniature world; see docs/figures.md."""

PRESETS: dict[tuple[str, str], Options] = {
    ("miniature-sd", name): options for name, options in _MINIATURE.items()
}

_KINDS: dict[tuple[str, str, Kind], Options] = {}
"""What differs from a preset for one kind of concept."""


def preset(backbone: Backbone, method: str, kind: Kind) -> Options:
    """Hyperparameters for a model, a method and a kind; the paper's own where none were tuned."""
    family = backbone.profile.preset or backbone.architecture
    return PRESETS.get((family, method), {}) | _KINDS.get((family, method, kind), {})
