"""int8 .tflite -> integer operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.converters.flatbuffer import Graph, OpInfo
from edge_seg.converters.integers.kernels import Weights, Window, activation_range
from edge_seg.converters.integers.network import IntegerNetwork, IntegerOp
from edge_seg.converters.interpreter import places
from edge_seg.errors import ArtifactError, InputError
from edge_seg.schemes import Grid

_LIMITS: Mapping[str, tuple[float, float]] = {
    "NONE": (-math.inf, math.inf),
    "RELU": (0.0, math.inf),
    "RELU6": (0.0, 6.0),
    "RELU_N1_TO_1": (-1.0, 1.0),
}


def network_of_file(graph: Graph, contract: Contract) -> IntegerNetwork:
    """Reads the integer operations of a fully int8 .tflite.

    Args:
        graph: The file.
        contract: Names of its input and outputs.

    Raises:
        InputError: An operator has no rule, or is not int8 throughout.
        ArtifactError: The file does not fit its contract, or an operator of it makes no sense.
    """
    source, outputs = places(graph, contract)
    reader = _Reader(graph)
    grids = {source: reader.grid(source)}
    ops = []
    for op in graph.ops:
        if op.name not in _READERS:
            raise InputError(
                f"The integer mirror has no rule for {op.name} at {graph.source(op)!r}.", expected=", ".join(_READERS)
            )
        try:
            made = _READERS[op.name](reader, op)
            for place in set(made.inputs) - set(grids):
                ops.append(reader.constant_map(place))
                grids[place] = reader.grid(place)
            ops.append(made)
            grids[op.outputs[0]] = reader.grid(op.outputs[0])
        except (IndexError, KeyError, ValueError, TypeError, ArithmeticError) as error:
            raise reader.broken(op, f"{type(error).__name__}: {error}") from error
    return IntegerNetwork(str(graph.path), tuple(ops), grids, source, outputs)


class _Reader:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def grid(self, index: int) -> Grid:
        """Returns the grid of an activation."""
        tensor = self.graph.tensors[index]
        if tensor.dtype != "int8" or len(tensor.scale) != 1 or not 0.0 < tensor.scale[0] < math.inf:
            raise InputError(
                f"The integer mirror cannot hold {tensor.name!r}.",
                expected="int8 with one positive scale",
                got=f"{tensor.dtype} with {list(tensor.scale[:4])}",
                todo="mirror a file that is int8 throughout: w8a8 or qat_w8a8",
            )
        return Grid(tensor.scale[0], tensor.zero_point[0])

    def op(self, op: OpInfo, kind: str, inputs: Sequence[int], **details: Any) -> IntegerOp:
        """Returns an operation with its module and its activation's range."""
        output = op.outputs[0]
        for place in inputs:
            if self.graph.tensors[place].constant and kind != "add":
                raise InputError(f"The integer mirror reads no constant maps, as {op.name} has one.")
            self.grid(place)
        activation = op.options.get("fused_activation_function", "NONE")
        if activation not in _LIMITS:
            raise InputError(f"The integer mirror has no rule for {activation} inside {op.name}.")
        ends = activation_range(self.grid(output), *_LIMITS[activation])
        return IntegerOp(kind, self.graph.source(op), tuple(inputs), output, *ends, **details)

    def constant_map(self, place: int) -> IntegerOp:
        """Returns a constant tensor that an addition reads as an operation without inputs."""
        tensor = self.graph.tensors[place]
        if not tensor.constant:
            raise InputError(f"Nothing computes {tensor.name!r} before it is read.")
        values = self.graph.constant(place)
        one = values.reshape(1, 1, 1, 1) if values.size == 1 else values  # files hold one number without axes
        return IntegerOp("constant", "", (), place, values_nhwc=one)

    def same_grids(self, op: OpInfo, inputs: Sequence[int]) -> None:
        """Raises InputError unless the inputs lie on the grid of the output: the kernel only moves integers."""
        out = self.grid(op.outputs[0])
        for place in inputs:
            if self.grid(place) != out:
                raise InputError(
                    f"{op.name} at {self.graph.source(op)!r} does not keep its grid.",
                    expected=str(out),
                    got=str(self.grid(place)),
                    todo="tie the grids of what it joins or resizes",
                )

    def weights(self, op: OpInfo, integers_ohwi: NDArray[Any]) -> Weights:
        """Returns the integers of a convolution, whose weights are input 1 and whose bias, if any, is input 2."""
        tensor, out = self.graph.tensors[op.inputs[1]], len(integers_ohwi)
        if tensor.dtype != "int8" or any(tensor.zero_point) or len(tensor.scale) not in (1, out):
            raise self.broken(op, f"{tensor.dtype} weights with {len(tensor.scale)} scales, zero {tensor.zero_point}")
        scales = np.broadcast_to(np.array(tensor.scale, np.float32), (out,))
        bias = np.zeros(out, np.int32)
        if len(op.inputs) > 2 and op.inputs[2] >= 0:
            bias = self.graph.constant(op.inputs[2])
        if bias.dtype != np.int32 or bias.shape != (out,):
            raise self.broken(op, f"a bias of {bias.dtype} {bias.shape}")
        return Weights(np.ascontiguousarray(integers_ohwi), scales, bias)

    def window(self, op: OpInfo, kernel_hw: tuple[int, ...], groups: int) -> Window:
        """Returns the geometry of a convolution with its padding spelled out."""
        options = op.options
        strides = options["stride_h"], options["stride_w"]
        dilations = options["dilation_h_factor"], options["dilation_w_factor"]
        sizes = zip(self._hw(op.inputs[0]), self._hw(op.outputs[0]), kernel_hw, strides, dilations, strict=True)
        same = options["padding"] == "SAME"
        (top, bottom), (left, right) = (_same_padding(*s) if same else (0, 0) for s in sizes)
        return Window(strides, (top, bottom, left, right), dilations, groups)

    def _hw(self, index: int) -> tuple[int, ...]:
        return self.graph.tensors[index].shape[1:3]

    def broken(self, op: OpInfo, got: str) -> ArtifactError:
        return ArtifactError(f"{op.name} {op.index} of {self.graph.path} makes no sense.", got=got)


def _same_padding(size: int, wanted: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    total = max(0, (wanted - 1) * stride + (kernel - 1) * dilation + 1 - size)
    return total // 2, total - total // 2


def _convolution(reader: _Reader, op: OpInfo) -> IntegerOp:
    integers = reader.graph.constant(op.inputs[1])
    groups = reader.graph.tensors[op.inputs[0]].shape[-1] // integers.shape[-1]
    window = reader.window(op, integers.shape[1:3], groups)
    return reader.op(op, "convolution", op.inputs[:1], weights=reader.weights(op, integers), window=window)


def _depthwise(reader: _Reader, op: OpInfo) -> IntegerOp:
    integers = reader.graph.constant(op.inputs[1]).transpose(3, 1, 2, 0)
    window = reader.window(op, integers.shape[1:3], reader.graph.tensors[op.inputs[0]].shape[-1])
    return reader.op(op, "convolution", op.inputs[:1], weights=reader.weights(op, integers), window=window)


def _fully_connected(reader: _Reader, op: OpInfo) -> IntegerOp:
    if len(reader.graph.tensors[op.inputs[0]].shape) != 4 or not op.options.get("keep_num_dims"):
        raise InputError("The integer mirror takes FULLY_CONNECTED on a map [1, h, w, c] only.")
    weights = reader.weights(op, reader.graph.constant(op.inputs[1])[:, None, None])
    return reader.op(op, "convolution", op.inputs[:1], weights=weights, window=Window())


def _add(reader: _Reader, op: OpInfo) -> IntegerOp:
    shapes = [reader.graph.tensors[i].shape for i in op.inputs]
    if len(shapes) != 2 or not (shapes[0] == shapes[1] or math.prod(shapes[1]) == 1):
        raise InputError("The integer mirror adds two maps of one shape, or a number to a map, only.", got=str(shapes))
    return reader.op(op, "add", op.inputs)


def _concat(reader: _Reader, op: OpInfo) -> IntegerOp:
    if op.options["axis"] not in (3, -1):
        raise InputError("The integer mirror joins along channels only.", got=f"axis {op.options['axis']}")
    reader.same_grids(op, op.inputs)
    return reader.op(op, "concat", op.inputs)


def _resize(reader: _Reader, op: OpInfo) -> IntegerOp:
    if not op.options["half_pixel_centers"] or op.options["align_corners"]:
        raise InputError("The integer mirror resizes with half-pixel centres only.", got=str(op.options))
    reader.same_grids(op, op.inputs[:1])
    height, width = reader.graph.tensors[op.outputs[0]].shape[1:3]
    return reader.op(op, "resize_bilinear", op.inputs[:1], size_hw=(height, width))


def _mean(reader: _Reader, op: OpInfo) -> IntegerOp:
    axes = {int(a) % 4 for a in reader.graph.constant(op.inputs[1]).reshape(-1)}
    if axes != {1, 2} or not op.options["keep_dims"]:
        raise InputError("The integer mirror averages over height and width only.", got=f"axes {sorted(axes)}")
    return reader.op(op, "mean_hw", op.inputs[:1])


def _pad(reader: _Reader, op: OpInfo) -> IntegerOp:
    around = reader.graph.constant(op.inputs[1])
    if around.shape != (4, 2) or around[[0, 3]].any():
        raise InputError("The integer mirror pads height and width only.", got=str(around.tolist()))
    reader.same_grids(op, op.inputs[:1])
    top, bottom, left, right = (int(v) for v in around[1:3].reshape(-1))
    return reader.op(op, "pad", op.inputs[:1], window=Window(padding_tblr=(top, bottom, left, right)))


def _requantize(reader: _Reader, op: OpInfo) -> IntegerOp:
    return reader.op(op, "requantize", op.inputs)


_READERS: Mapping[str, Callable[[_Reader, OpInfo], IntegerOp]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "ADD": _add,
    "CONCATENATION": _concat,
    "RESIZE_BILINEAR": _resize,
    "MEAN": _mean,
    "PAD": _pad,
    "QUANTIZE": _requantize,
}
