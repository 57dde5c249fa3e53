"""From statistics to integer grids: how much of each tensor's range is kept, and which tensors share a grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.graph import Graph, OpInfo
from edge_seg.converters.ptq.calibration import Histogram, Statistics, runtime_floats
from edge_seg.errors import InputError, nearest
from edge_seg.schemes import (
    FIXED_GRIDS,
    INPUT_GRID,
    JOINS_GRIDS,
    KEEPS_GRID,
    KIND_OF_OP,
    Grid,
    activation_grid,
    weight_scales,
)

Method = Literal["minmax", "percentile", "mse"]
UNLIKE = 4.0  # ranges that differ more than this lose two of eight bits on a common grid
_STEPS = 64  # clippings tried for each end of a range
WEIGHT_AXIS: Mapping[str, tuple[int, int]] = {
    "CONV_2D": (1, 0),
    "DEPTHWISE_CONV_2D": (1, 3),
    "FULLY_CONNECTED": (1, 0),
    "TRANSPOSE_CONV": (1, 0),
}
"""By operator: which input holds the weights, and their axis of output channels."""


@dataclass(frozen=True)
class RangeMethod:
    """How the range of an activation follows from its values.

    Attributes:
        name: "minmax" (all of them), "percentile" (cuts the rare ones on either side), "mse" (the clipping with the
            smallest squared error on the grid).
        percentile: Share of the values, in percent, below the upper and above the lower end.
    """

    name: Method = "mse"
    percentile: float = 99.99

    @classmethod
    def parse(cls, text: str) -> RangeMethod:
        """Reads "minmax", "mse", "percentile" or "percentile:99.9".

        Raises:
            InputError: Another word, or a percentile outside (50, 100].
        """
        name, colon, number = text.partition(":")
        known: tuple[str, ...] = get_args(Method)
        if name not in known or (colon and name != "percentile"):
            raise InputError(f"There is no range method {text!r}.", got=text, todo=nearest(name, known))
        try:
            percentile = float(number) if colon else cls.percentile
        except ValueError:
            percentile = math.nan
        if not 50 < percentile <= 100:
            raise InputError(f"Cannot read {text!r}.", expected="percentile:P with 50 < P <= 100", got=number)
        return cls(name, percentile)  # type: ignore[arg-type]  # `known` are the literals

    def __str__(self) -> str:
        """Returns the text that `parse` reads."""
        return f"{self.name}:{self.percentile:g}" if self.name == "percentile" else self.name


def shared_grids(graph: Graph, statistics: Mapping[int, Statistics]) -> list[list[int]]:
    """Returns the sets of tensors that lie on one grid, in order of first use; most hold one tensor.

    Tensors whose grid the kernels fix (sigmoid) stay by themselves also where a concatenation joins them. So does a
    resized or pooled part of a concatenation whose range is a small share of the whole: the tool moves it to the
    common grid with a QUANTIZE of its own, and the layer before it keeps its precision.

    Args:
        graph: The float network.
        statistics: Of its tensors.
    """
    sets = _Sets(runtime_floats(graph))
    kept = {t for op in graph.ops if KIND_OF_OP.get(op.name) in KEEPS_GRID for t in op.outputs}
    fixed = {t for op in graph.ops if KIND_OF_OP.get(op.name) in FIXED_GRIDS for t in op.outputs}
    for words in (KEEPS_GRID, JOINS_GRIDS):
        for op in graph.ops:
            if KIND_OF_OP.get(op.name) in words:
                whole = _reach(statistics, [t for t in op.outputs if t in sets.parent])
                for t in (*op.inputs, *op.outputs[1:]):
                    alone = t in fixed or (
                        words is JOINS_GRIDS and t in kept and UNLIKE * _reach(statistics, sets.of(t)) < whole
                    )
                    if t in sets.parent and not alone and op.outputs[0] in sets.parent:
                        sets.join(t, op.outputs[0])
    return sets.all()


class _Sets:
    """Disjoint sets of tensors."""

    def __init__(self, tensors: Iterable[int]) -> None:
        self.parent = {t: t for t in tensors}

    def root(self, t: int) -> int:
        while self.parent[t] != t:
            t = self.parent[t]
        return t

    def join(self, a: int, b: int) -> None:
        self.parent[self.root(a)] = self.root(b)

    def of(self, t: int) -> list[int]:
        return [o for o in self.parent if self.root(o) == self.root(t)]

    def all(self) -> list[list[int]]:
        found: dict[int, list[int]] = {}
        for t in self.parent:
            found.setdefault(self.root(t), []).append(t)
        return list(found.values())


def _reach(statistics: Mapping[int, Statistics], tensors: Iterable[int]) -> float:
    return max((max(-statistics[t].low, statistics[t].high) for t in tensors), default=0.0)


@dataclass(frozen=True)
class Range:
    """What a tensor's grid spans.

    Attributes:
        low: Smallest value of all tensors on the grid.
        high: Largest.
        kept_low: Lower end that is kept on 8 bits.
        kept_high: Upper end.
    """

    low: float
    high: float
    kept_low: float
    kept_high: float


def chosen_ranges(graph: Graph, statistics: Mapping[int, Statistics], method: RangeMethod) -> dict[int, Range]:
    """Chooses the range of every activation, by tensor index.

    Args:
        graph: The float network.
        statistics: Of its tensors, from `observe`.
        method: How much of a range is kept.
    """
    ranges: dict[int, Range] = {}
    for tensors in shared_grids(graph, statistics):
        low = min(statistics[t].low for t in tensors)
        high = max(statistics[t].high for t in tensors)
        histogram = _merged(statistics[t].histogram for t in tensors)
        ranges |= dict.fromkeys(tensors, Range(low, high, *clipped(histogram, low, high, method)))
    return ranges


def activation_grids(graph: Graph, ranges: Mapping[int, Range], bits: Mapping[int, int]) -> dict[int, Grid]:
    """Chooses the grid of every activation.

    Args:
        graph: The float network.
        ranges: Of its activations. int16 always takes the whole range: its steps are fine enough.
        bits: 8 or 16 by tensor index.

    Returns:
        Grids by tensor index; the input's is fixed, so that an app writes `byte - 128`, and so is that of its sum
        with one number: every byte keeps an integer of its own, whatever the pictures of the calibration hold.
    """
    grids = {
        t: activation_grid(r.low, r.high, bits=16) if bits[t] == 16 else activation_grid(r.kept_low, r.kept_high)
        for t, r in ranges.items()
    }
    for op in graph.ops:
        kind = KIND_OF_OP.get(op.name, "")
        for t in op.outputs:
            if kind in FIXED_GRIDS and t in grids:
                grids[t] = FIXED_GRIDS[kind] if bits[t] == 8 else Grid(2.0**-15, 0, -32768, 32767)
    grids[graph.inputs[0]] = INPUT_GRID
    for op in graph.ops:
        shift = _shift_of_picture(graph, op)
        if shift is not None and bits.get(op.outputs[0]) == 8:
            grids[op.outputs[0]] = activation_grid(*(end + shift for end in INPUT_GRID.range))
    return grids


def _shift_of_picture(graph: Graph, op: OpInfo) -> float | None:
    """Returns the one number that an operator adds to the picture, or None for other operators."""
    if op.name != "ADD" or op.inputs[0] != graph.inputs[0] or not graph.tensors[op.inputs[1]].constant:
        return None
    value = graph.constant(op.inputs[1])
    if value.size != 1 or op.options.get("fused_activation_function", "NONE") != "NONE":
        return None
    return float(value.reshape(-1)[0])


def _merged(histograms: Iterable[Histogram]) -> Histogram:
    first, *rest = histograms
    for other in rest:
        first = first.merged(other)
    return first


def clipped(histogram: Histogram, low: float, high: float, method: RangeMethod) -> tuple[float, float]:
    """Returns the part of [low, high] that a method keeps, on an 8-bit grid."""
    if method.name == "percentile":
        return _percentiles(histogram, low, high, method.percentile)
    if method.name == "mse":
        return _least_error(histogram, min(low, 0.0), max(high, 0.0))
    return low, high


def _percentiles(histogram: Histogram, low: float, high: float, percentile: float) -> tuple[float, float]:
    centres, counts = histogram.filled()
    below = np.cumsum(counts) / counts.sum()
    half = histogram.width / 2
    upper = centres[np.searchsorted(below, percentile / 100 - 1e-12)] + half
    lower = centres[np.searchsorted(below, 1 - percentile / 100, side="right")] - half
    return max(low, float(lower)), min(high, float(upper))


def _least_error(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    """Tries smaller upper ends, then smaller lower ends, then upper ends again: errors of both ends depend little."""
    centres, counts = histogram.filled()

    def error(a: float, b: float) -> float:
        return squared_error(centres, counts, activation_grid(a, b))

    shares = np.arange(1, _STEPS + 1) / _STEPS
    ends = [low, high]
    for place in (1, 0, 1) if low < 0 < high else (1,) if high > 0 else (0,):
        trials = [(share * (high, low)[place == 0]) for share in shares]
        pairs = [(ends[0], t) if place else (t, ends[1]) for t in trials]
        ends[place] = trials[int(np.argmin([error(*pair) for pair in pairs]))]
    return float(ends[0]), float(ends[1])


def squared_error(centres: NDArray[np.float64], counts: NDArray[np.int64], grid: Grid) -> float:
    """Returns the sum of squared differences between values and their grid points; values lie at bin centres."""
    steps = np.clip(np.rint(centres / grid.scale) + grid.zero_point, grid.low, grid.high)
    return float((counts * (centres - (steps - grid.zero_point) * grid.scale) ** 2).sum())


def weights_of(graph: Graph, op: OpInfo) -> tuple[int, int] | None:
    """Returns tensor index and output axis of an operator's constant weights, or None."""
    place, axis = WEIGHT_AXIS.get(op.name, (-1, 0))
    if place < 0 or place >= len(op.inputs) or not graph.tensors[op.inputs[place]].constant:
        return None
    return op.inputs[place], axis


def tool_ranges(graph: Graph, grids: Mapping[int, Grid]) -> dict[str, dict[str, NDArray[Any]]]:
    """Writes grids as ai-edge-quantizer's calibration result, so that it arrives at exactly these grids.

    The ends are products of a float32 scale and a small integer, exact in float64, and so is the way back. Weights
    are listed as well: the tool's own floor (1e-9 / 127) leaves a channel of zeros with a bias that overflows int32.

    Args:
        graph: The float network.
        grids: Of its activations, by tensor index.

    Returns:
        Arrays "min" and "max" by tensor name.
    """
    ranges = {}
    for index, grid in grids.items():
        low, high = grid.range
        shape = (1,) * max(1, len(graph.tensors[index].shape))
        ranges[graph.tensors[index].name] = {"min": np.full(shape, low), "max": np.full(shape, high)}
    for op in graph.ops:
        found = weights_of(graph, op)
        if found is not None and graph.tensors[found[0]].dtype == "float32":
            values = graph.constant(found[0])
            scales = weight_scales(np.moveaxis(values, found[1], 0)).astype(np.float64)
            shape = tuple(-1 if axis == found[1] else 1 for axis in range(values.ndim))
            top = (127 * scales).reshape(shape)
            ranges[graph.tensors[found[0]].name] = {"min": -top, "max": top}
    return ranges
