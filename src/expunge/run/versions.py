"""Versions of what a result depends on."""

from __future__ import annotations

import importlib.metadata


def versions() -> dict[str, str]:
    """By package."""
    names = ("expunge", "torch", "diffusers", "transformers")
    return {name: importlib.metadata.version(name) for name in names}
