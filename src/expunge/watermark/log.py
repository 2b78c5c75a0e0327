"""The record of a watermark bench: a versioned JSON file, and the report's only input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from expunge.run.log import Record

SCHEMA = "expunge.watermark/1"
LOG = "watermark.json"


@dataclass(frozen=True)
class WatermarkLog(Record):
    """A finished bench.

    Attributes:
        data: plain JSON: `schema`, `pictures`, `model`, `schemes`, `edits`, `cells`, `unmarked`,
            `examples`, `reported`, `flags`, `erasure`, `made`.
        store: folder that the examples' image paths are relative to.
    """

    schema: ClassVar[str] = SCHEMA
    file: ClassVar[str] = LOG
    what: ClassVar[str] = "watermark bench"
    command: ClassVar[str] = "expunge watermark bench"
    holds: ClassVar[Mapping[str, type]] = {
        "pictures": dict,
        "schemes": list,
        "edits": list,
        "cells": list,
        "unmarked": list,
        "examples": list,
        "reported": dict,
        "flags": list,
        "made": dict,
    }

    def summary(self) -> dict[str, Any]:
        """The figures without the pictures: what `--json` prints."""
        return {k: v for k, v in self.data.items() if k not in {"examples", "reported"}}

    def cell(self, scheme: str, edit: str, level: float | None = None) -> Mapping[str, Any]:
        """One cell; without a level the first of that edit.

        Raises:
            KeyError: there is no such cell.
        """
        for cell in self.data["cells"]:
            if (cell["scheme"], cell["edit"]) == (scheme, edit) and level in (None, cell["level"]):
                return dict(cell)
        raise KeyError((scheme, edit, level))

    def report(self, out: str | Path) -> Path:
        """Write the report, one HTML file that needs no network."""
        from expunge.report.watermark import write_watermark_report

        return write_watermark_report(self.data, self.store, Path(out))
