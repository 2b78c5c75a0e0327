"""Which pictures an audit's page shows below its first screen, always by a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from expunge.auditing.figures import ERASED, ORIGINAL
from expunge.auditing.log import PLAIN, Log, Sample
from expunge.report.album import Album, Pair, Sheet
from expunge.report.format import of

OPEN = 8
"""Pairs of a gallery that stand open."""
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
    """All pictures of a concept asked for without attack, before and after, at the same places."""

    concept: str
    sheets: list[Sheet]
    count: int
    total: int


def came_back(log: Log, album: Album) -> list[Gallery]:
    """What an attack or a name brought back; where nothing did by name, the closest calls."""
    targets = [each for each in log.samples if each.role == "target"]
    attacked = [each for each in targets if each.attack != PLAIN]
    plain = [each for each in targets if each.attack == PLAIN]
    back = [each for each in attacked if _found(log, each)]
    made = []
    if attacked:
        title = f"Under attack: {of(len(back), len(attacked))}"
        rule = "In the order of the log, beside what the original draws."
        made.append(_gallery(album, title, rule, back))
    shown = [each for each in plain if _found(log, each)]
    title = f"Asked without an attack: {of(len(shown), len(plain))}"
    if shown:
        made.append(_gallery(album, title, "In the order of the log.", shown))
    else:
        rule = "The closest calls: whole pictures of the erased model with the highest scores."
        made.append(_gallery(album, title, rule, _closest(log, plain)))
    return made


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
        made.append(Sheets(concept, sheets, sheets[0].count, len(both)))
    return made


def _erased(samples: Sequence[Sample]) -> list[Sample]:
    return [each for each in samples if ERASED in each.pictures]


def _found(log: Log, sample: Sample) -> bool:
    return ERASED in sample.pictures and log.judge.finds(sample.pictures[ERASED])


def _closest(log: Log, samples: Sequence[Sample]) -> list[Sample]:
    whole = [each for each in _erased(samples) if not each.pictures[ERASED].is_broken]
    score: Callable[[Sample], float] = lambda s: -s.pictures[ERASED].scores[log.judge.name]  # noqa: E731
    return sorted(whole, key=score)[:CLOSEST]


def _gallery(album: Album, title: str, rule: str, samples: Sequence[Sample]) -> Gallery:
    pairs = [album.pair(each) for each in samples[:MOST]]
    return Gallery(title, rule, pairs[:OPEN], pairs[OPEN:], len(samples))
