"""Canonical JSON and its hash: how everything that is kept gets its name."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

DIGITS = 32
"""Of SHA-256 in hexadecimal: 128 bits."""


def digest(value: object, name: str = "value") -> str:
    """Name something by all it holds.

    Args:
        value: JSON values. The order of keys does not matter; 4 and 4.0 are different.
        name: what messages call it.

    Returns:
        32 hexadecimal digits of the SHA-256 of the canonical JSON.

    Raises:
        ValueError: something that JSON cannot express, NaN included.
    """
    return digest_bytes(canonical(value, name))


def digest_bytes(data: bytes) -> str:
    """32 hexadecimal digits of the SHA-256."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def canonical(value: object, name: str = "value") -> bytes:
    """JSON with sorted keys, no spaces, ASCII; numpy's numbers become plain ones.

    Raises:
        ValueError: something that JSON cannot express, NaN included.
    """
    try:
        # Through text once: keys that are no text become text before they are sorted.
        plain = json.loads(json.dumps(value, allow_nan=False, default=_plain))
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{name} must hold only what JSON can express (finite numbers, text, booleans, None, "
            f"lists, objects): {error}"
        ) from error
    return text.encode("ascii")


def parse(text: str | bytes) -> Any:
    """Read JSON strictly.

    Raises:
        ValueError: it is none, holds NaN or infinity, or is nested too deep.
    """
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deep") from None


def _plain(value: object) -> object:
    item = getattr(value, "item", None)  # numpy's and torch's numbers
    if item is not None and getattr(value, "ndim", None) == 0:
        return item()
    raise TypeError(f"{type(value).__name__} is no JSON value")


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no finite number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text[:20])
