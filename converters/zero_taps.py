"""Cuts rows and columns of zeros off kernels: the same numbers from fewer taps.

PyTorch pads symmetrically, TensorFlow's SAME at stride 2 only below and to the right; the networks write the latter
as a 4x4 kernel whose first row and column are zero (`layers.conv.SameConv2d`). TFLite's SAME can say it with the 3x3
kernel itself. XNNPACK's fast depthwise code knows 9 and 25 taps, so that 16 cost as much as 25.
Source: the definition of SAME padding; timings in results/speed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.flatbuffer import graph_of
from edge_seg.converters.flatbuffer_edit import Editor
from edge_seg.converters.graph import Graph, OpInfo

_KERNELS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_HEIGHT, _WIDTH = 1, 2


def cut_zero_taps(data: bytes, path: Path) -> bytes:
    """Returns a file whose kernels carry no rows and columns of zeros that padding SAME can do without.

    Only whole rows and columns at the edges are cut, and only where the output stays the same number for number: its
    size does not depend on the kernel, and the first tap that is left must lie on the pixel it lay on before.

    Args:
        data: A whole .tflite.
        path: Its name, for messages.

    Returns:
        The changed file, or `data` itself where there is nothing to cut.
    """
    graph = graph_of(data, path)
    shorter = {op.index: kernel for op in graph.ops if (kernel := _shorter(graph, op)) is not None}
    if not shorter:
        return data
    editor = Editor(data)
    for index, kernel in shorter.items():
        editor.set_operand(index, 1, kernel)
    return editor.packed()


def _shorter(graph: Graph, op: OpInfo) -> NDArray[np.generic] | None:
    """Returns the cut kernel, [n, height, width, m] of the stored dtype, or None where it stays."""
    if op.name not in _KERNELS or op.options.get("padding") != "SAME":
        return None
    stored = graph.tensors[op.inputs[1]]
    if not stored.constant or any(stored.zero_point):
        return None
    kernel = graph.constant(stored.index)
    source, result = graph.tensors[op.inputs[0]].shape, graph.tensors[op.outputs[0]].shape
    for axis, letter in ((_HEIGHT, "h"), (_WIDTH, "w")):
        if op.options[f"dilation_{letter}_factor"] == 1:
            reach = (result[axis] - 1) * op.options[f"stride_{letter}"] - source[axis]
            kernel = _cut(kernel, axis, reach)
    return np.ascontiguousarray(kernel) if kernel.shape != stored.shape else None


def _cut(kernel: NDArray[np.generic], axis: int, reach: int) -> NDArray[np.generic]:
    """Cuts zero taps off both ends of an axis while the first tap left stays where it was.

    Args:
        kernel: The kernel.
        axis: Height or width.
        reach: (output - 1) * stride - input, so that SAME pads reach + taps in all, the smaller half in front.
    """
    taps = kernel.shape[axis]
    used = np.flatnonzero(kernel.any(axis=tuple(i for i in range(kernel.ndim) if i != axis)))
    if not used.size:
        return kernel
    before = max(reach + taps, 0) // 2
    for first in range(int(used[0]), -1, -1):
        for last in range(int(used[-1]) + 1, taps + 1):
            if max(reach + last - first, 0) // 2 == before - first:
                return np.take(kernel, np.arange(first, last), axis=axis)
    return kernel
