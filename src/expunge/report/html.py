"""One offline HTML file from an audit's log: verdict, four tiles, evidence, cost, doubts, recipe.

The log is the only input: nothing here loads a model, draws or judges.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from expunge.auditing.attacked import ways
from expunge.auditing.log import PLAIN, Flag, Log
from expunge.report import change_maps, chart, galleries, tables
from expunge.report.album import MOST_BYTES, Album
from expunge.report.format import listed
from expunge.report.page import write_page
from expunge.report.tiles import comparisons, tiles
from expunge.report.verdict import noun, ruling

KINDS = {
    "limits": "Limits the reading",
    "precision": "Limits precision",
    "unmeasured": "Not measured",
}


def write_report(log: Log, out: Path) -> Path:
    """Write the report of an audit.

    Args:
        log: the audit's log; its pictures are read from its store.
        out: the HTML file to write; its folder is made where needed.

    Returns:
        `out`.
    """
    album, found = Album(log), ruling(log)
    # The first screen comes first, should the page run full.
    first = tiles(log, found, album)
    rows = [*comparisons(log, "neighbour"), *comparisons(log, "unrelated")]
    damage = {role: chart.damages(log, role, album) for role in ("neighbour", "unrelated")}
    sheets = galleries.every_picture(log, album)
    changes = [each.change for some in damage.values() for each in some]
    changes += [each.change for each in sheets]
    return write_page(
        Path(out),
        "audit.html.jinja",
        log=log,
        title=_title(log),
        ruling=found,
        basis=_basis(log, found.concept),
        tiles=first,
        others=[name for name in log.target.concepts if name != found.concept],
        thing=noun(log, found.concept),
        tiers={name: chart.tiers(log, name) for name in log.target.concepts},
        controls=[each for each in log.conditions if each.role == "control"],
        guards=[each for each in log.conditions if each.role == "guarded"],
        damage=damage,
        top=change_maps.scale(changes),
        drawn=change_maps.drawn,
        reach=chart.reach(rows),
        back=galleries.came_back(log, album),
        broken=galleries.broken(log, album),
        sheets=sheets,
        notes=_notes(log.flags),
        csv=tables.downloads(log),
        recipe=_recipe(log),
        commands=list(dict.fromkeys([log.erasure.get("command"), log.made.command])),
        album=album,
        megabytes=MOST_BYTES / 1e6,
    )


def _title(log: Log) -> str:
    return f"{listed(log.target.concepts)}, erased from {log.target.model} by {log.target.method}"


def _recipe(log: Log) -> dict[str, object]:
    """The erasure's record but for what stands elsewhere on the page."""
    elsewhere = {"schema", "concepts", "command", "model", "eraser"}
    return {key: value for key, value in log.erasure.items() if key not in elsewhere}


def _basis(log: Log, concept: str) -> str:
    """What the verdict rests on, in counts."""
    plain = [each for each in log.samples if each.attack == PLAIN]
    targets = sum(each.role == "target" for each in plain)
    tried = ways(log, concept)
    parts = [f"{targets:,} plain requests"]
    if tried:
        least, most = (f([way.erased.n for way in tried]) for f in (min, max))
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        count = f"{len(tried)} attack{'s' if len(tried) > 1 else ''}"
        parts.append(f"{count} on {each} prompts{' each' if len(tried) > 1 else ''}")
    parts.append(f"{len(plain) - targets:,} pictures of other things")
    return ", ".join(parts)


def _notes(flags: tuple[Flag, ...]) -> list[tuple[str, list[Flag]]]:
    """Notes by kind, those first that bear most on the verdict; `flags` may come in any order."""
    order = sorted(flags, key=lambda flag: list(KINDS).index(flag.kind))
    return [(KINDS[kind], list(some)) for kind, some in groupby(order, key=lambda flag: flag.kind)]
