"""QNN, Qualcomm's AI Engine Direct: documented rules, never run here."""

from __future__ import annotations

from pathlib import Path

from edge_seg.converters.check import DELEGATES
from edge_seg.converters.flatbuffer import Graph, OpInfo
from edge_seg.converters.op_rules import Finding, RuleTable, load_rules


@DELEGATES.register("qnn")
def rules() -> RuleTable:
    """Loads the rule table of QNN."""
    return load_rules(Path(__file__).with_name("qnn_rules.toml"), {"one_kind": one_kind})


def one_kind(graph: Graph, op: OpInfo) -> Finding | None:
    """Refuses a product of float maps with integer weights, which the CPU's kernels take."""
    data, weights = graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]]
    if data.dtype.startswith("float") == weights.dtype.startswith("float"):
        return None
    reason = f"{op.name} on {data.dtype} with {weights.dtype} weights: maps and weights of unlike kinds"
    return Finding(reason, "", source="derived", tensor=weights.name)
