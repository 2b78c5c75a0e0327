"""Packages that only some schemes need."""

from __future__ import annotations

import importlib
from typing import Any


def optional(module: str, extra: str, needed_by: str) -> Any:
    """Import a package that is not always installed.

    Args:
        module: what to import, with dots for a submodule.
        extra: the extra of this package that brings it.
        needed_by: who asks, as an error names it.

    Raises:
        ValueError: it, or a package it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{needed_by} needs the package {error.name!r}, which is not installed: "
            f"pip install 'expunge[{extra}]'"
        ) from error
