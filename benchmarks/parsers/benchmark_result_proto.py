"""`benchmark_result.proto` of TFLite and LiteRT, read field by field without a protobuf library.

Source: tensorflow/lite/tools/benchmark/proto/benchmark_result.proto for the numbers of the fields, and the public
description of the wire format (protobuf.dev, "Encoding"). Unknown fields are skipped, as the format asks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from edge_seg.benchmarks.parser import PARSERS, Parser, ToolResult, unknown_figures
from edge_seg.errors import InputError

FORM = "benchmark_result_proto"
_MAX_MESSAGE_BYTES = 1 << 16
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_MESSAGES: dict[int, dict[int, tuple[str, int]]] = {
    2: {
        1: ("avg_ms", _FIXED32),
        2: ("min_ms", _FIXED32),
        3: ("max_ms", _FIXED32),
        4: ("std_ms", _FIXED32),
        5: ("median_ms", _FIXED32),
        6: ("p5_ms", _FIXED32),
        7: ("p95_ms", _FIXED32),
        8: ("init_ms", _FIXED32),
        9: ("first_ms", _FIXED32),
        10: ("warmup_avg_ms", _FIXED32),
    },
    3: {1: ("init_footprint_kb", _VARINT), 2: ("overall_footprint_kb", _VARINT), 3: ("peak_memory_mb", _FIXED32)},
    4: {1: ("model_size_mb", _FIXED32), 2: ("n", _VARINT), 3: ("warmup_n", _VARINT)},
}


def matches(data: bytes) -> bool:
    """Whether the first field is the name or the latencies, both of variable length."""
    return data[:1] in (b"\x0a", b"\x12") and len(data) <= _MAX_MESSAGE_BYTES


def parse(data: bytes, source: str) -> ToolResult:
    """Reads a `tflite.tools.benchmark.BenchmarkResult`.

    Args:
        data: The message.
        source: Where it came from, for messages.

    Raises:
        InputError: Too large, cut short, a field of another type, or no latency in it.
    """
    if len(data) > _MAX_MESSAGE_BYTES:
        raise InputError(f"{source} is too large for a benchmark_result message.", got=f"{len(data)} bytes")
    found: dict[str, Any] = {}
    for number, wire, value in _fields(data, source):
        if number in _MESSAGES:
            if wire != _BYTES:
                raise _broken(source, f"field {number} has wire type {wire}")
            found.update(_figures(value, _MESSAGES[number], source))
    if "avg_ms" not in found or "n" not in found:
        raise InputError(
            f"{source} holds no result.",
            expected="a benchmark_result message with avg_ms and num_runs",
            got=", ".join(found) or "no known field",
        )
    for name in ("init_footprint", "overall_footprint"):
        kilobytes = found.pop(f"{name}_kb", None)
        found[f"{name}_mb"] = None if kilobytes is None else kilobytes / 1024
    if (found.get("peak_memory_mb") or 0.0) <= 0.0:
        found["peak_memory_mb"] = None  # LiteRT's tool writes zero or less for "not measured"
    return ToolResult(form=FORM, **found, unknown=unknown_figures(found, "the message does not hold it"))


def _figures(data: bytes, known: dict[int, tuple[str, int]], source: str) -> dict[str, Any]:
    found = {}
    for number, wire, value in _fields(data, source):
        if number not in known:
            continue
        name, expected = known[number]
        if wire != expected:
            raise _broken(source, f"{name} has wire type {wire}")
        found[name] = struct.unpack("<f", value)[0] if wire == _FIXED32 else value
    return found


def _fields(data: bytes, source: str) -> Iterator[tuple[int, int, Any]]:
    """Yields number, wire type and value; every step consumes a byte, so it ends."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at, source)
        number, wire = key >> 3, key & 7
        if not 1 <= number < 1 << 29:
            raise _broken(source, f"field number {number}")
        if wire == _VARINT:
            value, at = _varint(data, at, source)
            yield number, wire, value - (1 << 64) if value >> 63 else value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at, source)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise _broken(source, f"wire type {wire}")
        if size > len(data) - at:
            raise _broken(source, f"a field of {size} bytes with {len(data) - at} left")
        yield number, wire, data[at : at + size]
        at += size


def _varint(data: bytes, at: int, source: str) -> tuple[int, int]:
    value = 0
    for i in range(10):
        if at + i >= len(data):
            raise _broken(source, "a number that is cut short")
        value |= (data[at + i] & 0x7F) << (7 * i)
        if data[at + i] < 0x80:
            return value & (1 << 64) - 1, at + i + 1
    raise _broken(source, "a number of more than ten bytes")


def _broken(source: str, got: str) -> InputError:
    return InputError(f"{source} is not a whole benchmark_result message.", expected="tflite's results.pb", got=got)


PARSERS.register(FORM)(Parser(matches, parse))
