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
AT_ONCE = 10
"""Pictures whose float copies are held at once."""


def psnr(first: Tensor, second: Tensor) -> NDArray[np.float64]:
    """Peak signal-to-noise ratio of every pair, dB, (n,); 100 where nothing differs.

    Args:
        first: uint8, (n, 3, height, width).
        second: of the same shape.
    """
    pairs = zip(first, second, strict=True)  # one by one: float copies of a batch are large
    error = torch.stack([(a.double() - b.double()).square().mean() for a, b in pairs])
    ratio: NDArray[np.float64] = (20 * np.log10(255) - 10 * error.log10()).numpy()
    return np.minimum(ratio, MOST)


def ssim(first: Tensor, second: Tensor) -> NDArray[np.float64]:
    """Structural similarity of every pair (Wang et al. 2004, Gaussian window of 11), (n,).

    Args:
        first: uint8, (n, 3, height, width), at least 11 pixels a side.
        second: of the same shape.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    parts = zip(torch.split(first, AT_ONCE), torch.split(second, AT_ONCE), strict=True)
    found = [
        structural_similarity_index_measure(
            a.float(), b.float(), data_range=255.0, reduction="none"
        ).reshape(-1)  # type: ignore[union-attr]
        for a, b in parts
    ]
    return torch.cat(found).double().numpy()


@lru_cache(maxsize=1)
def lpips_available() -> bool:
    """Whether LPIPS can be measured: it needs torchvision, and weights that it fetches."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        _network()
    except (ImportError, OSError, RuntimeError, ValueError):
        return False  # an unfitting torchvision, or no network to fetch the weights from
    return True


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
