"""The record of a bench: a versioned JSON file, and its tables' only input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from expunge.record import read_json
from expunge.run.files import write_text
from expunge.run.log import Record

SCHEMA = "expunge.bench/1"
LOG, ASKED = "bench.json", "asked.json"
"""The finished bench, and whose folder it is from its first minute."""


@dataclass(frozen=True)
class BenchLog(Record):
    """A finished bench.

    Attributes:
        data: plain JSON: `schema`, `protocol`, `model`, `judge`, `clip`, `sampling`, `prompts`,
            `split`, `methods`, `concepts`, `rows`, `matrix`, `sources`, `flags`, `made`.
        store: folder that pictures lie in.
    """

    schema: ClassVar[str] = SCHEMA
    file: ClassVar[str] = LOG
    what: ClassVar[str] = "bench"
    command: ClassVar[str] = "expunge bench"
    holds: ClassVar[Mapping[str, type]] = {
        "protocol": str,
        "model": dict,
        "judge": dict,
        "sampling": dict,
        "methods": dict,
        "concepts": list,
        "rows": list,
        "matrix": list,
        "sources": dict,
        "flags": list,
        "made": dict,
    }

    def summary(self) -> dict[str, Any]:
        """The figures: what `--json` prints."""
        return {key: self.data[key] for key in ("schema", "protocol", "rows", "flags")}

    def report(self, out: str | Path) -> Path:
        """Write the tables as one HTML file that needs no network."""
        from expunge.report.bench import write_bench_report

        return write_bench_report(self.data, Path(out))


def check_folder_is(folder: Path, protocol: str, model: str) -> None:
    """Refuse a folder that holds something else than this bench, whole or begun.

    Raises:
        ValueError: says what.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / ASKED).is_file():
        raise ValueError(
            f"{folder} holds something that is no bench; choose an empty or a new folder (--out)"
        )
    found = read_json(folder / ASKED)
    if found.get("schema") != SCHEMA:
        raise ValueError(
            f"{folder} holds a bench of schema {str(found.get('schema'))[:40]!r}, this Expunge "
            f"writes {SCHEMA!r}; choose another folder (--out)"
        )
    for what, wanted in (("protocol", protocol), ("model", model)):
        if found.get(what) != wanted:
            raise ValueError(
                f"{folder} holds a bench whose {what} is {str(found.get(what))[:60]!r}, not "
                f"{wanted[:60]!r}; choose another folder (--out), and share pictures with --store"
            )


def claim(folder: Path, protocol: str, model: str) -> None:
    """Say whose folder it is, before anything else is written there."""
    import json

    asked = {"schema": SCHEMA, "protocol": protocol, "model": model}
    write_text(folder / ASKED, json.dumps(asked, indent=1) + "\n")
