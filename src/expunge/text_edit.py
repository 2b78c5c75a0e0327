"""Closed forms of several concepts, solved together from their texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from expunge.backbone.base import Backbone
from expunge.change import Changes
from expunge.closed_form import Edit, Kept, Solver, on_layers
from expunge.concept import Concept
from expunge.request import Request
from expunge.settings import Hold
from expunge.text_rows import concept_rows, kept_states


def _naming(concepts: Sequence[Concept]) -> Callable[[str], bool]:
    return lambda text: any(concept.mentions(text) for concept in concepts)


def kept_texts(requests: Iterable[Request], concepts: Sequence[Concept]) -> tuple[list[str], float]:
    """Kept texts of several concepts that name none of them, and the weight of each.

    The weight makes all of them count as much as one concept's own would alone, so what is kept
    pulls no harder when more concepts go.
    """
    pools = [request.kept for request in requests]
    names_one = _naming(concepts)
    texts = [t for t in dict.fromkeys(text for pool in pools for text in pool) if not names_one(t)]
    usual = sum(map(len, pools)) / max(len(pools), 1)
    return texts, usual / len(texts) if texts else 0.0


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
    rows = concept_rows(backbone, requests)
    kept: dict[str, Kept] = {}
    texts, weight = kept_texts(requests.values(), concepts)
    if first.hold != "none" and texts:
        weight *= sum(r.preserve_weight for r in requests.values()) / len(requests)
        kept = kept_states(backbone, texts, first.hold, weight, rows=solver.reads_rows)
    found: dict[str, dict[str, Any]] = {name: {} for name in requests}
    for name, stream in backbone.text_streams().items():
        own = {concept: streams[name] for concept, streams in rows.items()}
        edits: dict[str, Edit] = solver.solve(own, kept.get(name))
        for concept, changes in on_layers(edits, stream.layers).items():
            for layer, change in changes.items():
                found[concept][f"{backbone.denoiser_name}/{layer}"] = change
    return found
