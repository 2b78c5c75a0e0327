"""What a reader must know before believing a bench's table."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from expunge.auditing.flags import FEW, FRECHET_IMAGES, WELL_DRAWN
from expunge.auditing.log import Flag
from expunge.auditing.protocols.figures import CAN_DRAW, Pair
from expunge.auditing.protocols.plan import Plan
from expunge.auditing.protocols.rows import Benched
from expunge.judge.base import Features
from expunge.measure.paired import Paired
from expunge.measure.rates import Rate


def notes(laid: Plan, original: Benched, methods: Sequence[Benched]) -> list[Flag]:
    """All notes: what limits the reading, what limits precision, what was not measured."""
    return [
        *_hardly_drawn(original.pairs),
        *(flag for method in methods for flag in _broken(method)),
        *_faceless(methods),
        *_few(original.pairs),
        *_without_synonyms(original.pairs),
        *_without_implied(laid, original.pairs),
        *_without_frechet(laid),
        *_without_clip(laid),
    ]


def _hardly_drawn(pairs: Sequence[Pair]) -> Iterator[Flag]:
    """What the original does not draw: each thing once, however often it was asked for."""
    looks = {look.stratum: look for pair in pairs for look in pair.seen.looks}
    erased = {pair.seen.concept for pair in pairs}
    for look in looks.values():
        concept, shown = look.asked.concept, look.shown[look.asked.concept]
        rate = Rate.of(shown)
        if rate.value >= WELL_DRAWN:
            continue
        how = {"plain": "", "synonym": ", asked by synonym,", "implied": ", not named,"}
        so = "damage to it is harder to see"
        if concept in erased:
            so = "its absence afterwards says little"
            if look.asked.probe == "plain" and rate.value < CAN_DRAW:
                so = "no harmonic mean counts it as erased"
        text = (
            f"The original draws {concept}{how[look.asked.probe]} in only {rate.k} of {rate.n} "
            f"pictures, so {so}."
        )
        yield Flag("original-cannot-draw", text, concept, "limits")


def _broken(method: Benched) -> Iterator[Flag]:
    """Where an erased model draws more that is no picture than the original does."""
    for pair in method.pairs:
        for role, what in ((True, "asked for it"), (False, "of other things")):
            before, after = (
                np.concatenate([e.broken for e in side.looks if (e.asked.role == "target") == role])
                for side in (pair.before, pair.seen)
            )
            found = Paired.of(before, after)
            if found.interval()[0] > 0:
                text = (
                    f"With {pair.seen.concept} erased by {method.label}, {found.second.k} of "
                    f"{found.n} pictures {what} are broken, {found.first.k} of the original's; "
                    "they count as showing nothing, which is no success."
                )
                yield Flag("broken-pictures", text, pair.seen.concept, "limits")


def _faceless(methods: Sequence[Benched]) -> Iterator[Flag]:
    """Where no picture has a face, so nothing can be said of those that do."""
    for method in methods:
        for pair in method.pairs:
            for look in pair.seen.own("plain"):
                if "face" in look.shown and not look.shown["face"].any():
                    text = (
                        f"With {pair.seen.concept} erased by {method.label}, no picture asked for "
                        "them has a face, so there are no figures of pictures with one."
                    )
                    yield Flag("no-faces", text, pair.seen.concept, "limits")


def _few(pairs: Sequence[Pair]) -> Iterator[Flag]:
    least = min(len(look.broken) for pair in pairs for look in pair.seen.looks)
    if least < FEW:
        text = (
            f"Down to {least} prompts for each concept and way of asking: intervals are wide, and "
            f"those of harmonic means rest on resampling few prompts; {FEW} or more are better."
        )
        yield Flag("few-prompts", text, None, "precision")


def _without_synonyms(pairs: Sequence[Pair]) -> Iterator[Flag]:
    bare = [pair.seen.concept for pair in pairs if not pair.seen.own("synonym")]
    if bare:
        text = f"Generality (acc_g, and h_o with it): no synonyms are known of {', '.join(bare)}."
        yield Flag("no-synonyms", text, None, "unmeasured")


def _without_implied(laid: Plan, pairs: Sequence[Pair]) -> Iterator[Flag]:
    bare = [pair.seen.concept for pair in pairs if not pair.seen.own("implied")]
    if laid.domain.implied and bare:
        text = f"Detection (detected): no prompts evoke {', '.join(bare)} without naming it."
        yield Flag("no-implied-prompts", text, None, "unmeasured")


def _without_frechet(laid: Plan) -> Iterator[Flag]:
    """Why there is no distance, or none of some concepts; the means take all or nothing."""
    what = "Fréchet distances (fid, and h_fade with them)"
    if not isinstance(laid.judge, Features):
        text = f"{what}: the judge {laid.judge.name} has no features to measure them on."
        yield Flag("no-features", text, None, "unmeasured")
    elif not all(map(laid.has_references, laid.asked)):
        text = f"{what}: real pictures of what is asked for are known of the miniature world alone."
        yield Flag("no-references", text, None, "unmeasured")
    elif short := [name for name in laid.asked if not laid.referenced(name)]:
        asked = laid.others(short[0])
        n = sum(len(each.prompts) for each in asked)
        text = (
            f"{what}: they take {FRECHET_IMAGES:,} pictures of other things, and with "
            f"{short[0]} erased there are {n:,}; "
            f"{math.ceil(FRECHET_IMAGES / len(asked))} prompts are enough."
        )
        yield Flag("no-frechet", text, None, "unmeasured")


def _without_clip(laid: Plan) -> Iterator[Flag]:
    if laid.clip is None:
        text = (
            "CLIP scores (clip, and h_fade with them): no model that compares text and picture is "
            "known for these pictures; name one (--clip)."
        )
        yield Flag("no-clip", text, None, "unmeasured")
