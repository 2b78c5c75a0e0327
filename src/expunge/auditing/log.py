"""The record of an audit: a versioned JSON file, and the report's only input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from expunge.run.log import Record

SCHEMA = "expunge.audit/1"


@dataclass(frozen=True)
class Log(Record):
    """A finished audit.

    Attributes:
        data: plain JSON: `schema`, `target`, `cells`, `differences`, `broken`, `frechet`, `flags`,
            `pairs`, `judge`, `sampling`, `erasure`, `made`.
        store: folder that the pairs' image paths are relative to.
    """

    schema: ClassVar[str] = SCHEMA
    file: ClassVar[str] = "audit.json"
    what: ClassVar[str] = "audit"
    command: ClassVar[str] = "expunge audit"

    def summary(self) -> dict[str, Any]:
        """The figures without the pairs: what `--json` prints."""
        return {k: v for k, v in self.data.items() if k not in {"pairs", "erasure"}}

    def cell(
        self, probe: str = "plain", condition: str = "erased", concept: str | None = None
    ) -> Mapping[str, Any]:
        """One cell; without a concept the first target's.

        Raises:
            KeyError: there is no such cell.
        """
        for cell in self.data["cells"]:
            fits = cell["probe"] == probe and cell["condition"] == condition
            if fits and (cell["concept"] == concept if concept else cell["role"] == "target"):
                return dict(cell)
        raise KeyError((probe, condition, concept))

    def report(self, out: str | Path) -> Path:
        """Write the report, one HTML file that needs no network."""
        from expunge.report import write_report

        return write_report(self.data, self.store, Path(out))
