"""The Fréchet distance between two sets of features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _check(name: str, features: NDArray[np.floating]) -> NDArray[np.float64]:
    values = np.asarray(features, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] < 2 or values.shape[1] < 1:
        raise ValueError(
            f"{name} must be an array (n, d) with n of at least 2, got shape {values.shape}; "
            "pass one row of features per image"
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity; look at the images of those rows"
        )
    return values


def _root(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A factor R (min(n, d), d) of the unbiased covariance: S = R^T R."""
    centred = values - values.mean(axis=0)
    return np.asarray(np.linalg.qr(centred, mode="r") / np.sqrt(len(values) - 1))


def frechet_distance(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """The squared Fréchet distance between Gaussians fitted to two sets of features.

    |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), in fp64 (Dowson and Landau, "The Fréchet
    distance between multivariate normal distributions", J. Multivariate Analysis 12 (1982),
    450-455; for images Heusel et al., arXiv:1706.08500). With S = R^T R the last trace is the sum
    of the singular values of R1 R2^T, which are the roots of the eigenvalues of
    S1^(1/2) S2 S1^(1/2): no root of a nearly singular matrix is taken, so fewer rows than
    dimensions do no harm to the precision.

    Args:
        first: features (n, d), n at least 2.
        second: features (m, d), m at least 2.

    Returns:
        The distance, in squared units of the features; 0 for the same set. It is biased upward by
        few rows, so compare only distances of the same n and m.

    Raises:
        ValueError: fewer than two rows, dimensions that differ, or a value that is not finite.
    """
    one, two = _check("first", first), _check("second", second)
    if one.shape[1] != two.shape[1]:
        raise ValueError(
            f"first and second must have the same dimension, got {one.shape[1]} and "
            f"{two.shape[1]}; take both from the same feature network"
        )
    means = one.mean(axis=0) - two.mean(axis=0)
    root1, root2 = _root(one), _root(two)
    cross = np.linalg.svd(root1 @ root2.T, compute_uv=False).sum()
    distance = means @ means + (root1**2).sum() + (root2**2).sum() - 2 * cross
    return max(0.0, float(distance))  # equal sets may round to just below
