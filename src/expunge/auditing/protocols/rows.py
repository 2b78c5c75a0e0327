"""From what was seen to rows of a table, and to what was erased against what was asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from expunge.auditing.protocols.base import MEASURES, Domain
from expunge.auditing.protocols.figures import (
    Figure,
    Key,
    Means,
    Pair,
    averaged,
    clip,
    frechet,
    means,
    rates,
)
from expunge.auditing.protocols.plan import ORIGINAL
from expunge.auditing.protocols.reported import reported
from expunge.measure.harmonic import Resamples
from expunge.names import bare


@dataclass(frozen=True)
class Row:
    """One figure of a table; keys that do not apply are None.

    Attributes:
        method: as it was asked for, or `original`.
        guard: that was on.
        scenario: what a figure is of, where it is not the usual.
        access: what an attacker needs.
        concept: that was erased; None for the mean over all.
        measure: what is measured.
        n: outcomes that it rests on.
        value: a fraction; for `fid` and `clip` in their own units.
        ci: 95 %.
        reported: paper -> its figure, of other models, judges and prompts.
    """

    method: str
    guard: str | None
    scenario: str | None
    access: str | None
    concept: str | None
    measure: str
    n: int
    value: float | None
    ci: tuple[float, float] | None
    reported: Mapping[str, float] | None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "ci": None if self.ci is None else list(self.ci)}


@dataclass(frozen=True)
class Cost:
    """What one erasure took."""

    seconds: float
    bytes: int


@dataclass(frozen=True)
class Benched:
    """One method, and what became of every concept; the original where there are no costs.

    Attributes:
        label: of the method.
        pairs: one for each erased concept.
        means: their harmonic means.
        costs: of their erasures.
    """

    label: str
    pairs: Sequence[Pair]
    means: Sequence[Means] = field(default=())
    costs: Sequence[Cost] = field(default=())

    @classmethod
    def of(
        cls,
        label: str,
        domain: Domain,
        pairs: Sequence[Pair],
        costs: Sequence[Cost],
        resamples: Resamples,
    ) -> Benched:
        """A method's results; harmonic means are computed once."""
        return cls(label, pairs, [means(domain, pair, resamples) for pair in pairs], costs)

    @property
    def original(self) -> bool:
        """Whether nothing was erased."""
        return self.label == ORIGINAL


def rows(benched: Benched, protocol: str, domain: Domain, resamples: Resamples) -> list[Row]:
    """A method's rows: first the means over all concepts, then each."""
    papers = reported(protocol, bare(benched.label))
    found = list(_rows(benched, slice(None), None, domain, resamples, papers))
    for index, pair in enumerate(benched.pairs):
        only = slice(index, index + 1)
        found += _rows(benched, only, pair.seen.concept, domain, resamples, {})
    return found


def _rows(
    benched: Benched,
    chosen: slice,
    concept: str | None,
    domain: Domain,
    resamples: Resamples,
    papers: Mapping[str, Mapping[str, float]],
) -> Iterator[Row]:
    pairs, costs = benched.pairs[chosen], benched.costs[chosen]
    seen = [pair.seen for pair in pairs]
    found: dict[Key, Figure | None] = {**rates(domain, seen), **clip(seen, resamples)}
    found["fid", None] = frechet(pairs)
    if not benched.original:
        found |= averaged(benched.means[chosen])
        for name in ("seconds", "bytes"):
            values = [float(getattr(cost, name)) for cost in costs]
            found[name, None] = Figure(sum(values) / len(values), len(values))
    for measure, scenario in sorted(found, key=_place):
        figure = found[measure, scenario] or Figure(None, 0)
        told = papers.get(measure) if scenario is None else None
        yield Row(
            *(benched.label, None, scenario, None, concept, measure),
            *(figure.n, figure.value, figure.ci, told),
        )


def _place(key: Key) -> tuple[int, str]:
    measure, scenario = key
    return MEASURES.index(measure), scenario or ""


def matrix(benched: Benched) -> list[dict[str, Any]]:
    """How often everything is shown that was asked for by its name, with each concept erased.

    The original has one line, in which nothing was erased.
    """
    found: dict[tuple[str | None, str], dict[str, Any]] = {}
    for pair in benched.pairs:
        erased = None if benched.original else pair.seen.concept
        for look in pair.seen.looks:
            asked = look.asked.concept
            if look.asked.probe == "plain":
                shown = look.shown[asked]
                found[erased, asked] = {
                    "method": benched.label,
                    "erased": erased,
                    "asked": asked,
                    "n": len(shown),
                    "k": int(shown.sum()),
                    "rate": float(shown.mean()),
                }
    return list(found.values())
