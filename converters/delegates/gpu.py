"""The GPU delegate: accepted only what both the classic delegate and LiteRT's GPU accelerator take."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edge_seg.converters.check import DELEGATES
from edge_seg.converters.flatbuffer import Graph, OpInfo
from edge_seg.converters.op_rules import Finding, RuleTable, is_static, load_rules


@DELEGATES.register("gpu")
def rules() -> RuleTable:
    """Loads the rule table of the GPU delegate."""
    checks = {
        "pad_zero": pad_zero,
        "pad_inside": pad_inside,
        "same_rank": same_rank,
        "resize_flags": resize_flags,
        "softmax_beta": softmax_beta,
        "axes_inside": axes_inside,
        "bool_to_float": bool_to_float,
        "depth_multiplier": depth_multiplier,
        "one_covers": one_covers,
        "rank_3_or_4": rank_3_or_4,
        "select_shapes": select_shapes,
    }
    return load_rules(Path(__file__).with_name("gpu_rules.toml"), checks)


def pad_zero(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses padding with anything but zero: it runs without an error and can be wrong."""
    value = op.inputs[2] if len(op.inputs) > 2 else -1
    if value >= 0 and graph.tensors[value].constant:
        tensor = graph.tensors[value]
        zero = tensor.zero_point[0] if tensor.zero_point else 0
        if not np.any(graph.constant(value) != zero):
            return None
    return Finding(
        "PADV2 with a value other than zero runs on the GPU without an error and can be wrong",
        "normalise first, so that the filling is zero, then pad with zero (or use a convolution's own padding)",
        source="padv2",
    )


def pad_inside(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses padding of the batch."""
    amounts = graph.constant(op.inputs[1]) if is_static(graph, op.inputs[1]) else None
    if amounts is None:
        return Finding("the amount of padding is computed at run time", "use constant padding")
    if amounts.shape[0] == 4 and amounts[0].any():
        return Finding("padding of the batch axis", "pad height, width or channels only")
    return None


def same_rank(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses broadcasting between tensors of unlike rank; a scalar or one value per channel may be constant."""
    rank = len(graph.tensors[op.outputs[0]].shape)
    for index in op.inputs:
        tensor = graph.tensors[index]
        if len(tensor.shape) == rank or (is_static(graph, index) and len(tensor.shape) <= 1):
            continue
        return Finding(
            f"{op.name} broadcasts a tensor of rank {len(tensor.shape)} to rank {rank}",
            "keep the axes: keepdim=True, or reshape to [1, 1, 1, C] before the operation",
            source="broadcast",
            tensor=tensor.name,
        )
    return None


def resize_flags(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses the one combination of resize flags that contradicts itself."""
    if op.options.get("align_corners") and op.options.get("half_pixel_centers"):
        return Finding("align_corners together with half_pixel_centers", "use align_corners=False")
    return None


def softmax_beta(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a softmax with another temperature than 1."""
    if op.options.get("beta", 1.0) != 1.0:
        return Finding(f"SOFTMAX with beta {op.options['beta']}", "multiply the logits before the softmax")
    return None


def axes_inside(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a reduction over the batch."""
    axes = graph.constant(op.inputs[1]) if graph.tensors[op.inputs[1]].constant else None
    rank = len(graph.tensors[op.inputs[0]].shape)
    if axes is None or (np.asarray(axes) % max(rank, 1) == 0).any():
        return Finding(f"{op.name} over the batch axis or over unknown axes", "reduce height, width or channels")
    return None


def bool_to_float(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses every CAST but that from bool to float, which peak picking by max-pooling needs."""
    pair = graph.tensors[op.inputs[0]].dtype, graph.tensors[op.outputs[0]].dtype
    if pair == ("bool", "float32"):
        return None
    return Finding(
        f"CAST from {pair[0]} to {pair[1]}", "feed float32 and keep integers in the decoder; int8 files need no cast"
    )


def depth_multiplier(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a depthwise convolution that makes several channels of each of several."""
    if op.options.get("depth_multiplier", 1) == 1 or graph.tensors[op.inputs[0]].shape[-1] == 1:
        return None
    return Finding(
        "depth multiplier other than 1 on more than one channel", "use a 1x1 convolution to widen, then depthwise"
    )


def one_covers(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a product in which each factor is the smaller one along some axis."""
    a, b = (graph.tensors[i].shape for i in op.inputs)
    if (
        len(a) == len(b)
        and any(x < y for x, y in zip(a, b, strict=True))
        and any(x > y for x, y in zip(a, b, strict=True))
    ):
        return Finding(f"MUL broadcasts {list(a)} and {list(b)} both ways", "write it as a matrix product")
    return None


def rank_3_or_4(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses slices of vectors and matrices."""
    rank = len(graph.tensors[op.inputs[0]].shape)
    if rank in (3, 4):
        return None
    return Finding(f"{op.name} of a tensor of rank {rank}", "slice before the tensor is flattened")


def select_shapes(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a choice between tensors that are broadcast, single values excepted."""
    target = graph.tensors[op.outputs[0]].shape
    for index in op.inputs[1:]:
        tensor = graph.tensors[index]
        if tensor.shape != target and int(np.prod(tensor.shape)) != 1:
            return Finding(f"{op.name} broadcasts {list(tensor.shape)}", "give both choices the output's shape")
    return None
