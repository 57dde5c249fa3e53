"""The integer mirror, layer by layer: what each integer of a file should be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.converters.exported import Exported
from edge_seg.converters.graph import Graph
from edge_seg.converters.integers.kernels import Ints
from edge_seg.converters.integers.mirror import IntegerMirror
from edge_seg.converters.integers.network import IntegerOp
from edge_seg.converters.integers.program import module_path
from edge_seg.converters.layers.match import MatchedLayer, Sources, kind_of
from edge_seg.schemes import SCHEMES

_KINDS: Mapping[str, str] = {
    "convolution": "conv2d",
    "add": "add",
    "concat": "cat",
    "resize_bilinear": "upsample_bilinear2d",
    "mean_hw": "mean",
}


class LayerMirror:
    """The mirror of the trained program, or of the file where nothing was trained.

    Args:
        graph: The file.
        contract: Its contract.
        exported: What it was made from.
        layers: The file's layers.
        sources: The program's operations.

    Attributes:
        source: What the mirror was read from.
        reason: Why there is none, else "".

    Raises:
        InputError: The trained program holds an operation without a rule.
    """

    source: Literal["program", "file"] | None

    def __init__(
        self, graph: Graph, contract: Contract, exported: Exported, layers: Sequence[MatchedLayer], sources: Sources
    ) -> None:
        scheme = SCHEMES[contract.model.scheme]
        self.source, self.reason, self._mirror = None, "", None
        self._ops: dict[int, IntegerOp] = {}
        if scheme.activation_bits != 8:
            self.reason = f"{scheme.name} has no int8 activations"
        elif scheme.kind == "trained":
            self.source = "program"
            self._mirror = IntegerMirror.of_program(exported.program, exported.contract)
            self._ops = _paired(self._mirror, layers, sources)
        else:
            self.source = "file"
            self._of_file(graph, contract, layers)

    def _of_file(self, graph: Graph, contract: Contract, layers: Sequence[MatchedLayer]) -> None:
        self._mirror, self.reason = IntegerMirror.of_any_file(graph, contract)
        if self._mirror is None:
            return
        made = {op.output: op for op in self._mirror.network.ops}
        self._ops = {x.op.index: made[x.tensor] for x in layers if x.tensor in made}

    def run(self, image_hwc_u8: NDArray[np.uint8]) -> dict[int, Ints]:
        """Returns what the mirror computes for a picture by itself, int8 maps by operator."""
        if self._mirror is None:
            return {}
        names = list(self._mirror.network.names())
        found = self._mirror.run_layers(image_hwc_u8)
        by_op = {id(op): found[name] for op, name in zip(self._mirror.network.ops, names, strict=True)}
        return {index: by_op[id(op)] for index, op in self._ops.items()}

    def alone(self, layer: MatchedLayer, values: Mapping[int, NDArray[Any]]) -> Ints | None:
        """Returns what the mirror computes for a layer from the file's own inputs; None where it cannot."""
        op = self._ops.get(layer.op.index)
        if op is None or self._mirror is None:
            return None
        constants = {one.output: one.values_nhwc for one in self._mirror.network.ops if one.kind == "constant"}
        own = [t for t in op.inputs if t not in constants]
        read = own if self.source == "file" else [t for t, _ in layer.inputs]
        if len(read) != len(own) or any(values[t].dtype != np.int8 for t in read):
            return None
        maps = constants | {t: values[place] for t, place in zip(own, read, strict=True)}
        return self._mirror.step(op, [maps[t] for t in op.inputs])


def _paired(mirror: IntegerMirror, layers: Sequence[MatchedLayer], sources: Sources) -> dict[int, IntegerOp]:
    """Pairs the file's operators with the program's integer operations: those of one module in their order."""
    operations: dict[tuple[str, str], list[IntegerOp]] = defaultdict(list)
    for op in mirror.network.ops:
        operations[op.module, _KINDS.get(op.kind, op.kind)].append(op)
    nodes: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for node in sources.order:
        if node.op == "call_function" and kind_of(node) in _KINDS.values():
            nodes[module_path(node), kind_of(node)].append(node)
    pairs = {n: o for key, found in nodes.items() for n, o in zip(found, operations[key], strict=False)}
    return {x.op.index: pairs[x.compute] for x in layers if x.compute in pairs}
