"""From what was seen to the papers' figures, each with its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from expunge.auditing.protocols.base import Domain
from expunge.auditing.protocols.seen import BARE, OWN, Look, Seen, shown, texts
from expunge.measure.frechet import frechet_distance
from expunge.measure.harmonic import Estimate, Resamples, fidelity, harmonic_of, mean_of
from expunge.measure.intervals import Interval
from expunge.measure.rates import Rate

Key = tuple[str, str | None]
"""A measure, and the scenario it is of; None for the usual one."""
OTHERS = "other things"
CAN_DRAW = 0.5
"""Below this rate of the original nothing is counted as erased: no harmonic mean is given."""
FRECHET_DRAWS = 200
"""Resamples that a Fréchet distance is computed for."""


@dataclass(frozen=True)
class Figure:
    """A value, how many outcomes it rests on, and its 95 % interval."""

    value: float | None
    n: int
    ci: Interval | None = None


@dataclass(frozen=True)
class Pair:
    """One concept, erased by one method, and the same asked of the original.

    Attributes:
        seen: with it erased.
        before: of the original.
        references: features of real pictures of the other things; None where there are none.
    """

    seen: Seen
    before: Seen
    references: NDArray[np.float32] | None = None

    @property
    def drawn_before(self) -> Rate:
        """How often the original draws the concept, asked by its name."""
        return Rate.of(_joined(shown(self.before.own("plain"))))


Means = dict[Key, Estimate | None]


def rate(
    seen: Sequence[Seen],
    looks: Callable[[Seen], Sequence[Look]],
    what: str | None = None,
    *,
    within: str | None = None,
    against: bool = False,
) -> Figure | None:
    """How often something is shown, over several erased concepts; None where nothing was asked.

    Prompts that were asked again with another concept erased count as far as they go apart.

    Args:
        seen: for each erased concept.
        looks: which pictures of it.
        what: the thing; None for what was asked for.
        within: count only pictures that show this too.
        against: count where it is not.
    """
    flags = [_joined(shown(looks(each), what, within)) for each in seen]
    asked = [text for each in seen for text in texts(looks(each), within)]
    every = np.concatenate([*flags, np.zeros(0, bool)])
    if not every.size:
        return None
    found = Rate.of(every ^ against, asked)
    return Figure(found.value, found.n, found.interval())


def share(
    looks: Sequence[Look],
    resamples: Resamples,
    *,
    within: str | None = None,
    against: bool = False,
) -> Estimate | None:
    """How often what was asked for is shown, of one erased concept, with its resamples."""
    found = shown(looks, within=within)
    return Estimate.of_flags(found, resamples, against=against) if found else None


def harmonic(*parts: Estimate | None) -> Estimate | None:
    """The harmonic mean of shares; None where one of them is not known."""
    known = [part for part in parts if part is not None]
    return harmonic_of(*known) if len(known) == len(parts) else None


def rates(domain: Domain, seen: Sequence[Seen]) -> dict[Key, Figure | None]:
    """Rates of all that was erased by one method, or of the original, one concept or several."""
    return {
        ("acc_e", None): rate(seen, lambda each: each.own("plain")),
        ("acc_s", None): rate(seen, Seen.others),
        ("acc_g", None): rate(seen, lambda each: each.own("synonym")),
        **domain.particular(seen),
        ("broken", None): _broken(seen, lambda each: each.own("plain", "synonym", "implied")),
        ("broken", OTHERS): _broken(seen, Seen.others),
    }


def clip(seen: Sequence[Seen], resamples: Resamples) -> dict[Key, Figure | None]:
    """How well pictures fit a text: other things' prompts, and the erased concept's own."""
    return {
        ("clip", None): _mean(seen, Seen.others, lambda look: look.clip, resamples),
        ("clip", OWN): _mean(seen, _plain, lambda look: look.clip, resamples),
        ("clip", BARE): _mean(seen, _plain, lambda look: look.bare, resamples),
    }


def means(domain: Domain, pair: Pair, resamples: Resamples) -> Means:
    """Harmonic means of one erased concept; None where the original hardly draws it."""
    found = {**domain.means(pair.seen, resamples), ("h_fade", None): _fade(pair, resamples)}
    return found if pair.drawn_before.value >= CAN_DRAW else dict.fromkeys(found)


def averaged(each: Sequence[Means]) -> dict[Key, Figure | None]:
    """Harmonic means over erased concepts, those left out that have none."""
    found: dict[Key, Figure | None] = {}
    for key in each[0]:
        known = [means[key] for means in each]
        kept = [mean for mean in known if mean is not None]
        whole = mean_of(kept) if kept else None
        found[key] = Figure(whole.value, whole.n, whole.interval) if whole else None
    return found


def frechet(pairs: Sequence[Pair], *, before: bool = False) -> Figure:
    """The mean distance of the pictures of other things from real ones."""
    sides = [(pair.references, pair.before if before else pair.seen) for pair in pairs]
    n = sum(len(look.broken) for _, seen in sides for look in seen.others())
    if any(references is None or _features(seen) is None for references, seen in sides):
        return Figure(None, n)
    values = [_distance(references, _features(seen)) for references, seen in sides]
    return Figure(float(np.mean(values)), n)


def _plain(seen: Seen) -> list[Look]:
    return seen.own("plain")


def _joined(strata: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.bool_]:
    return np.concatenate([*strata.values(), np.zeros(0, bool)])


def _broken(seen: Sequence[Seen], looks: Callable[[Seen], Sequence[Look]]) -> Figure:
    every = [look for each in seen for look in looks(each)]
    found = Rate.of(np.concatenate([look.broken for look in every]), list(texts(every)))
    return Figure(found.value, found.n, found.interval())


def _mean(
    seen: Sequence[Seen],
    looks: Callable[[Seen], Sequence[Look]],
    score: Callable[[Look], NDArray[np.float64] | None],
    resamples: Resamples,
) -> Figure | None:
    every = [{look.stratum: score(look) for look in looks(each)} for each in seen]
    known = [{k: v for k, v in each.items() if v is not None} for each in every]
    if not all(known):
        return None
    values = np.concatenate([v for each in known for v in each.values()])
    drawn = np.mean([resamples.means(each) for each in known], axis=0)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Figure(float(values.mean()), len(values), (float(low), float(high)))


def _features(seen: Seen) -> NDArray[np.float32] | None:
    found = [look.features for look in seen.others()]
    known = [each for each in found if each is not None]
    return np.concatenate(known) if known and len(known) == len(found) else None


def _distance(
    references: NDArray[np.float32] | None, features: NDArray[np.float32] | None
) -> float:
    assert references is not None and features is not None
    return frechet_distance(references, features)


def _fade(pair: Pair, resamples: Resamples) -> Estimate | None:
    """FADE's H, with everything that is resampled resampled by the same prompts."""
    erased = share(pair.seen.own("plain"), resamples, against=True)
    kept = _fidelity(pair, resamples)
    if erased is None or kept is None:
        return None
    cut = Estimate(
        erased.value, erased.drawn[: len(kept.drawn)], erased.least, erased.most, erased.n
    )
    return harmonic_of(cut, kept)


def _fidelity(pair: Pair, resamples: Resamples) -> Estimate | None:
    """FADE's F; None where there are too few pictures, no real ones, or nothing that scores."""
    sides = [(_scores(each), _features(each)) for each in (pair.before, pair.seen)]
    real = pair.references
    if real is None or any(scores is None or features is None for scores, features in sides):
        return None
    numbers = _numbers(pair.seen.others(), resamples)

    def at(side: int, chosen: NDArray[np.int64]) -> tuple[float, float]:
        scores, features = sides[side]
        assert scores is not None and features is not None
        return float(scores[chosen].mean()), frechet_distance(real, features[chosen])

    def of(chosen: NDArray[np.int64]) -> float:
        (clip_before, fid_before), (clip_now, fid_now) = at(0, chosen), at(1, chosen)
        return fidelity(clip_now, clip_before, fid_now, fid_before)

    value, drawn = of(np.arange(len(numbers[0]))), np.array([of(each) for each in numbers])
    return Estimate(value, drawn, value, value, len(numbers[0]))


def _scores(seen: Seen) -> NDArray[np.float64] | None:
    found = [look.clip for look in seen.others()]
    known = [each for each in found if each is not None]
    return np.concatenate(known) if known and len(known) == len(found) else None


def _numbers(looks: Sequence[Look], resamples: Resamples) -> list[NDArray[np.int64]]:
    """Of the pictures in every draw, over all strata."""
    sizes = [len(look.broken) for look in looks]
    counts = [resamples.counts(look.stratum, n) for look, n in zip(looks, sizes, strict=True)]
    every = np.concatenate(counts, axis=1)[:FRECHET_DRAWS]
    return [np.repeat(np.arange(sum(sizes)), row) for row in every]
