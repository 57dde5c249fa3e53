"""What TFLite's and LiteRT's `benchmark_model` print, on a terminal or through logcat.

Three generations: "Average inference timings in us: ..., no stats: ..." (until 2019); "Inference timings in us:
Init: ..., Inference (avg): ..." with a `count=... first=... avg=... std=...` line, to which newer builds add
`p5 median p95`; and LiteRT's block "BENCHMARK RESULTS" in milliseconds. Source: tensorflow/lite/tools/benchmark,
tensorflow/core/util/stats_calculator.h and litert/tools/benchmark_litert_model.h, and the public logs in
tests/data/benchmark_logs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from edge_seg.benchmarks.parser import PARSERS, Parser, ToolResult, unknown_figures
from edge_seg.benchmarks.residency import read_residency
from edge_seg.errors import InputError

FORM = "benchmark_model_text"
_MAX_LINE_CHARS = 2000
_NUMBER = r"(\d{1,15}(?:\.\d{1,15})?(?:[eE][+-]?\d{1,2})?)"
_PREFIX = re.compile(
    r"^(?:\d\d-\d\d \d\d:\d\d:\d\d\.\d{1,9} +\d{1,9} +\d{1,9} [VDIWEFS] [^:]{1,60}: ?)?"
    r"(?:(?:INFO|VERBOSE|WARNING|ERROR): ?)?(?:\[[\w./-]{1,80}:\d{1,6}\] ?)?"
)
_COUNT = re.compile(r"^count=(\d{1,12})((?: [a-z0-9]{1,10}=\S{1,40})*)(?: ?\(all same\))?\s*$")
_PAIR = re.compile(rf"^([a-z0-9]{{1,10}})={_NUMBER}(?:\(all)?$")
_TIMINGS = re.compile(
    rf"^Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, "
    rf"Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}\s*$"
)
_OLDEST = re.compile(
    rf"^Average inference timings in us: (?:Warmup: {_NUMBER}, )?Init: {_NUMBER}, "
    rf"(?:with stats: {_NUMBER}, )?no stats: {_NUMBER}\s*$"
)
_ROW = re.compile(
    r"^(Model initialization|Warmup \((?:first|avg)\)|Inference \((?:avg|min|max|std|median|p5|p95)\)"
    rf"|Init footprint|Overall footprint|Peak memory): +{_NUMBER}(?: (?:ms|MB))?(?: \((\d{{1,12}}) runs\))?\s*$"
)
_ROWS = {
    "Model initialization": "init_ms",
    "Warmup (first)": "first_ms",
    "Warmup (avg)": "warmup_avg_ms",
    "Inference (avg)": "avg_ms",
    "Inference (min)": "min_ms",
    "Inference (max)": "max_ms",
    "Inference (std)": "std_ms",
    "Inference (median)": "median_ms",
    "Inference (p5)": "p5_ms",
    "Inference (p95)": "p95_ms",
    "Init footprint": "init_footprint_mb",
    "Overall footprint": "overall_footprint_mb",
    "Peak memory": "peak_memory_mb",
}
_FACTS: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = (
    (
        re.compile(rf"^Memory footprint delta from the start of the tool \(MB\): init={_NUMBER} overall={_NUMBER}\s*$"),
        ("init_footprint_mb", "overall_footprint_mb"),
    ),
    (re.compile(rf"^Peak memory footprint \(MB\): init=[0-9.e+]{{1,20}} overall={_NUMBER}\s*$"), ("peak_memory_mb",)),
    (
        re.compile(rf"^Overall peak memory footprint \(MB\) via periodic monitoring: {_NUMBER}\s*$"),
        ("peak_memory_mb",),
    ),
    (re.compile(rf"^The input model file size \(MB\): {_NUMBER}\s*$"), ("model_size_mb",)),
    (re.compile(r"^(?:#threads used for CPU inference|Num threads): \[(\d{1,4})\]\s*$"), ("threads",)),
    (re.compile(r"^Graph: \[(.{1,1000})\]\s*$"), ("graph",)),
)
_COMPLAINT = re.compile(r"fail|error|unable|not found|denied|unknown flag|cannot", re.IGNORECASE)


@dataclass
class _Seen:
    """What the lines said so far."""

    counts: list[dict[str, float]] = field(default_factory=list)
    timings: list[dict[str, float]] = field(default_factory=list)
    rows: dict[str, float] = field(default_factory=dict)
    row_runs: dict[str, int] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    repeated: bool = False
    complaint: str = ""


def matches(data: bytes) -> bool:
    """Whether it holds a line that only this tool prints."""
    return any(mark in data for mark in (b"count=", b"nference timings in us", b"BENCHMARK RESULTS", b"STARTING!"))


def parse(data: bytes, source: str) -> ToolResult:
    """Reads a log of one run.

    Args:
        data: The log; bytes that are no UTF-8 are replaced.
        source: Where it came from, for messages.

    Raises:
        InputError: No result in it (with the tool's complaint, if any), several runs, or a contradiction.
    """
    text = data.decode("utf-8", errors="replace")
    seen = _read(text)
    if seen.repeated or len(seen.counts) > 2 or len(seen.timings) > 1:
        raise InputError(f"{source} holds several runs.", expected="one run per file", todo="split the log")
    found = _latencies(seen, source)
    found.update(seen.facts)
    for name in ("init_footprint_mb", "overall_footprint_mb", "peak_memory_mb"):
        found.setdefault(name, seen.rows.get(name))
    reasons = unknown_figures(found, "this build of benchmark_model does not print it")
    return ToolResult(form=FORM, **found, residency=read_residency(message_lines(text)), unknown=reasons)


def message_lines(text: str) -> Iterator[str]:
    """Yields the messages of a log without the prefixes of logcat and of the logging library."""
    for line in text.splitlines():
        yield _PREFIX.sub("", line[:_MAX_LINE_CHARS], count=1).rstrip()


def _read(text: str) -> _Seen:
    seen = _Seen()
    for line in message_lines(text):
        if count := _COUNT.match(line):
            seen.counts.append(_statistics(int(count[1]), count[2]))
        elif timings := _TIMINGS.match(line):
            names = ("init", "first", "warmup", "avg")
            seen.timings.append({name: float(timings[i + 1]) for i, name in enumerate(names)})
        elif oldest := _OLDEST.match(line):
            told = {"warmup": oldest[1], "init": oldest[2], "avg": oldest[4]}
            seen.timings.append({name: float(value) for name, value in told.items() if value})
        elif row := _ROW.match(line):
            name = _ROWS[row[1]]
            seen.repeated = seen.repeated or name in seen.rows
            seen.rows[name] = float(row[2])
            if row[3]:
                seen.row_runs[name] = int(row[3])
        else:
            _read_fact(line, seen)
    return seen


def _read_fact(line: str, seen: _Seen) -> None:
    for pattern, names in _FACTS:
        if fact := pattern.match(line):
            for name, value in zip(names, fact.groups(), strict=True):
                seen.facts[name] = value if name == "graph" else int(value) if name == "threads" else float(value)
            return
    if _COMPLAINT.search(line):
        seen.complaint = line[:200]


def _statistics(count: int, pairs: str) -> dict[str, float]:
    """Reads one line of statistics, in microseconds; where all runs took the same time only one is printed."""
    found = {"count": float(count)}
    for pair in pairs.split():
        if told := _PAIR.match(pair):
            found[told[1]] = float(told[2])
    if "curr" in found and "avg" not in found:
        found |= dict.fromkeys(("min", "max", "avg", "first"), found["curr"])
    return found


def _latencies(seen: _Seen, source: str) -> dict[str, Any]:
    """Returns the figures in milliseconds; where a build prints them twice, both must agree."""
    timings = seen.timings[0] if seen.timings else {}
    if "avg" not in timings and "avg_ms" not in seen.rows:
        raise _no_result(seen, source)
    counted = seen.counts[-1] if seen.counts else {}
    warmup = seen.counts[0] if len(seen.counts) == 2 else {}
    found: dict[str, Any] = {name: seen.rows.get(name) for name in _ROWS.values() if name.endswith("_ms")}
    for key in ("avg", "min", "max", "std", "median", "p5", "p95"):
        _agree(found, f"{key}_ms", counted.get(key), source)
    for key, name in (("init", "init_ms"), ("first", "first_ms"), ("warmup", "warmup_avg_ms"), ("avg", "avg_ms")):
        _agree(found, name, timings.get(key), source)
    _agree(found, "first_ms", warmup.get("first"), source)
    _agree(found, "warmup_avg_ms", warmup.get("avg"), source)
    found["n"] = int(counted["count"]) if counted else seen.row_runs.get("avg_ms")
    found["warmup_n"] = int(warmup["count"]) if warmup else seen.row_runs.get("warmup_avg_ms")
    if found["warmup_n"] == 0:
        found |= {"first_ms": None, "warmup_avg_ms": None}
    return found


def _agree(found: dict[str, Any], name: str, microseconds: float | None, source: str) -> None:
    """Sets a figure from microseconds; one that is there already must be the same as far as it is printed."""
    if microseconds is None:
        return
    value_ms, there_ms = round(microseconds / 1e3, 6), found.get(name)
    if there_ms is not None and abs(value_ms - there_ms) > 0.0051 + 1e-5 * value_ms:
        raise InputError(
            f"{source} contradicts itself.",
            expected=f"one value of {name}",
            got=f"{there_ms} and {value_ms}",
            todo="the output is damaged, or of two runs; keep one run per file",
        )
    found[name] = value_ms


def _no_result(seen: _Seen, source: str) -> InputError:
    runs = int(seen.counts[-1].get("count", 0)) if seen.counts else 0
    got = f"it ends after {runs} runs of the {'measurement' if len(seen.counts) > 1 else 'warm-up'}" if runs else ""
    return InputError(
        f"{source} holds no result.",
        expected="a line 'Inference timings in us: ...' or a block 'BENCHMARK RESULTS'",
        got="; ".join(part for part in (got, seen.complaint) if part) or "a log that ends before",
        todo="the tool was interrupted or failed; run it again",
    )


PARSERS.register(FORM)(Parser(matches, parse))
