"""Statistics of latency samples, in NumPy alone.

Latencies are skewed, noisy and drift, so everything here is an order statistic: medians, percentiles, MAD, a
Theil-Sen slope. Outliers are counted and never dropped. Every random draw is seeded: the same samples give
the same figures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_seg.errors import InputError

PERCENTILE_DEFINITION = "linear interpolation between order statistics (Hyndman and Fan 1996, type 7)"
_DEFAULT_RESAMPLES = 4000
_MAX_SLOPE_POINTS = 1000


@dataclass(frozen=True)
class Interval:
    """A central value with an interval, in the unit of the samples.

    Attributes:
        low: Lower end.
        value: Estimate from all samples.
        high: Upper end.
    """

    low: float
    value: float
    high: float

    @property
    def width_pct(self) -> float:
        """Full width of the interval in percent of the value (infinite for a value of zero)."""
        return 100.0 * (self.high - self.low) / self.value if self.value else math.inf


@dataclass(frozen=True)
class EarlyStopping:
    """MLPerf's early-stopping percentile estimate.

    Attributes:
        value: The estimate in the unit of the samples, or None where there are too few.
        valid: Whether there were enough samples.
        n: Number of samples.
        n_needed: Least number of samples for any estimate at this percentile and confidence.
        dropped: How many of the largest samples the estimate leaves above itself.
    """

    value: float | None
    valid: bool
    n: int
    n_needed: int
    dropped: int


@dataclass(frozen=True)
class Outliers:
    """Counts of samples outside Tukey's fences; nothing is removed.

    Attributes:
        mild: Beyond 1.5 interquartile ranges from a quartile, but not beyond 3.
        severe: Beyond 3 interquartile ranges.
    """

    mild: int
    severe: int


def as_samples(samples: ArrayLike, *, least: int = 1) -> NDArray[np.float64]:
    """Checks samples and returns them as a flat float64 array.

    Args:
        samples: Values, any shape.
        least: Smallest acceptable number of values.

    Raises:
        InputError: Too few values, or one is not finite.
    """
    values = np.asarray(samples, np.float64).reshape(-1)
    if values.size < least:
        raise InputError("Too few samples for this statistic.", expected=f"at least {least}", got=str(values.size))
    if not np.isfinite(values).all():
        raise InputError("A sample is not a finite number.", got=str(values[~np.isfinite(values)][0]))
    return values


def median(samples: ArrayLike) -> float:
    """Returns the median: the middle value, or the mean of the two middle ones."""
    return float(np.median(as_samples(samples)))


def percentile(samples: ArrayLike, pct: float) -> float:
    """Returns a percentile by linear interpolation between order statistics.

    The p-th percentile of n sorted values sits at rank (n - 1) p / 100, counted from zero.

    Args:
        samples: Values.
        pct: Percent, 0..100.

    Source:
        Hyndman and Fan, Sample quantiles in statistical packages, 1996, definition 7.
    """
    if not 0 <= pct <= 100:
        raise InputError("A percentile is out of range.", expected="0..100", got=str(pct))
    return float(np.percentile(as_samples(samples), pct, method="linear"))


def mad(samples: ArrayLike) -> float:
    """Returns the median absolute deviation from the median, unscaled, in the unit of the samples."""
    values = as_samples(samples)
    return float(np.median(np.abs(values - np.median(values))))


def tukey_outliers(samples: ArrayLike) -> Outliers:
    """Counts mild and severe outliers on both sides.

    Source:
        Tukey, Exploratory Data Analysis, 1977: inner fences at 1.5 and outer fences at 3 interquartile
        ranges.
    """
    values = as_samples(samples)
    low, high = np.percentile(values, [25, 75], method="linear")
    distance = np.maximum(low - values, values - high)
    severe = int((distance > 3.0 * (high - low)).sum())
    return Outliers(mild=int((distance > 1.5 * (high - low)).sum()) - severe, severe=severe)


def bootstrap_medians(samples: ArrayLike, *, resamples: int = _DEFAULT_RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Draws medians of bootstrap resamples, exactly and without resampling.

    A resample picks n indices floor(n U). Its middle order statistics are those of n uniform numbers, which
    have Beta distributions: rank k of n is Beta(k, n + 1 - k), and the next one above it is at a fraction
    Beta(1, n - k) of the rest. So each draw costs one or two random numbers, whatever n is.

    Args:
        samples: Values, n of them.
        resamples: Number of draws.
        seed: Seed of the generator.

    Returns:
        Medians, [resamples], in the unit of the samples.

    Source:
        Efron, Bootstrap methods, 1979, section 3; David and Nagaraja, Order Statistics, section 2.
    """
    values = np.sort(as_samples(samples))
    n = values.size
    rng = np.random.default_rng(seed)
    lower_rank = (n + 1) // 2
    lower_u = rng.beta(lower_rank, n + 1 - lower_rank, resamples)
    lower = values[np.minimum((lower_u * n).astype(np.int64), n - 1)]
    if n % 2:
        return np.asarray(lower)
    upper_u = lower_u + (1.0 - lower_u) * rng.beta(1, n - lower_rank, resamples)
    upper = values[np.minimum((upper_u * n).astype(np.int64), n - 1)]
    return np.asarray(0.5 * (lower + upper))


def median_interval(
    samples: ArrayLike, *, level: float = 0.95, resamples: int = _DEFAULT_RESAMPLES, seed: int = 0
) -> Interval:
    """Returns the median with its percentile-bootstrap interval.

    The interval takes the runs as exchangeable: it says how well this session knows its own median, not what
    another session would measure. The drift slope and the sessions of a profile answer that.

    Args:
        samples: Values.
        level: Coverage, between 0 and 1.
        resamples: Number of bootstrap draws.
        seed: Seed of the generator.
    """
    draws = bootstrap_medians(samples, resamples=resamples, seed=seed)
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)], method="linear")
    return Interval(float(low), median(samples), float(high))


def median_ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = _DEFAULT_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Returns the ratio of two medians with a percentile-bootstrap interval; both sides are resampled.

    Args:
        numerator: Values of one file or run.
        denominator: Values of the other; positive.
        level: Coverage, between 0 and 1.
        resamples: Number of bootstrap draws.
        seed: Seed of the generator.

    Raises:
        InputError: A value of the denominator is not positive.
    """
    below = as_samples(denominator)
    if (below <= 0).any():
        raise InputError("A ratio of medians needs positive values below.", got=str(below.min()))
    draws = bootstrap_medians(numerator, resamples=resamples, seed=seed)
    draws = draws / bootstrap_medians(below, resamples=resamples, seed=seed + 1)
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)], method="linear")
    return Interval(float(low), median(numerator) / median(below), float(high))


def binomial_cdf(successes: int, trials: int, probability: float) -> float:
    """Returns the chance of at most `successes` in `trials` tries, each with `probability` (0 < p < 1)."""
    if successes >= trials:
        return 1.0
    if successes < 0:
        return 0.0
    log_p, log_q = math.log(probability), math.log1p(-probability)
    log_n = math.lgamma(trials + 1)
    terms = (
        math.exp(log_n - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log_p + (trials - k) * log_q)
        for k in range(successes + 1)
    )
    return min(1.0, math.fsum(terms))


def early_stopping_percentile(samples: ArrayLike, *, pct: float = 90.0, confidence: float = 0.99) -> EarlyStopping:
    """Estimates a percentile from above, with a stated confidence, as MLPerf's single-stream scenario does.

    Let t be the largest count, at least 1, for which "at most t of n samples lie above the true percentile"
    has a probability of 1 - confidence or less. The estimate is the t-th largest sample: t - 1 larger ones
    are left above it. With p90 and 99 % confidence it takes 64 samples.

    Args:
        samples: Latencies in the order of nothing in particular.
        pct: Percentile, between 0 and 100.
        confidence: Between 0 and 1.

    Source:
        MLPerf inference rules, "Early stopping", and LoadGen's single-stream summary (tolerance 0, confidence
        0.99).
    """
    values = np.sort(as_samples(samples))
    above = 1.0 - pct / 100.0
    needed = _least_trials(1, above, confidence)
    if values.size < needed:
        return EarlyStopping(None, False, int(values.size), needed, 0)
    count = _largest_count(int(values.size), above, confidence)
    return EarlyStopping(float(values[values.size - count]), True, int(values.size), needed, count - 1)


def _least_trials(count: int, above: float, confidence: float) -> int:
    trials = count + 1
    while binomial_cdf(count, trials, above) > 1.0 - confidence:
        trials += 1
    return trials


def _largest_count(trials: int, above: float, confidence: float) -> int:
    """Bisects for the largest t with CDF(t) <= 1 - confidence; CDF grows with t, and t = 1 passes."""
    low, high = 1, trials
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_cdf(middle, trials, above) <= 1.0 - confidence:
            low = middle
        else:
            high = middle
    return low


def theil_sen_slope(times_s: ArrayLike, samples: ArrayLike) -> float:
    """Returns the median of the slopes of all pairs, in units of the samples per second.

    More than 1000 samples are thinned to 1000 evenly spaced ones, since pairs grow with the square.

    Args:
        times_s: Time of each sample in seconds.
        samples: Values, as many.

    Raises:
        InputError: Fewer than two samples, different lengths, or all times equal.

    Source:
        Theil 1950; Sen, Estimates of the regression coefficient based on Kendall's tau, 1968.
    """
    x, y = as_samples(times_s, least=2), as_samples(samples, least=2)
    if x.size != y.size:
        raise InputError("Times and samples differ in length.", expected=str(x.size), got=str(y.size))
    if x.size > _MAX_SLOPE_POINTS:
        keep = np.linspace(0, x.size - 1, _MAX_SLOPE_POINTS).round().astype(np.int64)
        x, y = x[keep], y[keep]
    first, second = np.triu_indices(x.size, k=1)
    run = x[second] - x[first]
    apart = run != 0
    if not apart.any():
        raise InputError("All samples were taken at the same time.", todo="record one time per sample")
    return float(np.median((y[second] - y[first])[apart] / run[apart]))


def drift_pct_per_min(times_s: ArrayLike, samples: ArrayLike) -> float:
    """Returns the Theil-Sen slope in percent of the median per minute; positive means it got slower."""
    return 6000.0 * theil_sen_slope(times_s, samples) / median(samples)
