"""Words that stand for learned vectors, read by a pipeline whose own vocabulary stays as it is.

A private copy of each tokenizer knows the words; hooks put the vectors in behind the text encoder's
input embedding, so that they get a gradient through the whole encoder.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from expunge.hooks import NotFeltError

Learned = Mapping[str, Mapping[str, Tensor | str]]
"""For each word what every text encoder reads in its place, by component: vectors (k, width), or an
ordinary text. A component that is not named reads nothing there."""

Spelling = tuple[tuple[str, int | str], ...]
"""Words, each with the number of its vectors or the text that stands for it."""


class PrivateTokenizer:
    """A copy of a tokenizer that reads some words as tokens of their own.

    Args:
        tokenizer: the pipeline's; it is left alone.
        spelling: the words.
    """

    def __init__(self, tokenizer: Any, spelling: Spelling) -> None:
        self._own = copy.deepcopy(tokenizer)
        self._texts: dict[str, str] = {}
        self.ids: list[int] = []
        for number, (word, meaning) in enumerate(spelling):
            if isinstance(meaning, str):
                self._texts[word] = meaning
                continue
            if word in tokenizer.get_added_vocab():
                raise ValueError(
                    f"the word {word!r} is a token of this model's own; choose another one"
                )
            names = [f"<|learned-{number}-{part}|>" for part in range(meaning)]
            tokens = [AddedToken(name, lstrip=True, normalized=False) for name in names]
            self._own.add_tokens(tokens)
            self.ids += self._own.convert_tokens_to_ids(names)
            self._texts[word] = "".join(names)

    def __call__(self, text: str | Sequence[str], *args: Any, **kwargs: Any) -> Any:
        spelt = self._spelt(text) if isinstance(text, str) else [self._spelt(t) for t in text]
        return self._own(spelt, *args, **kwargs)

    def _spelt(self, text: str) -> str:
        for word, instead in self._texts.items():
            text = text.replace(word, instead)
        return text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    @property
    def stand_in(self) -> int:
        """An ordinary token: what the encoder is told is there, before the vectors are put in."""
        special = set(self._own.all_special_ids)
        return next(index for index in range(len(self._own)) if index not in special)


class _Putting:
    """Hooks on one text encoder that put vectors where a private tokenizer left their tokens."""

    def __init__(self, component: str, tokenizer: PrivateTokenizer, vectors: Tensor) -> None:
        self._component, self._tokenizer, self._vectors = component, tokenizer, vectors
        self._rows: Tensor | None = None
        self.done = 0

    def before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Note where the tokens are, and put ordinary ones there."""
        ids: Tensor = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        rows = torch.full_like(ids, -1)
        for row, token in enumerate(self._tokenizer.ids):
            rows[ids == token] = row
        self._rows = rows
        plain = torch.where(rows >= 0, self._tokenizer.stand_in, ids)
        if "input_ids" in kwargs:
            return args, kwargs | {"input_ids": plain}
        return (plain, *args[1:]), kwargs

    def embedded(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        """The embeddings with the vectors among them."""
        rows = self._rows
        if rows is None or rows.shape != output.shape[:2]:
            return output
        self._rows = None
        self.done += int((rows >= 0).sum())
        learned = self._vectors.to(output)[rows.clamp(min=0)]
        return torch.where((rows >= 0)[..., None], learned, output)

    @contextlib.contextmanager
    def on(self, encoder: nn.Module) -> Iterator[None]:
        handles = [encoder.register_forward_pre_hook(self.before, with_kwargs=True)]
        handles += [e.register_forward_hook(self.embedded) for e in input_embeddings(encoder)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check(self, wanted: int) -> None:
        if self.done != wanted:
            raise NotFeltError(
                f"the {self._component} read {self.done} of {wanted} learned vectors: words beyond "
                "what it reads are cut off (shorten the prompt), and code compiled before knows "
                "no hooks"
            )


def input_embeddings(encoder: nn.Module) -> list[nn.Module]:
    """Where a text encoder looks its tokens up; T5 has two modules of one weight."""
    find: Any = encoder
    weight = find.get_input_embeddings().weight
    tables = [m for m in encoder.modules() if isinstance(m, nn.Embedding)]
    return [
        m for m in tables if m.weight is weight or m.weight.data_ptr() == weight.data_ptr() != 0
    ]


def check_words(prompts: Sequence[str], tokens: Learned, encoders: Mapping[str, nn.Module]) -> None:
    """Refuse words that cannot be put in.

    Raises:
        ValueError: no prompt holds a word, or a vector fits no encoder.
    """
    for word, parts in tokens.items():
        if not word or not any(word in prompt for prompt in prompts):
            raise ValueError(f"no prompt holds the learned word {word!r}")
        if not any(isinstance(value, Tensor) for value in parts.values()):
            raise ValueError(f"the word {word!r} must have vectors for one encoder, got none")
        for component, value in parts.items():
            if component not in encoders:
                raise ValueError(
                    f"the word {word!r} has vectors for {component!r}, and this pipeline's text "
                    f"encoders are {', '.join(encoders)}"
                )
            encoder: Any = encoders[component]
            width = encoder.get_input_embeddings().weight.shape[1]
            if isinstance(value, Tensor) and (
                value.ndim != 2 or not len(value) or value.shape[1] != width
            ):
                raise ValueError(
                    f"vectors of {word!r} for {component} must be (k, {width}), "
                    f"got {tuple(value.shape)}"
                )


class LearnedWords:
    """Pipelines that read learned words, made from one pipeline; private tokenizers are kept."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], PrivateTokenizer] = {}

    @contextlib.contextmanager
    def reading(
        self, pipe: Any, encoders: Mapping[str, nn.Module], prompts: Sequence[str], tokens: Learned
    ) -> Iterator[Any]:
        """A copy of the pipeline that encodes prompts with learned words.

        Raises:
            ValueError: no prompt holds a word, or a vector fits no encoder.
            NotFeltError: a word was not read to its end.
        """
        check_words(prompts, tokens, encoders)
        private, puttings = copy.copy(pipe), []
        with contextlib.ExitStack() as hooked:
            for component, encoder in encoders.items():
                name = component.replace("text_encoder", "tokenizer")
                meanings = {w: parts.get(component, "") for w, parts in tokens.items()}
                tokenizer = self._tokenizer(getattr(pipe, name), component, meanings)
                # Past the pipeline's own `__setattr__`, which writes to a shared configuration.
                vars(private)[name] = tokenizer
                vectors = {w: v for w, v in meanings.items() if isinstance(v, Tensor)}
                if not vectors:
                    continue
                putting = _Putting(component, tokenizer, torch.cat(list(vectors.values())))
                hooked.enter_context(putting.on(encoder))
                count = sum(p.count(w) * len(v) for p in prompts for w, v in vectors.items())
                puttings.append((putting, count))
            yield private
        for putting, count in puttings:
            putting.check(count)

    def _tokenizer(
        self, tokenizer: Any, component: str, meanings: Mapping[str, Tensor | str]
    ) -> PrivateTokenizer:
        spelling = tuple((w, v if isinstance(v, str) else len(v)) for w, v in meanings.items())
        key = (component, id(tokenizer), len(tokenizer), spelling)
        if key not in self._kept:
            if len(self._kept) >= 16:
                self._kept.clear()
            self._kept[key] = PrivateTokenizer(tokenizer, spelling)
        return self._kept[key]


@contextlib.contextmanager
def frozen(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Within this context no weight of some networks takes part in a graph."""
    taken = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in taken:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in taken:
            parameter.requires_grad_(True)
