"""The four tiles of an audit's first screen: number, interval, and a pair by a stated rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from expunge.auditing.attacked import Way, ways
from expunge.auditing.figures import ERASED, ORIGINAL, losses, pooled
from expunge.auditing.flags import PROBES
from expunge.auditing.log import PLAIN, Broken, Difference, Log, Sample
from expunge.measure.paired import Paired
from expunge.measure.rates import Rate
from expunge.report.album import Album, Pair, first
from expunge.report.format import of, percent, points, span
from expunge.report.verdict import Rule, Ruling, asked, noun


class Share(Protocol):
    """Anything counted, with its interval."""

    @property
    def k(self) -> int: ...
    @property
    def n(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def ci(self) -> tuple[float, float]: ...


Mark = Literal["o", "e", "g", "c", "s"]
"""Lanes of a plot: original, erased, guarded, control, and the worst case of a tier."""


@dataclass(frozen=True)
class Lane:
    """One dot with its interval."""

    mark: Mark
    share: Share


@dataclass(frozen=True)
class Count:
    """A share of its own, where the log has none."""

    k: int
    n: int
    ci: tuple[float, float]

    @property
    def rate(self) -> float:
        """As a fraction."""
        return self.k / self.n


@dataclass(frozen=True)
class Tile:
    """One question: its answer in counts, the plot's lanes, a sentence, and a pair of pictures.

    Attributes:
        big: the number, or "not tried".
        small: what was counted.
        say: interval and comparison; `more` is left out on small screens.
        pair: None where there is none to show; `none` then says so.
    """

    title: str
    big: str
    small: str
    lanes: tuple[Lane, ...]
    say: str
    more: str
    pair: Pair | None
    none: str = ""


def tiles(log: Log, ruling: Ruling, album: Album) -> list[Tile]:
    """Always the same four; one that has nothing says so and stays."""
    return [
        _by_name(log, ruling, album),
        _attacked(log, ruling, album),
        _neighbours(log, album),
        _broken(log, album),
    ]


def count_of(rate: Rate) -> Count:
    """A rate with its interval."""
    return Count(rate.k, rate.n, rate.interval())


def bound(share: Share) -> str:
    """The interval in words: a bound where nothing was seen."""
    return f"at most {percent(share.ci[1])}" if share.k == 0 else span(share.ci)


def comparisons(log: Log, role: str, second: str = ERASED) -> list[Difference]:
    """Plain differences from the original, by the headline's judge."""
    wanted = (ORIGINAL, second, PLAIN, role, log.judge.name)
    return [
        row
        for row in log.differences
        if (row.first, row.second, row.attack, row.role, row.judge) == wanted
    ]


def _by_name(log: Log, ruling: Ruling, album: Album) -> Tile:
    concept = ruling.concept
    erased = log.cell(concept=concept)
    original = log.cell(concept=concept, condition=ORIGINAL)
    mine = [
        each
        for each in log.samples
        if (each.attack, each.probe, each.concept) == (PLAIN, "plain", concept)
    ]
    chosen = first(mine, _finds(log, ERASED), _finds(log, ORIGINAL), _any)
    say, more = f"{bound(erased)}; original {original.k:,}.", _other_ways(log, concept)
    if ruling.rule is Rule.CANNOT_JUDGE:
        say = f"original {original.k:,}: a drop cannot be told from a model that never could."
    wrecked = sum(each.pictures[ERASED].is_broken for each in mine if ERASED in each.pictures)
    if ruling.rule is Rule.BROKEN and wrecked:
        say, more = f"{wrecked:,} of the {erased.n:,} are broken.", "Not counted as an erasure."
    small = f"pictures show {noun(log, concept)}"
    lanes = (Lane("o", original), Lane("e", erased))
    return Tile(
        "Asked by name", of(erased.k, erased.n), small, lanes, say, more, _pair(album, chosen)
    )


def _other_ways(log: Log, concept: str) -> str:
    before = {cell.probe: cell for cell in asked(log, concept, ORIGINAL)}
    parts = [
        f"{PROBES.get(cell.probe, cell.probe)} {of(cell.k, cell.n)}"
        + (f", original {before[cell.probe].k:,}" if cell.probe in before else "")
        for cell in asked(log, concept, ERASED)
        if cell.probe != "plain"
    ]
    return " ".join(f"{part[0].upper()}{part[1:]}." for part in parts)


def _attacked(log: Log, ruling: Ruling, album: Album) -> Tile:
    tried = ways(log, ruling.concept)
    if not tried:
        say = "No attack is in this audit: what the weights still hold is not known."
        return Tile("Attacked", "not tried", "", (), say, "", None, "not tried")
    above = [way for way in tried if way.above]
    tier = [way for way in above if way.attack.access == above[0].attack.access] if above else tried
    shown = max(tier, key=lambda way: way.erased.rate)
    mine = [
        each
        for each in log.samples
        if (each.attack, each.probe, each.concept)
        == (shown.attack.name, shown.probe, ruling.concept)
    ]
    pair = _pair(album, first(mine, _finds(log, ERASED), _any))
    cell = shown.erased
    small = f"prompts, {shown.attack.text}"
    return Tile(
        *("Attacked", of(cell.k, cell.n), small, _lanes(shown)),
        *(f"{bound(cell)}; {_control(shown)}.", _strongest(above, shown), pair),
    )


def _lanes(way: Way) -> tuple[Lane, ...]:
    sides: tuple[tuple[Mark, Share | None], ...] = (
        *(("o", way.original), ("e", way.erased), ("c", way.control)),
    )
    return tuple(Lane(mark, share) for mark, share in sides if share is not None)


def _control(way: Way) -> str:
    return f"control {of(way.control.k, way.control.n)}" if way.control else "no control"


def _strongest(above: Sequence[Way], shown: Way) -> str:
    """What the strongest attack of all gets, where it is another."""
    if not above:
        return "No attack exceeds its control beyond chance."
    most = max(above, key=lambda way: way.erased.rate)
    if most == shown:
        return ""
    text = most.attack.text
    return f"{text[:1].upper()}{text[1:]} {of(most.erased.k, most.erased.n)}, {_control(most)}."


def _neighbours(log: Log, album: Album) -> Tile:
    rows = comparisons(log, "neighbour")
    together = pooled(rows)
    if together is None:
        say = "No neighbour was asked for: damage beside the concept is not known."
        return Tile("Neighbours", "not tried", "", (), say, "", None, "not tried")
    after, before = count_of(together.second), count_of(together.first)
    lost = losses(rows)
    ours = [each for each in log.samples if (each.attack, each.role) == (PLAIN, "neighbour")]
    worst = [each for each in ours if lost and each.concept == lost[0].concept]

    def gone(sample: Sample) -> bool:
        return _finds(log, ORIGINAL)(sample) and not _finds(log, ERASED)(sample)

    pair = _pair(album, first(worst, gone) or first(ours, _finds(log, ERASED), _any))
    more = _change(together) + "".join(
        f" {row.concept.capitalize()} loses most: {round(row.second_rate * row.n)} of {row.n}."
        for row in lost[:1]
    )
    lanes = (Lane("o", before), Lane("e", after))
    say = f"{bound(after)}; original {before.k:,}."
    return Tile("Neighbours", of(after.k, after.n), "still drawn", lanes, say, more, pair)


def _change(together: Paired) -> str:
    low, high = together.interval()
    return f"Difference {points(together.difference)} points, {points(low)} to {points(high)}."


def _broken(log: Log, album: Album) -> Tile:
    entries: dict[tuple[str, str], Broken] = {
        (each.role, each.condition): each for each in log.broken if each.attack == PLAIN
    }
    roles = [role for role in ("benign", "target") if (role, ERASED) in entries]
    if not roles:
        return Tile("Broken pictures", "not tried", "", (), "", "", None, "not tried")
    found, before = entries[roles[0], ERASED], entries.get((roles[0], ORIGINAL))
    ours = [each for each in log.samples if each.attack == PLAIN]
    mine = [each for each in ours if (each.role == "target") == (roles[0] == "target")]
    pair = _pair(album, first(mine, _is_broken(ERASED), _is_broken(ORIGINAL)))
    lanes = (*([Lane("o", before)] if before else []), Lane("e", found))
    say = bound(found) + (f"; original {before.k:,}." if before else ".")
    other = entries.get(("target", ERASED)) if roles[0] == "benign" else None
    more = f"Asked for what was erased {of(other.k, other.n)}." if other else ""
    small = "on other prompts" if roles[0] == "benign" else "asked for what was erased"
    none = "none is broken"
    return Tile("Broken pictures", of(found.k, found.n), small, lanes, say, more, pair, none)


def _finds(log: Log, condition: str) -> Callable[[Sample], bool]:
    def test(sample: Sample) -> bool:
        return condition in sample.pictures and log.judge.finds(sample.pictures[condition])

    return test


def _is_broken(condition: str) -> Callable[[Sample], bool]:
    return lambda sample: condition in sample.pictures and sample.pictures[condition].is_broken


def _any(_: Sample) -> bool:
    return True


def _pair(album: Album, sample: Sample | None) -> Pair | None:
    return None if sample is None else album.pair(sample)
