"""NNAPI, Android's neural networks interface: documented rules, never run here."""

from __future__ import annotations

from pathlib import Path

from edge_seg.converters.check import DELEGATES
from edge_seg.converters.flatbuffer import Graph, OpInfo
from edge_seg.converters.op_rules import Finding, RuleTable, load_rules

_MAX_WINDOW = 256  # cells of a quantised average pool


@DELEGATES.register("nnapi")
def rules() -> RuleTable:
    """Loads the rule table of NNAPI."""
    checks = {
        "bias_present": bias_present,
        "depthwise_kind": depthwise_kind,
        "same_grid": same_grid,
        "pool_window": pool_window,
        "no_activation": no_activation,
        "pack_axis": pack_axis,
        "rank_4": rank_4,
        "select_shapes": select_shapes,
    }
    return load_rules(Path(__file__).with_name("nnapi_rules.toml"), checks)


def bias_present(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a convolution without a bias."""
    if len(op.inputs) == 3 and op.inputs[2] >= 0:
        return None
    return Finding(f"{op.name} without a bias", "give the convolution a bias, which may be zero")


def depthwise_kind(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses float maps with an integer filter; the delegate turns such a filter into floats for other layers only."""
    data, weights = graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]]
    if (data.dtype == "float32") == (weights.dtype == "float32"):
        return None
    return Finding(f"{op.name} on {data.dtype} with {weights.dtype} weights", "", "reference", weights.name)


def same_grid(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a quantised reduction whose result is on another grid than its input."""
    source, target = graph.tensors[op.inputs[0]], graph.tensors[op.outputs[0]]
    if (source.scale, source.zero_point) == (target.scale, target.zero_point):
        return None
    return Finding(f"{op.name} from one integer grid to another", "use an average pool over the whole map")


def pool_window(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a quantised average over so many cells that NNAPI's own CPU path overflows."""
    cells = int(op.options.get("filter_width", 1)) * int(op.options.get("filter_height", 1))
    if cells <= _MAX_WINDOW or graph.tensors[op.inputs[0]].dtype == "float32":
        return None
    return Finding(f"{op.name} in integers over {cells} cells, the limit is {_MAX_WINDOW}", "pool in two steps")


def no_activation(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a fused activation."""
    word = op.options.get("fused_activation_function", "NONE")
    if word == "NONE":
        return None
    return Finding(f"{op.name} with a fused {word}", "write the activation as an operator of its own")


def pack_axis(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a stack whose new axis is the last one."""
    axis, rank = int(op.options.get("axis", 0)), len(graph.tensors[op.inputs[0]].shape)
    if axis not in (-1, rank):
        return None
    return Finding("PACK along the last axis", "reshape and concatenate")


def rank_4(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses anything but pictures, [N, H, W, C]."""
    rank = len(graph.tensors[op.inputs[0]].shape)
    return None if rank == 4 else Finding(f"{op.name} of a tensor of rank {rank}", "reshape to [1, H, W, C]")


def select_shapes(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a choice whose condition has another shape than the first value."""
    condition, value = (graph.tensors[i].shape for i in op.inputs[:2])
    if condition == value:
        return None
    return Finding(f"SELECT broadcasts {list(condition)} to {list(value)}", "use MAXIMUM, MINIMUM or a product")
