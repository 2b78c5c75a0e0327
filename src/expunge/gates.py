"""Every gate by the name files know it by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expunge.gate import Gate


def gate_of(record: Mapping[str, Any] | None) -> Gate | None:
    """The gate that a record describes, None for none.

    Raises:
        ValueError: no gate is of that kind.
    """
    if record is None:
        return None
    raise ValueError(f"no gate of kind {record.get('kind')!r}")
