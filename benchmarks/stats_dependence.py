"""Medians of samples that depend on their neighbours: how many independent ones they are worth.

Latencies come in runs: a clock that changed, a neighbour on the same cores, a warm cache. An interval that takes
such samples as independent is too narrow. Here the number of samples is divided by the inefficiency of the median,
estimated from the samples themselves, and everything else stays the bootstrap of `stats`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_seg.benchmarks.stats import Interval, as_samples, bootstrap_medians, median

_LEAST_N = 16
_LAGS_SHARE = 3
_STUDENT = (1.96**2 + 1.0) / 2.0
_LEAST_INEFFICIENCY = 0.7
_RESAMPLES = 4000


def inefficiency(samples: ArrayLike) -> float:
    """Returns how many samples in a row are worth one independent sample, for their median; at least 1.

    The variance of a median grows by 1 plus twice the sum of the autocorrelations of "above or below the median",
    not of the values: one outlier has no more weight than another sample. The sum ends at the first pair of lags
    that is not positive, and pairs may only fall. The mean that is removed hides one part in n per lag used; that is
    put back.

    Args:
        samples: Values in the order they were taken. Fewer than 16 say nothing about order: 1.

    Source:
        Sen, On the Bahadur representation of sample quantiles for sequences of phi-mixing random variables, 1972;
        Geyer, Practical Markov chain Monte Carlo, 1992, section 3.3 (initial monotone sequence).
    """
    return _inefficiency(as_samples(samples))[0]


def worth_n(samples: ArrayLike) -> float:
    """Returns as how many independent samples these count in an interval.

    Their number by the inefficiency, and less where that is known badly: a variance known with v degrees of freedom
    widens an interval by Student's factor, squared about 1 + (1.96^2 + 1) / (2 v), and a sum over m lags of n samples
    has n / (2 m + 1) of them.

    Args:
        samples: Values in the order they were taken.

    Source:
        Priestley, Spectral Analysis and Time Series, 1981, section 6.2 (variance of a windowed sum of lags).
    """
    values = as_samples(samples)
    times, lags = _inefficiency(values)
    if times == 1.0:
        return float(values.size)
    return max(1.0, values.size / times / (1.0 + _STUDENT * (2.0 * lags + 1.0) / values.size))


def worth_of(scores: ArrayLike) -> float:
    """Returns as how many independent values these count, where an estimate is in effect a mean of `scores`.

    As `worth_n`, for scores that the caller gives (ranks, for the Hodges-Lehmann estimate). A sum of autocorrelations
    that ends where they stop being positive is too large on average where neighbours are independent; so it is only
    formed where the first one is positive, and else the values are taken for an AR(1) process that alternates, whose
    inefficiency is below 1, down to 0.7.

    Args:
        scores: One per value, in the order the values were taken. Fewer than 16 say nothing about order.

    Source:
        As `inefficiency`; bias of the first autocorrelation: Marriott and Pope, Bias in the estimation of
        autocorrelations, 1954.
    """
    values = as_samples(scores)
    n = values.size
    if n < _LEAST_N or float(np.ptp(values)) == 0.0:
        return float(n)
    centred = values - values.mean()
    first = float(np.mean(centred[1:] * centred[:-1]) / np.mean(centred**2))
    first += (1.0 + 3.0 * first) / n
    if first < 0.0:
        return n / max(_LEAST_INEFFICIENCY, (1.0 + first) / (1.0 - first))
    times, lags = _summed(values)
    times = min(max(_LEAST_INEFFICIENCY, times), n / 2.0)
    return max(1.0, n / times / (1.0 + _STUDENT * 2.0 * lags / n))


def _inefficiency(values: NDArray[np.float64]) -> tuple[float, int]:
    """Returns the inefficiency of the median, and the number of lags beyond the first pair it was summed over."""
    times, lags = _summed(np.sign(values - np.median(values)))
    return float(min(max(1.0, times), max(1.0, values.size / 2.0))), lags


def _summed(scores: NDArray[np.float64]) -> tuple[float, int]:
    """Returns 1 plus twice the sum of autocorrelations, uncut, and the number of lags beyond the first pair."""
    n = scores.size
    if n < _LEAST_N or float(np.ptp(scores)) == 0.0:
        return 1.0, 0
    lags = n // _LAGS_SHARE
    correlations = _autocorrelations(scores, lags - lags % 2)
    pairs = correlations[0::2] + correlations[1::2]
    ends = np.flatnonzero(pairs <= 0)
    used = np.minimum.accumulate(pairs[: ends[0]] if ends.size else pairs)
    raw = 2.0 * float(used.sum()) - 1.0
    hidden = min(0.75, (4.0 * used.size - 1.0) / n)
    return raw / (1.0 - hidden), max(0, 2 * (used.size - 1))


def _autocorrelations(values: NDArray[np.float64], lags: int) -> NDArray[np.float64]:
    """Returns the autocorrelations of lags 0 to `lags` - 1, each over its own number of products."""
    n = values.size
    centred = values - values.mean()
    spectrum = np.fft.rfft(centred, 1 << (2 * n - 1).bit_length())
    products = np.fft.irfft(spectrum * spectrum.conj())[:lags]
    means: NDArray[np.float64] = products / (n - np.arange(lags))
    return np.asarray(means / means[0] if means[0] > 0 else np.eye(1, lags)[0])


def serial_medians(samples: ArrayLike, *, resamples: int = _RESAMPLES, seed: int = 0) -> NDArray[np.float64]:
    """Draws medians as `stats.bootstrap_medians` does, from as many samples as these are worth.

    The middle one of m independent uniform numbers is Beta((m + 1) / 2, (m + 1) / 2), and m need not be whole; the
    draw is read off the samples' own quantiles. Independent samples give exactly `stats.bootstrap_medians`.

    Args:
        samples: Values in the order they were taken.
        resamples: Number of draws.
        seed: Seed of the generator.

    Returns:
        Medians, [resamples], in the unit of the samples.
    """
    values = as_samples(samples)
    worth = worth_n(values)
    if worth == values.size:
        return bootstrap_medians(values, resamples=resamples, seed=seed)
    half = (worth + 1.0) / 2.0
    ranks = np.random.default_rng(seed).beta(half, half, resamples)
    at = (np.arange(values.size) + 0.5) / values.size
    return np.asarray(np.interp(ranks, at, np.sort(values)))


def serial_median_interval(
    samples: ArrayLike, *, level: float = 0.95, resamples: int = _RESAMPLES, seed: int = 0
) -> Interval:
    """Returns the median with an interval that holds for samples that depend on their neighbours.

    It says how well this session knows its own median, not what another session would measure; several sessions say
    that (`stats_compare`). It needs the samples to be of one state: after a change of clock in the middle there is
    no one median, and the interval becomes as wide as the two states.

    Args:
        samples: Values in the order they were taken.
        level: Coverage, between 0 and 1.
        resamples: Number of bootstrap draws.
        seed: Seed of the generator.
    """
    draws = serial_medians(samples, resamples=resamples, seed=seed)
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)], method="linear")
    return Interval(float(low), median(samples), float(high))
