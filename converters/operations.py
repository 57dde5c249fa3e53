"""Where a network's time goes: every operator of a file run alone, with the shapes and constants it has there.

A delegate runs a whole graph as one node and tells nothing of its parts. Here each operator becomes a file of its own,
run by the same kernels; all of them and the whole file take turns. Alone, an operator finds its input in a cache that
the whole network may have emptied, and pays the call itself: the sum is printed beside the time of the whole and never
scaled to it. What an operator costs on another chip is another question.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.flatbuffer import read_bytes, read_graph
from edge_seg.converters.flatbuffer_edit import Editor
from edge_seg.converters.graph import Graph, OpInfo
from edge_seg.converters.interpreter import plain_interpreter
from edge_seg.errors import InputError

_CONVOLUTIONS = {"CONV_2D": "convolution", "DEPTHWISE_CONV_2D": "depthwise"}
_RUNS_IN_A_ROW = 3  # the first brings an operator's constants back into the cache
_MAX_INTERPRETERS = 2000


@dataclass(frozen=True)
class OperationTime:
    """Time of one operator run alone.

    Attributes:
        index: Place in the execution order.
        kind: "convolution 1x1", "depthwise 3x3", "ADD", ...
        module: PyTorch module path, "" where no name tells it.
        output_shape: Shape of its result.
        median_ms: Median over the rounds.
    """

    index: int
    kind: str
    module: str
    output_shape: tuple[int, ...]
    median_ms: float


@dataclass(frozen=True)
class OperationProfile:
    """Times of the operators of a file.

    Attributes:
        file: Name of the file.
        threads: CPU threads.
        rounds: Turns that every operator had.
        whole_ms: Median time of the whole network in the same rounds: invoke alone.
        operations: In the order they run.
    """

    file: str
    threads: int
    rounds: int
    whole_ms: float
    operations: tuple[OperationTime, ...]

    @property
    def sum_ms(self) -> float:
        """Sum of the operators' own times."""
        return sum(o.median_ms for o in self.operations)

    def by_kind(self) -> dict[str, tuple[int, float]]:
        """Returns number and milliseconds by kind, most expensive first."""
        return self._grouped(lambda o: o.kind)

    def by_part(self, depth: int = 2) -> dict[str, tuple[int, float]]:
        """Returns number and milliseconds by the first `depth` levels of the module path."""
        return self._grouped(lambda o: ".".join(o.module.split(".")[:depth]) or "(no name)")

    def _grouped(self, key: Callable[[OperationTime], str]) -> dict[str, tuple[int, float]]:
        groups: dict[str, list[float]] = defaultdict(list)
        for operation in self.operations:
            groups[key(operation)].append(operation.median_ms)
        return dict(sorted(((k, (len(v), sum(v))) for k, v in groups.items()), key=lambda item: -item[1][1]))

    def to_json(self) -> dict[str, Any]:
        """Returns the profile as plain JSON types, with sums by kind and part."""
        sums = {"sum_ms": round(self.sum_ms, 4), "by_kind": _plain(self.by_kind()), "by_part": _plain(self.by_part())}
        return {**asdict(self), **sums}

    def text(self, most: int = 12) -> str:
        """Returns sums by kind and the operators that cost most, for people."""
        lines = [f"{self.file}: {self.whole_ms:.2f} ms whole, {self.sum_ms:.2f} ms its operators alone"]
        for kind, (count, ms) in self.by_kind().items():
            lines.append(f"  {kind:22}{count:4}{ms:9.3f} ms {ms / self.sum_ms:6.1%}")
        lines.append("  most expensive:")
        for one in sorted(self.operations, key=lambda o: -o.median_ms)[:most]:
            shape = "x".join(map(str, one.output_shape))
            lines.append(f"  {one.median_ms:9.3f} ms  {one.kind:20} {one.module}  [{shape}]")
        return "\n".join(lines)


def _plain(groups: dict[str, tuple[int, float]]) -> dict[str, dict[str, float]]:
    return {name: {"operators": count, "ms": round(ms, 4)} for name, (count, ms) in groups.items()}


def profile_operations(
    files: Sequence[Path],
    *,
    threads: int = 1,
    rounds: int = 40,
    on_round: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[OperationProfile]:
    """Times every operator of several files in turns.

    Args:
        files: `.tflite` files.
        threads: CPU threads.
        rounds: Turns.
        on_round: Called after each turn, for a progress bar.
        clock: Seconds from any origin.

    Returns:
        One profile per file.

    Raises:
        InputError: No file, no round, or so many operators that memory would not hold them.
        ArtifactError: A file is broken, or the runtime cannot run one of its operators alone.
    """
    graphs = [read_graph(file) for file in files]
    count = sum(len(graph.ops) for graph in graphs)
    if not files or rounds < 1 or count > _MAX_INTERPRETERS:
        expected = f"at least one file and one round, at most {_MAX_INTERPRETERS} operators"
        raise InputError("The profile cannot be made.", expected=expected, got=f"{count} operators, {rounds} rounds")
    prepared = [_prepared(file, graph, threads) for file, graph in zip(files, graphs, strict=True)]
    samples_ms = [np.zeros((rounds, len(runs))) for runs in prepared]
    for turn in range(rounds):
        for table, runs in zip(samples_ms, prepared, strict=True):
            table[turn] = [_timed_ms(run, clock) for run in runs]
        on_round()
    return [_profile(file, graph, table, threads) for file, graph, table in zip(files, graphs, samples_ms, strict=True)]


def _prepared(file: Path, graph: Graph, threads: int) -> list[Callable[[], None]]:
    """Returns what runs the whole file, then what runs each operator, each fed with seeded noise."""
    content = read_bytes(file)
    editor = Editor(content)
    runs = []
    for part in (content, *(editor.alone(op.index) for op in graph.ops)):
        interpreter = plain_interpreter(part, threads=threads)
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], _noise(tuple(detail["shape"]), np.dtype(detail["dtype"])))
        interpreter.invoke()
        runs.append(interpreter.invoke)
    return runs


def _noise(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    rng = np.random.default_rng(0)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return rng.integers(max(limits.min, -128), min(limits.max, 127), shape, dtype, endpoint=True)
    return rng.random(shape, np.float32).astype(dtype)


def _timed_ms(run: Callable[[], None], clock: Callable[[], float]) -> float:
    """Returns the median of a few runs in a row."""
    times = []
    for _ in range(_RUNS_IN_A_ROW):
        began_s = clock()
        run()
        times.append(clock() - began_s)
    return 1e3 * sorted(times)[_RUNS_IN_A_ROW // 2]


def _profile(file: Path, graph: Graph, samples_ms: NDArray[np.float64], threads: int) -> OperationProfile:
    medians = [float(np.median(column)) for column in samples_ms.T]
    operations = tuple(
        OperationTime(op.index, kind_of(graph, op), graph.source(op), graph.tensors[op.outputs[0]].shape, ms)
        for op, ms in zip(graph.ops, medians[1:], strict=True)
    )
    return OperationProfile(file.name, threads, len(samples_ms), medians[0], operations)


def kind_of(graph: Graph, op: OpInfo) -> str:
    """Returns an operator's kind for sums: its name, of a convolution with the kernel's size and a stride beyond 1."""
    if op.name not in _CONVOLUTIONS:
        return op.name
    height, width = graph.tensors[op.inputs[1]].shape[1:3]
    stride = op.options.get("stride_h", 1)
    return f"{_CONVOLUTIONS[op.name]} {height}x{width}" + (f" stride {stride}" if stride > 1 else "")
