"""Rows of an audit's two plots: how hard it is to get a concept, and what else changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from expunge.auditing.attacked import TIERS, Way, cells_of, ways
from expunge.auditing.figures import ERASED
from expunge.auditing.flags import PROBES
from expunge.auditing.log import PLAIN, Cell, Difference, Log, Sample
from expunge.measure.rates import Rate
from expunge.report.album import Album, Pair
from expunge.report.change_maps import Change, change
from expunge.report.tiles import Count, Lane, Mark, comparisons, count_of
from expunge.report.verdict import asked

OPEN = 6
"""Most rows of a tier that stand open."""
WHO = {
    "asking": "Anyone who can type a prompt. Nothing is attacked.",
    "prompt": "Anyone who can type a prompt, and tries many.",
    "embedding": "Whoever can upload a learned embedding.",
    "latent": "Whoever can choose the starting noise.",
    "weights": "Whoever holds the weights and can train them.",
}


@dataclass(frozen=True)
class Row:
    """One probe or attack; `note` stands small beneath its name."""

    name: str
    note: str
    lanes: tuple[Lane, ...]
    erased: Cell | Count
    control: Cell | Count | None
    above: bool = False


@dataclass(frozen=True)
class Tier:
    """All that was tried with one kind of access; no rows where nothing was."""

    name: str
    who: str
    rows: list[Row]
    rest: list[Row]
    worst: Row | None


@dataclass(frozen=True)
class Damage:
    """One concept beside the erased ones: its difference, where its pictures changed, the pair
    that changed most.
    """

    row: Difference
    change: Change | None
    pair: Pair | None


def tiers(log: Log, concept: str) -> list[Tier]:
    """Asking first, then attacks by what the asker needs; tiers never tried stand empty."""
    made = [Tier("Asking", WHO["asking"], _asking(log, concept), [], None)]
    found = ways(log, concept)
    for access in TIERS:
        mine = [way for way in found if way.attack.access == access]
        rows = [_row(way) for way in mine]
        rest = [row for row in rows if not row.above] if len(rows) > OPEN else []
        shown = [row for row in rows if row not in rest]
        worst = _worst(log, concept, mine)
        made.append(Tier(access.capitalize(), WHO[access], shown, rest, worst))
    return made


def damages(log: Log, role: str, album: Album) -> list[Damage]:
    """Rows of neighbours or of unrelated concepts, in the order of the log."""
    made = []
    for row in comparisons(log, role):
        found = change(album, plain_samples(log, row.concept, row.probe))
        made.append(Damage(row, found, album.pair(found.most) if found else None))
    return made


def plain_samples(log: Log, concept: str, probe: str | None = None) -> list[Sample]:
    """Samples of a concept without attack."""
    return [
        each
        for each in log.samples
        if (each.attack, each.concept) == (PLAIN, concept) and probe in (None, each.probe)
    ]


def reach(rows: Sequence[Difference]) -> float:
    """Half the width of the axis of differences: a round number that holds every interval."""
    most = max((max(abs(end) for end in row.ci) for row in rows), default=0.0)
    return next(limit for limit in (0.2, 0.4, 0.6, 1.0) if most <= limit)


def _asking(log: Log, concept: str) -> list[Row]:
    sides: dict[str, dict[str, Cell]] = {}
    roles = {each.name: each.role for each in log.conditions}
    marks: dict[str, Mark] = {"original": "o", "erased": "e", "guarded": "g", "control": "c"}
    for cell in cells_of(log, attack=PLAIN, concept=concept):
        sides.setdefault(cell.probe, {})[cell.condition] = cell
    record = next(each for each in log.erasure["concepts"] if each["name"] == concept)
    synonyms = record.get("synonyms")
    words = ", ".join(map(str, synonyms)) if isinstance(synonyms, list | tuple) else ""
    rows = []
    for erased in asked(log, concept, ERASED):
        cells = sides[erased.probe]
        lanes = tuple(Lane(marks[roles[name]], cell) for name, cell in cells.items())
        control = next((c for name, c in cells.items() if roles[name] == "control"), None)
        note = words if erased.probe == "synonym" else ""
        rows.append(Row(PROBES.get(erased.probe, erased.probe), note, lanes, erased, control))
    return rows


def _row(way: Way) -> Row:
    pairs: tuple[tuple[Mark, Cell | None], ...] = (
        *(("o", way.original), ("e", way.erased)),
        *(("g", way.guarded), ("c", way.control)),
    )
    lanes = tuple(Lane(mark, cell) for mark, cell in pairs if cell is not None)
    note = way.attack.text + ("" if way.probe == "plain" else f", asked {way.probe}")
    return Row(way.attack.name, note, lanes, way.erased, way.control, way.above)


def _worst(log: Log, concept: str, found: Sequence[Way]) -> Row | None:
    """The share of prompts for which any attack of a tier succeeds, where they share prompts."""
    names = {way.attack.name for way in found}
    if len(names) < 2:
        return None
    mine = [each for each in log.samples if each.attack in names and each.concept == concept]
    asked_by = {name: {each.prompt for each in mine if each.attack == name} for name in names}
    prompts, *others = asked_by.values()
    if any(prompts != other for other in others):
        return None
    erased = _any_of(log, mine, ERASED)
    control = next((way.control.condition for way in found if way.control), None)
    beside = _any_of(log, mine, control) if control else None
    lanes = (Lane("s", erased), *([Lane("c", beside)] if beside else []))
    return Row("any of these", "worst case per prompt", lanes, erased, beside)


def _any_of(log: Log, samples: Sequence[Sample], condition: str) -> Count:
    hit: dict[str, bool] = {}
    for each in samples:
        picture = each.pictures.get(condition)
        found = picture is not None and log.judge.finds(picture)
        hit[each.prompt] = hit.get(each.prompt, False) or found
    return count_of(Rate.of(np.array(list(hit.values()), np.bool_)))
