"""The JSON of LiteRT's Python tool: `python -m ai_edge_litert.tools.benchmark_litert_model --result_json`.

Its `fully_accelerated` is true for a graph that runs on the CPU as well, so it says nothing about a delegate, and
its times on a GPU are those of handing the work over: `run` returns before the device is done.
"""

from __future__ import annotations

import json
import math
from typing import Any

from edge_seg.benchmarks.parser import PARSERS, Parser, ToolResult, unknown_figures
from edge_seg.errors import InputError

FORM = "litert_python_json"
_MAX_JSON_BYTES = 1 << 20
_LATENCY = {
    "avg_ms": "avg_ms",
    "min_ms": "min_ms",
    "max_ms": "max_ms",
    "std_ms": "std_ms",
    "median_ms": "median_ms",
    "p5_ms": "p5_ms",
    "p95_ms": "p95_ms",
    "init_ms": "init_ms",
    "warmup_first_ms": "first_ms",
    "warmup_avg_ms": "warmup_avg_ms",
}


def matches(data: bytes) -> bool:
    """Whether it begins as a JSON object."""
    return data.lstrip()[:1] == b"{"


def parse(data: bytes, source: str) -> ToolResult:
    """Reads the tool's JSON.

    Args:
        data: The document.
        source: Where it came from, for messages.

    Raises:
        InputError: Too large, not JSON, or without a result of the expected types.
    """
    if len(data) > _MAX_JSON_BYTES:
        raise InputError(f"{source} is too large for this JSON.", got=f"{len(data)} bytes")
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source} is not whole JSON.", got=f"{type(error).__name__}: {error}"[:200]) from error
    latency = document.get("latency") if isinstance(document, dict) else None
    if not isinstance(latency, dict):
        raise InputError(f"{source} is not a result of benchmark_litert_model.py.", expected='an object "latency"')
    found: dict[str, Any] = {ours: _number(latency, theirs, source) for theirs, ours in _LATENCY.items()}
    found |= {"n": _count(latency, "num_runs", source), "warmup_n": _count(latency, "num_warmup_runs", source)}
    if found["avg_ms"] is None or found["n"] is None:
        raise InputError(f"{source} holds no result.", expected="latency with avg_ms and num_runs")
    if not found["warmup_n"]:
        found |= {"first_ms": None, "warmup_avg_ms": None}  # the tool writes 0 where it did not warm up
    if found["n"] == 1:
        found["std_ms"] = None  # likewise
    found["model_size_mb"] = _number(document, "model_size_mb", source)
    found["threads"] = _count(document, "num_threads", source)
    graph = document.get("model")
    found["graph"] = graph if isinstance(graph, str) else None
    return ToolResult(form=FORM, **found, unknown=unknown_figures(found, "the tool does not report it"))


def _number(holder: dict[str, Any], key: str, source: str) -> float | None:
    value = holder.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e300 < value < 1e300:
        raise InputError(f"{source} has a wrong {key!r}.", expected="a number", got=repr(value)[:60])
    return float(value)


def _count(holder: dict[str, Any], key: str, source: str) -> int | None:
    value = _number(holder, key, source)
    if value is not None and (value != math.floor(value) or value < 0):
        raise InputError(f"{source} has a wrong {key!r}.", expected="a count", got=str(value))
    return None if value is None else int(value)


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


PARSERS.register(FORM)(Parser(matches, parse))
