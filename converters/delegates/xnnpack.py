"""XNNPACK, the CPU delegate that TFLite applies by default."""

from __future__ import annotations

from pathlib import Path

from edge_seg.converters.check import DELEGATES
from edge_seg.converters.flatbuffer import Graph, OpInfo
from edge_seg.converters.op_rules import Finding, RuleTable, load_rules

_ADD_RATIO = (2.0**-10, 2.0**8)  # input scale / output scale of a quantised ADD or SUB


@DELEGATES.register("xnnpack")
def rules() -> RuleTable:
    """Loads the rule table of XNNPACK."""
    return load_rules(
        Path(__file__).with_name("xnnpack_rules.toml"),
        {"scale_ratio": scale_ratio, "strides_one": strides_one},
    )


def scale_ratio(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a quantised ADD or SUB whose input is on a far finer or coarser grid than its output."""
    target = graph.tensors[op.outputs[0]].scale
    for index in op.inputs:
        scale = graph.tensors[index].scale
        if scale and target and not _ADD_RATIO[0] <= scale[0] / target[0] < _ADD_RATIO[1]:
            reason = f"scale ratio {scale[0] / target[0]:.3g} of input to output, outside 2^-10 to 2^8"
            rewrite = "fold a tiny constant into its neighbour, or give the input a range like the output's"
            return Finding(reason, rewrite, tensor=graph.tensors[index].name)
    return None


def strides_one(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a STRIDED_SLICE that skips elements."""
    steps = graph.constant(op.inputs[3]) if graph.tensors[op.inputs[3]].constant else None
    if steps is None or (steps != 1).any():
        rewrite = "use a convolution or pooling with stride, or slice without steps"
        return Finding("STRIDED_SLICE with steps other than 1", rewrite)
    return None
