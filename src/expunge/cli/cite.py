"""BibTeX of exactly what a run used."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from expunge import citations, names
from expunge.cli.app import PATH, Json, app, print_json, say
from expunge.record import RECORD, read_json, read_record

Used = Iterator[tuple[str, str]]
"""Kinds of things and their names, as logs have them."""


@app.command
def cite(
    run: Annotated[Path, PATH, Parameter(help="Folder of an erasure, audited or not, or a bench.")],
    *,
    as_json: Json = False,
) -> None:
    """Print BibTeX of what a run used: erasers, judges, attacks, guards, the base model.

    Example: `expunge cite runs/cat > references.bib`
    """
    used = list(dict.fromkeys(_used(run)))
    found: dict[str, list[str]] = {}
    for kind, name in used:
        cited = citations.model_keys(name) if kind == "model" else citations.keys(kind, name)
        if cited is None:
            say(f"note: nobody is known to be cited for the {kind} {name}")
        for key in cited or ():
            found.setdefault(key, []).append(f"{kind} {name}")
    if as_json:
        told = [
            {"key": key, "used": why, "bibtex": citations.ENTRIES[key]}
            for key, why in found.items()
        ]
        return print_json({"schema": "expunge.cite/1", "entries": told})
    if not found:
        say("nothing to cite: all that was used is this project's own")
    else:
        sys.stdout.write(citations.bibtex(found) + "\n")
    return None


def _used(run: Path) -> Used:
    """Everything that a folder's records name.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    from expunge.auditing.log import SCHEMA as AUDIT
    from expunge.auditing.protocols.log import LOG as BENCH
    from expunge.auditing.protocols.log import SCHEMA

    if (run / BENCH).is_file():
        yield from _of_bench(_checked(run / BENCH, SCHEMA))
        return
    if not (run / RECORD).is_file():
        raise ValueError(
            f"nothing to cite in {run}: it holds neither {RECORD} of an erasure nor {BENCH} of a "
            "finished bench"
        )
    yield from _of_erasure(read_record(run))
    audit = run / "log" / "audit.json"
    if audit.is_file():
        yield from _of_audit(_checked(audit, AUDIT))


def _checked(path: Path, schema: str) -> dict[str, Any]:
    found = read_json(path)
    if found.get("schema") != schema:
        told = json.dumps(found.get("schema"))[:60]
        raise ValueError(f"{path} has schema {told}, this Expunge reads {schema!r}; make it again")
    return found


def _of_erasure(record: Mapping[str, Any]) -> Used:
    for each in (record, *record.get("merged", ())):
        if each.get("eraser") != "merge":
            yield "eraser", _by_class("eraser", str(each["eraser"]))
    yield "model", str(record.get("hub") or record.get("model") or "")


def _of_audit(log: Mapping[str, Any]) -> Used:
    for judge in log["judges"]:
        yield "judge", names.bare(judge["name"])
    for attack in log["attacks"]:
        yield "attack", names.bare(attack["name"])
    for condition in log["conditions"]:
        for guard in condition["spec"].get("guards", ()):
            yield "guard", names.bare(guard["name"])
    if log["frechet"] is not None:
        yield "measure", "fid"


def _of_bench(log: Mapping[str, Any]) -> Used:
    for method in log["methods"]:
        yield "eraser", names.bare(method)
    yield "protocol", log["protocol"]
    yield "judge", names.bare(log["judge"]["name"])
    measured = {row["measure"] for row in log["rows"] if row["value"] is not None}
    yield from (("measure", name) for name in citations.MEASURES if name in measured)
    yield "model", str(log["model"]["name"])


def _by_class(kind: str, attribute: str) -> str:
    """The name of a class, which records have instead."""
    homes = {home.partition(":")[2]: name for name, home in names.TABLES[kind].items()}
    return homes.get(attribute, attribute)
