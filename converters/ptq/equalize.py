"""Cross-layer equalisation: channels of a map get like ranges, so that one grid per map serves all of them.

A map that only convolutions write (with a ReLU or nothing after them) and only convolutions read can be divided by a
number per channel: the writers' weights and biases are divided, the readers' weights multiplied. Additions, bilinear
resizes and averages in between pass the numbers on. ReLU6 does not: its upper end would move with the channel.

The numbers are powers of two, so that every product stays the same float and the float network gives the same bits.
Weights have a scale per output channel, so that what limits is the activations' common grid: their calibrated
magnitudes take the place that the writers' weight ranges have in the paper.

Source:
    Nagel, van Baalen, Blankevoort, Welling: Data-Free Quantization Through Weight Equalization and Bias Correction,
    ICCV 2019 (arXiv:1906.04721), section 4.1; activations in place of weights as in Xiao et al.: SmoothQuant, ICML
    2023 (arXiv:2211.10438), equation 4 with alpha 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.flatbuffer_edit import Editor
from edge_seg.converters.graph import Graph, OpInfo
from edge_seg.converters.ptq.calibration import Statistics, runtime_floats

_WRITERS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3}  # axis of output channels
_PASSING = frozenset({"ADD", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "MEAN", "MAX_POOL_2D", "RELU"})
_LINEAR = frozenset({"NONE", "RELU"})
_LARGEST_FACTOR = 64.0


@dataclass
class _Map:
    """Tensors that must be divided by the same numbers, and the operators around them."""

    tensors: list[int] = field(default_factory=list)
    writers: list[OpInfo] = field(default_factory=list)
    readers: list[OpInfo] = field(default_factory=list)


@dataclass(frozen=True)
class Equalized:
    """What equalisation did.

    Attributes:
        data: The changed float file.
        pairs: Pairs of a writing and a reading convolution that were equalised.
        skipped_relu6: Pairs left alone because a ReLU6 lies between.
        skipped_other: Pairs left alone for another reason: the map is an output, or is concatenated, or multiplied.
        modules: Writers whose channels were changed, with the largest factor.
    """

    data: bytes = field(repr=False)
    pairs: int
    skipped_relu6: int
    skipped_other: int
    modules: Mapping[str, float]


def equalized(data: bytes, graph: Graph, statistics: Mapping[int, Statistics]) -> Equalized:
    """Equalises a float file.

    Args:
        data: The float file.
        graph: What it contains.
        statistics: Of its tensors on calibration pictures.

    Returns:
        The changed file, which computes the same outputs, and counts.
    """
    editor = Editor(data)
    weights = {op.index: graph.constant(op.inputs[1]).copy() for op in graph.ops if _is_writer(graph, op)}
    biases = {i: graph.constant(graph.ops[i].inputs[2]).copy() for i in weights if _has_bias(graph, graph.ops[i])}
    counts = {"done": 0, "relu6": 0, "other": 0}
    modules: dict[str, float] = {}
    for one in _maps(graph):
        verdict = _verdict(graph, one)
        counts[verdict] += len(one.writers) * len(one.readers)
        if verdict == "done":
            factors = _factors(graph, one, statistics, weights)
            for op in one.writers:
                weights[op.index] /= _along(factors, _WRITERS[op.name])
                if op.index in biases:
                    biases[op.index] /= factors
                modules[graph.source(op)] = float(np.max(np.maximum(factors, 1 / factors)))
            for op in one.readers:
                weights[op.index] *= _along(factors, 3)
    for index, values in weights.items():
        if not np.array_equal(values, graph.constant(graph.ops[index].inputs[1])):
            editor.set_operand(index, 1, values)
    for index, values in biases.items():
        if not np.array_equal(values, graph.constant(graph.ops[index].inputs[2])):
            editor.set_operand(index, 2, values)
    return Equalized(editor.packed(), counts["done"], counts["relu6"], counts["other"], modules)


def _is_writer(graph: Graph, op: OpInfo) -> bool:
    return (
        op.name in _WRITERS and graph.tensors[op.inputs[1]].constant and graph.tensors[op.inputs[1]].dtype == "float32"
    )


def _has_bias(graph: Graph, op: OpInfo) -> bool:
    return len(op.inputs) > 2 and op.inputs[2] >= 0 and graph.tensors[op.inputs[2]].constant


def _passes(graph: Graph, op: OpInfo) -> bool:
    """Whether an operator gives channel c of its output from channel c of its inputs, and is homogeneous."""
    if op.name not in _PASSING or op.options.get("fused_activation_function", "NONE") not in (*_LINEAR, "RELU6"):
        return False
    runtime = [t for t in op.inputs if t >= 0 and not graph.tensors[t].constant]
    if op.name == "ADD" and len(runtime) < 2:
        return False
    channels = {graph.tensors[t].shape[-1] for t in (*runtime, *op.outputs) if graph.tensors[t].shape}
    return len(channels) == 1 and (op.name != "MEAN" or _keeps_channels(graph, op))


def _keeps_channels(graph: Graph, op: OpInfo) -> bool:
    if not graph.tensors[op.inputs[1]].constant:
        return False
    rank = len(graph.tensors[op.inputs[0]].shape)
    return all(int(axis) % rank != rank - 1 for axis in np.atleast_1d(graph.constant(op.inputs[1])))


def _maps(graph: Graph) -> list[_Map]:
    """Returns the maps that have a convolution on both sides."""
    parent = {t: t for t in runtime_floats(graph)}

    def root(t: int) -> int:
        while parent[t] != t:
            t = parent[t]
        return t

    for op in graph.ops:
        if _passes(graph, op):
            first, *rest = [t for t in (*op.inputs, *op.outputs) if t in parent]
            for t in rest:
                parent[root(t)] = root(first)
    maps: dict[int, _Map] = {}
    for t in parent:
        maps.setdefault(root(t), _Map()).tensors.append(t)
    for op in graph.ops:
        if _is_writer(graph, op):
            maps[root(op.outputs[0])].writers.append(op)
            if op.inputs[0] in parent:
                maps[root(op.inputs[0])].readers.append(op)
    return [m for m in maps.values() if m.writers and m.readers]


def _verdict(graph: Graph, one: _Map) -> str:
    """Returns "done", "relu6" or "other": whether a map may be divided per channel, or why not."""
    tensors = set(one.tensors)
    around = [op for op in graph.ops if tensors & {*op.inputs, *op.outputs}]
    if any(t in tensors for t in (*graph.inputs, *graph.outputs)):
        return "other"
    for op in around:
        writes = any(t in tensors for t in op.outputs)
        if writes and op.options.get("fused_activation_function", "NONE") == "RELU6":
            return "relu6"
        inside = _passes(graph, op)
        legal = inside or (_is_writer(graph, op) and (not writes or _activation(op) in _LINEAR))
        if not legal or (not inside and op.inputs[0] in tensors and _channels_in(graph, op) != _size(graph, one)):
            return "other"
    return "done"


def _activation(op: OpInfo) -> str:
    return str(op.options.get("fused_activation_function", "NONE"))


def _size(graph: Graph, one: _Map) -> int:
    return graph.tensors[one.tensors[0]].shape[-1]


def _channels_in(graph: Graph, op: OpInfo) -> int:
    """Channels that the weights' last axis stands for: a grouped or multiplied convolution has others than its map."""
    return graph.tensors[op.inputs[1]].shape[3]


def _along(factors: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    return factors.reshape([-1 if a == axis else 1 for a in range(4)])


def _factors(
    graph: Graph, one: _Map, statistics: Mapping[int, Statistics], weights: Mapping[int, NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Returns what each channel of a map is divided by, powers of two, float32 [C].

    A depthwise reader takes any factor for nothing, as its weights have a scale per channel: then the magnitudes are
    made equal. Readers that sum over channels pay for it in their weights: then half of it, in the logarithm.
    """
    magnitude = np.max([statistics[t].channel_magnitude for t in one.tensors], 0).astype(np.float64)
    alive = magnitude > magnitude.max() * 1e-6
    wanted = np.where(alive, magnitude, 1.0)
    summing = [weights[op.index] for op in one.readers if op.name == "CONV_2D"]
    if summing:
        read = np.max([np.abs(w).max((0, 1, 2)) for w in summing], 0).astype(np.float64)
        alive &= read > read.max() * 1e-6
        wanted = np.sqrt(wanted / np.where(alive, read, 1.0))
    exponents = np.log2(np.where(alive, wanted, 1.0))
    exponents = np.where(alive, exponents - np.median(exponents[alive]), 0.0) if alive.any() else exponents * 0
    limit = np.log2(_LARGEST_FACTOR)
    factors: NDArray[np.float32] = np.exp2(np.rint(np.clip(exponents, -limit, limit))).astype(np.float32)
    return factors
