"""Erase concepts from text-to-image diffusion models, and prove how far they are gone.

```python
import expunge

pipe = expunge.load("miniature-sd")
erasure = expunge.erase(pipe, "cat", expunge.TRACE())
log = expunge.audit(pipe, erasure)
log.report("report.html")
```

Everything is found on first use: importing this package imports neither torch nor diffusers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.api import erase
    from expunge.auditing import Log, audit
    from expunge.backbone.load import load
    from expunge.concept import Concept
    from expunge.eraser import ESD, TRACE, UCE
    from expunge.erasure import Erasure
    from expunge.formats import export
    from expunge.judge.base import Judge
    from expunge.judge.clip import CLIPJudge
    from expunge.verification import verify

HOMES = {
    "CLIPJudge": "expunge.judge.clip",
    "Concept": "expunge.concept",
    "ESD": "expunge.eraser",
    "Erasure": "expunge.erasure",
    "Judge": "expunge.judge.base",
    "Log": "expunge.auditing",
    "TRACE": "expunge.eraser",
    "UCE": "expunge.eraser",
    "audit": "expunge.auditing",
    "erase": "expunge.api",
    "export": "expunge.formats",
    "load": "expunge.backbone.load",
    "verify": "expunge.verification",
}
"""Where each public name lives. What lives in `expunge.eraser` is also a method of the CLI."""

__all__ = [
    "ESD",
    "TRACE",
    "UCE",
    "CLIPJudge",
    "Concept",
    "Erasure",
    "Judge",
    "Log",
    "audit",
    "erase",
    "export",
    "load",
    "verify",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *HOMES])
