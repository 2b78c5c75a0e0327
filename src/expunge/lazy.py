"""torch, loaded at its first use: hyperparameters can be made and checked without it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class _Module:
    """Stands for a module until something of it is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


if TYPE_CHECKING:
    import torch as torch
else:
    torch = _Module("torch")
