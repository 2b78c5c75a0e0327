"""A small network that tells from latents whether a concept was asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

_WIDEST = 256
"""Channels of the last convolutions, at the most."""


class Discriminator(nn.Module):
    """Convolutions over latents and their noise level, with one output for each concept.

    Args:
        shape: of one latent: channels, height, width.
        concepts: how many outputs.
        width: channels of the first convolution; they double as the picture halves.
        told: width of a text state it may be told beside the latents, 0 for none. It enters as in
            the projection discriminator (Miyato and Koyama, 2018).
        spectral: bound every layer's largest singular value by 1 (Miyato et al., 2018).
        seed: of the weights.
    """

    def __init__(
        self,
        shape: Sequence[int],
        concepts: int,
        *,
        width: int = 32,
        told: int = 0,
        spectral: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        channels, height, wide = shape
        halvings = max(1, round(math.log2(min(height, wide) / 4)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts: list[nn.Module] = [nn.Conv2d(channels + 1, width, 3, padding=1)]
            for _ in range(halvings):
                wider = min(2 * width, _WIDEST)
                parts += [nn.LeakyReLU(0.2), nn.Conv2d(width, wider, 4, 2, padding=1)]
                width = wider
            parts += [nn.LeakyReLU(0.2), nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.2)]
            self.body = nn.Sequential(*parts)
            self.heads = nn.Linear(width, concepts)
            self.text = nn.Linear(told, width) if told else None
            if spectral:
                for layer in [m for m in self.modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
                    spectral_norm(layer)

    def forward(self, latents: Tensor, levels: Tensor, told: Tensor | None = None) -> Tensor:
        """Logits: above 0 means that the concept was asked for.

        Args:
            latents: clean, or predicted to be, (n, channels, height, width).
            levels: noise level at which each was predicted, 0 for a finished picture, (n,).
            told: a state of the text without the concept, (n, width).

        Returns:
            (n, concepts).
        """
        latents = latents.float()
        plane = levels.to(latents)[:, None, None, None].expand(-1, 1, *latents.shape[-2:])
        seen = self.body(torch.cat([latents, plane], dim=1)).mean((2, 3))
        logits: Tensor = self.heads(seen)
        if self.text is None or told is None:
            return logits
        by_text: Tensor = (self.text(told.float()) * seen).sum(1, keepdim=True)
        return logits + by_text


def telling(shown: Tensor, clear: Tensor) -> Tensor:
    """−E[log D(x_c) + log(1 − D(x_¬c))], what a discriminator lowers (FADE, section 4.1).

    Args:
        shown: logits where the concept was asked for.
        clear: logits where it was not.
    """
    return F.softplus(-shown).mean() + F.softplus(clear).mean()


def fooling(shown: Tensor) -> Tensor:
    """−E[log(1 − D(x_c))], what the model lowers; its gradient does not vanish where D is sure."""
    return F.softplus(shown).mean()


def steepness(logits: Tensor, latents: Tensor) -> Tensor:
    """Mean squared gradient of the logits by the latents, with a graph (R1: Mescheder, 2018).

    Args:
        logits: (n,), each of its own latents.
        latents: (n, …), requiring a gradient.
    """
    (grad,) = torch.autograd.grad(logits.sum(), latents, create_graph=True)
    steep: Tensor = grad.float().square().flatten(1).sum(1).mean()
    return steep
