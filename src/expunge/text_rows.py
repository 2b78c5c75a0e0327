"""From texts to embeddings: which of them carry a concept, what takes their place, what stays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from typing import Literal, NamedTuple

import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.backbone.conditioning import TextStream, Tokens
from expunge.closed_form import Kept, Rows, gram
from expunge.request import Request
from expunge.run.progress import progress_bar
from expunge.settings import Hold, TokenChoice

EMPTY = ""
PART = 32
"""Prompts whose states are held in fp64 at once."""
TOGETHER = 256
"""Pairs of prompts of several concepts that are encoded in one pass."""

# --- which tokens


class Match(NamedTuple):
    """A token of a prompt that carries a concept.

    Attributes:
        place: its own.
        guide: of its counterpart in the prompt that takes the other's place.
        part: the concept's `name`, what stands behind the end of the text, or the `rest`.
    """

    place: int
    guide: int
    part: Literal["name", "rest", "padding"]


def _row(ids: Tensor, end: int) -> tuple[list[int], int]:
    """The tokens of one prompt and the place of its end-of-text token."""
    row = ids.tolist()
    stop = row.index(end) if end in row else len(row) - 1
    return row, stop


def _counterparts(source: list[int], guide: list[int]) -> list[int]:
    """For every token of a text its counterpart in another, by the longest matching runs.

    What has no match shares out the tokens that stand in its place, the last one for all that are
    left; where nothing stands in its place, the one that follows.
    """
    found = []
    matcher = SequenceMatcher(None, source, guide, autojunk=False)
    for what, start, stop, other, other_stop in matcher.get_opcodes():
        if what != "insert":
            last = max(other_stop - 1, other)
            own = [min(other + i, last) for i in range(stop - start)]
            if own and what == "replace":
                own[-1] = last
            found += own
    return found


def _name_places(source: list[int], guide: list[int], names: Iterable[list[int]]) -> list[int]:
    """Where a text holds one of some names; what differs from the other text if it holds none."""
    found = {
        start + offset
        for name in names
        for start in range(len(source) - len(name) + 1)
        if source[start : start + len(name)] == name
        for offset in range(len(name))
    }
    if found:
        return sorted(found)
    blocks = SequenceMatcher(None, source, guide, autojunk=False).get_matching_blocks()
    same = {place for block in blocks for place in range(block.a, block.a + block.size)}
    return [place for place in range(len(source)) if place not in same]


def _matches(
    source: tuple[list[int], int],
    replaced: tuple[list[int], int],
    names: Sequence[list[int]],
    tokens: TokenChoice,
    *,
    begins: bool,
) -> list[Match]:
    """Tokens of a prompt, each with its counterpart in the prompt that replaces it."""
    (row, stop), (guide, guide_stop) = source, replaced
    if row == guide:
        raise ValueError("a prompt and its anchor prompt are the same; the concept is not in it")
    if tokens == "end":
        return [Match(stop, guide_stop, "rest")]
    places = _name_places(row[:stop], guide[:guide_stop], names)
    counterparts = _counterparts(row[:stop], guide[:guide_stop])
    if guide_stop <= int(begins):  # an empty guide is the state that begins every text
        counterparts = [0] * stop
    own = [Match(place, min(counterparts[place], guide_stop), "name") for place in places]
    if tokens == "last":
        return own[-1:]
    if tokens == "concept":
        return own
    chosen = set(places)
    rest = [(p, counterparts[p]) for p in range(places[0], stop) if p not in chosen]
    rest.append((stop, guide_stop))
    final = len(guide) - 1
    behind = [(p, min(p + guide_stop - stop, final)) for p in range(stop + 1, len(row))]
    return (
        own + [Match(*each, "rest") for each in rest] + [Match(*each, "padding") for each in behind]
    )


class Reading:
    """Texts as the model reads them, each once: tokens and states of many requests in one pass."""

    def __init__(self, backbone: Backbone, requests: Sequence[Request]) -> None:
        pairs = [text for request in requests for pair in request.pairs for text in pair]
        names = [name for request in requests for name in request.names]
        self.places = {text: i for i, text in enumerate(dict.fromkeys(pairs + names))}
        self.runs = backbone.tokens(list(self.places))
        self.texts = {text: i for i, text in enumerate(dict.fromkeys(pairs))}
        short = all(request.tokens in ("last", "concept") for request in requests)
        encode = backbone.encode_unpadded if short else backbone.encode_prompts
        self.encoded = encode(list(self.texts))

    def row(self, run: Tokens, text: str) -> tuple[list[int], int]:
        """Tokens of a text, and the place of the one that ends it."""
        return _row(run.ids[self.places[text]], run.end)

    def own(self, run: Tokens, name: str) -> list[int]:
        """Tokens of a name alone: without what begins and ends a text."""
        row, stop = self.row(run, name)
        return row[int(run.start is not None) : stop]

    def aligned(self, request: Request) -> list[list[Match]]:
        """For every pair, its tokens that carry the concept, counted through all tokenizers."""
        found: list[list[Match]] = [[] for _ in request.pairs]
        start = 0
        for run in self.runs:
            names = [own for name in request.names if (own := self.own(run, name))]
            for (text, other), places in zip(request.pairs, found, strict=True):
                rows, begins = (self.row(run, text), self.row(run, other)), run.start is not None
                matched = _matches(*rows, names, request.tokens, begins=begins)
                places += [Match(start + m.place, start + m.guide, m.part) for m in matched]
            start += run.ids.shape[1]
        return found

    def rows(self, request: Request, streams: Mapping[str, TextStream]) -> dict[str, Rows]:
        """Embeddings that carry a concept and those that replace them, by text stream."""
        sources = self.encoded[torch.tensor([self.texts[text] for text, _ in request.pairs])]
        guides = self.encoded[torch.tensor([self.texts[other] for _, other in request.pairs])]
        aligned, found = self.aligned(request), {}
        weights = {"name": request.name_weight, "rest": 1.0, "padding": request.padding_weight}
        for name, stream in streams.items():
            states, others = stream.states(sources).float(), stream.states(guides).float()
            places = aligned if stream.tokenised else [[Match(0, 0, "rest")]] * len(request.pairs)
            own = torch.cat([states[i, [m.place for m in each]] for i, each in enumerate(places)])
            new = torch.cat([others[i, [m.guide for m in each]] for i, each in enumerate(places)])
            if request.collapse:
                own, new = own - new, torch.zeros_like(new)
            if set(weights.values()) != {1.0}:  # a row's weight is its square's
                counted = [[weights[match.part]] for each in places for match in each]
                scales = torch.tensor(counted).sqrt().to(own)
                own, new = own * scales, new * scales
            found[name] = Rows(own, new, request.erase_weight, request.strength)
        return found


def concept_rows(backbone: Backbone, requests: Mapping[str, Request]) -> dict[str, dict[str, Rows]]:
    """Embeddings that carry concepts and those that replace them.

    Returns:
        Concept name -> text stream -> rows.

    Raises:
        ValueError: a prompt does not hold its concept.
    """
    streams = backbone.text_streams()
    found: dict[str, dict[str, Rows]] = {}
    with progress_bar("reading concepts", len(requests)) as advance:
        for part in _parts(requests):
            read = Reading(backbone, list(part.values()))
            for name, request in part.items():
                found[name] = read.rows(request, streams)
                advance(1, name)
    return found


def _parts(requests: Mapping[str, Request]) -> Iterator[dict[str, Request]]:
    """Requests in groups whose texts' states fit into memory at once."""
    part: dict[str, Request] = {}
    for name, request in requests.items():
        part[name] = request
        if sum(len(each.pairs) for each in part.values()) >= TOGETHER:
            yield part
            part = {}
    if part:
        yield part


# --- what stays


def _last_places(backbone: Backbone, names: Sequence[str]) -> list[int]:
    """Where the last token of every name stands among the states of the first tokenizer."""
    run = backbone.tokens(names)[0]
    return [max(_row(ids, run.end)[1] - 1, 0) for ids in run.ids]


def _padding_scales(runs: Sequence[Tokens], weight: float) -> Tensor:
    """Square roots of the weights of texts' token states, (texts, tokens, 1)."""
    found = []
    for run in runs:
        stops = torch.tensor([_row(ids, run.end)[1] for ids in run.ids])
        behind = torch.arange(run.ids.shape[1]) > stops[:, None]
        found.append(torch.where(behind, weight**0.5, 1.0))
    return torch.cat(found, dim=1)[..., None]


def kept_states(
    backbone: Backbone, texts: Mapping[str, float], hold: Hold, padding: float, *, rows: bool
) -> dict[str, Kept]:
    """Embeddings that stay, by text stream, a few prompts at a time.

    FLUX reads 512 states of width 4096 for each prompt, so they are summed.

    Args:
        backbone: the model.
        texts: what stays, and the weight of each.
        hold: what of it.
        padding: weight of a state behind the end of its text, on top of its text's.
        rows: whether the embeddings themselves are asked for.
    """
    grams: dict[str, Tensor] = {}
    each: dict[str, list[Tensor]] = {}
    if hold == "states":
        texts = {**texts, EMPTY: sum(texts.values()) / len(texts)}
    told = list(texts)
    for start in range(0, len(told), PART):
        part = told[start : start + PART]
        encoded = backbone.encode_prompts(part)
        weights = torch.tensor([texts[text] for text in part], dtype=torch.float64).sqrt()
        for name, stream in backbone.text_streams().items():
            states = stream.states(encoded)
            scales = weights[:, None, None]
            if stream.tokenised and hold == "names":
                states = states[torch.arange(len(part)), _last_places(backbone, part)][:, None]
            elif stream.tokenised and padding != 1.0:
                scales = scales * _padding_scales(backbone.tokens(part), padding)
            summed = gram((states.detach().cpu().double() * scales).flatten(0, 1))
            grams[name] = grams[name] + summed if name in grams else summed
            if rows:
                each.setdefault(name, []).append(states.flatten(0, 1).float().cpu())
    if not rows:
        return {name: Kept(total, total[:0], total[:0]) for name, total in grams.items()}
    fixed = _fixed(backbone)
    return {name: Kept(total, torch.cat(each[name]), fixed[name]) for name, total in grams.items()}


def _fixed(backbone: Backbone) -> dict[str, Tensor]:
    """The empty prompt's first state and three means of the others, by stream (SPEED, sec. 4.3)."""
    encoded = backbone.encode_prompts([EMPTY])
    found = {}
    for name, stream in backbone.text_streams().items():
        states = stream.states(encoded)[0].float().cpu()
        rest = states[1:]
        if len(rest) > 3:
            centres, _ = kmeans2(rest.double().numpy(), 3, minit="++", rng=0)
            rest = torch.from_numpy(centres).to(states)
        found[name] = torch.cat([states[:1], rest])
    return found
