"""Gaussian Shading: a payload in the signs of the starting noise, whose law stays the same."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from expunge.watermark.scheme.base import Bits, Reading
from expunge.watermark.scheme.code import Code, Plain
from expunge.watermark.scheme.latent import LatentScheme


@dataclass(frozen=True, kw_only=True)
class GaussianShading(LatentScheme):
    """Repeat the payload over the latent, encrypt it, and let each bit choose a half of the normal.

    Encrypted bits are fair coins, so that the marked noise of a picture has the law of any noise
    (two pictures with one key and payload share their signs). Reading decrypts what inversion
    found and sums every bit's copies, which weighs sure ones more than the paper's majority does
    and knows no ties.

    Source: Yang et al., *Gaussian Shading*, CVPR 2024, section 3 (256 bits, one bit for a half of
    the normal law). Here the copies are spread over the latent at random by the key, so that any
    shape of latent will do, and the stream cipher is SHAKE-256 of the key.

    Attributes:
        bits: of a payload; every one is repeated as often as the latent has room.
    """

    name: ClassVar[str] = "gaussian-shading"
    source: ClassVar[str] = "Yang et al., Gaussian Shading, CVPR 2024"

    bits: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits < 1:
            raise ValueError(f"gaussian-shading needs at least 1 bit, got {self.bits}")

    @property
    def code(self) -> Code:
        return Plain(self.bits)

    def noise(self, shape: Sequence[int], payloads: Bits, seeds: Sequence[int]) -> Tensor:
        size = math.prod(shape)
        owner, cipher = self._plan(size)
        signs = payloads[:, owner] ^ cipher
        uniform = np.stack([np.random.default_rng([seed, 5]).random(size) for seed in seeds])
        # A bit's half of (0, 1), never its very ends, through the inverse of the normal law.
        share = np.clip((uniform + signs) / 2, 1e-9, 1 - 1e-9)
        drawn = torch.from_numpy(norm.ppf(share)).float()
        return drawn.view(len(payloads), *shape)

    def read_noise(self, noise: Tensor) -> Reading:
        values = noise.flatten(1)
        owner, cipher = self._plan(values.shape[1])
        votes = torch.where(torch.from_numpy(cipher), -values, values)
        sums = votes.new_zeros(len(values), self.bits).index_add_(1, torch.from_numpy(owner), votes)
        return Reading((sums > 0).numpy())

    def _plan(self, size: int) -> tuple[np.ndarray, Bits]:
        """The bit that every element of the latent carries, and what it is encrypted with."""
        if size < self.bits:
            raise ValueError(
                f"gaussian-shading's {self.bits} bits do not fit a latent of {size} values; "
                "choose fewer with bits=…"
            )
        rng = np.random.default_rng([self.key, 17])
        owner = rng.permutation(np.arange(size) % self.bits)
        stream = hashlib.shake_256(f"gaussian shading {self.key}".encode()).digest(-(-size // 8))
        return owner, np.unpackbits(np.frombuffer(stream, np.uint8))[:size].astype(np.bool_)
