"""How a pipeline reads text: encoding, its cache, the tokens behind the states."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from expunge import hooks
from expunge.backbone.conditioning import Conditioning, Tokens, padded_tokens
from expunge.backbone.facts import Facts
from expunge.backbone.identity import weights_key
from expunge.backbone.learned import Learned, LearnedWords, frozen

CACHE_BYTES = 2**30
"""Of encoded prompts, kept for the next time they are asked."""
ENCODED_AT_ONCE = 32


class Text(Facts):
    """A pipeline's tokenizers and text encoders.

    Attributes:
        causal_text: whether a token's state depends on what stands before it alone.
    """

    causal_text = False

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self._cache: dict[tuple[Hashable, str], Conditioning] = {}
        self._learned = LearnedWords()

    # --- states

    def encode(
        self, prompts: Sequence[str], tokens: Learned | None = None, *, grad: bool = False
    ) -> Conditioning:
        """Token states of every prompt, computed anew; the same that `pipe.encode_prompt` gives.

        Args:
            prompts: n of them. Every word of `tokens` is in one of them.
            tokens: words that stand for learned vectors, each by text encoder:
                `{"<x>": {"text_encoder": (k, width), "text_encoder_2": "cat"}}`. An encoder with a
                text instead of vectors reads that text, one that is not named reads nothing there.
            grad: keep a graph, to the learned vectors and to what hangs on the text encoders; their
                own weights take no part in it.

        Raises:
            ValueError: a word is in no prompt, or its vectors fit no encoder.
            NotFeltError: the encoder did not read all of a word's vectors, or a change that is
                applied to it did not run.
        """
        texts, encoders = list(prompts), self.text_encoders
        for encoder in encoders.values():
            hooks.step_begun(encoder)
        with torch.set_grad_enabled(grad), frozen(list(encoders.values())):
            if not tokens:
                states, pooled = self._encode(self.pipe, texts)
            else:
                with self._learned.reading(self.pipe, encoders, texts, tokens) as private:
                    states, pooled = self._encode(private, texts)
        for encoder in encoders.values():
            hooks.step_done(encoder)
        return Conditioning(states, pooled, tuple(texts))

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """As `encode` without a graph, computed once per distinct text while memory allows.

        A text is encoded again when a text encoder's weights, or what hangs on it, have changed.
        """
        state = self._text_state()
        known = {t: self._cache[state, t] for t in prompts if (state, t) in self._cache}
        missing = [text for text in dict.fromkeys(prompts) if text not in known]
        for start in range(0, len(missing), ENCODED_AT_ONCE):
            part = missing[start : start + ENCODED_AT_ONCE]
            encoded = self.encode(part)
            known |= {text: encoded[i : i + 1].clone() for i, text in enumerate(part)}
        if missing:
            state = self._text_state()  # encoding may have moved weights
        self._remember(state, known)
        return Conditioning.cat([known[text] for text in prompts])

    @torch.no_grad()
    def encode_unpadded(self, prompts: Sequence[str]) -> Conditioning:
        """Token states as far as the longest text goes, computed anew, once per distinct text.

        Where encoders are causal, what follows a token does not change its state, and most of a
        name's 77 tokens are padding. Other encoders read all of it.
        """
        if not self.causal_text:
            return self.encode_prompts(prompts)
        distinct = list(dict.fromkeys(prompts))
        private = copy.copy(self.pipe)
        for name in ("tokenizer", "tokenizer_2"):
            tokenizer = copy.copy(getattr(self.pipe, name, None))
            if tokenizer is not None:
                converted = self._converted(distinct, tokenizer)
                longest = max(map(len, tokenizer(converted, verbose=False).input_ids))
                tokenizer.model_max_length = min(longest, tokenizer.model_max_length)
                vars(private)[name] = tokenizer
        parts = [
            Conditioning(*self._encode(private, distinct[start : start + ENCODED_AT_ONCE]))
            for start in range(0, len(distinct), ENCODED_AT_ONCE)
        ]
        places = {text: place for place, text in enumerate(distinct)}
        return Conditioning.cat(parts)[torch.tensor([places[text] for text in prompts])]

    def _text_state(self) -> Hashable:
        """What of the text encoders determines their states."""
        encoders = self.text_encoders.values()
        return tuple((weights_key(encoder), hooks.state(encoder)) for encoder in encoders)

    def _remember(self, state: Hashable, known: dict[str, Conditioning]) -> None:
        """Keep what was used last, within a budget: on FLUX one text takes four megabytes."""
        for text, states in known.items():
            self._cache.pop((state, text), None)
            self._cache[state, text] = states
        each = next(iter(self._cache.values()))
        most = max(1, CACHE_BYTES // each.nbytes)
        for key in list(self._cache)[:-most]:
            del self._cache[key]

    def unconditional(self) -> Conditioning:
        """What guidance leads away from where no negative prompt is given, n = 1."""
        return self.encode_prompts([""])

    @abstractmethod
    def _encode(self, pipe: Any, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Token states, and pooled ones where the model reads them, as `pipe` encodes."""

    # --- tokens

    @abstractmethod
    def _tokenizers(self) -> list[tuple[Any, int]]:
        """Each tokenizer behind the token states, and how many tokens its encoder reads."""

    def tokens(self, prompts: Sequence[str]) -> list[Tokens]:
        """The tokens behind `prompt_embeds`, one run for each tokenizer, in the order of states.

        Words of a textual inversion the user has loaded are all of their tokens.
        """
        return [
            padded_tokens(tokenizer, self._converted(prompts, tokenizer), limit)
            for tokenizer, limit in self._tokenizers()
        ]

    def _converted(self, prompts: Sequence[str], tokenizer: Any) -> list[str]:
        """Prompts as the pipeline hands them to a tokenizer."""
        convert = getattr(self.pipe, "maybe_convert_prompt", None)
        texts = list(prompts)
        return texts if convert is None else list(convert(texts, tokenizer))

    def unreadable(self, name: str) -> bool:
        """Whether a name is lost on every tokenizer behind the token states.

        Part of it becomes the unknown token there, the same as for any other such word.
        """
        found = []
        for tokenizer, _ in self._tokenizers():
            (text,) = self._converted([name], tokenizer)
            ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            found.append(tokenizer.unk_token_id in ids)
        return all(found)

    def cut_short(self, prompts: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Prompts no tokenizer reads to their end: how many tokens they have, how many are read."""
        found = {}
        for text in dict.fromkeys(prompts):
            counts = []
            for tokenizer, limit in self._tokenizers():
                (whole,) = self._converted([text], tokenizer)
                counts.append((len(tokenizer(whole, verbose=False).input_ids), limit))
            if all(count > limit for count, limit in counts):
                found[text] = max(counts, key=lambda entry: entry[1])
        return found
