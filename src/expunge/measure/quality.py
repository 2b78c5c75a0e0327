"""How far two pictures lie apart: PSNR, SSIM, LPIPS."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST = 100.0
"""dB that stand for identical pictures."""


def psnr(first: Tensor, second: Tensor) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of every pair, dB, (n,); 100 where nothing differs.

    Args:
        first: uint8, (n, 3, height, width).
        second: of the same shape.
    """
    error = (first.double() - second.double()).square().mean(dim=(1, 2, 3))
    ratio: NDArray[np.float64] = (20 * np.log10(255) - 10 * error.log10()).numpy()
    return np.minimum(ratio, MOST)


def ssim(first: Tensor, second: Tensor) -> NDArray[np.float64]:
    """Structural similarity of every pair (Wang et al. 2004, Gaussian window of 11), (n,).

    Args:
        first: uint8, (n, 3, height, width), at least 11 pixels a side.
        second: of the same shape.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(
        first.float(), second.float(), data_range=255.0, reduction="none"
    )
    assert isinstance(found, Tensor)
    return found.double().numpy().reshape(-1)


def lpips_available() -> bool:
    """Whether LPIPS can be measured: it needs torchvision's networks."""
    return importlib.util.find_spec("torchvision") is not None


def lpips(first: Tensor, second: Tensor) -> NDArray[np.float64]:
    """Learned perceptual distance (Zhang et al. 2018, AlexNet) of every pair, (n,).

    Args:
        first: uint8, (n, 3, height, width), at least 64 pixels a side.
        second: of the same shape.

    Raises:
        ValueError: torchvision is not installed.
    """
    if not lpips_available():
        raise ValueError("LPIPS needs torchvision: pip install 'expunge[metrics]'")
    with torch.no_grad():
        pairs = zip(first.split(1), second.split(1), strict=True)  # type: ignore[no-untyped-call]
        found = [float(_network()(a.float() / 127.5 - 1, b.float() / 127.5 - 1)) for a, b in pairs]
    return np.array(found)


@lru_cache(maxsize=1)
def _network() -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return LearnedPerceptualImagePatchSimilarity(net_type="alex")
