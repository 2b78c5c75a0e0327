"""Closed forms of several concepts, solved together from their texts."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, get_args

from expunge.backbone.base import Backbone
from expunge.change import Changes
from expunge.closed_form import Edit, Kept, Solver, on_layers
from expunge.concept import Concept
from expunge.request import Request
from expunge.settings import Hold
from expunge.text_rows import concept_rows, kept_states


def agreeing(requests: Mapping[str, Request], concepts: Sequence[Concept]) -> dict[str, Request]:
    """Requests without pairs that name another concept that goes: "a cat by Ivo Brandt" would keep
    the cat where both go.

    What is left of a request weighs as much as all of it did; one whose pairs all do stays whole.
    """
    found = {}
    for name, request in requests.items():
        others = [concept for concept in concepts if concept.name != name]
        pairs = tuple(p for p in request.pairs if not any(c.mentions(p[0]) for c in others))
        if pairs and len(pairs) < len(request.pairs):
            weight = request.erase_weight * len(request.pairs) / len(pairs)
            request = replace(request, pairs=pairs, erase_weight=weight)
        found[name] = request
    return found


def kept_texts(requests: Iterable[Request], concepts: Sequence[Concept]) -> dict[str, float]:
    """Kept texts of several concepts that name none of them, and the weight of each.

    A text counts as often as concepts ask to keep it, and all of them together as much as one
    concept's own would: so what stays pulls no harder when more goes.
    """
    requests, asked = list(requests), defaultdict[str, float](float)
    for request in requests:
        for text in dict.fromkeys(request.kept):
            asked[text] += request.preserve_weight
    kept = {t: n for t, n in asked.items() if not any(each.mentions(t) for each in concepts)}
    usual = fmean(len(request.kept) * request.preserve_weight for request in requests)
    total = sum(kept.values())
    return {text: usual * count / total for text, count in kept.items()} if total else {}


def solve(
    backbone: Backbone, requests: Mapping[str, Request], concepts: Sequence[Concept]
) -> dict[str, Changes]:
    """Solve the closed forms of several concepts together.

    Args:
        backbone: the model.
        requests: by concept name.
        concepts: all that are erased: kept prompts that name any of them are left out.

    Returns:
        Concept name -> changes by place. Kinds of solver are solved apart, with a warning: what
        two solves do adds up, and may miss its targets.

    Raises:
        ValueError: a prompt does not hold its concept, or a system is singular.
    """
    kinds: dict[type[Solver], dict[str, Request]] = {}
    for name, request in requests.items():
        kinds.setdefault(type(request.solver), {})[name] = request
    if len(kinds) > 1:
        named = " and ".join(sorted(kind.name for kind in kinds))
        warnings.warn(
            f"{named} hold the rest of the model in different ways, so their concepts are solved "
            "apart and may miss their targets; erase them together with one method, or audit each",
            stacklevel=2,
        )
    solved = [_solve_alike(backbone, group, concepts) for group in kinds.values()]
    return {name: changes for each in solved for name, changes in each.items()}


def _held(
    backbone: Backbone, requests: Sequence[Request], concepts: Sequence[Concept], *, rows: bool
) -> dict[str, Kept]:
    """What stays, by text stream: states or names, as each request has it."""
    found: dict[str, Kept] = {}
    for hold in get_args(Hold):
        some = [request for request in requests if request.hold == hold != "none"]
        texts = kept_texts(some, concepts) if some else {}
        if not texts:
            continue
        share = len(some) / len(requests)
        weighted = {text: share * weight for text, weight in texts.items()}
        padding = fmean(request.padding_weight for request in some)
        for name, kept in kept_states(backbone, weighted, hold, padding, rows=rows).items():
            found[name] = found[name] + kept if name in found else kept
    return found


def _solve_alike(
    backbone: Backbone, requests: Mapping[str, Request], concepts: Sequence[Concept]
) -> dict[str, dict[str, Any]]:
    first, *others = requests.values()
    solver = first.solver.with_others(request.solver for request in others)
    rows = concept_rows(backbone, agreeing(requests, concepts))
    kept = _held(backbone, list(requests.values()), concepts, rows=solver.reads_rows)
    found: dict[str, dict[str, Any]] = {name: {} for name in requests}
    for name, stream in backbone.text_streams().items():
        own = {concept: streams[name] for concept, streams in rows.items()}
        edits: dict[str, Edit] = solver.solve(own, kept.get(name))
        for concept, changes in on_layers(edits, stream.layers).items():
            for layer, change in changes.items():
                found[concept][f"{backbone.denoiser_name}/{layer}"] = change
    return found
