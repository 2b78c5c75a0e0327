"""What text encoders say, and by which layers it enters a denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Conditioning:
    """What the text encoders say about n prompts.

    Attributes:
        prompt_embeds: token states, (n, tokens, width).
        pooled: pooled states, (n, width), for models that read them.
        known: the texts behind the rows, empty where only their embeddings are known.
    """

    prompt_embeds: Tensor
    pooled: Tensor | None = None
    known: tuple[str | None, ...] = ()

    @property
    def texts(self) -> tuple[str | None, ...]:
        """The text behind each of the n rows, None where it is not known."""
        return self.known or (None,) * len(self)

    def __len__(self) -> int:
        return len(self.prompt_embeds)

    def __getitem__(self, index: Any) -> Conditioning:
        pooled = None if self.pooled is None else self.pooled[index]
        rows = torch.arange(len(self))[index].tolist() if self.known else []
        return Conditioning(
            self.prompt_embeds[index], pooled, tuple(self.known[row] for row in rows)
        )

    def clone(self) -> Conditioning:
        """The same in memory of its own."""
        pooled = None if self.pooled is None else self.pooled.clone()
        return Conditioning(self.prompt_embeds.clone(), pooled, self.known)

    @property
    def nbytes(self) -> int:
        """Size in memory."""
        return self.prompt_embeds.nbytes + (0 if self.pooled is None else self.pooled.nbytes)

    def repeat(self, count: int) -> Conditioning:
        """The only prompt, `count` times."""
        return self[torch.zeros(count, dtype=torch.long)]

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Several one after the other."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return Conditioning(
            torch.cat([part.prompt_embeds for part in parts]),
            torch.cat(pooled) if pooled else None,
            tuple(text for part in parts for text in part.texts),
        )


@dataclass(frozen=True)
class Tokens:
    """A run of token states that one tokenizer stands behind.

    Attributes:
        ids: padded, (n, tokens).
        end: id of the token that ends a text.
        start: id of the token that begins one, None where there is none.
        texts: what was read, n of them.
        spans: where in its text each token begins and ends, (n, tokens, 2); equal where it stands
            for none of it.
    """

    ids: Tensor
    end: int
    start: int | None
    texts: tuple[str, ...]
    spans: Tensor


@dataclass(frozen=True)
class TextStream:
    """One way by which the text encoders' output enters the denoiser.

    Attributes:
        layers: the layers that receive it as it is, by name in the denoiser.
        states: what these layers read of n prompts, (n, tokens, width).
        tokenised: whether `states` has one row a token; if not, one row stands for all the text.
    """

    layers: Mapping[str, nn.Linear]
    states: Callable[[Conditioning], Tensor]
    tokenised: bool = True


def token_states(conditioning: Conditioning) -> Tensor:
    """The token states themselves, (n, tokens, width)."""
    return conditioning.prompt_embeds


def pooled_state(conditioning: Conditioning) -> Tensor:
    """The pooled state as a text of one token, (n, 1, width)."""
    assert conditioning.pooled is not None
    return conditioning.pooled[:, None]


def padded_tokens(tokenizer: Any, prompts: Sequence[str], length: int) -> Tokens:
    """What an encoder that reads `length` tokens is given of n prompts."""
    batch = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
        return_offsets_mapping=True,
    )
    start = tokenizer.bos_token_id
    return Tokens(
        batch.input_ids,
        int(tokenizer.eos_token_id),
        None if start is None else int(start),
        tuple(prompts),
        batch.offset_mapping,
    )
