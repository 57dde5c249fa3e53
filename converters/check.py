"""Offline verdict: which operators of a file a delegate takes, and what to rewrite where it does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edge_seg.converters.flatbuffer import Graph, OpInfo, read_graph
from edge_seg.converters.op_rules import Finding, RuleTable
from edge_seg.registry import Registry

DELEGATES: Registry[Callable[[], RuleTable]] = Registry("delegate", "edge_seg.converters.delegates")


@dataclass(frozen=True)
class OpFinding:
    """One operator and what the delegate makes of it.

    Attributes:
        op: Operator name.
        index: Its place in the execution order.
        tensor: The tensor concerned.
        source: PyTorch module path it came from; "" where the file does not tell.
        reason: Why it is refused, or what may go wrong.
        rewrite: What to write instead.
        rule: Where the rule comes from.
    """

    op: str
    index: int
    tensor: str
    source: str
    reason: str
    rewrite: str
    rule: str


@dataclass(frozen=True)
class Verdict:
    """What the rules say about a file; a prediction, nothing was run.

    Attributes:
        delegate: Name of the delegate.
        rules_version: Version of its rule table.
        runtime: Runtimes the table describes.
        fully_delegable: Whether no operator is refused.
        partitions: Pieces the delegate would get, if it takes all it can (TFLite's own way of cutting graphs).
        nodes_delegable: Operators it takes.
        nodes_total: Operators of the graph.
        refused: Operators it does not take.
        warnings: Operators it takes that may go wrong.
    """

    delegate: str
    rules_version: str
    runtime: str
    fully_delegable: bool
    partitions: int
    nodes_delegable: int
    nodes_total: int
    refused: tuple[OpFinding, ...]
    warnings: tuple[OpFinding, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the verdict as plain JSON types."""
        return asdict(self)

    def text(self) -> str:
        """Returns the verdict for people, one operator a line."""
        taken = f"{self.nodes_delegable} of {self.nodes_total} operators in {self.partitions} partitions"
        lines = [f"{self.delegate} (rules {self.rules_version}, not run): {taken}"]
        for word, found in (("refused", self.refused), ("warning", self.warnings)):
            for f in found:
                lines.append(f"  {word} #{f.index} {f.op} {f.source or f.tensor}: {f.reason}")
                lines.append(f"      rewrite: {f.rewrite}")
        return "\n".join(lines)


def check(path: Path, delegate: str) -> Verdict:
    """Judges a file by the rules of a delegate, without running it.

    Args:
        path: A .tflite.
        delegate: A registered delegate ("gpu", "xnnpack").

    Raises:
        InputError: No such file or delegate.
        ArtifactError: The file is broken.
    """
    table = DELEGATES[delegate]()
    return judge(read_graph(path), table)


def judge(graph: Graph, table: RuleTable) -> Verdict:
    """Judges a graph by a rule table."""
    refused: list[OpFinding] = []
    warnings: list[OpFinding] = []
    for op in graph.ops:
        for finding in table.findings(graph, op):
            (warnings if finding.warning else refused).append(_placed(graph, op, finding))
    out = {f.index for f in refused}
    return Verdict(
        delegate=table.delegate,
        rules_version=table.version,
        runtime=table.runtime,
        fully_delegable=not refused,
        partitions=count_partitions(graph, [op.index not in out for op in graph.ops]),
        nodes_delegable=len(graph.ops) - len(out),
        nodes_total=len(graph.ops),
        refused=tuple(refused),
        warnings=tuple(warnings),
    )


def _placed(graph: Graph, op: OpInfo, finding: Finding) -> OpFinding:
    tensor = finding.tensor or (graph.tensors[op.outputs[0]].name if op.outputs else "")
    source = graph.source(op)
    return OpFinding(op.name, op.index, tensor, source, finding.reason, finding.rewrite, finding.source)


def count_partitions(graph: Graph, delegable: Sequence[bool]) -> int:
    """Counts the pieces of a graph that go to a delegate.

    As TFLite cuts it: the first operator that is ready decides whether a piece is the delegate's; then every
    operator of that kind whose inputs are ready joins the piece, until none is left.

    Args:
        graph: The graph.
        delegable: For each operator, whether the delegate takes it.

    Source:
        TFLite, PartitionGraphIntoIndependentNodeSubsets (tensorflow/lite/graph_info.cc).
    """
    written = {t for op in graph.ops for t in op.outputs}
    ready = set(range(len(graph.tensors))) - written
    waiting = list(graph.ops)
    pieces = 0
    while waiting:
        first = next((op for op in waiting if _is_ready(op, ready)), waiting[0])
        kind = delegable[first.index]
        pieces += kind
        waiting = _take(waiting, ready, delegable, kind) or []
    return pieces


def _take(waiting: list[OpInfo], ready: set[int], delegable: Sequence[bool], kind: bool) -> list[OpInfo]:
    """Moves all operators of one kind that become ready; returns those left. A cycle ends in an empty list."""
    before = len(waiting)
    left: list[OpInfo] = []
    for op in waiting:
        if delegable[op.index] == kind and _is_ready(op, ready):
            ready.update(op.outputs)
        else:
            left.append(op)
    return left if len(left) < before else []


def _is_ready(op: OpInfo, ready: set[int]) -> bool:
    return all(t in ready for t in op.inputs if t >= 0)
