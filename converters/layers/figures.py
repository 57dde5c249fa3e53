"""Figures of one map against another, summed up over pictures in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class MapFigures:
    """How a map compares with the reference.

    Attributes:
        snr_db: Signal-to-noise ratio; infinite where nothing differs.
        cosine: Cosine of the angle between the two, as vectors.
        max_of_range: Largest absolute difference over the range of the reference.
    """

    snr_db: float
    cosine: float
    max_of_range: float


@dataclass(frozen=True)
class StepFigures:
    """How integers compare with integers that should be the same.

    Attributes:
        exact: Share of equal ones.
        within_1_lsb: Share at most one step away.
        max_lsb: Largest difference in steps.
    """

    exact: float
    within_1_lsb: float
    max_lsb: int


class MapTally:
    """Sums up maps against their references."""

    def __init__(self) -> None:
        self.signal = self.noise = self.power = self.product = self.largest = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, wanted: NDArray[Any], found: NDArray[Any]) -> None:
        """Adds one picture; both arrays have one shape."""
        a, b = wanted.astype(np.float64), found.astype(np.float64)
        error = a - b
        self.signal += float((a * a).sum())
        self.noise += float((error * error).sum())
        self.power += float((b * b).sum())
        self.product += float((a * b).sum())
        # max() of Python drops NaN, and a NaN must show
        self.largest = float(np.maximum(self.largest, np.abs(error).max(initial=0.0)))
        self.low, self.high = min(self.low, float(a.min())), max(self.high, float(a.max()))

    def figures(self) -> MapFigures | None:
        """Returns the figures; None where nothing was added."""
        if self.low > self.high:
            return None
        span, length = self.high - self.low, math.sqrt(self.signal * self.power)
        cosine = self.product / length if length and self.noise else 1.0 if not self.noise else 0.0
        of_range = self.largest / span if span else (math.inf if self.largest else 0.0)
        return MapFigures(decibel(self.signal, self.noise), cosine, of_range)


class StepTally:
    """Counts integers against those that should be the same."""

    def __init__(self) -> None:
        self.exact = self.near = self.count = self.largest = 0

    def add(self, wanted: NDArray[Any], found: NDArray[Any]) -> None:
        """Adds one picture; both arrays have one shape."""
        distance = np.abs(wanted.astype(np.int64) - found.astype(np.int64))
        self.exact += int((distance == 0).sum())
        self.near += int((distance <= 1).sum())
        self.count += distance.size
        self.largest = max(self.largest, int(distance.max(initial=0)))

    def figures(self) -> StepFigures | None:
        """Returns the figures; None where nothing was added."""
        if not self.count:
            return None
        return StepFigures(self.exact / self.count, self.near / self.count, self.largest)


def decibel(signal: float, noise: float) -> float:
    """Returns a power ratio in dB; infinite without noise, minus infinite without signal, with NaN or endless noise."""
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 and 0.0 < noise < math.inf else -math.inf
