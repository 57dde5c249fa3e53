"""What a converter moves from a convolution into a constant map that is added behind it.

Two constants in a row are one: of `(conv(x) + offset) + map` a converter makes `conv(x) + (offset + map)`, so that the
convolution's tensor lacks its offset (the norm's shift, or the bias) and the map has it. Neither is wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.graph import Graph, TensorInfo
from edge_seg.converters.layers.match import MatchedLayer
from edge_seg.converters.layers.program import FoldedWeights, LayeredProgram

_FLOAT_STEP = {"float16": 2.0**-10, "float32": 2.0**-20}  # of the largest value; folding rounds, too


class AddedMaps:
    """The constant maps of a file and what was moved into them.

    Args:
        graph: The file.
        layers: Its layers.
        program: The program it was made from; one with trained grids keeps every constant where it is.
    """

    def __init__(self, graph: Graph, layers: Sequence[MatchedLayer], program: LayeredProgram) -> None:
        self._graph, self._program = graph, program
        self._readers = Counter([*graph.outputs, *(t for op in graph.ops for t in op.inputs)])
        self._maps: dict[int, tuple[MatchedLayer, TensorInfo]] = {}  # by the tensor that the map is added to
        self._moved: dict[Any, NDArray[np.float64]] = {}
        for layer in () if program.quantised else layers:
            stored = self._stored(layer)
            if stored is not None:
                self._maps[layer.inputs[0][0]] = layer, stored

    def _stored(self, layer: MatchedLayer) -> TensorInfo | None:
        """The constant that an addition adds, as the file stores it; None for other layers."""
        if layer.op.name != "ADD" or len(layer.inputs) != 1:
            return None
        (other,) = (t for t in layer.op.inputs if t != layer.inputs[0][0])
        unpacked = self._graph.producer(other)
        stored = self._graph.tensors[other if unpacked is None else unpacked.inputs[0]]
        return stored if stored.constant else None

    def offset_o(self, layer: MatchedLayer, wanted: FoldedWeights, bias_o: NDArray[np.float64]) -> Any:
        """Returns what was moved from a convolution's bias into the map behind it, [out], or 0.

        Nothing can have moved past an activation, or where somebody else reads the convolution's result.

        Args:
            layer: The convolution.
            wanted: Its constants in the program.
            bias_o: Its bias in the file.
        """
        cut = layer.op.options.get("fused_activation_function") not in (None, "NONE")
        if cut or layer.tensor not in self._maps or self._readers[layer.tensor] > 1:
            return 0.0
        missing = wanted.bias_o - bias_o
        if np.abs(missing - wanted.offset_o).max() >= np.abs(missing).max():
            return 0.0
        self._moved[layer.node] = wanted.offset_o
        return wanted.offset_o

    def wrong(self) -> Iterator[tuple[int, str]]:
        """Yields the operators whose map is not the program's, with what was moved into it; after all `offset_o`."""
        for add, stored in self._maps.values():
            map_nhwc = self._program.added_nhwc(add)
            if map_nhwc is None:
                continue
            wanted = map_nhwc + self._moved.get(add.inputs[0][1], 0.0)
            values = self._graph.constant(stored.index)
            found, step = _real(values.reshape(wanted.shape) if values.size == wanted.size else values, stored)
            differ = ~(np.abs(found - np.clip(wanted, *_ends(stored))) <= 0.505 * step)
            for place in map(tuple, np.argwhere(differ)[:1].tolist()):
                text = f"at {list(place)} the constant map has {found[place]:.6g}, the program {wanted[place]:.6g}"
                yield add.op.index, f"{text}; {int(differ.sum())} of {differ.size} values differ"

    def as_program(self, node: Any, real: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns a map of the file, real numbers, with what was moved behind it: what the program's value is."""
        moved = self._moved.get(node)
        return real if moved is None else np.asarray(real + moved.astype(np.float32), np.float32)

    def all_as_program(self, maps: Mapping[Any, NDArray[np.float32]]) -> dict[Any, NDArray[np.float32]]:
        """Returns maps by the program's value, each as `as_program`."""
        return {node: self.as_program(node, real) for node, real in maps.items()}


def _real(values: NDArray[Any], stored: TensorInfo) -> tuple[NDArray[np.float64], float]:
    """Returns real values and the distance between two of them."""
    real = values.astype(np.float64)
    if stored.scale:
        return (real - stored.zero_point[0]) * stored.scale[0], float(stored.scale[0])
    return real, _FLOAT_STEP[stored.dtype] * float(np.abs(real).max(initial=0.0))


def _ends(stored: TensorInfo) -> tuple[float, float]:
    """Returns the least and the largest value of a tensor's grid."""
    if not stored.scale:
        return -np.inf, np.inf
    limits = np.iinfo(stored.dtype)
    low, high = ((v - stored.zero_point[0]) * stored.scale[0] for v in (limits.min, limits.max))
    return float(low), float(high)
