"""Which embeddings carry a concept, and which ones take their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.closed_form import Moments, Targets

TokenChoice = Literal["last", "concept", "suffix", "end"]
"""`last`: the name's last token; `concept`: all of the name's; `suffix`: those and all that follow,
end-of-text and padding included; `end`: the end-of-text token alone. A pooled state stands for the
whole text and is always taken."""

EMPTY = ""
PART = 32
"""Prompts whose states are held in fp64 at once."""

Pair = tuple[str, str]
"""A prompt with the concept, and the prompt that takes its place."""


def _row(ids: Tensor, end: int) -> tuple[list[int], int]:
    """The tokens of one prompt and the place of its end-of-text token."""
    row = ids.tolist()
    stop = row.index(end) if end in row else len(row) - 1
    return row, stop


def _shared(first: list[int], second: list[int]) -> tuple[int, int]:
    """How many tokens two prompts share at their beginning and at their end."""
    shortest = min(len(first), len(second))
    head = 0
    while head < shortest and first[head] == second[head]:
        head += 1
    tail = 0
    while tail < shortest - head and first[-1 - tail] == second[-1 - tail]:
        tail += 1
    return head, tail


def _matches(source: Tensor, guide: Tensor, end: int, tokens: TokenChoice) -> list[tuple[int, int]]:
    """Token places in a prompt, each with its counterpart in the prompt that replaces it."""
    row, stop = _row(source, end)
    other, other_stop = _row(guide, end)
    if tokens == "end":
        return [(stop, other_stop)]
    head, tail = _shared(row[:stop], other[:other_stop])
    last, other_last = stop - tail - 1, other_stop - tail - 1
    if last < head:
        raise ValueError("a prompt and its anchor prompt are the same; the concept is not in it")
    # Where the anchor is shorter than the name, its last own token stands for the rest; an empty
    # one leaves the end-of-text token.
    stand_in = other_last if other_last >= head else other_stop
    if tokens == "last":
        return [(last, stand_in)]
    name = [(place, min(place, stand_in)) for place in range(head, last)] + [(last, stand_in)]
    if tokens == "concept":
        return name
    shift = other_stop - stop
    final = len(other) - 1
    after = [(place, min(place + shift, final)) for place in range(last + 1, len(row))]
    return name + after


def _aligned(
    backbone: Backbone, pairs: Sequence[Pair], tokens: TokenChoice
) -> list[list[tuple[int, int]]]:
    """For every pair, places among its token states and their counterparts."""
    texts, replacements = [text for text, _ in pairs], [other for _, other in pairs]
    found: list[list[tuple[int, int]]] = [[] for _ in pairs]
    start = 0
    for run, other in zip(backbone.tokens(texts), backbone.tokens(replacements), strict=True):
        for index, places in enumerate(found):
            matched = _matches(run.ids[index], other.ids[index], run.end, tokens)
            places += [(start + place, start + guide) for place, guide in matched]
        start += run.ids.shape[1]
    return found


def source_and_guide(
    backbone: Backbone, pairs: Sequence[Pair], tokens: TokenChoice
) -> dict[str, tuple[Tensor, Tensor]]:
    """Embeddings that carry the concept and those that replace them, by text stream.

    Tokens are aligned by what a prompt and its replacement share at their beginning and end.

    Returns:
        Stream name -> sources and guides, (n, width) each.

    Raises:
        ValueError: a prompt does not hold the concept.
    """
    sources = backbone.encode_prompts([text for text, _ in pairs])
    guides = backbone.encode_prompts([other for _, other in pairs])
    aligned = _aligned(backbone, pairs, tokens)
    found = {}
    for name, stream in backbone.text_streams().items():
        states, others = stream.states(sources).float(), stream.states(guides).float()
        places = aligned if stream.tokenised else [[(0, 0)]] * len(pairs)
        found[name] = (
            torch.cat([states[i, [p for p, _ in matched]] for i, matched in enumerate(places)]),
            torch.cat([others[i, [g for _, g in matched]] for i, matched in enumerate(places)]),
        )
    return found


def preserved_grams(backbone: Backbone, prompts: Sequence[str]) -> dict[str, Tensor]:
    """Σ r rᵀ over all embeddings of prompts that must stay, the empty one too.

    Summed a few prompts at a time: FLUX reads 512 states of width 4096 for each of them.

    Returns:
        Stream name -> fp64 on the CPU, (width, width).
    """
    grams: dict[str, Tensor] = {}
    texts = [*prompts, EMPTY]
    for start in range(0, len(texts), PART):
        kept = backbone.encode_prompts(texts[start : start + PART])
        for name, stream in backbone.text_streams().items():
            states = stream.states(kept).double().flatten(0, 1)
            part = (states.T @ states).cpu()
            grams[name] = grams[name] + part if name in grams else part
    return grams


def joint_targets(
    backbone: Backbone,
    pairs: Mapping[str, Sequence[Pair]],
    kept: Sequence[str] | None,
    tokens: TokenChoice,
    *,
    ridge: float,
    strength: float = 1.0,
    erase_weight: float = 1.0,
    preserve_weight: float = 1.0,
    collapse: bool = False,
) -> dict[str, Targets]:
    """What a closed form shall do in every text stream.

    Args:
        backbone: the model.
        pairs: concept name -> prompts and their replacements.
        kept: prompts whose embeddings stay, None for none at all.
        tokens: which embeddings carry a concept.
        ridge: λ of the solve.
        strength: η, the share of the edit that is made.
        erase_weight: of the concepts' embeddings.
        preserve_weight: of the kept ones.
        collapse: send the difference of source and guide to zero instead of source to guide.

    Raises:
        ValueError: a prompt does not hold its concept.
    """
    matched = {name: source_and_guide(backbone, texts, tokens) for name, texts in pairs.items()}
    grams = preserved_grams(backbone, kept) if kept is not None else {}
    found = {}
    for stream in backbone.text_streams():
        moments = {}
        for name, streams in matched.items():
            sources, guides = streams[stream]
            if collapse:
                sources, guides = sources - guides, torch.zeros_like(guides)
            moments[name] = Moments.of(sources, guides, erase_weight)
        nothing = torch.zeros_like(next(iter(moments.values())).gram)
        stay = preserve_weight * grams.get(stream, nothing)
        found[stream] = Targets(moments, stay, ridge, strength)
    return found
