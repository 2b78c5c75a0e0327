"""The record of a watermark bench: a versioned JSON file, and the report's only input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expunge.run.files import write_text

SCHEMA = "expunge.watermark/1"
LOG = "watermark.json"


@dataclass(frozen=True)
class WatermarkLog:
    """A finished bench.

    Attributes:
        data: plain JSON: `schema`, `pictures`, `model`, `schemes`, `edits`, `cells`, `unmarked`,
            `examples`, `reported`, `flags`, `erasure`, `made`.
        store: folder that the examples' image paths are relative to.
    """

    data: Mapping[str, Any]
    store: Path

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

    def save(self, folder: Path) -> Path:
        """Write `watermark.json`; the store is named relative to the folder where it can be."""
        store, here = self.store.resolve(), folder.resolve()
        name = str(store.relative_to(here)) if store.is_relative_to(here) else str(store)
        write_text(folder / LOG, json.dumps({**self.data, "store": name}, indent=1) + "\n")
        return folder / LOG

    @classmethod
    def load(cls, folder: str | Path) -> WatermarkLog:
        """Read a log.

        Raises:
            ValueError: none is there, it is damaged, or from a newer schema.
        """
        path = Path(folder) / LOG
        if not path.is_file():
            raise ValueError(
                f"no watermark bench in {folder}: {LOG} is missing; make one with "
                "expunge watermark bench"
            )
        try:
            data = json.loads(path.read_text())
        except json.JSONDecodeError:
            raise ValueError(f"{path} is damaged: not valid JSON; run the bench again") from None
        schema = str(data.get("schema"))
        if schema != SCHEMA:
            raise ValueError(
                f"{path} has schema {schema!r}, this Expunge reads {SCHEMA!r}; upgrade Expunge"
            )
        return cls(data, path.parent / data.pop("store"))

    def report(self, out: str | Path) -> Path:
        """Write the report, one HTML file that needs no network."""
        from expunge.report.watermark import write_watermark_report

        return write_watermark_report(self.data, self.store, Path(out))
