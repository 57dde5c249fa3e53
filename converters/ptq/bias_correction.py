"""Bias correction: what quantisation shifts on average, each convolution's bias takes back.

Rounding weights and clipping activations shifts the mean of a channel. The float and the quantised network run on
calibration pictures; the difference of the means, in steps of the bias's grid, is taken off the int32 bias. From input
to output: a later convolution is measured with the earlier ones already corrected, and so only its own share remains.

Source:
    Nagel, van Baalen, Blankevoort, Welling: Data-Free Quantization Through Weight Equalization and Bias Correction,
    ICCV 2019 (arXiv:1906.04721), appendix D (empirical bias correction).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.flatbuffer import graph_of
from edge_seg.converters.flatbuffer_edit import Editor
from edge_seg.converters.graph import Graph, OpInfo, TensorInfo
from edge_seg.converters.interpreter import plain_interpreter
from edge_seg.converters.ptq.calibration import Images, channel_means
from edge_seg.errors import InputError

_CONVOLUTIONS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D"})
_INT32 = np.iinfo(np.int32)
PICTURES = 16
_TURNS = 6
_CLIPPED = 0.1  # an error this large may have been cut off by the end of the range: measure and correct again


@dataclass(frozen=True)
class Corrected:
    """What bias correction did.

    Attributes:
        data: The changed quantised file.
        convolutions: Convolutions that were corrected.
        largest: The largest correction, as a share of its tensor's range, and the module it is in.
    """

    data: bytes = field(repr=False)
    convolutions: int
    largest: tuple[float, str]


def corrected(float_data: bytes, quantised: bytes, images: Images, *, progress: str = "correct biases") -> Corrected:
    """Corrects the biases of a quantised file.

    Args:
        float_data: The float file it was made from; tensors have the same names.
        quantised: A static int8 file, or one with int8 layers.
        images: Letterboxed pictures, uint8 [H, W, 3]; PICTURES of them, evenly spread, are used.
        progress: Label of the progress bar on stderr; "" shows none.

    Raises:
        InputError: No convolution of the file has an int32 bias.
    """
    from tqdm import tqdm

    images = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, PICTURES).round().astype(int))]
    place = Path("(in memory)")
    source, graph = graph_of(float_data, place), graph_of(quantised, place)
    levels = _levels(graph)
    if not levels:
        raise InputError("No convolution has an int32 bias to correct.", todo="leave out --bias-correction")
    names = {graph.tensors[op.outputs[0]].name for level in levels for op in level}
    wanted = [t for op in source.ops for t in op.outputs if source.tensors[t].name in names]
    means = {source.tensors[t].name: m for t, m in _means(float_data, source, wanted, images).items()}
    editor = Editor(quantised)
    largest = (0.0, "")
    for level in tqdm(levels, desc=progress, disable=not progress, unit="layer", leave=False):
        biases = {op.index: graph.constant(op.inputs[2]).astype(np.int64) for op in level}
        for turn in range(_TURNS):
            shares = _correct(editor, graph, level, biases, means, images)
            if not turn:
                largest = max(largest, *((shares[op.index], graph.source(op)) for op in level))
            if max(shares.values()) < _CLIPPED:
                break
    return Corrected(editor.packed(), len(names), largest)


def _correct(
    editor: Editor,
    graph: Graph,
    level: Sequence[OpInfo],
    biases: dict[int, NDArray[np.int64]],
    means: Mapping[str, NDArray[np.float64]],
    images: Images,
) -> dict[int, float]:
    """Corrects convolutions that do not feed each other; returns their largest error as a share of the range."""
    outputs = [op.outputs[0] for op in level]
    found = _means(editor.head(max(op.index for op in level) + 1, outputs), graph, outputs, images)
    shares = {}
    for op in level:
        error = found[op.outputs[0]] - means[graph.tensors[op.outputs[0]].name]
        shares[op.index] = float(np.abs(error).max() / (255 * graph.tensors[op.outputs[0]].scale[0]))
        biases[op.index] -= np.rint(error / np.asarray(graph.tensors[op.inputs[2]].scale, np.float64)).astype(np.int64)
        editor.set_operand(op.index, 2, np.clip(biases[op.index], _INT32.min, _INT32.max).astype(np.int32))
    return shares


def _levels(graph: Graph) -> list[list[OpInfo]]:
    """Returns the int8 convolutions with an int32 bias, by the number of such convolutions before them."""
    depth: dict[int, int] = {}
    levels: dict[int, list[OpInfo]] = {}
    for op in graph.ops:
        before = max((depth.get(t, 0) for t in op.inputs), default=0)
        if op.name in _CONVOLUTIONS and len(op.inputs) > 2 and graph.tensors[op.inputs[2]].dtype == "int32":
            levels.setdefault(before, []).append(op)
            before += 1
        for t in op.outputs:
            depth[t] = before
    return [levels[k] for k in sorted(levels)]


def _means(data: bytes, graph: Graph, wanted: Sequence[int], images: Images) -> dict[int, NDArray[np.float64]]:
    """Returns the real mean per channel of tensors over pictures."""
    interpreter = plain_interpreter(data, keep_all=graph.tensors[wanted[0]].dtype == "float32")
    source = interpreter.get_input_details()[0]
    runs: list[Mapping[int, NDArray[Any]]] = []
    for image in images:
        batch = image[None]
        is_int8 = source["dtype"] == np.int8
        interpreter.set_tensor(
            source["index"], (batch ^ np.uint8(128)).view(np.int8) if is_int8 else batch.astype("f4")
        )
        interpreter.invoke()
        runs.append({t: interpreter.get_tensor(t).mean((0, 1, 2), dtype=np.float64)[None] for t in wanted})
    means = channel_means(runs)
    return {t: _real(graph.tensors[t], mean) for t, mean in means.items()}


def _real(tensor: TensorInfo, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    return (mean - tensor.zero_point[0]) * tensor.scale[0] if tensor.scale else mean
