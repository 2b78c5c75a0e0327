from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.contingency_tables import mcnemar  # type: ignore[import-untyped]
from statsmodels.stats.proportion import proportion_confint  # type: ignore[import-untyped]

from expunge.measure.intervals import clopper_pearson
from expunge.measure.paired import Paired
from expunge.measure.rates import Rate, Worth

counts = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
inner_counts = st.integers(2, 500).flatmap(lambda n: st.tuples(st.integers(1, n - 1), st.just(n)))
confidences = st.sampled_from([0.8, 0.95, 0.99])
tables = st.tuples(*[st.integers(0, 60)] * 4).filter(any)
clustered = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=60)


@given(inner_counts, confidences)
def test_interval_is_wilson(kn: tuple[int, int], confidence: float) -> None:
    expected = proportion_confint(*kn, alpha=1 - confidence, method="wilson")
    assert Rate(*kn).interval(confidence) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 500), st.booleans(), confidences)
def test_interval_is_exact_at_zero_and_all_events(n: int, every: bool, confidence: float) -> None:
    k = n if every else 0
    expected = proportion_confint(k, n, alpha=1 - confidence, method="beta")
    assert Rate(k, n).interval(confidence) == pytest.approx(expected, abs=1e-9)


@given(counts, confidences)
def test_clopper_pearson_agrees_with_statsmodels(kn: tuple[int, int], confidence: float) -> None:
    expected = proportion_confint(*kn, alpha=1 - confidence, method="beta")
    assert clopper_pearson(*kn, confidence) == pytest.approx(expected, abs=1e-9)


@given(counts)
def test_one_sided_bounds_spend_all_error_on_one_end(kn: tuple[int, int]) -> None:
    low, high = clopper_pearson(*kn, 0.9)
    assert clopper_pearson(*kn, 0.95, "upper") == pytest.approx((0, high))
    assert clopper_pearson(*kn, 0.95, "lower") == pytest.approx((low, 1))


@pytest.mark.parametrize(("n", "upper"), [(50, 0.071), (1000, 0.004)])
def test_nothing_seen_is_not_nothing_there(n: int, upper: float) -> None:
    low, high = Rate(0, n).interval()
    assert low == 0
    assert high == pytest.approx(upper, abs=5e-4)


@given(counts, confidences)
def test_interval_holds_the_rate_and_mirrors(kn: tuple[int, int], confidence: float) -> None:
    k, n = kn
    low, high = Rate(k, n).interval(confidence)
    assert 0 <= low <= k / n <= high <= 1
    assert Rate(n - k, n).interval(confidence) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@given(inner_counts)
def test_outcomes_worth_less_widen(kn: tuple[int, int]) -> None:
    k, n = kn
    low, high = Rate(k, n, (Worth(n, 10**6),)).interval()
    for worth in (Worth(max(1, n / 1.7), 10**6), Worth(n, 3)):
        wider_low, wider_high = Rate(k, n, (worth,)).interval()
        assert wider_low <= low
        assert high <= wider_high
        assert (wider_low, wider_high) != (low, high)


@given(st.lists(st.booleans(), min_size=1))
def test_rate_counts(flags: list[bool]) -> None:
    rate = Rate.of(flags)
    assert (rate.k, rate.n, rate.worth) == (sum(flags), len(flags), ())
    assert rate == Rate.of(np.array(flags))
    assert type(rate.k) is int


@given(clustered)
def test_clusters_never_narrow_and_mirror(pairs: list[tuple[bool, int]]) -> None:
    flags, clusters = [flag for flag, _ in pairs], [cluster for _, cluster in pairs]
    low, high = Rate.of(flags, clusters).interval()
    assert 0 <= low <= np.mean(flags) + 1e-9
    assert np.mean(flags) - 1e-9 <= high <= 1
    mirrored = Rate.of([not flag for flag in flags], clusters).interval()
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-6)
    distinct = list(range(len(flags)))
    assert Rate.of(flags, distinct) == Rate.of(flags)


def test_identical_outcomes_in_a_cluster_count_once() -> None:
    flags = [index % 3 == 0 for index in range(60)]
    often = Rate.of([flag for flag in flags for _ in range(4)], [i // 4 for i in range(240)])
    low, high = Rate.of(flags).interval()
    wider_low, wider_high = often.interval()
    assert wider_low < low
    assert high < wider_high
    assert wider_high - wider_low < 1.25 * (high - low)


@pytest.mark.parametrize("every", [True, False])
def test_clusters_at_the_boundary_count_as_outcomes(every: bool) -> None:
    clusters = [f"prompt {index % 37}" for index in range(100)]
    rate = Rate.of([every] * 100, clusters)
    assert rate.interval() == pytest.approx(clopper_pearson(37 * every, 37))


@pytest.mark.parametrize(
    ("clusters", "size", "truth", "correlation"),
    [
        (60, 5, 0.3, 0.5),
        (100, 32, 0.99, 0.5),  # bits of pictures, near the ceiling
        (100, 32, 0.99, 0.02),
        (500, 32, 0.999, 0.5),
        (20, 32, 0.01, 0.5),
        (100, 32, 0.5, 0.1),
    ],
)
def test_clustered_interval_covers(
    clusters: int, size: int, truth: float, correlation: float
) -> None:
    rng = np.random.default_rng(3)
    scale, runs = (1 - correlation) / correlation, 400
    chance = rng.beta(truth * scale, (1 - truth) * scale, size=(runs, clusters))
    events = rng.binomial(size, chance)
    ends = np.array([Rate.of_counts(e.tolist(), [size] * clusters).interval() for e in events])
    covered = np.mean((ends[:, 0] <= truth + 1e-12) & (truth <= ends[:, 1] + 1e-12))
    assert covered >= 0.93


def test_outcomes_taken_for_independent_cover_too_rarely() -> None:
    rng = np.random.default_rng(3)
    events = rng.binomial(5, rng.beta(0.3, 0.7, size=(400, 60))).sum(axis=1)
    ends = np.array([Rate(int(k), 300).interval() for k in events])
    assert np.mean((ends[:, 0] <= 0.3) & (ends[:, 1] >= 0.3)) < 0.85


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_bad_counts(k: int, n: int) -> None:
    with pytest.raises(ValueError, match="must"):
        Rate(k, n)


@pytest.mark.parametrize(("n", "freedom"), [(0.5, 1), (math.nan, 1), (5, 0)])
def test_bad_worth(n: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Worth(n, freedom)


def test_bad_flags() -> None:
    with pytest.raises(ValueError, match="non-empty"):
        Rate.of([])
    with pytest.raises(ValueError, match="threshold"):
        Rate.of(np.array([0.2, 0.9]))
    with pytest.raises(ValueError, match="as long as"):
        Rate.of([True, False], ["a"])
    with pytest.raises(ValueError, match="equally long"):
        Paired.of([True, False], [True])
    with pytest.raises(ValueError, match="not all 0"):
        Paired(0, 0, 0, 0)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0, math.nan])
def test_bad_confidence(confidence: float) -> None:
    for interval in (Rate(1, 5).interval, Paired(1, 2, 3, 4).interval):
        with pytest.raises(ValueError, match="confidence"):
            interval(confidence)


def test_bad_side() -> None:
    with pytest.raises(ValueError, match="two-sided, lower, upper"):
        clopper_pearson(1, 5, side="left")  # type: ignore[arg-type]


@given(tables)
def test_p_value_is_exact_mcnemar(table: tuple[int, int, int, int]) -> None:
    paired = Paired(*table)
    if paired.only_first + paired.only_second:
        expected = mcnemar(np.reshape(table, (2, 2)), exact=True).pvalue
        assert paired.p_value == pytest.approx(expected)
    else:
        assert paired.p_value == 1


def test_newcombe_published() -> None:
    # Altman et al., "Statistics with Confidence" (2000), p. 52: 14, 5, 0, 22 pairs give
    # 0.122 (0.011 to 0.226) for first minus second; ours is second minus first.
    paired = Paired(14, 5, 0, 22)
    assert paired.difference == pytest.approx(-0.122, abs=5e-4)
    assert paired.interval() == pytest.approx((-0.226, -0.011), abs=5e-4)


@given(tables, confidences)
def test_paired_interval_holds_the_difference_and_mirrors(
    table: tuple[int, int, int, int], confidence: float
) -> None:
    paired = Paired(*table)
    low, high = paired.interval(confidence)
    assert -1 <= low <= paired.difference + 1e-12
    assert paired.difference - 1e-12 <= high <= 1
    a, b, c, d = table
    swapped = Paired(a, c, b, d)  # second condition first
    negated = Paired(d, c, b, a)  # the event not happening
    for mirrored in (swapped, negated):
        assert mirrored.interval(confidence) == pytest.approx((-high, -low), abs=1e-9)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_paired_counts(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [one for one, _ in pairs], [two for _, two in pairs]
    paired = Paired.of(first, second)
    assert paired.n == len(pairs)
    assert (paired.first, paired.second) == (Rate.of(first), Rate.of(second))
    assert paired.difference == pytest.approx(paired.second.value - paired.first.value)


def test_paired_interval_covers() -> None:
    rng = np.random.default_rng(5)
    shares, runs = np.array([0.05, 0.75, 0.02, 0.18]), 1000
    tables = rng.multinomial(200, shares, size=runs)
    intervals = [Paired(*(int(count) for count in table)).interval() for table in tables]
    covered = np.mean([low <= 0.02 - 0.75 <= high for low, high in intervals])
    assert 0.93 < covered < 0.985
