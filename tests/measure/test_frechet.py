from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from expunge.measure.frechet import frechet_distance


def features(seed: int, rows: int, dimension: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(dimension, dimension))
    return rng.normal(size=(rows, dimension)) @ mixing + rng.normal(size=dimension)


shapes = st.tuples(st.integers(0, 2**32), st.integers(2, 40), st.integers(1, 12))


@given(st.integers(0, 2**32), st.integers(1, 8))
def test_agrees_with_the_matrix_square_root(seed: int, dimension: int) -> None:
    one, two = features(seed, 60, dimension), features(seed + 1, 80, dimension)
    s1, s2 = (np.cov(x, rowvar=False).reshape(dimension, dimension) for x in (one, two))
    means = one.mean(axis=0) - two.mean(axis=0)
    expected = means @ means + np.trace(s1 + s2 - 2 * np.real(sqrtm(s1 @ s2)))
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@given(shapes)
def test_same_set_is_at_distance_zero(shape: tuple[int, int, int]) -> None:
    one = features(*shape)
    assert frechet_distance(one, one[::-1]) == pytest.approx(0, abs=1e-10 * (one**2).sum())


@given(shapes, st.floats(-5, 5))
def test_a_shift_costs_its_square(shape: tuple[int, int, int], shift: float) -> None:
    one = features(*shape)
    expected = shape[2] * shift**2
    assert frechet_distance(one, one + shift) == pytest.approx(expected, rel=1e-9, abs=1e-8)


@given(shapes, st.integers(2, 30))
def test_symmetric_and_never_negative(shape: tuple[int, int, int], rows: int) -> None:
    one, two = features(*shape), features(shape[0] + 1, rows, shape[2])
    distance = frechet_distance(one, two)
    assert distance >= 0
    assert distance == pytest.approx(frechet_distance(two, one), rel=1e-9, abs=1e-9)


def test_rotation_and_scale() -> None:
    one, two = features(1, 50, 6), features(2, 50, 6)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    expected = frechet_distance(one, two)
    assert frechet_distance(one @ rotation, two @ rotation) == pytest.approx(expected)
    assert frechet_distance(3 * one, 3 * two) == pytest.approx(9 * expected)


def test_known_gaussians_in_one_dimension() -> None:
    one, two = np.array([[-1.0], [1.0]]), np.array([[-3.0], [9.0]])  # deviations 2^.5, 6 * 2^.5
    assert frechet_distance(one, two) == pytest.approx(3**2 + (5 * 2**0.5) ** 2)


def test_fewer_rows_than_dimensions_stay_precise() -> None:
    one = features(4, 5, 200)
    assert frechet_distance(one, one.copy()) < 1e-9
    assert frechet_distance(one.astype(np.float32), one) < 1e-9


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "first must be an array"),
        (np.zeros((5, 3)), np.zeros(3), "second must be an array"),
        (np.zeros((5, 0)), np.zeros((5, 0)), "first must be an array"),
        (np.zeros((5, 3)), np.zeros((5, 4)), "same dimension"),
        (np.zeros((5, 3)), np.full((5, 3), np.nan), "second must be finite"),
        (np.full((5, 3), np.inf), np.zeros((5, 3)), "first must be finite"),
    ],
)
def test_bad_features(first: np.ndarray, second: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_distance(first, second)
