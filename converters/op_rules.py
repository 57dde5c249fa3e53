"""Operator rules of a delegate, as data: loaded strictly, applied to one operator at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edge_seg.config import from_mapping, load_toml
from edge_seg.converters.flatbuffer import Graph, OpInfo
from edge_seg.errors import ConfigError, nearest

FORMAT = "edge_seg.op_rules"


@dataclass(frozen=True)
class Finding:
    """Something about one operator.

    Attributes:
        reason: Why the delegate does not take it, or what may go wrong.
        rewrite: What to write instead.
        source: Where the rule comes from: a key of the table's sources, or spelled out once judged.
        tensor: The tensor the reason speaks of; "" means the operator's first output.
        warning: Whether the operator is taken all the same.
    """

    reason: str
    rewrite: str
    source: str = ""
    tensor: str = ""
    warning: bool = False


Check = Callable[[Graph, OpInfo], Finding | None]


@dataclass(frozen=True)
class OpRule:
    """What a delegate accepts of one operator.

    Attributes:
        dtypes: Allowed dtypes of the tensors that are computed at run time.
        constants: Places of inputs that must be constants (or dequantised constants).
        weights: Allowed pairs "runtime/constant" of input 0 and input 1; empty allows all.
        checks: Names of further checks, in code.
        kernels: Places of inputs that are weights also where they are computed: they have no batch.
        max_rank: Largest rank, where it differs from the table's.
        max_version: Newest version of the operator; 0 allows all.
        rewrite: What to write instead where one of the above is violated.
        warning: Text that always goes with this operator; "" for none.
        warning_source: Key of `sources` for it, where it differs from `source`.
        source: Key of `sources`.
    """

    dtypes: tuple[str, ...]
    source: str
    constants: tuple[int, ...] = ()
    weights: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    kernels: tuple[int, ...] = ()
    max_rank: int = 0
    max_version: int = 0
    rewrite: str = ""
    warning: str = ""
    warning_source: str = ""


@dataclass(frozen=True)
class Refused:
    """An operator that a delegate never takes."""

    reason: str
    rewrite: str
    source: str


@dataclass(frozen=True, kw_only=True)
class TableHeader:
    """What a rule table says about itself.

    Attributes:
        delegate: Its name.
        version: Version of the table.
        runtime: Which runtimes it describes.
        max_rank: Largest rank of a tensor computed at run time.
        batch_one: Whether rank-4 tensors must have batch 1.
        limits_source: Key of `sources` for these limits.
        activations: Fused activations that are taken; empty allows all.
        sources: Where rules come from, by key.
    """

    delegate: str
    version: str
    runtime: str
    max_rank: int
    batch_one: bool
    limits_source: str
    activations: tuple[str, ...] = ()
    sources: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class _Document(TableHeader):
    format: str
    ops: Mapping[str, Any]
    refused: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RuleTable(TableHeader):
    """The rules of one delegate.

    Attributes:
        ops: Accepted operators.
        refused: Operators known to be refused.
        checks: Further checks, by name.
    """

    ops: Mapping[str, OpRule]
    refused: Mapping[str, Refused]
    checks: Mapping[str, Check]

    def findings(self, graph: Graph, op: OpInfo) -> list[Finding]:
        """Returns what there is to say about one operator: at most one refusal, and warnings."""
        rule = self.ops.get(op.name)
        if rule is None:
            return [self._unknown(op)]
        tests = [_version, _dtypes, _weights, _constants, self._shape, self._activation, *map(self._named, rule.checks)]
        found = [f for test in tests if (f := test(graph, op, rule)) is not None]
        refusals = [f for f in found if not f.warning]
        warnings = [f for f in found if f.warning]
        if rule.warning:
            warnings.append(Finding(rule.warning, rule.rewrite, rule.warning_source, warning=True))
        return [self._sourced(f, rule) for f in (refusals[:1] or warnings)]

    def _sourced(self, finding: Finding, rule: OpRule) -> Finding:
        source = self.sources[finding.source or rule.source]
        rewrite = finding.rewrite or rule.rewrite
        return Finding(finding.reason, rewrite, source, finding.tensor, finding.warning)

    def _unknown(self, op: OpInfo) -> Finding:
        if op.name in self.refused:
            entry = self.refused[op.name]
            return Finding(entry.reason, entry.rewrite, self.sources[entry.source])
        reason = f"{op.name} is not in the rule table {self.version} of {self.delegate}"
        return Finding(reason, "use an operator of the table, or move this step to the decoder", "no rule")

    def _named(self, name: str) -> Callable[[Graph, OpInfo, OpRule], Finding | None]:
        return lambda graph, op, rule: self.checks[name](graph, op)

    def _shape(self, graph: Graph, op: OpInfo, rule: OpRule) -> Finding | None:
        limit = rule.max_rank or self.max_rank
        for index in runtime_tensors(graph, op):
            tensor = graph.tensors[index]
            if len(tensor.shape) > limit:
                reason = f"rank {len(tensor.shape)} {list(tensor.shape)}, the limit is {limit}"
                rewrite = "keep tensors at rank 4 or less (NHWC)"
                return Finding(reason, rewrite, self.limits_source, tensor.name)
            is_picture = index not in [op.inputs[k] for k in rule.kernels if k < len(op.inputs)]
            if self.batch_one and is_picture and len(tensor.shape) == 4 and tensor.shape[0] != 1:
                reason = f"batch {tensor.shape[0]}, the limit is 1"
                rewrite = "put the copies side by side in the channels"
                return Finding(reason, rewrite, self.limits_source, tensor.name)
        return None

    def _activation(self, graph: Graph, op: OpInfo, rule: OpRule) -> Finding | None:
        word = op.options.get("fused_activation_function", "NONE")
        if not self.activations or word in self.activations:
            return None
        reason = f"{op.name} with a fused {word}; accepted: {', '.join(self.activations)}"
        return Finding(reason, "write the activation as an operator of its own", self.limits_source)


def _version(graph: Graph, op: OpInfo, rule: OpRule) -> Finding | None:
    if not rule.max_version or op.version <= rule.max_version:
        return None
    reason = f"version {op.version} of {op.name}; accepted: up to {rule.max_version}"
    return Finding(reason, rule.rewrite or "use an older form of this operator, or move it to the decoder")


def _dtypes(graph: Graph, op: OpInfo, rule: OpRule) -> Finding | None:
    for index in runtime_tensors(graph, op):
        tensor = graph.tensors[index]
        if tensor.dtype not in rule.dtypes:
            reason = f"{op.name} on {tensor.dtype}; accepted: {', '.join(rule.dtypes)}"
            return Finding(reason, rule.rewrite or f"compute in {rule.dtypes[0]}", tensor=tensor.name)
    return None


def _weights(graph: Graph, op: OpInfo, rule: OpRule) -> Finding | None:
    if not rule.weights or len(op.inputs) < 2:
        return None
    data, weights = graph.tensors[op.inputs[0]], graph.tensors[op.inputs[1]]
    pair = f"{data.dtype}/{weights.dtype}"
    if pair in rule.weights:
        return None
    reason = f"{op.name} on {data.dtype} with {weights.dtype} weights; accepted: {', '.join(rule.weights)}"
    return Finding(reason, rule.rewrite, tensor=weights.name)


def _constants(graph: Graph, op: OpInfo, rule: OpRule) -> Finding | None:
    for place in rule.constants:
        index = op.inputs[place] if place < len(op.inputs) else -1
        if index >= 0 and not is_static(graph, index):
            name = graph.tensors[index].name
            return Finding(f"input {place} of {op.name} is computed at run time", rule.rewrite, tensor=name)
    return None


def is_static(graph: Graph, index: int) -> bool:
    """Whether a tensor is a constant, or a constant behind a DEQUANTIZE (fp16 and weight-only files)."""
    producer = graph.producer(index)
    if producer is not None and producer.name == "DEQUANTIZE":
        index = producer.inputs[0]
    return graph.tensors[index].constant


def runtime_tensors(graph: Graph, op: OpInfo) -> list[int]:
    """Returns the inputs and outputs that are computed at run time."""
    return [i for i in (*op.inputs, *op.outputs) if i >= 0 and not is_static(graph, i)]


def load_rules(path: Path, checks: Mapping[str, Check]) -> RuleTable:
    """Loads a rule table.

    Args:
        path: A TOML file.
        checks: Further checks that rules may name.

    Raises:
        ConfigError: Unknown or missing keys, an unknown check or source, an operator that is both accepted and
            refused.
    """
    document = from_mapping(_Document, load_toml(path))
    if document.format != FORMAT:
        raise ConfigError(f"{path} is not a rule table.", expected=FORMAT, got=document.format)
    ops = {k: from_mapping(OpRule, v, where=f"ops.{k}") for k, v in document.ops.items()}
    refused = {k: from_mapping(Refused, v, where=f"refused.{k}") for k, v in document.refused.items()}
    for name in sorted(set(ops) & set(refused)):
        raise ConfigError(f"{path} both accepts and refuses {name}.")
    _known(path, "the limits", "source", (document.limits_source,), document.sources)
    for name, entry in refused.items():
        _known(path, name, "source", (entry.source,), document.sources)
    for name, rule in ops.items():
        _known(path, name, "source", (rule.source, rule.warning_source or rule.source), document.sources)
        _known(path, name, "check", rule.checks, checks)
    header: dict[str, Any] = {f.name: getattr(document, f.name) for f in fields(TableHeader)}
    return RuleTable(**header, ops=ops, refused=refused, checks=checks)


def _known(path: Path, op: str, what: str, names: tuple[str, ...], valid: Mapping[str, Any]) -> None:
    for name in names:
        if name not in valid:
            raise ConfigError(f"{path} names an unknown {what} at {op}.", got=name, todo=nearest(name, sorted(valid)))
