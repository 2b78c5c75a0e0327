"""Erase concepts from text-to-image diffusion models, and prove how far they are gone.

```python
import expunge

pipe = expunge.load("miniature-sd")
erasure = expunge.erase(pipe, "cat", "trace")
log = expunge.audit(pipe, erasure)
log.report("report.html")
```

Everything is found on first use: importing this package imports neither torch nor diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expunge import names as _names

if TYPE_CHECKING:
    from expunge.api import erase as erase
    from expunge.auditing import Log as Log
    from expunge.auditing import audit as audit
    from expunge.auditing.cases import Sizes as Sizes
    from expunge.auditing.protocols.run import bench as bench
    from expunge.backbone.load import load as load
    from expunge.backbone.profile import Sampling as Sampling
    from expunge.concept import Concept as Concept
    from expunge.erasure import Erasure as Erasure
    from expunge.formats import export as export  # type: ignore[no-redef]
    from expunge.judge.base import Judge as Judge
    from expunge.judge.clip import CLIPJudge as CLIPJudge
    from expunge.verification import verify as verify

_HOMES = {
    "CLIPJudge": "expunge.judge.clip",
    "Concept": "expunge.concept",
    "Erasure": "expunge.erasure",
    "Judge": "expunge.judge.base",
    "Log": "expunge.auditing",
    "Sampling": "expunge.backbone.profile",
    "Sizes": "expunge.auditing.cases",
    "audit": "expunge.auditing",
    "bench": "expunge.auditing.protocols.run",
    "erase": "expunge.api",
    "export": "expunge.formats",
    "load": "expunge.backbone.load",
    "verify": "expunge.verification",
    # Methods are public by their class's name: expunge.UCE.
    **{
        attribute: module
        for table in (_names.ERASERS, _names.ATTACKS, _names.GUARDS)
        for module, _, attribute in (home.partition(":") for home in table.values())
    },
}

__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
