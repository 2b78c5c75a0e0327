"""How a pipeline reads text: encoding, its cache, the tokens behind the states."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from expunge.backbone.conditioning import Conditioning, Tokens
from expunge.backbone.facts import Facts

CACHE_BYTES = 2**30
"""Of encoded prompts, kept for the next time they are asked."""
ENCODED_AT_ONCE = 32


class Text(Facts):
    """A pipeline's tokenizers and text encoders."""

    def __init__(self, pipe: Any) -> None:
        super().__init__(pipe)
        self._cache: dict[str, Conditioning] = {}

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Token states of every prompt, computed once per distinct text while memory allows."""
        known = {text: self._cache[text] for text in prompts if text in self._cache}
        missing = [text for text in dict.fromkeys(prompts) if text not in known]
        for start in range(0, len(missing), ENCODED_AT_ONCE):
            part = missing[start : start + ENCODED_AT_ONCE]
            with torch.no_grad():
                states, pooled = self._encode(self.pipe, part)
            encoded = Conditioning(states, pooled, tuple(part))
            known |= {text: encoded[i : i + 1].clone() for i, text in enumerate(part)}
        self._remember(known)
        return Conditioning.cat([known[text] for text in prompts])

    def _remember(self, known: dict[str, Conditioning]) -> None:
        """Keep what was used last, within a budget: on FLUX one text takes four megabytes."""
        for text, states in known.items():
            self._cache.pop(text, None)
            self._cache[text] = states
        each = next(iter(self._cache.values()))
        most = max(1, CACHE_BYTES // each.nbytes)
        for text in list(self._cache)[:-most]:
            del self._cache[text]

    def unconditional(self) -> Conditioning:
        """What guidance leads away from where no negative prompt is given, n = 1."""
        return self.encode_prompts([""])

    @abstractmethod
    def _encode(
        self, pipe: Any, prompts: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token states, and pooled ones where the model reads them, as `pipe` encodes."""

    @abstractmethod
    def tokens(self, prompts: Sequence[str]) -> list[Tokens]:
        """The tokens behind `prompt_embeds`, one run for each tokenizer, in the order of states."""

    @abstractmethod
    def _tokenizers(self) -> list[tuple[Any, int]]:
        """Each tokenizer behind the token states, and how many tokens its encoder reads."""

    def unreadable(self, name: str) -> bool:
        """Whether a name is lost on every tokenizer behind the token states.

        Part of it becomes the unknown token there, the same as for any other such word.
        """
        ids = [
            (tokenizer(name, add_special_tokens=False, verbose=False).input_ids, tokenizer)
            for tokenizer, _ in self._tokenizers()
        ]
        return all(tokenizer.unk_token_id in found for found, tokenizer in ids)

    def cut_short(self, prompts: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Prompts no tokenizer reads to their end: how many tokens they have, how many are read."""
        found = {}
        for text in dict.fromkeys(prompts):
            counts = [
                (len(tokenizer(text, verbose=False).input_ids), limit)
                for tokenizer, limit in self._tokenizers()
            ]
            if all(count > limit for count, limit in counts):
                found[text] = max(counts, key=lambda entry: entry[1])
        return found
