"""A network as integer operations: what an exported program and an int8 .tflite are both read into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from edge_seg.converters.integers.kernels import Ints, Weights, Window
from edge_seg.schemes import Grid


@dataclass(frozen=True, eq=False)
class IntegerOp:
    """One operation on int8 maps.

    Attributes:
        kind: "convolution", "add", "concat", "resize_bilinear", "mean_hw", "pad", "requantize" or "constant".
        module: PyTorch module path; "" where none is known.
        inputs: Numbers of the values it reads.
        output: Number of the value it writes.
        low: Smallest integer that a fused activation lets through.
        high: Largest one.
        weights: Integers of a convolution.
        window: Geometry of a convolution; of "pad" the padding.
        size_hw: Height and width that a resize makes.
        values_nhwc: Integers of a constant map.
    """

    kind: str
    module: str
    inputs: tuple[int, ...]
    output: int
    low: int = -128
    high: int = 127
    weights: Weights | None = None
    window: Window | None = None
    size_hw: tuple[int, int] | None = None
    values_nhwc: Ints | None = None

    def form(self) -> str:
        """Returns all but the numbers, for comparison and for messages: kind, geometry, range."""
        shape = "x".join(map(str, self.weights.integers_ohwi.shape)) if self.weights else ""
        size = "to {}x{}".format(*self.size_hw) if self.size_hw else ""
        limits = f"clamped to {self.low}..{self.high}" if (self.low, self.high) != (-128, 127) else ""
        return " ".join(part for part in (self.kind, shape, _words(self.window), size, limits) if part)


def _words(window: Window | None) -> str:
    if window is None:
        return ""
    numbers = (window.stride_hw, window.padding_tblr, window.dilation_hw, window.groups)
    return "stride {}, padding {}, dilation {}, groups {}".format(*numbers)


@dataclass(frozen=True, eq=False)
class IntegerNetwork:
    """Integer operations in the order they run.

    Attributes:
        source: What it was read from, for messages.
        ops: The operations.
        grids: Grid of every value.
        input: Number of the picture's value.
        outputs: Numbers of the results by the contract's names.
    """

    source: str
    ops: tuple[IntegerOp, ...]
    grids: Mapping[int, Grid]
    input: int
    outputs: Mapping[str, int]

    def names(self) -> Iterator[str]:
        """Yields a name for each operation: its module path, from a module's second operation on with "#2"."""
        seen: dict[str, int] = {}
        for op in self.ops:
            module = op.module or op.kind
            seen[module] = seen.get(module, 0) + 1
            yield module if seen[module] == 1 else f"{module}#{seen[module]}"

    def without_pads(self) -> IntegerNetwork:
        """Returns the same network with each pad in front of a convolution taken into the convolution's own padding.

        A converter writes padding that TFLite's SAME cannot express as an operation of its own; both pad with real
        zeros, so that the integers are the same.
        """
        pads = {op.output: op for op in self.ops if op.kind == "pad"}
        folded = [_with_pad(op, pads[op.inputs[0]]) if op.weights and op.inputs[0] in pads else op for op in self.ops]
        used = {place for op in folded for place in op.inputs} | set(self.outputs.values())
        return replace(self, ops=tuple(op for op in folded if op.kind != "pad" or op.output in used))

    def without_zero_taps(self) -> IntegerNetwork:
        """Returns the same network without rows and columns of zeros that a kernel lays on its padding.

        `zero_taps` cuts them on conversion; the exact rewrite of TensorFlow's SAME padding puts them there.
        """
        return replace(self, ops=tuple(_cut(op) if op.weights and op.window else op for op in self.ops))


def _cut(op: IntegerOp) -> IntegerOp:
    if op.weights is None or op.window is None or op.window.dilation_hw != (1, 1):
        return op
    kernel, around = op.weights.integers_ohwi, list(op.window.padding_tblr)
    for side, axis in enumerate((1, 1, 2, 2)):
        edge = 0 if side % 2 == 0 else -1
        while around[side] and kernel.shape[axis] > 1 and not kernel.take(edge, axis).any():
            kernel = np.delete(kernel, edge, axis)
            around[side] -= 1
    window = replace(op.window, padding_tblr=(around[0], around[1], around[2], around[3]))
    return replace(op, weights=replace(op.weights, integers_ohwi=kernel), window=window)


def _with_pad(op: IntegerOp, pad: IntegerOp) -> IntegerOp:
    if op.window is None or pad.window is None:
        return op
    one, other = op.window.padding_tblr, pad.window.padding_tblr
    around = (one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3])
    return replace(op, inputs=pad.inputs, window=replace(op.window, padding_tblr=around))
