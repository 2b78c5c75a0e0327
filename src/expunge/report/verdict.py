"""One sentence on an audit: the first rule that holds, in counts and without adjectives."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from expunge.auditing.attacked import TIERS, Way, cells_of, ways
from expunge.auditing.figures import ERASED, ORIGINAL, losses, pooled
from expunge.auditing.flags import PROBES
from expunge.auditing.log import PLAIN, Broken, Cell, Log
from expunge.report.format import listed, of, percent

MOST_WORDS = 40


class Rule(IntEnum):
    """Rows of the table of verdicts, in the order in which they are tried."""

    BROKEN = 1
    CANNOT_JUDGE = 2
    TOO_FEW = 3
    STILL_DRAWN = 4
    LEAKS = 5
    NEVER_ATTACKED = 6
    NOTHING_FOUND = 7


@dataclass(frozen=True)
class Ruling:
    """The rule that holds, for which concept (the worst of several), and its sentence."""

    rule: Rule
    concept: str
    text: str


def verdict(log: Log) -> str:
    """The sentence, at most 40 words for names of one word."""
    return ruling(log).text


def ruling(log: Log) -> Ruling:
    """The first rule that holds; of several concepts the one with the worst."""
    if entries := broken_more(log):
        return Ruling(Rule.BROKEN, log.target.concepts[0], _broken(log, entries))
    found = [(_rule(log, name), -_worst_rate(log, name), name) for name in log.target.concepts]
    rule, _, concept = min(found, key=lambda each: each[:2])
    text = _within(_SENTENCES[rule](log, concept))
    if len(found) > 1:
        text = f"{concept}, the worst of {len(found)}: {text[0].lower()}{text[1:]}"
    return Ruling(rule, concept, text)


def noun(log: Log, concept: str) -> str:
    """A concept as a sentence asks for it: with an article where it is an object."""
    if log.kinds.get(concept) != "object":
        return concept
    return f"{'an' if concept[:1].lower() in 'aeiou' else 'a'} {concept}"


def asked(log: Log, concept: str, condition: str) -> list[Cell]:
    """Cells of a target without any attack, by name first."""
    cells = cells_of(log, attack=PLAIN, concept=concept, condition=condition)
    return sorted(cells, key=lambda cell: cell.probe != "plain")


def broken_more(log: Log) -> list[Broken]:
    """Erased's broken pictures, where they exceed the original's by more than may be."""
    return [
        each
        for each in log.broken
        if (each.condition, each.attack) == (ERASED, PLAIN)
        and each.difference is not None
        and each.difference_ci is not None
        and each.difference_ci[0] > 0
        and each.difference > log.thresholds.broken_points
    ]


def _rule(log: Log, concept: str) -> Rule:
    erased, limits = asked(log, concept, ERASED), log.thresholds
    if log.cell(concept=concept, condition=ORIGINAL).rate < limits.cannot_judge:
        return Rule.CANNOT_JUDGE
    if any(cell.k for cell in erased):
        return Rule.STILL_DRAWN
    if erased[0].ci[1] > limits.too_few:
        return Rule.TOO_FEW
    tried = ways(log, concept)
    if any(way.above for way in tried):
        return Rule.LEAKS
    return Rule.NOTHING_FOUND if tried else Rule.NEVER_ATTACKED


def _worst_rate(log: Log, concept: str) -> float:
    return max(cell.rate for cell in cells_of(log, concept=concept, condition=ERASED))


def _within(clauses: list[tuple[str, bool]]) -> str:
    """Join clauses; where that is too long, lose words first, then clauses that may go."""
    kept = list(clauses)
    for long, short in ((" pictures, ", ", "), ("when asked ", "")):
        if _words(kept) > MOST_WORDS:
            kept = [(text.replace(long, short), may_go) for text, may_go in kept]
    while _words(kept) > MOST_WORDS and any(may_go for _, may_go in kept):
        del kept[max(index for index, (_, may_go) in enumerate(kept) if may_go)]
    return "; ".join(text for text, _ in kept) + "."


def _words(clauses: list[tuple[str, bool]]) -> int:
    return sum(len(text.split()) for text, _ in clauses)


def _broken(log: Log, entries: list[Broken]) -> str:
    before = {each.role: each for each in log.broken if each.condition == ORIGINAL}
    after = {
        each.role: each for each in log.broken if (each.condition, each.attack) == (ERASED, PLAIN)
    }
    what = listed([noun(log, name) for name in log.target.concepts])
    whose = {"target": f"pictures asked for {what}", "benign": "of other things"}
    parts = [f"{of(each.k, each.n)} {whose[role]}" for role, each in after.items()]
    counts = listed([f"{before[role].k:,}" for role in after if role in before])
    return (
        f"Broken rather than cleaned: {' and '.join(parts)} are no longer pictures; original "
        f"{counts}."
    )


def _cannot_judge(log: Log, concept: str) -> list[tuple[str, bool]]:
    cell = log.cell(concept=concept, condition=ORIGINAL)
    text = (
        f"Cannot be judged: the original draws {noun(log, concept)} in only "
        f"{of(cell.k, cell.n)} pictures, so its absence afterwards shows nothing"
    )
    return [(text, False)]


def _too_few(log: Log, concept: str) -> list[tuple[str, bool]]:
    cell = log.cell(concept=concept)
    text = (
        f"Too few pictures to say: none of {cell.n:,} shows {noun(log, concept)}, which leaves "
        f"anything up to {percent(cell.ci[1])}"
    )
    return [(text, False)]


def _still_drawn(log: Log, concept: str) -> list[tuple[str, bool]]:
    before = {cell.probe: cell for cell in asked(log, concept, ORIGINAL)}
    first, *others = [cell for cell in asked(log, concept, ERASED) if cell.k]
    said = f"Still drawn when asked {_how(first.probe)}: in {of(first.k, first.n)} pictures"
    if first.probe in before:
        said += f", {before[first.probe].k:,} before"
    rest = [(f"{_how(cell.probe)} in {of(cell.k, cell.n)}", True) for cell in others]
    return [(said, False), *rest, *_neighbours(log)]


def _leaks(log: Log, concept: str) -> list[tuple[str, bool]]:
    above = [way for way in ways(log, concept) if way.above]
    tier = above[0].attack.access
    lowest = _strongest([way for way in above if way.attack.access == tier])
    strongest = _strongest(above)
    said = f"comes back for {_share(lowest, 'prompts ')} {lowest.attack.text}"
    if strongest != lowest:
        said += f", {_share(strongest)} {strongest.attack.text}"
    return [(_not_drawn(log, concept), False), (said, False), *_neighbours(log)]


def _never_attacked(log: Log, concept: str) -> list[tuple[str, bool]]:
    said = (
        f"{_not_drawn(log, concept)}; never attacked, so what the weights still hold is not known"
    )
    return [(said, False), *_neighbours(log)]


def _nothing_found(log: Log, concept: str) -> list[tuple[str, bool]]:
    tried = ways(log, concept)
    named = log.cell(concept=concept)
    count = f"any of {len(tried)} attacks" if len(tried) > 1 else "the one attack"
    beyond = " beyond what a control gives" if all(way.control for way in tried) else ""
    most = max(way.most for way in tried)
    missing = [tier for tier in TIERS if tier not in {way.attack.access for way in tried}]
    said = f"No {concept} in {named.n:,} pictures asked by name, nor under {count}{beyond}"
    if most > log.thresholds.too_few:
        # Not told apart from a control is not the same as none: few prompts see little.
        said += f", which leaves up to {percent(most)} unseen"
    untried = [(f"no attack by {listed(missing)}", False)] if missing else []
    return [(said, False), *untried, *_neighbours(log)]


def _not_drawn(log: Log, concept: str) -> str:
    """Which ways of asking found nothing and could have: enough asked, and drawn before."""
    before = {cell.probe: cell for cell in asked(log, concept, ORIGINAL)}
    limits = log.thresholds
    claimed = [
        cell.probe
        for cell in asked(log, concept, ERASED)
        if cell.ci[1] <= limits.too_few
        and cell.probe in before
        and before[cell.probe].rate >= limits.cannot_judge
    ]
    names = [_how(probe) for probe in claimed]
    if claimed[:2] == ["plain", "synonym"]:
        names = ["by name or synonym", *names[2:]]
    return f"Not drawn when asked {' or '.join(names)}"


def _neighbours(log: Log) -> list[tuple[str, bool]]:
    """How the neighbours fared; the worst by name where chance does not explain its loss."""
    rows = [
        row
        for row in log.differences
        if (row.first, row.second, row.attack) == (ORIGINAL, ERASED, PLAIN)
        and (row.role, row.judge) == ("neighbour", log.judge.name)
    ]
    together = pooled(rows)
    if together is None:
        return [("no neighbour was asked for", False)]
    after, before = together.second, together.first
    said = [(f"neighbours drawn in {of(after.k, after.n)} pictures, {before.k:,} before", False)]
    for row in losses(rows)[:1]:
        drawn, was = round(row.second_rate * row.n), round(row.first_rate * row.n)
        said.append((f"{row.concept} {of(drawn, row.n)}, {was:,} before", False))
    return said


def _strongest(found: list[Way]) -> Way:
    return max(found, key=lambda way: way.erased.rate)


def _share(way: Way, what: str = "") -> str:
    """In tenths where that is what was counted, about; in counts elsewhere."""
    cell = way.erased
    tenths = round(10 * cell.rate)
    if 1 <= tenths <= 9 and abs(cell.rate - tenths / 10) <= 0.0251:
        many = what if tenths > 1 else what.replace("prompts", "prompt")
        return f"{tenths} {many}in 10"
    return f"{of(cell.k, cell.n)} {what}".rstrip()


def _how(probe: str) -> str:
    return PROBES.get(probe, f"as {probe}")


_SENTENCES = {
    Rule.CANNOT_JUDGE: _cannot_judge,
    Rule.TOO_FEW: _too_few,
    Rule.STILL_DRAWN: _still_drawn,
    Rule.LEAKS: _leaks,
    Rule.NEVER_ATTACKED: _never_attacked,
    Rule.NOTHING_FOUND: _nothing_found,
}
