"""How one output of a file compares with PyTorch's, summed up over pictures in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import OutputTensor

_MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))  # rows, columns


@dataclass(frozen=True)
class Tolerance:
    """What a scheme may lose against PyTorch; None means that this figure decides nothing.

    Attributes:
        max_of_range: Largest absolute error as a share of the output's range.
        min_snr_db: Smallest signal-to-noise ratio.
        floor_factor: Where PyTorch's own float32 is far from float64, the error may be this many times as large.
    """

    max_of_range: float | None
    min_snr_db: float | None
    floor_factor: float = 0.0


@dataclass(frozen=True)
class OutputParity:
    """How one output compares with PyTorch, over all pictures.

    Attributes:
        name: Output name of the contract.
        max_abs: Largest absolute difference.
        output_range: Largest minus smallest reference value.
        max_of_range: `max_abs / output_range`.
        torch_float32_of_range: The same for PyTorch's float32 against its float64: on the reference pictures, and for
            a float file on the given ones, where it can be ten times as much.
        snr_db: Signal-to-noise ratio; infinite where nothing differs.
        cosine: Cosine of the angle between the two, as vectors.
        exact: Share of integers equal to the reference on the file's own grid; None for float outputs.
        within_1_lsb: Share of integers at most one step away; None for float outputs.
        max_lsb: Largest difference in steps; None for float outputs.
        displaced: Whether the output fits better when it is moved by one cell.
        passed: Whether the scheme's tolerance holds and nothing is displaced.
    """

    name: str
    max_abs: float
    output_range: float
    max_of_range: float
    torch_float32_of_range: float
    snr_db: float
    cosine: float
    exact: float | None
    within_1_lsb: float | None
    max_lsb: int | None
    displaced: bool
    passed: bool


class OutputTally:
    """Sums up one output over pictures, in float64.

    Args:
        output: The output.
        float32_error: How far PyTorch's float32 is from its float64 on the seeded pictures, as a share of the range.
    """

    def __init__(self, output: OutputTensor, float32_error: float) -> None:
        self.output = output
        # of the seeded and of the given pictures: rounding on the one excuses no error on the other
        self.float32_error, self.max_abs = [float32_error, 0.0], [0.0, 0.0]
        self.noise = self.signal = self.product = self.power = 0.0
        self.low, self.high = math.inf, -math.inf
        self.count = self.exact = self.near = self.max_lsb = 0
        self.moved_noise = np.zeros(len(_MOVES))

    def add_float32(self, single: NDArray[Any], double: NDArray[Any]) -> None:
        """Takes PyTorch's float32 and float64 on a given picture, where float32 may be further off."""
        error = _ratio(float(np.abs(single - double).max()), float(np.ptp(double)))
        self.float32_error[1] = max(self.float32_error[1], error)

    def add(self, wanted: NDArray[Any], found: NDArray[Any], raw: NDArray[Any], *, given: bool = False) -> None:
        """Takes the output for one picture: PyTorch's, the file's as reals, and as the file has it."""
        a, b = wanted.astype(np.float64), found.astype(np.float64)
        error = np.abs(a - b)
        # max() of Python drops NaN; a NaN anywhere must end in a failed check
        self.max_abs[given] = float(np.maximum(self.max_abs[given], np.max(error)))
        self.low, self.high = min(self.low, float(a.min())), max(self.high, float(a.max()))
        self.noise += float((error**2).sum())
        self.moved_noise += [float(((a - np.roll(b, move, axis=(1, 2))) ** 2).sum()) for move in _MOVES]
        self.signal += float((a**2).sum())
        self.power += float((b**2).sum())
        self.product += float((a * b).sum())
        self.count += a.size
        if self.output.quantization is not None:
            self._add_steps(a, raw)

    def _add_steps(self, wanted: NDArray[np.float64], raw: NDArray[Any]) -> None:
        grid = self.output.quantization
        limits = np.iinfo(raw.dtype)
        steps = np.rint(wanted / grid.scale) + grid.zero_point if grid else wanted
        distance = np.abs(np.clip(steps, limits.min, limits.max) - raw.astype(np.float64))
        distance = np.nan_to_num(distance, nan=float(limits.max) - limits.min)
        self.exact += int((distance == 0).sum())
        self.near += int((distance <= 1).sum())
        self.max_lsb = max(self.max_lsb, int(distance.max()))

    def result(self, tolerance: Tolerance) -> OutputParity:
        """Returns the figures over all pictures and whether they are within the tolerance."""
        output_range, max_abs = self.high - self.low, float(np.max(self.max_abs))
        of_range = [_ratio(error, output_range) for error in self.max_abs]
        snr_db = _decibel(self.signal, self.noise)
        whole = self.output.quantization is not None
        displaced = bool(self.moved_noise.min() < self.noise)
        return OutputParity(
            name=self.output.name,
            max_abs=max_abs,
            output_range=output_range,
            max_of_range=_ratio(max_abs, output_range),
            torch_float32_of_range=max(self.float32_error),
            snr_db=snr_db,
            cosine=_ratio(self.product, math.sqrt(self.signal * self.power)) if self.noise else 1.0,
            exact=self.exact / self.count if whole else None,
            within_1_lsb=self.near / self.count if whole else None,
            max_lsb=self.max_lsb if whole else None,
            displaced=displaced,
            passed=all(map(partial(_near, tolerance), of_range, self.float32_error))
            and (tolerance.min_snr_db is None or snr_db >= tolerance.min_snr_db)
            and not displaced,
        )


def _near(tolerance: Tolerance, of_range: float, float32_error: float) -> bool:
    """Whether an error, as a share of the range, is within the tolerance; NaN never is."""
    limit = tolerance.max_of_range
    within = limit is None or of_range <= max(limit, tolerance.floor_factor * float32_error)
    return within and not math.isnan(of_range)


def _ratio(part: float, whole: float) -> float:
    if part == 0.0:
        return 0.0
    return part / whole if whole else math.inf


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 and noise > 0.0 else -math.inf
