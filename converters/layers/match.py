"""Which operations of an exported program each operator of a converted file computes.

Both graphs are walked together from the outputs to the picture, not by name, so that a renamed tensor cannot hide or
shift a layer. An operator of the file is one operation of the program together with what converters fold into it:
batch normalisation, activation, the grid behind it. Only where the two graphs part (an operator of another kind) are
module paths asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_seg.converters.graph import Graph, OpInfo
from edge_seg.converters.integers.program import module_path

# What one operator may compute, as names of ATen operations without their overload.
_KINDS: Mapping[str, frozenset[str]] = {
    "CONV_2D": frozenset({"conv2d", "linear"}),
    "DEPTHWISE_CONV_2D": frozenset({"conv2d"}),
    "FULLY_CONNECTED": frozenset({"conv2d", "linear"}),
    "TRANSPOSE_CONV": frozenset({"conv_transpose2d"}),
    "ADD": frozenset({"add", "add_"}),
    "SUB": frozenset({"sub"}),
    "MUL": frozenset({"mul", "mul_"}),
    "DIV": frozenset({"div"}),
    "CONCATENATION": frozenset({"cat"}),
    "RESIZE_BILINEAR": frozenset({"upsample_bilinear2d"}),
    "RESIZE_NEAREST_NEIGHBOR": frozenset({"upsample_nearest2d"}),
    "RSQRT": frozenset({"rsqrt"}),
    "MEAN": frozenset({"mean", "adaptive_avg_pool2d"}),
    "AVERAGE_POOL_2D": frozenset({"avg_pool2d", "mean", "adaptive_avg_pool2d"}),
    "MAX_POOL_2D": frozenset({"max_pool2d"}),
    "PAD": frozenset({"pad", "constant_pad_nd"}),
    "RELU": frozenset({"relu", "relu_"}),
    "RELU6": frozenset({"relu6", "relu6_", "hardtanh", "hardtanh_"}),
    "HARD_SWISH": frozenset({"hardswish", "hardswish_"}),
    "LOGISTIC": frozenset({"sigmoid", "sigmoid_"}),
    "TANH": frozenset({"tanh"}),
    "SOFTMAX": frozenset({"softmax", "_softmax"}),
}
_SAME = frozenset({"permute", "contiguous", "clone", "alias", "detach", "dropout"})
_GRID = frozenset({"quantize_per_tensor", "dequantize_per_tensor"})
_FOLDED = frozenset({"batch_norm", "relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_"})
_PASSING = frozenset({"QUANTIZE", "DEQUANTIZE", "TRANSPOSE"})


@dataclass(frozen=True, eq=False)
class MatchedLayer:
    """An operator of a file and its counterpart.

    Attributes:
        op: The operator.
        tensor: Index of the tensor it writes.
        module: PyTorch module path of the operation that computes.
        node: The program's value that the tensor should hold; None where the tensor has no counterpart.
        compute: The program's operation that computes, before anything folded into it; None likewise.
        inputs: Tensors it reads, with the program's values they should hold; a padding that is the convolution's own
            in the program is skipped. Empty where they could not be paired: then the layer cannot run by itself.
    """

    op: OpInfo
    tensor: int
    module: str
    node: Any
    compute: Any
    inputs: tuple[tuple[int, Any], ...]


class Sources:
    """What each operation of a program reads, in-place operations resolved, and which values are constants.

    Args:
        program: The `torch.export.ExportedProgram`.
    """

    def __init__(self, program: Any) -> None:
        graph, signature = program.graph, program.graph_signature
        users = set(signature.user_inputs)
        self.order: dict[Any, int] = {}
        self.inputs: dict[Any, list[Any]] = {}
        self.constant: dict[Any, bool] = {}
        self.channels_last: dict[Any, bool] = {}
        latest: dict[Any, Any] = {}
        for place, node in enumerate(graph.nodes):
            self.order[node] = place
            sources = [latest.get(n, n) for n in _tensors(node)]
            self.inputs[node] = sources
            picture = node.op == "placeholder" and node.name in users
            self.constant[node] = (node.op == "placeholder" and not picture) or _all(sources, self.constant)
            self.channels_last[node] = picture or _last(node, sources, self.channels_last)
            if node.op == "call_function" and re.fullmatch(r"aten\.\w+_\.\w+", str(node.target)):
                latest[node.args[0]] = node
        self.outputs = [latest.get(n, n) for n in graph.output_node().args[0]]

    def activations(self, node: Any) -> list[Any]:
        """Returns the values an operation reads that depend on the picture."""
        return [n for n in self.inputs[node] if not self.constant[n]]

    def settled(self, node: Any) -> Any:
        """Returns the value with its axes in the order the network's own forward sees."""
        while kind_of(node) in _SAME:
            node = self.inputs[node][0]
        return node

    def compute(self, node: Any, kinds: frozenset[str]) -> Any:
        """Returns the operation of one of these kinds that makes a value, behind what is folded into it, or None."""
        while kind_of(node) not in kinds:
            if kind_of(node) not in _SAME | _GRID | _FOLDED:
                return None
            node = self.inputs[node][0]
        return node

    def before_grid(self, node: Any) -> Any:
        """Returns the value a quantize read, where it lay on a grid already; else the same value."""
        found = node
        while kind_of(found) in _GRID:
            found = self.inputs[found][0]
            if kind_of(found) == "dequantize_per_tensor":
                return found
        return node


def kind_of(node: Any) -> str:
    """Returns the name of a program's operation without namespace and overload; "" for what is none."""
    return str(node.target).split(".")[1] if node.op == "call_function" and "." in str(node.target) else ""


def _tensors(node: Any) -> list[Any]:
    """Returns the nodes among the arguments, one that stands twice twice."""
    found: list[Any] = []

    def collect(value: Any) -> None:
        if isinstance(value, list | tuple):
            for item in value:
                collect(item)
        elif hasattr(value, "all_input_nodes"):
            found.append(value)

    collect([*node.args, *node.kwargs.values()])
    return found


def _all(sources: Sequence[Any], constant: Mapping[Any, bool]) -> bool:
    return bool(sources) and all(constant[n] for n in sources)


def _last(node: Any, sources: Sequence[Any], channels_last: Mapping[Any, bool]) -> bool:
    if kind_of(node) == "permute":
        return list(node.args[1]) == [0, 2, 3, 1]
    return bool(sources) and channels_last[sources[0]]


def match_layers(graph: Graph, outputs: Sequence[int], sources: Sources) -> list[MatchedLayer]:
    """Pairs the operators of a file with operations of the program it was made from.

    Args:
        graph: The file.
        outputs: Its output tensors in the order of the contract, which is the program's.
        sources: The program.

    Returns:
        Layers in the order they run. Operators that only unpack constants or pad are left out, and so is what has no
        counterpart.
    """
    walk = _Walk(graph, sources)
    walk.run(list(zip(outputs, sources.outputs, strict=True)))
    walk.by_name()
    return [walk.layers[i] for i in sorted(walk.layers)]


class _Walk:
    def __init__(self, graph: Graph, sources: Sources) -> None:
        self.graph, self.sources = graph, sources
        self.layers: dict[int, MatchedLayer] = {}

    def run(self, pairs: list[tuple[int, Any]]) -> None:
        """Follows pairs of tensors and values to the picture."""
        seen: set[int] = set()
        while pairs:
            tensor, node = pairs.pop()
            tensor, node = self.unpadded(tensor, self.sources.settled(node))
            op = self.graph.producer(tensor)
            if tensor in seen or op is None:
                continue
            seen.add(tensor)
            layer = self.layer(op, node) or self.other(op, node)
            self.layers[op.index] = layer
            pairs += layer.inputs

    def layer(self, op: OpInfo, node: Any) -> MatchedLayer | None:
        """Pairs one operator with the operations behind a value; None where they are of other kinds."""
        if op.name in _PASSING:
            before = self.sources.before_grid(node) if op.name == "QUANTIZE" else node
            source = (op.inputs[0], self.sources.settled(before))
            return MatchedLayer(op, op.outputs[0], self.graph.source(op) or module_path(node), node, None, (source,))
        compute = self.sources.compute(node, _KINDS.get(op.name, frozenset()))
        if compute is None:
            return None
        values = [self.sources.settled(n) for n in self.sources.activations(compute)]
        tensors = [t for t in op.inputs if not self.is_constant(t)]
        paired = zip(tensors, values, strict=True) if len(tensors) == len(values) else ()
        inputs = tuple(self.unpadded(t, n) for t, n in paired)
        return MatchedLayer(op, op.outputs[0], module_path(compute), node, compute, inputs)

    def other(self, op: OpInfo, node: Any) -> MatchedLayer:
        """Returns an operator that is of another kind than what it stands for; it can be compared, but not run."""
        return MatchedLayer(op, op.outputs[0], self.graph.source(op) or module_path(node), node, None, ())

    def is_constant(self, tensor: int) -> bool:
        """Whether a tensor does not depend on the picture: absent, stored, or unpacked from a stored one."""
        op = self.graph.producer(tensor) if tensor >= 0 else None
        return tensor < 0 or self.graph.tensors[tensor].constant or (op is not None and is_unpacking(self.graph, op))

    def unpadded(self, tensor: int, node: Any) -> tuple[int, Any]:
        """Skips a padding of the file that is part of the program's convolution."""
        op = self.graph.producer(tensor)
        if op is not None and op.name == "PAD" and self.sources.compute(node, _KINDS["PAD"]) is None:
            return op.inputs[0], node
        return tensor, node

    def by_name(self) -> None:
        """Pairs what the walk could not reach, by module path."""
        left = {o.index: o for o in self.graph.ops if o.index not in self.layers and not is_unpacking(self.graph, o)}
        known: dict[tuple[str, str], Any] = {}
        for node in self.sources.order:
            if node.op == "call_function" and not self.sources.constant[node]:
                known.setdefault((module_path(node), kind_of(node)), node)
        taken = {layer.compute for layer in self.layers.values()}
        for op in left.values():
            module = self.graph.source(op)
            found = next((known[module, k] for k in _KINDS.get(op.name, ()) if (module, k) in known), None)
            if found is not None and found not in taken:
                layer = self.layer(op, self.whole(found, op))
                if layer is not None:
                    self.layers[op.index] = layer

    def whole(self, compute: Any, op: OpInfo) -> Any:
        """Returns the value behind an operation after all that is folded into it."""
        node, fused = compute, op.options.get("fused_activation_function", "NONE") != "NONE"
        for following in self.sources.order:
            folded = kind_of(following) in _GRID | {"batch_norm"} or (kind_of(following) in _FOLDED and fused)
            if folded and self.sources.activations(following) == [node]:
                node = following
        return node


def is_unpacking(graph: Graph, op: OpInfo) -> bool:
    """Whether an operator only turns stored float16 or int8 weights into float32."""
    return op.name in ("DEQUANTIZE", "DENSIFY") and graph.tensors[op.inputs[0]].constant


def folded_between(sources: Sources, node: Any, compute: Any) -> Iterator[Any]:
    """Yields the operations folded behind a computing one, the last first."""
    while node is not compute:
        yield node
        node = sources.inputs[node][0]
