"""Vectors at text encoders' inputs, as something that can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.backbone.base import Backbone


class Vectors(nn.Module):
    """What stands for one word, for each text encoder.

    What is trained is the distance from where they began, in units of the root mean square of the
    encoder's embeddings: those of T5 are a thousand times those of CLIP.

    Args:
        start: by encoder, (k, width).
        scale: by encoder.
        texts: what encoders without vectors read.
    """

    def __init__(self, start: dict[str, Tensor], scale: dict[str, float], texts: dict[str, str]):
        super().__init__()
        self.begun, self.scale, self.texts = start, scale, texts
        self.moved = nn.ParameterDict({name: torch.zeros_like(v) for name, v in start.items()})

    @classmethod
    def start(
        cls, backbone: Backbone, text: str, count: int, encoders: Sequence[str] | None = None
    ) -> Vectors:
        """`count` vectors for each encoder, all of them the last token of a text.

        Args:
            backbone: whose encoders.
            text: a word that stands near, such as a concept's anchor.
            count: of each encoder.
            encoders: those that get vectors, None for all; the others read the text.
        """
        chosen = [n for n in backbone.text_encoders if encoders is None or n in encoders]
        begun, scale = {}, {}
        for name in chosen:
            encoder: Any = backbone.text_encoders[name]
            tokenizer = getattr(backbone.pipe, name.replace("text_encoder", "tokenizer"))
            table = encoder.get_input_embeddings().weight.detach().float()
            last = tokenizer(text, add_special_tokens=False).input_ids[-1]
            begun[name] = table[last].repeat(count, 1).to(backbone.device)
            scale[name] = float(table.square().mean().sqrt())
        others = {name: text for name in backbone.text_encoders if name not in chosen}
        return cls(begun, scale, others)

    def tokens(self) -> dict[str, Tensor | str]:
        """What every encoder reads, with a graph."""
        learned: dict[str, Tensor | str] = {
            name: self.begun[name] + self.scale[name] * moved for name, moved in self.moved.items()
        }
        return learned | self.texts

    def done(self) -> dict[str, Tensor | str]:
        """What every encoder reads, on the CPU."""
        return {
            name: value.detach().cpu() if isinstance(value, Tensor) else value
            for name, value in self.tokens().items()
        }
