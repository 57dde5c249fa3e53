"""Did a run change while it was measured: trend, change points, and whether the device throttled.

Tests by rank, on the medians of 24 to 64 bins of neighbouring samples, so that outliers do not count. A bin is at least
four times as long as neighbours depend on each other, so that the bins nearly do not; where that would leave fewer than
24 bins the tests find too much, and the 5 % that a throttled run must lose is what holds.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_seg.benchmarks.stats import as_samples, drift_pct_per_min, median
from edge_seg.benchmarks.stats_dependence import inefficiency
from edge_seg.errors import InputError

ALPHA = 0.01
THROTTLE_PCT = 5.0
THROTTLE_LEAST_S = 60.0
_BINS, _LEAST_BINS, _BIN_N, _LEAST_SEGMENT = 64, 24, 8, 4
_PARTS, _BIN_WORTH = 8, 4.0
_WINDOW_S = 60.0
_TREND_ALPHA = 0.05  # beside a change point at ALPHA; a step near the end is a weak trend


@dataclass(frozen=True)
class ChangePoint:
    """A level that changed between two samples.

    Attributes:
        index: First sample of the new level.
        at_s: Its time.
        change_pct: New level against the old one (medians of the two segments).
        p_value: Chance of such a split without any change, bound.
    """

    index: int
    at_s: float
    change_pct: float
    p_value: float


@dataclass(frozen=True)
class Drift:
    """What a run did over time.

    Attributes:
        slope_pct_per_min: Theil-Sen slope.
        trend_p: Chance of such an order without any trend (Mann-Kendall, two-sided), None for too few samples.
        changes: Change points in the order of time.
        window_s: Length of the first and of the last window: a minute, or a third of a shorter run.
        first_ms: Median of the first window.
        last_ms: Median of the last window.
        throttled: Whether trend, change point and the two windows all say that it became slower by more than 5 %;
            None where the run is too short to tell.
        throttled_at_s: Start of the bin from which to the end bins that are more than 5 % slower than the first window
            outnumber the others by the most; a slow moment that passes is not the start.
        unknown: Why `throttled` is None.
    """

    slope_pct_per_min: float
    trend_p: float | None
    changes: tuple[ChangePoint, ...]
    window_s: float
    first_ms: float
    last_ms: float
    throttled: bool | None
    throttled_at_s: float | None = None
    unknown: str = ""

    @property
    def change_pct(self) -> float:
        """Last window against the first, percent."""
        return 100.0 * (self.last_ms / self.first_ms - 1.0) if self.first_ms else 0.0


@dataclass(frozen=True)
class _Bins:
    starts: NDArray[np.int64]
    times_s: NDArray[np.float64]
    medians: NDArray[np.float64]


def drift_of(times_s: ArrayLike, samples: ArrayLike) -> Drift:
    """Describes how a run changed, and decides whether it throttled.

    Args:
        times_s: Time of each sample in seconds, rising.
        samples: Values, as many, in milliseconds.

    Raises:
        InputError: Fewer than two samples, different lengths, or all times equal.
    """
    times, values = as_samples(times_s, least=2), as_samples(samples, least=2)
    slope = drift_pct_per_min(times, values)
    window_s = min(_WINDOW_S, float(np.ptp(times)) / 3.0)
    first_ms = median(values[times <= times[0] + window_s])
    last_ms = median(values[times >= times[-1] - window_s])
    described = Drift(slope, None, (), window_s, first_ms, last_ms, None)
    bins = _binned(times, values)
    if bins is None:
        return replace(described, unknown=f"needs at least {_LEAST_BINS * _BIN_N} runs")
    described = replace(described, trend_p=trend_p_value(bins.medians)[0], changes=_changes(bins, times))
    if float(np.ptp(times)) < THROTTLE_LEAST_S:
        return replace(described, unknown=f"measured for less than {THROTTLE_LEAST_S:.0f} s")
    throttled = _throttled(described, bins)
    return replace(described, throttled=throttled, throttled_at_s=_onset_s(described, bins) if throttled else None)


def _throttled(drift: Drift, bins: _Bins) -> bool:
    """All three must agree: a trend upwards, a level that rose, and a last window that is slower by enough."""
    p_value, direction = trend_p_value(bins.medians)
    trend = p_value < _TREND_ALPHA and direction > 0
    rose = any(change.change_pct > 0 for change in drift.changes)
    return trend and rose and drift.change_pct > THROTTLE_PCT


def _onset_s(drift: Drift, bins: _Bins) -> float | None:
    slow = bins.medians > drift.first_ms * (1.0 + THROTTLE_PCT / 100.0)
    outnumber = np.cumsum(np.where(slow, 1, -1)[::-1])  # from each bin to the end, the last bin first
    bins_n = int(outnumber.argmax()) + 1
    return float(bins.times_s[-bins_n] - bins.times_s[0]) if outnumber.max() > 0 else None


def _binned(times: NDArray[np.float64], values: NDArray[np.float64]) -> _Bins | None:
    """Cuts the samples into 24 to 64 bins of at least 8 neighbours, larger ones where neighbours are alike."""
    if values.size < _LEAST_BINS * _BIN_N:
        return None
    bin_n = max(float(_BIN_N), _BIN_WORTH * _local_inefficiency(values))
    count = int(min(_BINS, max(_LEAST_BINS, values.size // bin_n)))
    starts = np.linspace(0, values.size, count + 1).astype(np.int64)
    medians = np.array([np.median(values[a:b]) for a, b in itertools.pairwise(starts)])
    return _Bins(starts[:-1], times[starts[:-1]], medians)


def _local_inefficiency(values: NDArray[np.float64]) -> float:
    """Returns the typical inefficiency inside an eighth of the run, whose own line is removed.

    A step or a slow curve of the whole run must not count as dependence: a step is in one eighth only, and a curve
    is nearly a line there.
    """
    parts = values[: values.size // _PARTS * _PARTS].reshape(_PARTS, -1)
    at = np.arange(parts.shape[1]) - (parts.shape[1] - 1) / 2.0
    centred = parts - parts.mean(axis=1, keepdims=True)
    lines = np.outer(centred @ at / (at @ at), at)
    return float(np.median([inefficiency(part) for part in centred - lines]))


def trend_p_value(values: ArrayLike) -> tuple[float, int]:
    """Tests for a trend by the order of all pairs.

    Args:
        values: Values in the order of time, at least three.

    Returns:
        The two-sided p-value, and the direction: 1 rising, -1 falling, 0 neither.

    Source:
        Mann, Nonparametric tests against trend, 1945; Kendall, Rank correlation methods, 1975.
    """
    x = as_samples(values, least=3)
    first, second = np.triu_indices(x.size, k=1)
    score = float(np.sign(x[second] - x[first]).sum())
    n = x.size
    variance = n * (n - 1) * (2 * n + 5) / 18.0
    z = max(0.0, abs(score) - 1.0) / math.sqrt(variance)
    return math.erfc(z / math.sqrt(2.0)), int(np.sign(score))


def change_point(values: ArrayLike) -> tuple[int, float]:
    """Finds the split that separates the ranks best.

    Args:
        values: Values in the order of time, at least three.

    Returns:
        Index of the first value after the split, and the p-value's bound.

    Source:
        Pettitt, A non-parametric approach to the change-point problem, 1979,
        with its approximate significance probability.
    """
    x = as_samples(values, least=3)
    n = x.size
    sums = 2.0 * np.cumsum(_mid_ranks(x)) - np.arange(1, n + 1) * (n + 1.0)
    split = int(np.abs(sums[:-1]).argmax()) + 1
    height = float(abs(sums[split - 1]))
    scale = float(n) ** 3 + float(n) ** 2
    return split, min(1.0, 2.0 * math.exp(-6.0 * height**2 / scale))


def _mid_ranks(x: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2.0)[inverse.reshape(-1)])


def _changes(bins: _Bins, times: NDArray[np.float64]) -> tuple[ChangePoint, ...]:
    """Splits again and again while a part holds a change (binary segmentation), then describes each split."""
    splits = sorted(_segmented(bins.medians, 0))
    edges = [0, *(at for at, _ in splits), bins.medians.size]
    found = []
    for k, (at, p_value) in enumerate(splits):
        before, after = (median(bins.medians[a:b]) for a, b in ((edges[k], at), (at, edges[k + 2])))
        index = int(bins.starts[at])
        change_pct = 100.0 * (after / before - 1.0) if before else 0.0
        found.append(ChangePoint(index, float(times[index] - times[0]), change_pct, p_value))
    return tuple(found)


def _segmented(values: NDArray[np.float64], offset: int) -> list[tuple[int, float]]:
    if values.size < 2 * _LEAST_SEGMENT:
        return []
    split, p_value = change_point(values)
    if p_value >= ALPHA or not _LEAST_SEGMENT <= split <= values.size - _LEAST_SEGMENT:
        return []
    return [
        *_segmented(values[:split], offset),
        (offset + split, p_value),
        *_segmented(values[split:], offset + split),
    ]


def require_positive(samples: ArrayLike) -> NDArray[np.float64]:
    """Returns the samples as float64; raises InputError if one is not above zero."""
    values = as_samples(samples)
    if (values <= 0).any():
        raise InputError("A latency is not positive.", expected="milliseconds > 0", got=str(values.min()))
    return values
