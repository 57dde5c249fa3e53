"""What another tool's output says about one run, and which parser reads which form of it.

A parser is one file in `parsers/`. It never guesses: what the output does not say is None, with a reason. Output
that is cut short, contradicts itself or is not what it claims to be is an InputError.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edge_seg.errors import InputError
from edge_seg.registry import Registry

MAX_BYTES = 16 << 20
_TIMES = ("avg_ms", "min_ms", "max_ms", "std_ms", "median_ms", "p5_ms", "p95_ms", "init_ms", "first_ms")
FIGURES = (*_TIMES, "warmup_avg_ms", "init_footprint_mb", "overall_footprint_mb", "peak_memory_mb", "model_size_mb")
Extent = Literal["completely", "partially", "not"]


@dataclass(frozen=True)
class Delegation:
    """One sentence of the runtime about one delegate.

    Attributes:
        delegate: Its name as the runtime prints it.
        family: "xnnpack", "gpu", "nnapi", "qnn", or the name in lower case.
        nodes_delegated: Nodes it took, or None.
        nodes_total: Nodes of the graph at that moment, or None: old builds do not print it.
        partitions: Parts the graph falls into, or None.
    """

    delegate: str
    family: str
    nodes_delegated: int | None
    nodes_total: int | None
    partitions: int | None


@dataclass(frozen=True)
class Residency:
    """What a log says about who runs the graph.

    Attributes:
        delegations: Every sentence with node counts, in order.
        applied: Family of the delegate that was asked for by name, or None.
        extent: How much of the graph the tool says that delegate executes, or None.
        refused: Operators a delegate refused, each with its reason as printed.
    """

    delegations: tuple[Delegation, ...] = ()
    applied: str | None = None
    extent: Extent | None = None
    refused: tuple[str, ...] = ()

    def of(self, family: str) -> Delegation | None:
        """Returns what is said of a delegate's share of the main graph: that of the largest one it names."""
        found = [d for d in self.delegations if d.family == family]
        return max(found, key=lambda d: d.nodes_total or d.nodes_delegated or 0, default=None)


@dataclass(frozen=True)
class ToolResult:
    """One run of one file as a benchmark tool tells it. There are no raw samples in any of these forms.

    Attributes:
        form: Name of the parser.
        n: Counted runs.
        warmup_n: Uncounted runs before them.
        avg_ms: Mean of the counted runs.
        min_ms: Fastest.
        max_ms: Slowest.
        std_ms: Standard deviation.
        median_ms: Median.
        p5_ms: 5th percentile.
        p95_ms: 95th percentile.
        init_ms: Opening until it can run.
        first_ms: The very first run, which is a warm-up run where there is one.
        warmup_avg_ms: Mean of the warm-up runs.
        init_footprint_mb: Memory taken by opening.
        overall_footprint_mb: Memory taken by opening and running.
        peak_memory_mb: Peak memory.
        model_size_mb: Size of the file as the tool says.
        graph: Path of the file as the tool says.
        threads: CPU threads as the tool says.
        residency: Who ran the graph.
        unknown: Why a figure is None, by name.
    """

    form: str
    n: int | None = None
    warmup_n: int | None = None
    avg_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    std_ms: float | None = None
    median_ms: float | None = None
    p5_ms: float | None = None
    p95_ms: float | None = None
    init_ms: float | None = None
    first_ms: float | None = None
    warmup_avg_ms: float | None = None
    init_footprint_mb: float | None = None
    overall_footprint_mb: float | None = None
    peak_memory_mb: float | None = None
    model_size_mb: float | None = None
    graph: str | None = None
    threads: int | None = None
    residency: Residency = field(default_factory=Residency)
    unknown: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Parser:
    """One form of output.

    Attributes:
        matches: Whether the bytes look like this form; cheap, and false for the other forms.
        parse: Reads the bytes; the second argument names their source in messages. Raises InputError.
    """

    matches: Callable[[bytes], bool]
    parse: Callable[[bytes, str], ToolResult]


PARSERS: Registry[Parser] = Registry("output form", "edge_seg.benchmarks.parsers")


def parse_file(path: Path, form: str = "") -> ToolResult:
    """Reads the output of a benchmark tool from a file.

    Args:
        path: A log, a `benchmark_result.proto` message or the JSON of LiteRT's Python tool.
        form: Name of a parser, or "" to find out.

    Raises:
        InputError: Missing, too large, of no known form, cut short or contradictory.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}.", expected="the output of a benchmark tool")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    return parse_bytes(data, str(path), form)


def parse_bytes(data: bytes, source: str, form: str = "") -> ToolResult:
    """Reads the output of a benchmark tool.

    Args:
        data: The output.
        source: Where it came from, for messages.
        form: Name of a parser, or "" to find out.

    Raises:
        InputError: Too large, of no known form, cut short or contradictory.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"{source} is too large for a benchmark's output.", expected=f"<= {MAX_BYTES} bytes")
    if form:
        return checked(PARSERS[form].parse(data, source), source)
    for name in PARSERS:
        if PARSERS[name].matches(data):
            return checked(PARSERS[name].parse(data, source), source)
    raise InputError(
        f"{source} is not the output of a benchmark tool.",
        expected="text of benchmark_model, a benchmark_result message, or JSON of benchmark_litert_model.py",
        got=f"{len(data)} bytes that are none of them",
        todo="if the tool was interrupted there is no result in its output; run it again",
    )


def checked(result: ToolResult, source: str) -> ToolResult:
    """Returns the result if its figures can be true together; raises InputError otherwise."""
    for name in FIGURES:
        value = getattr(result, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise _contradiction(source, f"{name} = {value}")
    rising = (("min_ms", "p5_ms", "median_ms", "p95_ms", "max_ms"), ("min_ms", "avg_ms", "max_ms"))
    for names in rising:
        known = [(name, getattr(result, name)) for name in names if getattr(result, name) is not None]
        for (low, a), (high, b) in itertools.pairwise(known):
            if a > b * (1 + 1e-5) + 1e-9:  # the mean is printed with six digits
                raise _contradiction(source, f"{low} = {a} is above {high} = {b}")
    if result.n is not None and result.n < 1:
        raise InputError(f"{source} counts no run.", expected="at least one counted run", got=str(result.n))
    for item in result.residency.delegations:
        if item.nodes_total is not None and (item.nodes_delegated or 0) > item.nodes_total:
            raise _contradiction(source, f"{item.nodes_delegated} of {item.nodes_total} nodes on {item.delegate}")
    return result


def _contradiction(source: str, got: str) -> InputError:
    return InputError(
        f"{source} contradicts itself.",
        expected="finite figures with min <= median, mean <= max",
        got=got,
        todo="the output is damaged, or of two runs; keep one run per file",
    )


def unknown_figures(result: Mapping[str, object], reason: str) -> dict[str, str]:
    """Returns `reason` for every figure that is missing or None in `result`."""
    return {name: reason for name in (*FIGURES, "n", "warmup_n") if result.get(name) is None}
