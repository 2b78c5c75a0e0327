"""Which token embeddings carry a concept, and which ones take their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from expunge.backbone.base import Backbone

Tokens = Literal["last", "concept", "suffix", "end"]
"""`last`: the name's last token; `concept`: all of the name's; `suffix`: those and all that follow,
end-of-text and padding included; `end`: the end-of-text token alone."""

EMPTY = ""

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


def _matches(source: Tensor, guide: Tensor, end: int, tokens: Tokens) -> list[tuple[int, int]]:
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


def source_and_guide(
    backbone: Backbone, pairs: Sequence[Pair], tokens: Tokens
) -> tuple[Tensor, Tensor]:
    """Embeddings that carry the concept and those that replace them, (n, width) each.

    Tokens are aligned by what a prompt and its replacement share at their beginning and end.

    Raises:
        ValueError: a prompt does not hold the concept.
    """
    texts, replacements = [text for text, _ in pairs], [other for _, other in pairs]
    states = backbone.encode_prompts(texts).prompt_embeds.float()
    guides = backbone.encode_prompts(replacements).prompt_embeds.float()
    ids, guide_ids = backbone.token_ids(texts), backbone.token_ids(replacements)
    source_rows, guide_rows = [], []
    for index in range(len(pairs)):
        matched = _matches(ids[index], guide_ids[index], backbone.end_of_text, tokens)
        source_rows.append(states[index, [place for place, _ in matched]])
        guide_rows.append(guides[index, [place for _, place in matched]])
    return torch.cat(source_rows), torch.cat(guide_rows)


def preserved_states(backbone: Backbone, prompts: Sequence[str]) -> Tensor:
    """All token embeddings of prompts that must stay, the empty one too; CPU, (n, width)."""
    states = backbone.encode_prompts([*prompts, EMPTY]).prompt_embeds
    return states.float().flatten(0, 1).cpu()
