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
        "padded_pool": padded_pool,
        "transpose_padding": transpose_padding,
        "not_flattened": not_flattened,
        "same_batch": same_batch,
        "slice_flags": slice_flags,
        "cumsum_plain": cumsum_plain,
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
        "normalise first, so that the filling is zero, then pad with zero, or use the operator's own padding",
        source="padv2",
    )


def pad_inside(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses padding of the first axis, and of vectors and matrices."""
    amounts = graph.constant(op.inputs[1]) if is_static(graph, op.inputs[1]) else None
    if amounts is None:
        return Finding("the amount of padding is computed at run time", "use constant padding")
    if amounts.shape[0] not in (3, 4):
        return Finding(f"{op.name} of a tensor of rank {amounts.shape[0]}", "pad before flattening", "pad_axes")
    if amounts[0].any():
        return Finding("padding of the first axis", "pad height, width or channels only", "pad_axes")
    return None


def padded_pool(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses pooling of a float picture that a PAD of its own made larger: the two are joined wrongly."""
    pad = graph.producer(op.inputs[0])
    if pad is None or pad.name not in ("PAD", "PADV2") or graph.tensors[op.inputs[0]].dtype != "float32":
        return None
    if sum(op.inputs[0] in other.inputs for other in graph.ops) > 1 or not is_static(graph, pad.inputs[1]):
        return None
    if not graph.constant(pad.inputs[1])[1:3].any():
        return None
    return Finding(
        f"{op.name} of a padded picture runs on the GPU without an error and leaves the padding out",
        "use the pooling's own padding, or a depthwise convolution with constant weights in place of an average",
        source="pad_pool",
    )


def transpose_padding(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a transposed convolution whose SAME padding cuts unevenly: it runs and is wrong."""
    if op.options.get("padding", "VALID") == "VALID":
        return None
    kernel_hw = graph.tensors[op.inputs[1]].shape[1:3]
    strides_hw = op.options.get("stride_h", 1), op.options.get("stride_w", 1)
    if all(s == 1 or (s == 2 and k % 2 == 0) for k, s in zip(kernel_hw, strides_hw, strict=True)):
        return None
    return Finding(
        f"SAME padding with kernel {list(kernel_hw)} and stride {list(strides_hw)} runs on the GPU and is wrong",
        "kernel 4, stride 2, padding 1; or no padding and a slice behind it",
        source="transpose_same",
    )


def not_flattened(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a fully connected layer that flattens its input by itself."""
    if graph.tensors[op.inputs[0]].shape[-1:] == graph.tensors[op.inputs[1]].shape[-1:]:
        return None
    return Finding("FULLY_CONNECTED that flattens its input", "reshape to [1, C] before it", source="flatten")


def same_batch(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a matrix product that repeats one factor for every entry of the other's batch."""
    a, b = (tuple(n for n in graph.tensors[i].shape[:-2] if n != 1) for i in op.inputs)
    if a == b:
        return None
    return Finding(f"BATCH_MATMUL broadcasts the batch {list(a)} and {list(b)}", "repeat the factor", source="matmul")


def slice_flags(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses slices that run backwards, drop an axis or add one."""
    steps = graph.constant(op.inputs[3]) if is_static(graph, op.inputs[3]) else None
    masks = [m for m in ("shrink_axis_mask", "new_axis_mask") if op.options.get(m)]
    if steps is not None and (steps > 0).all() and not masks:
        return None
    return Finding(
        f"STRIDED_SLICE with {', '.join(masks) or 'steps that are not positive constants'}",
        "slice forwards and keep the axes; reshape afterwards",
        source="strided",
    )


def cumsum_plain(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses every cumulative sum but the plain one over height, width or channels."""
    axis = int(graph.constant(op.inputs[1]).item()) if is_static(graph, op.inputs[1]) else -1
    flags = [f for f in ("exclusive", "reverse") if op.options.get(f)]
    if axis > 0 and not flags:
        return None
    return Finding(
        f"CUMSUM over axis {axis} {' '.join(flags)}".strip(),
        "multiply with a constant triangular matrix, or sum in the decoder",
        source="cumsum",
    )


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
        return Finding(f"SOFTMAX with beta {op.options['beta']}", "multiply the logits before the softmax", "neither")
    return None


def axes_inside(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a reduction over the batch."""
    axes = graph.constant(op.inputs[1]) if graph.tensors[op.inputs[1]].constant else None
    rank = len(graph.tensors[op.inputs[0]].shape)
    if axes is None or (np.asarray(axes) % max(rank, 1) == 0).any():
        return Finding(
            f"{op.name} over the batch axis or over unknown axes", "reduce height, width or channels", "classic"
        )
    return None


def bool_to_float(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses every CAST but that from bool to float, which peak picking by max-pooling needs."""
    pair = graph.tensors[op.inputs[0]].dtype, graph.tensors[op.outputs[0]].dtype
    if pair == ("bool", "float32"):
        return None
    return Finding(
        f"CAST from {pair[0]} to {pair[1]}",
        "feed float32 and keep integers in the decoder; int8 files need no cast",
        source="classic",
    )


def depth_multiplier(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a depthwise convolution that makes several channels of each of several."""
    if op.options.get("depth_multiplier", 1) == 1 or graph.tensors[op.inputs[0]].shape[-1] == 1:
        return None
    return Finding(
        "depth multiplier other than 1 on more than one channel",
        "use a 1x1 convolution to widen, then depthwise",
        source="classic",
    )


def one_covers(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a product in which each factor is the smaller one along some axis."""
    a, b = (graph.tensors[i].shape for i in op.inputs)
    if (
        len(a) == len(b)
        and any(x < y for x, y in zip(a, b, strict=True))
        and any(x > y for x, y in zip(a, b, strict=True))
    ):
        return Finding(f"MUL broadcasts {list(a)} and {list(b)} both ways", "write it as a matrix product", "classic")
    return None


def rank_3_or_4(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses slices of vectors and matrices."""
    rank = len(graph.tensors[op.inputs[0]].shape)
    if rank in (3, 4):
        return None
    return Finding(f"{op.name} of a tensor of rank {rank}", "slice before the tensor is flattened", "classic")


def select_shapes(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a choice between tensors that are broadcast, constants of one value excepted."""
    target = graph.tensors[op.outputs[0]].shape
    for index in op.inputs[1:]:
        tensor = graph.tensors[index]
        if tensor.shape != target and not (is_static(graph, index) and tensor.shape in ((), (1,))):
            return Finding(
                f"{op.name} broadcasts {list(tensor.shape)}",
                "give both choices the output's shape, or make one a scalar constant",
                source="select",
            )
    return None
