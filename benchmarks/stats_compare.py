"""Two files, or one file twice: the ratio of their medians, what it is worth, and what it could not have seen.

With one session on each side the interval is about the runs of those two sessions. With more, the medians of the
sessions are what varies: what changes from one session to the next (memory layout, clock, neighbours) cannot be
averaged away by more runs in a session.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from edge_seg.benchmarks.stats import Interval, median
from edge_seg.benchmarks.stats_change import require_positive
from edge_seg.benchmarks.stats_dependence import serial_medians
from edge_seg.errors import InputError

ALPHA, POWER = 0.05, 0.80
_RESAMPLES, _SPREAD_RESAMPLES = 4000, 500
Verdict = Literal["slower", "faster", "no difference seen"]


@dataclass(frozen=True)
class Comparison:
    """The ratio of two medians.

    Attributes:
        ratio: Candidate over baseline, with its 1 - alpha interval.
        mde_pct: Smallest slowdown, in percent, that would be seen with the stated power.
        between_pct: Standard deviation from session to session beyond what their runs explain, percent; None with
            one session on each side.
        sessions: Number of sessions of the candidate and of the baseline.
        alpha: Chance of seeing a difference where there is none.
        power: Chance of seeing a slowdown of `mde_pct`.
    """

    ratio: Interval
    mde_pct: float
    between_pct: float | None
    sessions: tuple[int, int]
    alpha: float = ALPHA
    power: float = POWER

    @property
    def verdict(self) -> Verdict:
        """Slower or faster where the interval leaves one out; the candidate against the baseline."""
        return "slower" if self.ratio.low > 1.0 else "faster" if self.ratio.high < 1.0 else "no difference seen"


def compare_medians(
    candidate: Sequence[ArrayLike],
    baseline: Sequence[ArrayLike],
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    seed: int = 0,
) -> Comparison:
    """Compares two files by the medians of their sessions.

    One session each: both medians are drawn anew, with their dependence (`stats_dependence.serial_medians`). More:
    Student's interval of the difference of mean log medians, one variance for both sides.

    Args:
        candidate: Samples of each session, in the order they were taken, positive.
        baseline: The same of the other file.
        alpha: Chance of a false difference, 0..1.
        power: Chance of seeing a slowdown of `mde_pct`, 0..1.
        seed: Seed of the draws.

    Raises:
        InputError: No session, or a sample that is not positive.

    Source:
        Kalibera and Jones, Rigorous benchmarking in reasonable time, 2013 (the highest level that varies decides);
        smallest detectable effect: Bloom, Minimum detectable effects, 1995.
    """
    if not candidate or not baseline:
        raise InputError("There is nothing to compare.", expected="at least one session on each side")
    sides = [[require_positive(session) for session in side] for side in (candidate, baseline)]
    sessions = (len(sides[0]), len(sides[1]))
    resamples = _RESAMPLES if sessions == (1, 1) else _SPREAD_RESAMPLES
    draws = [
        [np.log(serial_medians(s, resamples=resamples, seed=seed + 2 * i + j)) for i, s in enumerate(side)]
        for j, side in enumerate(sides)
    ]
    within = [[_spread(d, alpha) for d in side] for side in draws]
    if sessions == (1, 1):
        log_ratio = draws[0][0] - draws[1][0]
        low, high = np.exp(np.percentile(log_ratio, [50 * alpha, 100 - 50 * alpha], method="linear"))
        ratio = Interval(float(low), median(sides[0][0]) / median(sides[1][0]), float(high))
        factors = [NormalDist().inv_cdf(p) for p in (1 - alpha / 2, power)]
        return Comparison(ratio, _mde_pct(sum(factors), _spread(log_ratio, alpha)), None, sessions, alpha, power)
    logs = [[math.log(median(session)) for session in side] for side in sides]
    return _between(logs, within, alpha=alpha, power=power)


def _between(logs: list[list[float]], within: list[list[float]], *, alpha: float, power: float) -> Comparison:
    counts = (len(logs[0]), len(logs[1]))
    degrees = sum(counts) - 2
    variance = sum(float(np.sum((np.array(side) - np.mean(side)) ** 2)) for side in logs) / degrees
    error = math.sqrt(variance * (1.0 / counts[0] + 1.0 / counts[1]))
    centre = float(np.mean(logs[0]) - np.mean(logs[1]))
    reach = student_quantile(1 - alpha / 2, degrees)
    ratio = Interval(math.exp(centre - reach * error), math.exp(centre), math.exp(centre + reach * error))
    beyond = math.sqrt(max(0.0, variance - float(np.mean(np.concatenate(within) ** 2))))
    between_pct = 100.0 * math.expm1(beyond)
    mde_pct = _mde_pct(reach + student_quantile(power, degrees), error)
    return Comparison(ratio, mde_pct, between_pct, counts, alpha, power)


def _spread(draws: ArrayLike, alpha: float) -> float:
    """Returns a standard error from the width of the interval, which outlying draws do not move."""
    low, high = np.percentile(np.asarray(draws), [50 * alpha, 100 - 50 * alpha])
    return float(high - low) / (2.0 * NormalDist().inv_cdf(1 - alpha / 2))


def _mde_pct(factor: float, error: float) -> float:
    return 100.0 * math.expm1(min(50.0, factor * error))


def student_quantile(probability: float, degrees: int) -> float:
    """Returns the value that a Student variable of whole `degrees` stays below with `probability` (0.5..1).

    Source:
        Abramowitz and Stegun 26.7.3 and 26.7.4: the distribution as a finite sum; bisected in the angle.
    """
    if not (0.5 <= probability < 1.0 and degrees >= 1):
        raise InputError("No such quantile.", expected="0.5..1 and at least one degree of freedom")
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = 0.5 * (low + high)
        low, high = (angle, high) if _student_centre(angle, degrees) < 2 * probability - 1 else (low, angle)
    return math.tan(low) * math.sqrt(degrees)


def _student_centre(angle: float, degrees: int) -> float:
    """Returns the chance of |t| <= tan(angle) sqrt(degrees)."""
    cosine = math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine**2 * (k - 1) / k
    total *= math.sin(angle)
    return 2.0 / math.pi * (angle + total) if odd else total
