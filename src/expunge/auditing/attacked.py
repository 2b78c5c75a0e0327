"""What each attack brings back, beside what it brings along: its control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scipy.stats import fisher_exact

from expunge.auditing.figures import ERASED, ORIGINAL
from expunge.auditing.log import PLAIN, Attack, Cell, Difference, Interval, Log
from expunge.measure.rates import Rate, newcombe

TIERS = ("prompt", "embedding", "latent", "weights")
"""Kinds of access, the one that asks least first."""
ERROR = 0.05
"""Of the whole family of attacks on one concept, after Holm."""


@dataclass(frozen=True)
class Way:
    """One attack on one concept, at its largest budget, as the headline's judge sees it.

    Attributes:
        control: the control that the attack does best on; None where none was attacked.
        above: whether erased exceeds it beyond chance; without a control, whether anything came
            back at all.
        most: how much more than its control erased may give, at the most: the upper end of the
            interval, which few prompts leave wide.
    """

    attack: Attack
    probe: str
    erased: Cell
    original: Cell | None
    control: Cell | None
    guarded: Cell | None
    above: bool
    most: float


def ways(log: Log, concept: str) -> list[Way]:
    """All attacks on a concept, by tier, then in the order of the log.

    "Above" is claimed only where the interval of the difference from the control leaves out 0 and
    its test stands after Holm's correction over all attacks on the concept: one of many attacks is
    always the luckiest.
    """
    found = [
        way
        for access in TIERS
        for attack in log.attacks
        if attack.access == access and attack.name != PLAIN
        for way in _ways_of(log, attack, concept)
    ]
    tests = [_test(log, way) for way in found]
    kept = _holm([p for p, _ in tests])
    return [
        replace(way, above=significant and low > 0, most=high)
        for way, significant, (_, (low, high)) in zip(found, kept, tests, strict=True)
    ]


def cells_of(log: Log, **wanted: str) -> list[Cell]:
    """The headline judge's cells, those of the largest budget where there are several."""
    found = [
        cell
        for cell in log.cells
        if cell.judge == log.judge.name
        and all(getattr(cell, key) == value for key, value in wanted.items())
    ]
    best: dict[tuple[str, ...], Cell] = {}
    for cell in found:
        key = (cell.condition, cell.attack, cell.probe, cell.concept)
        if key not in best or (cell.budget or 0) > (best[key].budget or 0):
            best[key] = cell
    return list(best.values())


def _ways_of(log: Log, attack: Attack, concept: str) -> list[Way]:
    cells = cells_of(log, attack=attack.name, concept=concept)
    roles = {each.name: each.role for each in log.conditions}
    made = []
    for probe in dict.fromkeys(cell.probe for cell in cells if cell.condition == ERASED):
        ours = [cell for cell in cells if cell.probe == probe]
        named = {cell.condition: cell for cell in ours}
        controls = [cell for cell in ours if roles[cell.condition] == "control"]
        guarded = [cell for cell in ours if roles[cell.condition] == "guarded"]
        made.append(
            Way(
                attack,
                probe,
                named[ERASED],
                named.get(ORIGINAL),
                max(controls, key=lambda cell: cell.rate, default=None),
                max(guarded, key=lambda cell: cell.rate, default=None),
                above=False,
                most=1.0,
            )
        )
    return made


def _test(log: Log, way: Way) -> tuple[float, Interval]:
    """The p value of erased against its control, and the interval of their difference."""
    if way.control is None:
        found = way.erased
        return 0.0, (found.ci[0] if found.k else 0.0, found.ci[1])
    row = _paired(log.differences, way.erased, way.control)
    if row is not None:
        return row.p, row.ci
    one, two = way.control, way.erased
    table = [[two.k, two.n - two.k], [one.k, one.n - one.k]]
    interval = newcombe(Rate(one.k, one.n), Rate(two.k, two.n))
    return float(fisher_exact(table).pvalue), interval


def _paired(rows: Sequence[Difference], erased: Cell, control: Cell) -> Difference | None:
    for row in rows:
        same = (row.attack, row.probe, row.concept, row.judge, row.budget)
        ours = (erased.attack, erased.probe, erased.concept, erased.judge, erased.budget)
        if (row.first, row.second) == (control.condition, ERASED) and same == ours:
            return row if row.n == min(erased.n, control.n) else None
    return None


def _holm(values: Sequence[float]) -> list[bool]:
    """Which hypotheses fall, the smallest p first, until the first that stands (Holm 1979)."""
    kept = [False] * len(values)
    order = sorted(range(len(values)), key=lambda index: values[index])
    for passed, index in enumerate(order):
        if values[index] > ERROR / (len(values) - passed):
            break
        kept[index] = True
    return kept
