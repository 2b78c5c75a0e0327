"""A gate by what the prompt says: how near it is to the concept, and whether it names it (SPM)."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from expunge import hooks
from expunge.backbone.base import Backbone
from expunge.gate import Gate

_PROBED = 16
"""Features by which a row the denoiser reads is told from those of other texts."""
_REMEMBERED = 512
"""Texts whose tokens are known at once."""
_ALIKE = 0.05
"""Largest difference of a text's states, as a share of their size, that a cast explains."""


_NUMBERS = itertools.count()
"""Names of gates: an address may come again."""


@dataclass(frozen=True)
class _Read:
    """What a text encoder made of one text."""

    tokens: frozenset[int]
    summary: Tensor
    probes: tuple[Tensor, ...]


class _Encoder:
    """Follows one text encoder, and remembers what it read."""

    def __init__(self) -> None:
        self.read: OrderedDict[tuple[int, ...], _Read] = OrderedDict()

    def state(self) -> Hashable:
        """Nothing: by its name alone, texts encoded before are encoded again, and seen."""
        return None

    def begin(self) -> None:
        """Nothing to forget between steps."""

    def check_ran(self) -> None:
        """It need not run: a text it never saw is no reason not to erase."""

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
    ) -> None:
        ids = args[0] if args else kwargs["input_ids"]
        last = output.last_hidden_state
        every = [last, *(getattr(output, "hidden_states", None) or ())[-2:]]
        ends = _ends(ids, module)
        summary = getattr(output, "pooler_output", None)
        for index, row in enumerate(ids.tolist()):
            own = row[: ends[index] + 1]
            whole = last[index, : len(own)].mean(0) if summary is None else summary[index]
            probes = tuple(each[index, :, :_PROBED].detach().float().cpu() for each in every)
            self.read[tuple(row)] = _Read(frozenset(own), whole.detach().float().cpu(), probes)
        while len(self.read) > _REMEMBERED:
            self.read.popitem(last=False)

    def find(self, states: Tensor) -> _Read | None:
        """The text whose states these are, (tokens, width), None where none is near."""
        nearest, least = None, _ALIKE
        for read in self.read.values():
            for probe in read.probes:
                if len(probe) > len(states) or states.shape[1] < _PROBED:
                    continue
                gap = (states[: len(probe), :_PROBED] - probe).norm() / probe.norm()
                if float(gap) < least:
                    nearest, least = read, float(gap)
        return nearest


def _ends(ids: Tensor, encoder: Any) -> list[int]:
    """Where each text's own tokens end."""
    end = encoder.config.eos_token_id
    found = []
    for row in ids.tolist():
        # CLIP ends a text with its largest id, whatever the configuration says.
        wanted = end if end in row else max(row)
        found.append(row.index(wanted))
    return found


class PromptGate(Gate):
    """Strength max(cos(prompt, concept), share of the concept's tokens in the prompt) (SPM, eq. 8).

    Rows of the denoiser's call are told by the states it reads; a row of no text that the encoder
    was seen to read gets 1.

    Args:
        encoder: component that reads the prompt.
        names: of each of the concept's names the tokens, and the encoder's summary of it.
    """

    kind: ClassVar[str] = "prompt"

    def __init__(
        self, encoder: str, names: Sequence[tuple[Sequence[int], Sequence[float]]]
    ) -> None:
        self.encoder = encoder
        self.names = [(frozenset(tokens), torch.tensor(summary)) for tokens, summary in names]
        self._seen = _Encoder()
        self._name = f"gate {next(_NUMBERS)}"
        self._handles: list[RemovableHandle] = []
        self._network: nn.Module | None = None
        self._now: Tensor | None = None

    @classmethod
    def of(cls, backbone: Backbone, names: Sequence[str]) -> PromptGate:
        """The gate of a concept by its names, with the encoder whose states the denoiser reads."""
        # FLUX reads T5's states, all others CLIP's first.
        encoder = "text_encoder_2" if backbone.architecture == "flux" else "text_encoder"
        found = cls(encoder, [])
        found.watch(backbone.networks)
        try:
            backbone.encode_prompts([""])
            [empty] = found._seen.read.values()
            found._seen.read.clear()
            backbone.encode_prompts(list(names))
            read = list(found._seen.read.values())
        finally:
            found.unwatch()
        own = [(sorted(r.tokens - empty.tokens), r.summary.tolist()) for r in read]
        return cls(encoder, own)

    def watch(self, networks: Mapping[str, nn.Module]) -> None:
        denoiser = networks.get("unet", networks.get("transformer"))
        if self.encoder not in networks or denoiser is None:
            raise ValueError(
                f"a prompt gate reads {self.encoder!r} and a unet or transformer, and the pipeline "
                f"has {', '.join(sorted(networks))}"
            )
        self._network = networks[self.encoder]
        hooks.attached(self._network)[self._name] = self._seen
        reader = hooks.unwrapped(self._network).register_forward_hook(self._seen, with_kwargs=True)
        inner = hooks.unwrapped(denoiser)
        before = inner.register_forward_pre_hook(self._before, with_kwargs=True)
        self._handles = [reader, before]

    def unwatch(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._network is not None:
            hooks.attached(self._network).pop(self._name, None)
        self._handles, self._network, self._now = [], None, None

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        states = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        self._now = None if states is None else torch.stack([self._row(row) for row in states])

    def _row(self, states: Tensor) -> Tensor:
        read = self._seen.find(states.detach().float().cpu())
        return torch.ones(()) if read is None else self.strength(read.tokens, read.summary)

    def strength(self, tokens: frozenset[int], summary: Tensor) -> Tensor:
        """Of a prompt by its tokens and the encoder's summary of it, between 0 and 1."""
        near = [F.cosine_similarity(summary, own, dim=0) for _, own in self.names]
        named = [len(own & tokens) / max(len(own), 1) for own, _ in self.names]
        return torch.tensor([*map(float, near), *named]).max().clamp(0, 1)

    def rows(self, count: int) -> Tensor | None:
        return self._now if self._now is not None and len(self._now) == count else None

    def record(self) -> dict[str, Any]:
        names = [[sorted(tokens), summary.tolist()] for tokens, summary in self.names]
        return {"kind": self.kind, "encoder": self.encoder, "names": names}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        return cls(str(record["encoder"]), [(each[0], each[1]) for each in record["names"]])
