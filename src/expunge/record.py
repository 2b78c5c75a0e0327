"""The record in an erasure's folder, read without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA = "expunge.erasure/2"
RECORD = "erasure.json"


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a folder.

    Raises:
        ValueError: there is none, it is damaged, or from another schema.
    """
    path = folder / RECORD
    if not path.is_file():
        raise ValueError(
            f"no erasure in {folder}: {RECORD} is missing; make one with expunge erase"
        )
    record = read_json(path)
    schema = str(record.get("schema"))
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has schema {schema[:80]!r}, this Expunge reads {SCHEMA!r}; "
            "upgrade Expunge, or make the erasure again"
        )
    return record


def occupied(folder: Path) -> ValueError:
    """What to raise where another erasure lies in a folder."""
    return ValueError(
        f"{folder} holds another erasure, with its audit and exports; choose another folder, "
        "or say force (--force) to clear what belongs to it"
    )


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        ValueError: it does not.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged: not valid JSON; make it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds no JSON object; make it again")
    return found
