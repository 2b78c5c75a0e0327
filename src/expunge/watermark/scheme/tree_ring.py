"""Tree-Ring: rings in the Fourier transform of the starting noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from expunge.watermark.scheme.base import Bits, Reading
from expunge.watermark.scheme.code import Code, Plain
from expunge.watermark.scheme.latent import LatentScheme


@dataclass(frozen=True, kw_only=True)
class TreeRing(LatentScheme):
    """Overwrite low frequencies of one channel of the noise with a value for each ring.

    A mark that is there or not. The key is real, since noise is real, and of two frequencies that
    mirror each other one is counted, with two degrees of freedom.

    The paper's test is a non-central χ² law of the distance to the key, with the variance estimated
    from the same frequencies as if it were known; on small latents its p-values are far off. Here
    the test is the correlation with the key, which without a mark follows Student's t whatever the
    variance, as long as it is the same at all these frequencies.

    Source: Wen et al., *Tree-Ring Watermarks*, NeurIPS 2023, section 3 (key "rings", radius 10 of a
    64 x 64 latent, the last channel).

    Attributes:
        radius: of the outermost ring, as a share of the latent's shorter side.
        channel: which one is marked, counted from the end where negative.
    """

    name: ClassVar[str] = "tree-ring"
    source: ClassVar[str] = "Wen et al., Tree-Ring Watermarks, NeurIPS 2023"

    radius: float = 10 / 64
    channel: int = -1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.radius <= 0.5:
            raise ValueError(f"radius must lie above 0 and at most 0.5, got {self.radius:g}")

    @property
    def code(self) -> Code:
        return Plain(0)

    def noise(self, shape: Sequence[int], payloads: Bits, seeds: Sequence[int]) -> Tensor:
        drawn = torch.stack(
            [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(s)) for s in seeds]
        )
        if not -shape[0] <= self.channel < shape[0]:
            raise ValueError(
                f"tree-ring's channel is one of the latent's {shape[0]}, got {self.channel}"
            )
        rings, key = self._rings(*shape[-2:])
        spectrum = torch.fft.fft2(drawn[:, self.channel])
        spectrum = torch.where(rings >= 0, key.to(spectrum.dtype), spectrum)
        drawn[:, self.channel] = torch.fft.ifft2(spectrum).real
        return drawn

    def read_noise(self, noise: Tensor) -> Reading:
        rings, key = self._rings(*noise.shape[-2:])
        counted = (rings >= 0) & _one_of_each_pair(*noise.shape[-2:])
        found = torch.fft.fft2(noise[:, self.channel].double())[:, counted]
        wanted = key[counted].double()
        energy = found.abs().square().sum(dim=1) * (wanted @ wanted)
        correlation = (found.real @ wanted) / energy.sqrt()
        freedom = 2 * int(counted.sum()) - 1
        statistic = correlation * (freedom / (1 - correlation.square())).sqrt()
        p = student.sf(statistic.numpy(), freedom)
        return Reading(np.zeros((len(noise), 0), np.bool_), np.asarray(p, np.float64))

    def detect(self, reading: Reading, payloads: Bits, false_positive_rate: float = 1e-3) -> Bits:
        assert reading.p_values is not None
        found: Bits = reading.p_values <= false_positive_rate
        return found

    def _rings(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Index of the ring every frequency lies in, -1 outside; and the key's values."""
        y, x = (torch.fft.fftfreq(side) * side for side in (height, width))
        distance = (y[:, None].square() + x.square()).sqrt()
        outermost = max(1, round(self.radius * min(height, width)))
        rings = distance.round().long()
        inside = (rings >= 1) & (rings <= outermost)
        deviation = (height * width / 2) ** 0.5
        drawn = np.random.default_rng([self.key, 13]).normal(0, deviation, outermost + 1)
        values = torch.from_numpy(drawn).float()
        return torch.where(inside, rings, -1), values[rings.clamp(max=outermost)]


def _one_of_each_pair(height: int, width: int) -> Tensor:
    """True for one of every two frequencies that are each other's mirror, and for no lone one."""
    index = torch.arange(height * width).view(height, width)
    mirror = index.flip(0, 1).roll((1, 1), (0, 1))
    return index < mirror
