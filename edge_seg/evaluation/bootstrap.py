"""Intervals by resampling pictures, for any score that can be computed of weighted pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import ClassInfo
from edge_seg.errors import InputError

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval from resampled pictures."""

    value: float
    low: float
    high: float


class Resampled(Protocol):
    """A score over pictures."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The class list."""

    @property
    def image_ids(self) -> tuple[int | str | None, ...]:
        """The names of the pictures, in order."""

    def value(self) -> float:
        """Returns the main figure in percent; raises InputError when there is no picture."""

    def resampled(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the main figure of each resample in percent, [n].

        Args:
            weights: How often each picture occurs in each resample, [n, pictures].
        """


def picture_order(parts: Sequence[Resampled]) -> list[tuple[int, int]]:
    """Returns part and position of every picture of a whole, in the order of the whole.

    Args:
        parts: Of n parts, part k holds the pictures k, k + n, k + 2n, ... of the whole.

    Raises:
        InputError: The class lists differ, or the numbers of pictures cannot come from such parts.
    """
    counts = [len(part.image_ids) for part in parts]
    total = sum(counts)
    expected = [len(range(k, total, len(parts))) for k in range(len(parts))]
    if not parts or counts != expected or any(part.classes != parts[0].classes for part in parts):
        raise InputError(
            "Parts of a score do not belong together.",
            expected=f"one class list, and {expected} pictures",
            got=f"{counts} pictures",
            todo="score every part with the same data and the same limit",
        )
    return [(number % len(parts), number // len(parts)) for number in range(total)]


def picture_weights(pictures: int, seed: int, n: int = RESAMPLES) -> NDArray[np.int64]:
    """Returns how often each picture occurs in each resample, [n, pictures]."""
    share = np.full(pictures, 1.0 / pictures) if pictures else np.zeros(0)
    return np.random.default_rng(seed).multinomial(pictures, share, size=n)


def interval(score: Resampled, *, seed: int, n: int = RESAMPLES) -> Interval:
    """Returns a score with its 95 % interval (percentile bootstrap over pictures).

    Args:
        score: The score.
        seed: Seed of the resampling.
        n: Number of resamples.

    Raises:
        InputError: There is no picture.
    """
    value = score.value()
    return _percentiles(value, score.resampled(picture_weights(len(score.image_ids), seed, n)))


def paired_bootstrap(a: Resampled, b: Resampled, *, seed: int, n: int = RESAMPLES) -> Interval:
    """Returns b - a in points with its 95 % interval, both on the same resampled pictures.

    Args:
        a: The reference.
        b: The other one, updated with the same pictures in the same order.
        seed: Seed of the resampling.
        n: Number of resamples.

    Raises:
        InputError: The classes or the pictures differ, or there is no picture.
    """
    return _paired(a, [b], seed, n, lambda base, other: other - base)


def paired_ratio(a: Resampled, others: Sequence[Resampled], *, seed: int, n: int = RESAMPLES) -> Interval:
    """Returns median(others) / a with its 95 % interval, all on the same resampled pictures.

    Args:
        a: The reference.
        others: One score, or several (seeds of one training) of which the median is compared.
        seed: Seed of the resampling.
        n: Number of resamples.

    Raises:
        InputError: The classes or the pictures differ, or there is no picture.
    """
    return _paired(a, others, seed, n, lambda base, other: other / np.where(base > 0, base, np.nan))


Compared = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def _paired(a: Resampled, others: Sequence[Resampled], seed: int, n: int, compared: Compared) -> Interval:
    if not others or any(a.classes != b.classes or a.image_ids != b.image_ids for b in others):
        raise InputError(
            "Two scores are not of the same pictures.",
            expected=f"{len(a.image_ids)} pictures in one order, one class list",
            got=f"{[len(b.image_ids) for b in others]} pictures",
            todo="evaluate both on the same data",
        )
    value = compared(np.array(a.value()), np.median([b.value() for b in others]))
    weights = picture_weights(len(a.image_ids), seed, n)
    samples = compared(a.resampled(weights), np.median([b.resampled(weights) for b in others], axis=0))
    return _percentiles(float(value), samples)


def _percentiles(value: float, samples: NDArray[np.float64]) -> Interval:
    low, high = np.nanpercentile(samples, [2.5, 97.5])
    return Interval(value, float(low), float(high))
