"""From samples to figures: rates, paired differences and broken pictures, each with an interval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from expunge.auditing.log import (
    PLAIN,
    Broken,
    Cell,
    Condition,
    Difference,
    JudgeRecord,
    Picture,
    Role,
    Sample,
)
from expunge.measure.paired import Paired
from expunge.measure.rates import Rate

ORIGINAL, ERASED = "original", "erased"
Test = Callable[[Picture], bool]


@dataclass(frozen=True)
class Figures:
    """All numbers that follow from samples."""

    cells: tuple[Cell, ...]
    differences: tuple[Difference, ...]
    broken: tuple[Broken, ...]


@dataclass(frozen=True)
class _Key:
    attack: str
    probe: str
    concept: str
    role: Role
    budget: float | None


def figures(
    samples: Sequence[Sample], conditions: Sequence[Condition], judges: Sequence[JudgeRecord]
) -> Figures:
    """Count what was drawn.

    Cells stand for every condition that a group of samples was drawn under. Differences are those
    of every other condition from the original, and under attacks of erased and guarded ones from
    each control: what an attack brings along by itself is not what the model remembers.

    Args:
        samples: all of the audit.
        conditions: in the order in which their figures shall stand.
        judges: the first gives the headline; all are counted.
    """
    groups = _groups(samples)
    cells = [
        cell
        for key, group in groups.items()
        for judge in judges
        for cell in _cells(key, group, conditions, judge)
    ]
    differences = [
        row
        for key, group in groups.items()
        for judge in judges
        for row in _differences(key, group, conditions, judge)
    ]
    return Figures(tuple(cells), tuple(differences), tuple(_broken(samples, conditions)))


def pooled(rows: Iterable[Difference]) -> Paired | None:
    """Pairs of several concepts taken together; None for none."""
    counts = [(row.first_rate * row.n, row.only_first, row.only_second, row.n) for row in rows]
    if not counts:
        return None
    first, one, two, n = (round(sum(column)) for column in zip(*counts, strict=True))
    return Paired(first - one, one, two, n - first - two)


def losses(rows: Iterable[Difference]) -> list[Difference]:
    """Differences whose interval lies below 0, the largest loss first.

    Only of these may be said that something is damaged: any list has a lowest entry, and chance
    alone makes it differ from 0.
    """
    return sorted((row for row in rows if row.ci[1] < 0), key=lambda row: row.difference)


def _groups(samples: Iterable[Sample]) -> dict[_Key, list[Sample]]:
    groups: dict[_Key, list[Sample]] = {}
    for each in samples:
        key = _Key(each.attack, each.probe, each.concept, each.role, each.budget)
        groups.setdefault(key, []).append(each)
    return groups


def _rate(samples: Sequence[Sample], condition: str, test: Test) -> Rate:
    """The rate; pictures of one prompt count together as far as they go together."""
    flags = [test(sample.pictures[condition]) for sample in samples]
    return Rate.of(flags, [sample.prompt for sample in samples])


def _cells(
    key: _Key, group: Sequence[Sample], conditions: Sequence[Condition], judge: JudgeRecord
) -> Iterator[Cell]:
    for condition in conditions:
        drawn = [sample for sample in group if condition.name in sample.pictures]
        if drawn:
            rate = _rate(drawn, condition.name, judge.finds)
            yield Cell(
                condition.name,
                *(key.attack, key.probe, key.concept, key.role, judge.name),
                *(rate.n, rate.k, rate.value, rate.interval(), key.budget),
            )


def _pairs_of(key: _Key, conditions: Sequence[Condition]) -> Iterator[tuple[str, str]]:
    for condition in conditions:
        if condition.name != ORIGINAL:
            yield ORIGINAL, condition.name
    controls = [each.name for each in conditions if each.role == "control"]
    for control in controls if key.attack != PLAIN else ():
        for condition in conditions:
            if condition.role in ("erased", "guarded"):
                yield control, condition.name


def paired(samples: Sequence[Sample], first: str, second: str, test: Test) -> Paired | None:
    """Outcomes of two conditions, prompt by prompt.

    Where a prompt was drawn with several seeds under both, one pair is one seed; the caller asks
    distinct prompts wherever an interval is to be read closely.
    """
    both = [each for each in samples if first in each.pictures and second in each.pictures]
    if not both:
        return None
    sides = [[test(each.pictures[side]) for each in both] for side in (first, second)]
    return Paired.of(*(np.array(side, np.bool_) for side in sides))


def _differences(
    key: _Key, group: Sequence[Sample], conditions: Sequence[Condition], judge: JudgeRecord
) -> Iterator[Difference]:
    for first, second in _pairs_of(key, conditions):
        found = paired(group, first, second, judge.finds)
        if found is not None:
            yield Difference(
                *(first, second, key.attack, key.probe, key.concept, key.role, judge.name),
                *(found.n, found.first.value, found.second.value, found.difference),
                *(found.interval(), found.only_first, found.only_second, found.p_value),
                key.budget,
            )


def _broken(samples: Sequence[Sample], conditions: Sequence[Condition]) -> Iterator[Broken]:
    """Broken pictures of targets and of all else, per attack and condition."""
    groups: dict[tuple[str, Literal["target", "benign"]], list[Sample]] = {}
    for each in samples:
        role: Literal["target", "benign"] = "target" if each.role == "target" else "benign"
        groups.setdefault((each.attack, role), []).append(each)
    for (attack, role), group in groups.items():
        for condition in conditions:
            drawn = [sample for sample in group if condition.name in sample.pictures]
            if drawn:
                yield _broken_in(attack, role, drawn, condition.name)


def _broken_in(
    attack: str, role: Literal["target", "benign"], drawn: Sequence[Sample], condition: str
) -> Broken:
    rate = _rate(drawn, condition, _is_broken)
    against = None if condition == ORIGINAL else paired(drawn, ORIGINAL, condition, _is_broken)
    return Broken(
        *(role, condition, rate.n, rate.k, rate.value, rate.interval(), attack),
        *((against.difference, against.interval()) if against else (None, None)),
    )


def _is_broken(picture: Picture) -> bool:
    return picture.is_broken
