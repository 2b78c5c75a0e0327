"""Is the concept gone, and what else went with it.

Reading a log imports no torch: `audit` is found on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expunge.auditing.log import Log

if TYPE_CHECKING:
    from expunge.auditing.run import audit

__all__ = ["Log", "audit"]


def __getattr__(name: str) -> Any:
    if name != "audit":
        raise AttributeError(f"module 'expunge.auditing' has no attribute {name!r}")
    from expunge.auditing.run import audit

    return audit
