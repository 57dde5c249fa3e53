"""The arithmetic of XNNPACK's int8 kernels in NumPy, bit for bit: the same integers on every machine.

All maps are int8, NHWC with batch 1. Each function was compared with the runtime over random grids; where a kernel
rounds in a way of its own, its docstring says how. Source of the rules: the reference implementations of XNNPACK
(github.com/google/XNNPACK, src/xnnpack/microparams-init.h and src/microparams-init.c, BSD licence).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.errors import InputError
from edge_seg.schemes import Grid

Ints = NDArray[np.int8]
Accumulators = NDArray[np.int32]

_EXACT_IN_FLOAT32 = 1 << 24
_RESIZE_BITS = 11
_ADD_BITS = 20


@dataclass(frozen=True)
class Window:
    """How a convolution moves over a map.

    Attributes:
        stride_hw: Steps.
        padding_tblr: Rows and columns of real zeros: top, bottom, left, right.
        dilation_hw: Distances of taps.
        groups: Groups of channels; as many as channels in a depthwise convolution.
    """

    stride_hw: tuple[int, int] = (1, 1)
    padding_tblr: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation_hw: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True, eq=False)
class Weights:
    """Integers of a convolution.

    Attributes:
        integers_ohwi: int8 [out, kernel height, kernel width, input channels of a group].
        scales_o: float32 [out].
        bias_o: int32 [out], on the grid input scale * weight scale.
    """

    integers_ohwi: Ints
    scales_o: NDArray[np.float32]
    bias_o: NDArray[np.int32]


def byte_input(image_hwc_u8: NDArray[np.uint8]) -> Ints:
    """Returns a picture on the input's grid, int8 [1, H, W, 3]: byte - 128."""
    return (image_hwc_u8[None] ^ np.uint8(128)).view(np.int8)


def convolution(x: Ints, grid: Grid, weights: Weights, window: Window, out: Grid) -> Ints:
    """Convolves a map: exact integer sums, then one multiplication in float32, rounded half to even.

    Args:
        x: Map [1, h, w, in].
        grid: Its grid.
        weights: Integers; a fully connected layer is a 1x1 convolution.
        window: Steps, padding, dilation, groups; depthwise is groups = channels.
        out: Grid of the result; `low` and `high` are the range of a fused activation.

    Returns:
        Map [1, h', w', out].
    """
    totals = _accumulate(x, grid.zero_point, weights, window)
    # the order of these two float32 operations decides on the last bit of the scale
    scale_o = np.float32(grid.scale) * weights.scales_o / np.float32(out.scale)
    return _from_float(totals.astype(np.float32) * scale_o, out)


def add(a: Ints, b: Ints, grids: tuple[Grid, Grid], out: Grid) -> Ints:
    """Adds two maps of one shape with 21-bit multipliers; the sum is shifted right, rounded half up.

    Args:
        a: First map.
        b: Second map, or one number [1, 1, 1, 1].
        grids: Their grids.
        out: Grid of the sum; `low` and `high` are the range of a fused activation.
    """
    ratios = [np.float32(g.scale) / np.float32(out.scale) for g in grids]
    shift = _ADD_BITS - (int(np.frexp(max(ratios))[1]) - 1)
    total = np.full(a.shape, 1 << (shift - 1), np.int64)
    for x, grid, ratio in zip((a, b), grids, ratios, strict=True):
        multiplier = int(np.rint(np.ldexp(ratio, shift)))
        total += (x.astype(np.int64) - grid.zero_point) * multiplier
    return _clamped((total >> shift) + out.zero_point, out)


def requantize(x: Ints, grid: Grid, out: Grid) -> Ints:
    """Moves integers to another grid with a multiplier in 256ths, rounded half up.

    Raises:
        InputError: The ratio of the scales is outside 2^-8 .. 2^7, for which there is no kernel.
    """
    ratio = np.float32(grid.scale) / np.float32(out.scale)
    if not 2.0**-8 <= ratio <= 2.0**7:
        raise InputError("Two grids are too far apart to convert between.", expected="2^-8 .. 2^7", got=f"{ratio}")
    multiplier = int(np.rint(np.float32(256.0) * ratio))
    return _clamped((((x.astype(np.int32) - grid.zero_point) * multiplier + 128) >> 8) + out.zero_point, out)


def concat(parts: Sequence[Ints]) -> Ints:
    """Joins maps of one grid along channels."""
    return np.concatenate(parts, axis=-1)


def pad(x: Ints, zero_point: int, padding_tblr: tuple[int, int, int, int]) -> Ints:
    """Surrounds a map with real zeros."""
    top, bottom, left, right = padding_tblr
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=zero_point)


def mean_hw(x: Ints, grid: Grid, out: Grid) -> Ints:
    """Averages over height and width, [1, 1, 1, c]: one multiplication of the sum, rounded half to even."""
    count = np.float32(x.shape[1] * x.shape[2])
    total = (x.astype(np.int32) - grid.zero_point).sum((1, 2), dtype=np.int32, keepdims=True)
    scale = np.float32(grid.scale) / np.float32(out.scale) / count
    return _from_float(total.astype(np.float32) * scale, out)


def resize_bilinear(x: Ints, size_hw: tuple[int, int]) -> Ints:
    """Resizes a map with half-pixel centres; weights in 2048ths, the result rounded half up.

    Weights are exact for factors that are powers of two up to 1024; a 1x1 map is repeated.

    Args:
        x: Map [1, h, w, c]; the result lies on its grid.
        size_hw: Height and width of the result.
    """
    top, bottom, down = _taps(x.shape[1], size_hw[0])
    left, right, across = _taps(x.shape[2], size_hw[1])
    rows = x.astype(np.int32)
    upper, lower = rows[:, top], rows[:, bottom]
    one = 1 << _RESIZE_BITS
    across = across[None, None, :, None]
    upper = upper[:, :, left] * (one - across) + upper[:, :, right] * across
    lower = lower[:, :, left] * (one - across) + lower[:, :, right] * across
    down = down[None, :, None, None]
    half = 1 << (2 * _RESIZE_BITS - 1)
    result = (upper * (one - down) + lower * down + half) >> (2 * _RESIZE_BITS)
    return result.astype(np.int8)


def activation_range(grid: Grid, low: float, high: float) -> tuple[int, int]:
    """Returns the integers that a fused activation's limits become on its output's grid, computed in float32."""
    ends = [np.float32(v) / np.float32(grid.scale) + np.float32(grid.zero_point) for v in (low, high)]
    first, last = np.rint(np.clip(ends, np.float32(grid.low), np.float32(grid.high))).astype(int).tolist()
    return first, last


def _accumulate(x: Ints, zero_point: int, weights: Weights, window: Window) -> Accumulators:
    """Returns sums of products plus bias, [1, h', w', out]; they wrap around as int32 does."""
    dtype = _exact_dtype(weights.integers_ohwi)
    top, bottom, left, right = window.padding_tblr
    centred = np.pad(x.astype(dtype) - dtype(zero_point), ((0, 0), (top, bottom), (left, right), (0, 0)))
    taps = weights.integers_ohwi.astype(dtype)
    kernel_hw = taps.shape[1:3]
    size_hw = [
        (centred.shape[1 + i] - window.dilation_hw[i] * (kernel_hw[i] - 1) - 1) // window.stride_hw[i] + 1
        for i in (0, 1)
    ]
    total = np.zeros((1, *size_hw, len(taps)), dtype)
    for row, column in np.ndindex(*kernel_hw):
        rows, columns = (
            slice(start := place * dilation, start + (size - 1) * stride + 1, stride)
            for place, dilation, size, stride in zip(
                (row, column), window.dilation_hw, size_hw, window.stride_hw, strict=True
            )
        )
        total += _products(centred[:, rows, columns], taps[:, row, column], window.groups)
    return (total.astype(np.int64) + weights.bias_o).astype(np.int32)


def _exact_dtype(integers_ohwi: Ints) -> Any:
    """Returns the narrower float dtype in which no partial sum of 8-bit products can lose a bit."""
    largest = np.abs(integers_ohwi.astype(np.int64)).sum((1, 2, 3)).max(initial=0) * 255
    return np.float32 if largest < _EXACT_IN_FLOAT32 else np.float64


def _products(x: NDArray[Any], weight_oi: NDArray[Any], groups: int) -> NDArray[Any]:
    """Multiplies one tap, [1, h, w, in] by [out, in of a group], to [1, h, w, out]."""
    channels, outputs = x.shape[-1], len(weight_oi)
    if groups == channels:
        repeated = np.repeat(x, outputs // groups, axis=-1) if outputs > groups else x
        scaled: NDArray[Any] = repeated * weight_oi[:, 0]
        return scaled
    cells = x.reshape(-1, groups, channels // groups).transpose(1, 0, 2)
    per_group = weight_oi.reshape(groups, outputs // groups, -1).transpose(0, 2, 1)
    products: NDArray[Any] = np.matmul(cells, per_group).transpose(1, 0, 2)
    return products.reshape(*x.shape[:-1], outputs)


def _from_float(steps: NDArray[np.float32], out: Grid) -> Ints:
    """Clamps float32 steps, rounds half to even and adds the zero point: the order of the kernels."""
    limits = np.float32(out.low - out.zero_point), np.float32(out.high - out.zero_point)
    return (np.rint(np.clip(steps, *limits)) + np.float32(out.zero_point)).astype(np.int8)


def _clamped(integers: NDArray[Any], out: Grid) -> Ints:
    inside: NDArray[Any] = np.clip(integers, out.low, out.high)
    return inside.astype(np.int8)


def _taps(size: int, wanted: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int32]]:
    """Returns the two neighbours of each result along one axis and the weight of the second, in 2048ths."""
    scale = np.float32(size) / np.float32(wanted)
    centres = np.arange(wanted, dtype=np.float32) * scale + (np.float32(0.5) * scale - np.float32(0.5))
    centres = np.clip(centres, np.float32(0.0), np.float32(size - 1))
    first = centres.astype(np.intp)
    weight = np.rint((centres - first.astype(np.float32)) * np.float32(1 << _RESIZE_BITS)).astype(np.int32)
    return first, np.minimum(first + 1, size - 1), weight
