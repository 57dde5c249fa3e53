"""Two files that took turns in one session: the ratio of neighbours in time, so that what slows both drops out.

Block k of one file and block k of the other ran within the same turn of the order A-B-B-A. Their medians share the
clock, the heat and the neighbours of that moment, and the ratio of the two does not depend on them. So the comparison
is of ratios, one per turn, and no longer of two medians of which each carries the whole noise of the session.

One session: in odd turns the first file goes second, so half of what the two kinds of turn differ by is taken from
each. The centre is the estimate of Hodges and Lehmann, the interval that of the signed-rank test, widened by what
neighbouring turns have in common. Several sessions: their ratios are what varies, as in `stats_compare`.

What holds (tests/test_benchmarks_paired_truth.py): with drift, states and heavy tails that both files share, and an
effect of the order, the 95 % interval of 20 and of 64 blocks covers 93 to 97 times in 100; with bursts of stolen time
97. What does not: a state that each file has alone and keeps over many turns. With an autocorrelation of 0.5 from turn
to turn 20 blocks are covered 91 times, with 0.8 64 blocks 91 to 93 and 20 blocks 84; below 16 it is not looked at.

Why this centre: over 64 and over 20 simulated turns the mean had intervals three to eight times as wide under bursts of
stolen time; the median had 18 to 23 % wider ones where noise was even, and 5 to 30 % narrower ones under bursts.
Averaging each forth-and-back pair first, instead of removing the effect of the order, doubles the share of values that
a burst hits, and the width with it. Student's interval of batches (Ibragimov and Mueller, 2010) was three times as
wide.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_seg.benchmarks.stats import Interval
from edge_seg.benchmarks.stats_change import require_positive
from edge_seg.benchmarks.stats_compare import ALPHA, POWER, Comparison, student_quantile
from edge_seg.benchmarks.stats_dependence import worth_of
from edge_seg.errors import InputError

LEAST_BLOCKS = 8  # below six values the signed-rank test has no 95 % interval; two go into the effect of the order
_MOST_VALUES = 1000  # the estimate looks at all pairs of values


@dataclass(frozen=True)
class PairedComparison(Comparison):
    """The ratio of two files that took turns.

    Attributes:
        blocks: Common blocks of each session, which are what was paired.
        left_out: Blocks of either file without a counterpart, since one file stopped before the other.
    """

    blocks: tuple[int, ...] = ()
    left_out: int = 0


@dataclass(frozen=True)
class _Session:
    """The log ratio of one session with its interval and standard error."""

    low: float
    value: float
    high: float
    error: float
    blocks: int
    left_out: int


def compare_turns(
    candidate: Sequence[ArrayLike],
    baseline: Sequence[ArrayLike],
    *,
    block_runs: int,
    alpha: float = ALPHA,
    power: float = POWER,
) -> PairedComparison:
    """Compares two files that were measured in turns, by the ratios of their neighbouring blocks.

    The ratio is that of neighbours, at its centre; it is the ratio of the medians where the files' times differ by a
    factor. The files may stop at different times: the common blocks are compared.

    Args:
        candidate: Samples of each session, in the order they were taken, positive, in whole blocks.
        baseline: Samples of the other file in the same sessions.
        block_runs: Runs per block (`protocol.block_runs`).
        alpha: Chance of a false difference, 0..1.
        power: Chance of seeing a slowdown of `mde_pct`, 0..1.

    Raises:
        InputError: No session, not the same number on both sides, fewer than 8 common blocks in one, or a sample that
            is not positive.

    Source:
        Ratio with its interval, and the highest level that varies decides: Kalibera and Jones, Rigorous benchmarking in
        reasonable time, 2013. Blocks: Fisher, The Design of Experiments, 1935. Centre: Hodges and Lehmann, Estimates of
        location based on rank tests, 1963. Interval: Lehmann, Nonparametrics, 1975, chapter 4. Its ranks under
        dependence: Gastwirth and Rubin, The behavior of robust estimators on dependent data, 1975. Smallest detectable
        effect: Bloom, Minimum detectable effects, 1995.
    """
    if not candidate or len(candidate) != len(baseline) or block_runs < 1:
        raise InputError(
            "These are no sessions of two files in turns.",
            expected="the same sessions of both, at least one, in blocks of at least one run",
            got=f"{len(candidate)} and {len(baseline)}, blocks of {block_runs}",
        )
    sessions = [_session(a, b, block_runs, alpha) for a, b in zip(candidate, baseline, strict=True)]
    low, value, high, reach, between = _joined(sessions, alpha=alpha, power=power)
    return PairedComparison(
        ratio=Interval(math.exp(low), math.exp(value), math.exp(high)),
        mde_pct=100.0 * math.expm1(min(50.0, reach)),
        between_pct=between,
        sessions=(len(sessions), len(sessions)),
        alpha=alpha,
        power=power,
        blocks=tuple(session.blocks for session in sessions),
        left_out=sum(session.left_out for session in sessions),
    )


def common_blocks(candidate_n: int, baseline_n: int, block_runs: int) -> int:
    """Returns how many whole blocks two series of that many runs have in common."""
    return min(candidate_n, baseline_n) // block_runs


def widest_ratio_pct(run_ms: Sequence[ArrayLike], block_runs: int) -> float:
    """Returns how well the worst known ratio of files to the first one is known, after one session in turns.

    Args:
        run_ms: Samples of each file, at least two, in the order they were taken.
        block_runs: Runs per block.

    Returns:
        Full width of its 95 % interval, percent of the ratio; infinite while there are too few turns.
    """
    first, *others = [np.asarray(samples) for samples in run_ms]
    if min(common_blocks(other.size, first.size, block_runs) for other in others) < LEAST_BLOCKS:
        return math.inf
    ratios = (compare_turns([other], [first], block_runs=block_runs).ratio for other in others)
    return max(ratio.width_pct for ratio in ratios)


def _joined(
    sessions: Sequence[_Session], *, alpha: float, power: float
) -> tuple[float, float, float, float, float | None]:
    """Returns low, value and high of the log ratio, the log that would be seen, and the spread between sessions."""
    if len(sessions) == 1:
        (one,) = sessions
        factor = sum(NormalDist().inv_cdf(p) for p in (1 - alpha / 2, power))
        return one.low, one.value, one.high, factor * one.error, None
    values, degrees = np.array([session.value for session in sessions]), len(sessions) - 1
    variance, centre = float(values.var(ddof=1)), float(values.mean())
    error, student = math.sqrt(variance / values.size), student_quantile(1 - alpha / 2, degrees)
    beyond = math.sqrt(max(0.0, variance - float(np.mean([session.error**2 for session in sessions]))))
    reach = (student + student_quantile(power, degrees)) * error
    return centre - student * error, centre, centre + student * error, reach, 100.0 * math.expm1(beyond)


def _session(candidate: ArrayLike, baseline: ArrayLike, block_runs: int, alpha: float) -> _Session:
    blocks = [_block_log_medians(samples, block_runs) for samples in (candidate, baseline)]
    n = min(side.size for side in blocks)
    if n < LEAST_BLOCKS:
        raise InputError(
            "There are too few turns to compare two files by them.",
            expected=f"at least {LEAST_BLOCKS} blocks of {block_runs} runs of both",
            got=str(n),
            todo="measure longer, or in smaller blocks",
        )
    values = _thinned(_without_order(blocks[0][:n] - blocks[1][:n]))
    normal = NormalDist().inv_cdf(1 - alpha / 2)
    low, value, high = _signed_rank(values, normal)
    wider = math.sqrt(values.size / worth_of(_ranks(values)))
    low, high = value - wider * (value - low), value + wider * (high - value)
    return _Session(low, value, high, (high - low) / (2.0 * normal), n, sum(side.size - n for side in blocks))


def _block_log_medians(samples: ArrayLike, block_runs: int) -> NDArray[np.float64]:
    """Returns the log of the median of every whole block."""
    values = require_positive(samples)
    whole = values.size // block_runs * block_runs
    return np.asarray(np.log(np.median(values[:whole].reshape(-1, block_runs), axis=1)))


def _without_order(log_ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """Takes from each kind of turn, A-B and B-A, half of what the two kinds differ by."""
    half = 0.5 * (_hodges_lehmann(log_ratios[0::2]) - _hodges_lehmann(log_ratios[1::2]))
    signs = np.where(np.arange(log_ratios.size) % 2 == 0, 1.0, -1.0)
    return log_ratios - half * signs


def _thinned(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns at most `_MOST_VALUES` medians of as many neighbours each."""
    together = -(-values.size // _MOST_VALUES)
    whole = values.size // together * together
    return np.asarray(np.median(values[:whole].reshape(-1, together), axis=1))


def _walsh(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the means of all pairs of values, each with itself too, in order."""
    first, second = _pairs(values.size)
    return np.sort(0.5 * (values[first] + values[second]))


@functools.lru_cache(maxsize=8)
def _pairs(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return np.triu_indices(n)


def _hodges_lehmann(values: NDArray[np.float64]) -> float:
    return float(np.median(_walsh(values)))


def _signed_rank(values: NDArray[np.float64], normal: float) -> tuple[float, float, float]:
    """Returns low end, estimate and high end: the shifts that the signed-rank test does not refuse.

    The test's count has the mean n (n + 1) / 4 and the variance n (n + 1) (2 n + 1) / 24.
    """
    means, n = _walsh(values), values.size
    below = n * (n + 1) / 4 - 0.5 - normal * math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    at = [max(0.0, below), means.size - 1 - max(0.0, below)]
    low, high = np.interp(at, np.arange(means.size), means)
    return float(low), float(np.median(means)), float(high)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns ranks, equal ones for equal values."""
    ordered = np.sort(values)
    return np.asarray(0.5 * (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")))
