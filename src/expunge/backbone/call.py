"""What the denoiser is about to be asked, and what may stand in its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from torch import Tensor

from expunge.backbone.conditioning import Conditioning, Tokens

if TYPE_CHECKING:
    from expunge.backbone.sampling import Step

Row = Literal["negative", "positive", "only"]
"""What guidance leads away from, what it leads toward, or a prediction that is used as it is."""


@dataclass(frozen=True)
class Call:
    """One forward pass of the denoiser.

    Attributes:
        latents: noisy latents as pictures, (n, channels, height, width).
        level: their noise level, one for all or n.
        conditioning: what the denoiser is told, n rows.
        rows: what each of the n predictions is for.
        texts: the prompt behind each row, None where only its embeddings are known.
        tokens: what every tokenizer behind the token states makes of the texts, None where one of
            them is unknown.
    """

    latents: Tensor
    level: Tensor | float
    conditioning: Conditioning
    rows: tuple[Row, ...]
    texts: tuple[str | None, ...]
    tokens: tuple[Tokens, ...] | None


@dataclass(frozen=True)
class Asked:
    """What a pipeline's own loop is about to ask of the denoiser.

    Attributes:
        latents: noisy latents as pictures, (n, channels, height, width).
        level: their noise levels, (n,).
        conditioning: what the denoiser is told, n rows.
    """

    latents: Tensor
    level: Tensor
    conditioning: Conditioning


class Guard(Protocol):
    """An inference-time defence, as the backbone calls it. All guards are silent meanwhile."""

    def conditioning(self, call: Call) -> Conditioning:
        """What the denoiser is told instead; `call.conditioning` to leave it."""

    def prediction(self, call: Call, out: Tensor) -> Tensor:
        """What stands for the denoiser's prediction, shaped like `call.latents`."""

    def latents(self, step: Step) -> Tensor:
        """Latents at `step.to` from where the run goes on; `step.reached` itself to leave them."""
