"""Exported program, trained quantisation-aware -> integer operations; torch is imported when that happens.

The program computes in float: a quantize and a dequantize operation stand behind every operation, with the grid that
training found, and in front of every convolution's weights. An operation and the quantize behind it together are one
integer operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_seg.contract import Contract
from edge_seg.converters.integers.kernels import Weights, Window, activation_range
from edge_seg.converters.integers.network import IntegerNetwork, IntegerOp
from edge_seg.converters.program import load_program
from edge_seg.converters.quiet import quiet_tools
from edge_seg.converters.tensor_names import ROOT
from edge_seg.errors import ArtifactError, InputError
from edge_seg.schemes import Grid

_MOVES_ONLY = frozenset({"concat", "resize_bilinear", "pad"})  # integers pass, so grids must be one


@dataclass(frozen=True)
class _Placed:
    """A map on a grid: its number; `nchw` says how the program orders its axes here, the mirror's order is NHWC."""

    value: int
    nchw: bool


@dataclass(frozen=True)
class _Pending:
    """The float result of an operation on maps that lie on grids; the next quantize completes it."""

    op: IntegerOp
    nchw: bool
    low: float = -math.inf
    high: float = math.inf
    bias: Any = None


@dataclass(frozen=True)
class _Constant:
    """A parameter or buffer, as torch tensor."""

    tensor: Any


@dataclass(frozen=True)
class _WeightIntegers:
    """Quantised weights: int8 tensor, output channel first, and their scales."""

    tensor: Any
    scales: Any


_State = _Placed | _Pending | _Constant | _WeightIntegers


def network_of_program(program: Path, contract: Contract) -> IntegerNetwork:
    """Reads the integer operations of a program that was trained quantisation-aware.

    Args:
        program: `model.pt2`.
        contract: Names of its outputs, in order.

    Raises:
        InputError: An operation has no rule, or its result is not put on a grid.
        ArtifactError: The program cannot be loaded, or has other outputs than the contract.
        MissingHere: torch is not installed.
    """
    with quiet_tools("torch.export"):
        loaded = load_program(program)
    walk = _Walk(loaded)
    try:
        places = walk.outputs()
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ArtifactError(f"{program} makes no sense.", got=f"{type(error).__name__}: {str(error)[:300]}") from error
    names = [o.name for o in contract.outputs]
    if len(places) != len(names):
        raise ArtifactError(f"{program} has other outputs than its contract.", expected=str(names), got=str(places))
    return IntegerNetwork(str(program), tuple(walk.ops), walk.grids, walk.input, dict(zip(names, places, strict=True)))


class _Walk:
    """Follows the program's operations in order."""

    def __init__(self, program: Any) -> None:
        self.program = program
        self.states: dict[Any, _State] = {}
        self.ops: list[IntegerOp] = []
        self.grids: dict[int, Grid] = {}
        self.input = -1

    def outputs(self) -> list[int]:
        """Walks the whole program and returns the numbers of its results."""
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.states[node] = self.placeholder(node)
            elif node.op == "call_function":
                self.states[node] = self.call(node)
        return [self.placed(node).value for node in self.program.graph.output_node().args[0]]

    def placeholder(self, node: Any) -> _State:
        """Returns a constant, or the picture, whose grid comes with the first quantize."""
        signature, name = self.program.graph_signature, node.name
        target = signature.inputs_to_parameters.get(name) or signature.inputs_to_buffers.get(name)
        if target is not None:
            kept = self.program.state_dict.get(target)
            return _Constant(self.program.constants[target] if kept is None else kept)
        if name in signature.inputs_to_lifted_tensor_constants:
            return _Constant(self.program.constants[signature.inputs_to_lifted_tensor_constants[name]])
        return _Pending(IntegerOp("input", "", (), -1), nchw=False)

    def call(self, node: Any) -> _State:
        """Returns what an operation makes."""
        name = str(node.target)
        rule = _RULES.get(name) or _RULES.get(name.rpartition(".")[0])
        if rule is None:
            raise InputError(
                f"The integer mirror has no rule for {name} at {module_path(node)!r}.", expected=", ".join(_RULES)
            )
        return rule(self, node, _arguments(node))

    def placed(self, node: Any) -> _Placed:
        """Returns a map that must lie on a grid."""
        state = self.states[node]
        if not isinstance(state, _Placed):
            where = state.op.module if isinstance(state, _Pending) else module_path(node)
            raise InputError(
                f"The result of {where!r} is computed in float: nothing puts it on a grid.",
                expected="quantize and dequantize behind every operation",
                todo="train quantisation-aware with edge-seg qat, then export",
            )
        return state

    def constant(self, node: Any) -> Any:
        """Returns the tensor of a parameter or buffer."""
        state = self.states[node]
        if not isinstance(state, _Constant):
            raise InputError(f"{node.name} at {module_path(node)!r} should be a parameter or a buffer.")
        return state.tensor

    def pending(self, node: Any, kind: str, *inputs: _Placed, bias: Any = None, **details: Any) -> _Pending:
        """Returns an operation that awaits its grid; its maps must be NCHW, as the network's own forward sees them."""
        if not all(x.nchw for x in inputs):
            raise InputError(f"{node.name} at {module_path(node)!r} works on a map that is not NCHW.")
        op = IntegerOp(kind, module_path(node), tuple(x.value for x in inputs), -1, **details)
        return _Pending(op, nchw=True, bias=bias)

    def complete(self, pending: _Pending, grid: Grid) -> _Placed:
        """Puts the result of an operation on its grid."""
        value = len(self.grids)
        self.grids[value] = grid
        if pending.op.kind == "input":
            if self.input >= 0:
                raise InputError("The integer mirror takes one picture on one grid.", got="two")
            self.input = value
            return _Placed(value, pending.nchw)
        self._check_tied(pending.op, grid)
        low, high = activation_range(grid, pending.low, pending.high)
        op = replace(pending.op, output=value, low=low, high=high)
        if op.weights is not None:
            scales = op.weights.scales_o.astype(np.float64) * np.float32(self.grids[op.inputs[0]].scale)
            bias = np.zeros(len(scales)) if pending.bias is None else np.rint(pending.bias / scales)
            limits = np.iinfo(np.int32)
            op = replace(op, weights=replace(op.weights, bias_o=np.clip(bias, limits.min, limits.max).astype(np.int32)))
        self.ops.append(op)
        return _Placed(value, pending.nchw)

    def _check_tied(self, op: IntegerOp, grid: Grid) -> None:
        wrong = [self.grids[i] for i in op.inputs if op.kind in _MOVES_ONLY and self.grids[i] != grid]
        if wrong:
            raise InputError(
                f"{op.kind} at {op.module!r} does not keep its grid.",
                expected=f"every input on {grid}, the grid of its output",
                got=str(wrong[0]),
                todo="tie these grids before training",
            )


def module_path(node: Any) -> str:
    """Returns the path of the module that an operation of a program belongs to, without the wrapper's own level."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.removeprefix(f"{ROOT}.") or ROOT


def _arguments(node: Any) -> dict[str, Any]:
    """Returns the arguments of an operation by the names of its schema, defaults filled in."""
    found = {}
    for place, argument in enumerate(node.target._schema.arguments):
        given = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        found[argument.name] = given
    return found


def _grid(walk: _Walk, node: Any, a: Mapping[str, Any]) -> Grid:
    scale, zero = (walk.constant(v).item() if v in walk.states else v for v in (a["scale"], a["zero_point"]))
    if (a["quant_min"], a["quant_max"], str(a["dtype"])) != (-128, 127, "torch.int8"):
        raise InputError(
            f"{node.name} at {module_path(node)!r} is not an int8 grid.",
            expected="-128..127, torch.int8",
            got=f"{a['quant_min']}..{a['quant_max']}, {a['dtype']}",
        )
    return Grid(float(np.float32(scale)), int(zero))


def _quantize(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    state, grid = walk.states[a["input"]], _grid(walk, node, a)
    if isinstance(state, _Pending):
        return walk.complete(state, grid)
    if isinstance(state, _Constant):
        return _constant_map(walk, node, a, grid)
    x = walk.placed(a["input"])
    if walk.grids[x.value] == grid:
        return x  # it lies there already
    op = IntegerOp("requantize", module_path(node), (x.value,), -1)
    return walk.complete(_Pending(op, x.nchw), grid)


def _constant_map(walk: _Walk, node: Any, a: Mapping[str, Any], grid: Grid) -> _State:
    tensor = walk.constant(a["input"]).detach()
    if tensor.ndim != 4 or len(tensor) != 1:
        raise InputError(
            f"The constant at {module_path(node)!r} is no map.", expected="[1, C, h, w]", got=str(list(tensor.shape))
        )
    # the program's own operation: nothing else rounds the way it does
    integers = node.target(tensor, grid.scale, grid.zero_point, a["quant_min"], a["quant_max"], a["dtype"])
    values = np.ascontiguousarray(integers.numpy().transpose(0, 2, 3, 1))
    op = IntegerOp("constant", module_path(node), (), -1, values_nhwc=values)
    return walk.complete(_Pending(op, nchw=True), grid)


def _dequantize(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    x, grid = walk.placed(a["input"]), _grid(walk, node, a)
    if walk.grids[x.value] != grid:
        raise InputError(
            f"{node.name} at {module_path(node)!r} reads integers on a grid they do not lie on.",
            expected=str(walk.grids[x.value]),
            got=str(grid),
        )
    return x


def _quantize_weights(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    weight, scales, zeros = (walk.constant(a[k]) for k in ("input", "scales", "zero_points"))
    if a["axis"] != 0 or zeros.any() or str(a["dtype"]) != "torch.int8":
        raise InputError(
            f"The weights at {module_path(node)!r} are not symmetric int8, one scale per output channel.",
            got=f"axis {a['axis']}, {a['dtype']}",
        )
    # the program's own operation: nothing else rounds the way it does
    integers = node.target(weight.detach(), scales, zeros, 0, a["quant_min"], a["quant_max"], a["dtype"])
    return _WeightIntegers(integers, scales)


def _dequantize_weights(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    state = walk.states[a["input"]]
    scales = walk.constant(a["scales"])
    if not isinstance(state, _WeightIntegers) or not (state.scales == scales).all():
        raise InputError(f"The weights at {module_path(node)!r} are dequantised with other scales than they were made.")
    return state


def _conv(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    weight = walk.states[a["weight"]]
    if not isinstance(weight, _WeightIntegers):
        raise InputError(f"The weights of {module_path(node)!r} are not on a grid.")
    (top, left), strides, dilations = (_pair(a[k]) for k in ("padding", "stride", "dilation"))
    window = Window(strides, (top, top, left, left), dilations, int(a["groups"]))
    integers = np.ascontiguousarray(weight.tensor.numpy().transpose(0, 2, 3, 1))
    weights = Weights(integers, weight.scales.numpy().astype(np.float32), np.zeros(len(integers), np.int32))
    bias = None if a["bias"] is None else walk.constant(a["bias"]).detach().numpy().astype(np.float64)
    return walk.pending(node, "convolution", walk.placed(a["input"]), bias=bias, weights=weights, window=window)


def _pair(values: Sequence[int]) -> tuple[int, int]:
    return int(values[0]), int(values[-1])


def _limited(low: float, high: float) -> _Rule:
    return lambda walk, node, a: _limit(walk, node, a["self"], low, high)


def _hardtanh(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    return _limit(walk, node, a["self"], float(a["min_val"]), float(a["max_val"]))


def _limit(walk: _Walk, node: Any, source: Any, low: float, high: float) -> _State:
    state = walk.states[source]
    if not isinstance(state, _Pending):
        raise InputError(
            f"The activation at {module_path(node)!r} does not follow a convolution or a sum directly.",
            expected="an activation that its producer's kernel applies, then a grid",
            todo="move it in front of the grid: int8 kernels have no activation of its own",
        )
    state = replace(state, low=max(state.low, low), high=min(state.high, high))
    if str(node.target).endswith("_.default"):
        walk.states[source] = state  # in place: whoever reads the source later reads this
    return state


def _add(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    shapes = [tuple(n.meta["val"].shape) for n in (a["self"], a["other"]) if n in walk.states]
    if a["alpha"] != 1 or len(shapes) != 2 or not (shapes[0] == shapes[1] or math.prod(shapes[1]) == 1):
        raise InputError(
            f"The sum at {module_path(node)!r} is not one of two maps of one shape, or of a map and a number.",
            got=str(shapes),
        )
    return walk.pending(node, "add", walk.placed(a["self"]), walk.placed(a["other"]))


def _cat(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    if a["dim"] not in (1, -3):
        raise InputError(f"{module_path(node)!r} joins maps along another axis than channels.", got=f"{a['dim']}")
    return walk.pending(node, "concat", *(walk.placed(n) for n in a["tensors"]))


def _resize(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    if a["align_corners"]:
        raise InputError(f"{module_path(node)!r} resizes with aligned corners; the kernels have half-pixel centres.")
    height, width = (int(v) for v in node.meta["val"].shape[2:])
    return walk.pending(node, "resize_bilinear", walk.placed(a["input"]), size_hw=(height, width))


def _mean(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    axes = sorted(d % 4 for d in a["dim"] or ())
    if axes != [2, 3] or not a["keepdim"]:
        raise InputError(f"{module_path(node)!r} averages over other axes than height and width.", got=str(axes))
    return walk.pending(node, "mean_hw", walk.placed(a["self"]))


def _pad(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    around = [int(v) for v in a["pad"]]
    if len(around) != 4 or a.get("mode", "constant") != "constant" or a["value"]:
        raise InputError(f"{module_path(node)!r} pads with something else than zeros around a map.")
    left, right, top, bottom = around
    x = walk.placed(a["self"])
    return walk.complete(
        walk.pending(node, "pad", x, window=Window(padding_tblr=(top, bottom, left, right))), walk.grids[x.value]
    )


def _permute(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    state, axes = walk.states[a["self"]], list(a["dims"])
    if not isinstance(state, _Placed | _Pending) or axes != ([0, 2, 3, 1] if state.nchw else [0, 3, 1, 2]):
        raise InputError(f"The integer mirror cannot follow {node.name} at {module_path(node)!r}.", got=str(axes))
    return replace(state, nchw=not state.nchw)


def _same(walk: _Walk, node: Any, a: Mapping[str, Any]) -> _State:
    return walk.states[next(iter(a.values()))]


_Rule = Callable[[_Walk, Any, Mapping[str, Any]], _State]
_RULES: Mapping[str, _Rule] = {
    "quantized_decomposed.quantize_per_tensor": _quantize,
    "quantized_decomposed.dequantize_per_tensor": _dequantize,
    "quantized_decomposed.quantize_per_channel": _quantize_weights,
    "quantized_decomposed.dequantize_per_channel": _dequantize_weights,
    "aten.conv2d.default": _conv,
    "aten.relu": _limited(0.0, math.inf),
    "aten.relu_": _limited(0.0, math.inf),
    "aten.relu6": _limited(0.0, 6.0),
    "aten.relu6_": _limited(0.0, 6.0),
    "aten.hardtanh": _hardtanh,
    "aten.hardtanh_": _hardtanh,
    "aten.add.Tensor": _add,
    "aten.cat": _cat,
    "aten.upsample_bilinear2d.vec": _resize,
    "aten.mean.dim": _mean,
    "aten.pad": _pad,
    "aten.constant_pad_nd": _pad,
    "aten.permute": _permute,
    "aten.contiguous": _same,
    "aten.clone": _same,
    "aten.alias": _same,
    "aten.detach": _same,
}
