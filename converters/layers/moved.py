"""What a converter moves from a convolution into a constant map that is added behind it.

Two constants in a row are one: of `(conv(x) + offset) + map` a converter makes `conv(x) + (offset + map)`, so that the
convolution's tensor lacks its offset (the norm's shift, or the bias) and the map has it. Neither is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    Attributes:
        wrong: What is wrong with a map, by operator that adds it.
    """

    def __init__(self, graph: Graph, layers: Sequence[MatchedLayer], program: LayeredProgram) -> None:
        self._graph, self._program = graph, program
        self._moved: dict[Any, NDArray[np.float64]] = {}
        self._adds = {} if program.quantised else {t: x for x in layers for t in self._summand(x)}
        self.wrong: dict[int, str] = {}

    def _summand(self, layer: MatchedLayer) -> list[int]:
        """The tensor that an addition of a constant map reads; none for other layers."""
        own = [tensor for tensor, _ in layer.inputs]
        return own if layer.op.name == "ADD" and len(own) == 1 and self._map(layer) is not None else []

    def _map(self, layer: MatchedLayer) -> TensorInfo | None:
        """The constant that an operator adds, as it is stored."""
        own = {tensor for tensor, _ in layer.inputs}
        (other, *_), graph = [t for t in layer.op.inputs if t not in own] or [-1], self._graph
        unpacked = graph.producer(other) if other >= 0 else None
        stored = graph.tensors[unpacked.inputs[0] if unpacked is not None else other] if other >= 0 else None
        return stored if stored is not None and stored.constant else None

    def offset_o(self, layer: MatchedLayer, wanted: FoldedWeights, bias_o: NDArray[np.float64]) -> Any:
        """Returns what a convolution lacks, [out], or 0; the map behind it is compared with the program's by the way.

        Args:
            layer: The convolution.
            wanted: Its constants in the program.
            bias_o: Its bias in the file.
        """
        add = self._adds.get(layer.tensor)
        if add is None:
            return 0.0
        missing = wanted.bias_o - bias_o
        moved = bool(np.abs(missing - wanted.offset_o).max() < np.abs(missing).max())
        offset: Any = wanted.offset_o if moved else 0.0
        self._compare(add, offset)
        if moved:
            self._moved[layer.node] = wanted.offset_o
        return offset

    def _compare(self, add: MatchedLayer, offset_o: Any) -> None:
        stored, map_nhwc = self._map(add), self._program.added_nhwc(add)
        if stored is None or map_nhwc is None:
            return
        wanted = map_nhwc + offset_o
        found, step = _real(self._graph.constant(stored.index), stored)
        error = np.abs(found - np.clip(wanted, *_ends(stored)))
        wrong = ~(error <= 0.505 * step)
        if wrong.any():
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            text = f"at {list(place)} the constant map has {found[place]:.6g}, the program {wanted[place]:.6g}"
            self.wrong[add.op.index] = f"{text}; {int(wrong.sum())} of {wrong.size} values differ"

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
