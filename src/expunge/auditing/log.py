"""The record of an audit: a versioned JSON file, and the report's only input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.run.files import write_text

SCHEMA = "expunge.audit/1"
LOG = "audit.json"


@dataclass(frozen=True)
class Log:
    """A finished audit.

    Attributes:
        data: plain JSON: `schema`, `target`, `cells`, `differences`, `broken`, `frechet`, `flags`,
            `pairs`, `judge`, `sampling`, `erasure`, `made`.
        store: folder that the pairs' image paths are relative to.
    """

    data: Mapping[str, Any]
    store: Path

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

    def save(self, folder: Path) -> Path:
        """Write `audit.json`; the store is named relative to the folder where it can be."""
        store = self.store.resolve()
        here = folder.resolve()
        name = str(store.relative_to(here)) if store.is_relative_to(here) else str(store)
        write_text(folder / LOG, json.dumps({**self.data, "store": name}, indent=1) + "\n")
        return folder / LOG

    @classmethod
    def load(cls, folder: str | Path) -> Log:
        """Read a log.

        Raises:
            ValueError: none is there, it is damaged, or from a newer schema.
        """
        path = Path(folder) / LOG
        if not path.is_file():
            raise ValueError(f"no audit in {folder}: {LOG} is missing; make one with expunge audit")
        try:
            data = json.loads(path.read_text())
        except json.JSONDecodeError:
            raise ValueError(f"{path} is damaged: not valid JSON; run the audit again") from None
        schema = str(data.get("schema"))
        if schema != SCHEMA:
            raise ValueError(
                f"{path} has schema {schema!r}, this Expunge reads {SCHEMA!r}; upgrade Expunge"
            )
        return cls(data, path.parent / data.pop("store"))

    def report(self, out: str | Path) -> Path:
        """Write the report, one HTML file that needs no network."""
        from expunge.report import write_report

        return write_report(self.data, self.store, Path(out))
