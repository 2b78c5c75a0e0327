"""Closed forms of several concepts, solved together from their texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

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
    pools = [request.kept for request in requests]
    asked = Counter(text for pool in pools for text in dict.fromkeys(pool))
    kept = {t: n for t, n in asked.items() if not any(each.mentions(t) for each in concepts)}
    usual = sum(map(len, pools)) / max(len(pools), 1)
    share = usual / sum(kept.values()) if kept else 0.0
    return {text: share * count for text, count in kept.items()}


def solve(
    backbone: Backbone, requests: Mapping[str, Request], concepts: Sequence[Concept]
) -> dict[str, Changes]:
    """Solve the closed forms of several concepts together.

    Args:
        backbone: the model.
        requests: by concept name.
        concepts: all that are erased: kept prompts that name any of them are left out.

    Returns:
        Concept name -> changes by place. Concepts of different kinds of solver are solved apart.

    Raises:
        ValueError: a prompt does not hold its concept, or a system is singular.
    """
    found: dict[str, dict[str, Any]] = {}
    kinds: dict[tuple[type[Solver], Hold], dict[str, Request]] = {}
    for name, request in requests.items():
        kinds.setdefault((type(request.solver), request.hold), {})[name] = request
    for group in kinds.values():
        for name, changes in _solve_alike(backbone, group, concepts).items():
            found.setdefault(name, {}).update(changes)
    return dict(found)


def _solve_alike(
    backbone: Backbone, requests: Mapping[str, Request], concepts: Sequence[Concept]
) -> dict[str, dict[str, Any]]:
    first, *others = requests.values()
    solver = first.solver.with_others(request.solver for request in others)
    rows = concept_rows(backbone, agreeing(requests, concepts))
    kept: dict[str, Kept] = {}
    texts = kept_texts(requests.values(), concepts)
    if first.hold != "none" and texts:
        weight = fmean([request.preserve_weight for request in requests.values()])
        padding = fmean([request.padding_weight for request in requests.values()])
        weighted = {text: weight * share for text, share in texts.items()}
        kept = kept_states(backbone, weighted, first.hold, padding, rows=solver.reads_rows)
    found: dict[str, dict[str, Any]] = {name: {} for name in requests}
    for name, stream in backbone.text_streams().items():
        own = {concept: streams[name] for concept, streams in rows.items()}
        edits: dict[str, Edit] = solver.solve(own, kept.get(name))
        for concept, changes in on_layers(edits, stream.layers).items():
            for layer, change in changes.items():
                found[concept][f"{backbone.denoiser_name}/{layer}"] = change
    return found
