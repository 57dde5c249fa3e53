"""Statistics of latency samples against hand-computed cases and SciPy."""

import numpy as np
import pytest

from edge_seg.benchmarks import stats
from edge_seg.errors import InputError

scipy_stats = pytest.importorskip("scipy.stats", reason="SciPy, the oracle, is not here")


def _latencies(n, seed=0):
    return np.random.default_rng(seed).lognormal(2.0, 0.2, n)


def test_percentiles_of_ten_values_are_those_computed_by_hand():
    values = [10, 1, 9, 2, 8, 3, 7, 4, 6, 5]
    assert stats.median(values) == 5.5
    assert stats.percentile(values, 90) == pytest.approx(9.1)
    assert stats.percentile(values, 0) == 1
    assert stats.percentile(values, 100) == 10


def test_one_sample_is_every_percentile_and_its_own_interval():
    interval = stats.median_interval([4.0])
    assert stats.percentile([4.0], 99) == 4.0
    assert (interval.low, interval.value, interval.high) == (4.0, 4.0, 4.0)


def test_mad_is_unscaled():
    assert stats.mad([1, 1, 2, 2, 4, 6, 9]) == 1.0


def test_mad_equals_scipy():
    values = _latencies(101)
    assert stats.mad(values) == pytest.approx(scipy_stats.median_abs_deviation(values))


def test_tukey_counts_mild_and_severe_on_both_sides():
    # quartiles 3 and 7, so fences at -3 and 13 (mild), -9 and 19 (severe)
    values = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert stats.tukey_outliers(values) == stats.Outliers(0, 0)
    far = [*([3] * 10), *([7] * 10), 13.5, 19.5, -3.5, -9.5]
    assert stats.tukey_outliers(far) == stats.Outliers(mild=2, severe=2)


@pytest.mark.parametrize("n", [1, 2, 5, 20, 51])
def test_drawn_medians_have_the_distribution_of_real_resampling(n):
    values = _latencies(n)
    drawn = stats.bootstrap_medians(values, resamples=20_000, seed=1)
    rng = np.random.default_rng(2)
    real = np.median(values[rng.integers(0, n, (20_000, n))], axis=1)
    for pct in (2.5, 25, 50, 75, 97.5):
        low, high = np.percentile(real, [max(0, pct - 1.5), min(100, pct + 1.5)])
        assert low - 1e-9 <= np.percentile(drawn, pct) <= high + 1e-9


def test_the_interval_is_that_of_scipys_bootstrap():
    values = _latencies(80)
    theirs = scipy_stats.bootstrap(
        (values,), np.median, method="percentile", n_resamples=20_000, rng=np.random.default_rng(3)
    ).confidence_interval
    ours = stats.median_interval(values, resamples=20_000)
    assert ours.low == pytest.approx(theirs.low, rel=0.01)
    assert ours.high == pytest.approx(theirs.high, rel=0.01)


def test_the_interval_covers_the_true_median_about_95_times_in_100():
    true_median = float(np.exp(2.0))
    intervals = [stats.median_interval(_latencies(60, seed), resamples=1000) for seed in range(300)]
    covered = sum(i.low <= true_median <= i.high for i in intervals)
    assert 0.90 * 300 <= covered <= 0.99 * 300


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = _latencies(50)
    assert stats.median_interval(values, seed=7) == stats.median_interval(values, seed=7)
    drawn, other = (stats.bootstrap_medians(values, seed=seed) for seed in (7, 8))
    assert not np.array_equal(drawn, other)


def test_the_ratio_of_medians_of_equal_runs_contains_one_and_of_a_slower_one_does_not():
    fast, again = _latencies(200, 1), _latencies(200, 2)
    same = stats.median_ratio(fast, again)
    slower = stats.median_ratio(fast * 1.3, again)
    assert same.low < 1.0 < same.high
    assert slower.low > 1.0
    assert slower.value == pytest.approx(1.3 * same.value)


def test_the_ratio_refuses_a_zero_below():
    with pytest.raises(InputError, match="positive"):
        stats.median_ratio([1.0], [0.0, 1.0])


@pytest.mark.parametrize(("k", "n", "p"), [(0, 10, 0.1), (1, 64, 0.1), (7, 200, 0.01), (300, 3000, 0.1)])
def test_the_binomial_distribution_equals_scipys(k, n, p):
    assert stats.binomial_cdf(k, n, p) == pytest.approx(scipy_stats.binom.cdf(k, n, p), rel=1e-9)


def test_early_stopping_needs_64_queries_for_p90_and_662_for_p99():
    assert not stats.early_stopping_percentile(np.arange(63.0)).valid
    just = stats.early_stopping_percentile(np.arange(64.0))
    assert (just.valid, just.value, just.n_needed, just.dropped) == (True, 63.0, 64, 0)
    assert stats.early_stopping_percentile(np.arange(64.0), pct=99).n_needed == 662


@pytest.mark.parametrize("n", [64, 100, 500, 5000])
def test_early_stopping_drops_as_many_as_the_binomial_quantile_allows(n):
    t = max(t for t in range(1, n) if scipy_stats.binom.cdf(t, n, 0.1) <= 0.01)
    result = stats.early_stopping_percentile(np.arange(float(n))[::-1])
    assert result.value == n - t
    assert result.dropped == t - 1
    assert result.value >= stats.percentile(np.arange(float(n)), 90)


def test_theil_sen_of_five_points_by_hand():
    # slopes of the ten pairs: nine are near 2, one outlier moves the least-squares line but not the median
    assert stats.theil_sen_slope([0, 1, 2, 3, 4], [1, 3, 5, 7, 100]) == 2.0


def test_theil_sen_equals_scipy():
    times = np.sort(np.random.default_rng(0).uniform(0, 60, 120))
    values = _latencies(120) + 0.05 * times
    assert stats.theil_sen_slope(times, values) == pytest.approx(scipy_stats.theilslopes(values, times)[0])


def test_drift_is_in_percent_of_the_median_per_minute_also_when_thinned():
    times = np.linspace(0, 120, 2401)
    values = 10 + times * (1.0 / 60.0)  # one millisecond a minute around a median of 11
    assert stats.drift_pct_per_min(times, values) == pytest.approx(100.0 / 11.0)


def test_a_slope_needs_two_different_times():
    with pytest.raises(InputError, match="same time"):
        stats.theil_sen_slope([1.0, 1.0], [2.0, 3.0])
    with pytest.raises(InputError, match="Too few"):
        stats.theil_sen_slope([1.0], [2.0])
    with pytest.raises(InputError, match="length"):
        stats.theil_sen_slope([1.0, 2.0, 3.0], [2.0, 3.0])


@pytest.mark.parametrize("samples", [[], [1.0, float("nan")], [float("inf")]])
def test_empty_or_infinite_samples_are_refused(samples):
    with pytest.raises(InputError):
        stats.median(samples)
