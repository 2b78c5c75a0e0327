"""Which pictures an audit's page shows below its first screen, always by a rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expunge.auditing.figures import ERASED, ORIGINAL
from expunge.auditing.log import PLAIN, Log, Sample
from expunge.report.album import Album, Pair, Sheet
from expunge.report.change_maps import Change, change
from expunge.report.format import of

OPEN = 8
"""Pairs of a gallery that stand open."""
OPEN_OF_MANY = 4
"""Pairs that stand open of each attack."""
MOST = 40
"""Most pairs of a gallery, the rest are counted."""
CLOSEST = 4


@dataclass(frozen=True)
class Gallery:
    """Some pairs, by a rule in words; `rest` unfolds, what `total` exceeds is counted."""

    title: str
    rule: str
    pairs: list[Pair]
    rest: list[Pair]
    total: int


@dataclass(frozen=True)
class Sheets:
    """All pictures of a concept asked for without attack, before and after, at the same places,
    and where they changed.
    """

    concept: str
    sheets: list[Sheet]
    count: int
    total: int
    change: Change | None


def came_back(log: Log, album: Album) -> list[Gallery]:
    """What each attack and what names brought back; where no name did, the closest calls."""
    targets = [each for each in log.samples if each.role == "target"]
    made = []
    for attack in log.attacks:
        mine = _erased([each for each in targets if each.attack == attack.name])
        if mine and attack.name != PLAIN:
            back = [each for each in mine if _found(log, each)]
            title = f"{attack.text[:1].upper()}{attack.text[1:]}: {of(len(back), len(mine))}"
            rule = "In the order of the log, beside what the original draws."
            made.append(_gallery(album, title, rule, back, OPEN_OF_MANY))
    return [*made, _by_asking(log, album, [s for s in targets if s.attack == PLAIN])]


def _by_asking(log: Log, album: Album, samples: Sequence[Sample]) -> Gallery:
    shown = [each for each in samples if _found(log, each)]
    title = f"Asked without an attack: {of(len(shown), len(_erased(samples)))}"
    if shown:
        return _gallery(album, title, "In the order of the log.", shown)
    rule = "The closest calls: whole pictures of the erased model with the highest scores."
    return _gallery(album, title, rule, _closest(log, samples))


def broken(log: Log, album: Album) -> Gallery:
    """What the judge calls no picture any more, the worst first."""

    def worst(sample: Sample) -> float:
        return -sample.pictures[ERASED].broken

    found = [each for each in _erased(log.samples) if each.pictures[ERASED].is_broken]
    return _gallery(album, "Broken pictures", "The worst first.", sorted(found, key=worst))


def every_picture(log: Log, album: Album) -> list[Sheets]:
    """One for each erased concept."""
    made = []
    for concept in log.target.concepts:
        mine = [s for s in log.samples if (s.concept, s.attack) == (concept, PLAIN)]
        both = [s for s in mine if {ORIGINAL, ERASED} <= set(s.pictures)]
        sheets = [album.sheet(both, side) for side in (ORIGINAL, ERASED)]
        made.append(Sheets(concept, sheets, sheets[0].count, len(both), change(album, both)))
    return made


def _erased(samples: Sequence[Sample]) -> list[Sample]:
    return [each for each in samples if ERASED in each.pictures]


def _found(log: Log, sample: Sample) -> bool:
    return ERASED in sample.pictures and log.judge.finds(sample.pictures[ERASED])


def _closest(log: Log, samples: Sequence[Sample]) -> list[Sample]:
    whole = [each for each in _erased(samples) if not each.pictures[ERASED].is_broken]

    def score(sample: Sample) -> float:
        return -sample.pictures[ERASED].scores[log.judge.name]

    return sorted(whole, key=score)[:CLOSEST]


def _gallery(
    album: Album, title: str, rule: str, samples: Sequence[Sample], stand_open: int = OPEN
) -> Gallery:
    pairs = [album.pair(each) for each in samples[:MOST]]
    return Gallery(title, rule, pairs[:stand_open], pairs[stand_open:], len(samples))
