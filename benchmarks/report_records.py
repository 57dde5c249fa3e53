"""Reads the records and raw samples that a page shows; files come from outside and are checked before use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_seg.benchmarks.report_html import is_number
from edge_seg.benchmarks.report_plots import variant_key
from edge_seg.benchmarks.result import Record, Samples, load_records, samples_path
from edge_seg.errors import ArtifactError, EdgeSegError, InputError

MAX_JSON_BYTES = 64 << 20
_TEXTS = ("model", "sha256", "scheme", "profile", "runner", "delegate_requested", "precision", "cpu_mask")
_COUNTS = ("size_bytes", "threads", "session", "n", "warmup_n")
_FIGURES = ("median_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "mad_ms", "early_stopping_p90_ms", "init_ms")
_MAPPINGS = ("device", "runtime", "stages", "drift", "environment", "protocol", "unknown")


@dataclass(frozen=True)
class Measured:
    """A record with its raw samples, None where there are none."""

    record: Record
    samples: Samples | None

    @property
    def sustained(self) -> bool:
        """Whether it is a run of minutes at a frame rate, whose median is no latency of runs back to back."""
        return self.record.protocol.get("mode") == "sustained"


def read_measured(paths: Sequence[Path], remarks: list[str]) -> list[Measured]:
    """Reads results files; a record that two files hold is taken once.

    Args:
        paths: Results files of `benchmark`, `sustain` or `fleet`; raw samples lie beside each.
        remarks: Gets a sentence for whatever had to be left out.

    Returns:
        By profile, model, scheme, delegate and session.

    Raises:
        InputError: A missing or too large file.
        ArtifactError: A file that holds no complete records.
    """
    found: dict[str, Measured] = {}
    for path in paths:
        for position, record in enumerate(_records(path)):
            _check(record, f"{path} record {position}")
            key = repr(record.to_json())
            if key in found:
                remarks.append(f"A record of {record.model} {record.scheme} is in two files and is shown once.")
                continue
            found[key] = Measured(record, _samples(path, record, remarks))
    return sorted(found.values(), key=lambda item: _order(item.record))


def _order(record: Record) -> tuple[Any, ...]:
    return (record.profile, record.model, variant_key(record.scheme), record.delegate_requested, record.session)


def _records(path: Path) -> list[Record]:
    if path.is_file() and path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{path} is too large.", expected=f"<= {MAX_JSON_BYTES} bytes")
    return load_records(path)


def _samples(path: Path, record: Record, remarks: list[str]) -> Samples | None:
    try:
        samples = Samples.load(samples_path(path, record))
    except EdgeSegError as error:
        remarks.append(f"Raw samples of {record.scheme} on {record.profile} are left out: {error.what}")
        return None
    return samples if samples.run_ms.size else None


def _check(record: Record, source: str) -> None:
    """Refuses a record whose fields are not of their types: a page would show nonsense."""
    for name in _TEXTS:
        _require(isinstance(getattr(record, name), str), source, name, "text")
    for name in _COUNTS:
        _require(is_number(getattr(record, name)), source, name, "a number")
    for name in _FIGURES:
        value = getattr(record, name)
        _require(value is None or is_number(value), source, name, "a number or null")
    for name in _MAPPINGS:
        _require(isinstance(getattr(record, name), Mapping), source, name, "an object")
    _require(isinstance(record.warnings, list | tuple), source, "warnings", "a list")
    for name in ("accuracy", "outliers"):
        _require(isinstance(getattr(record, name), Mapping | None), source, name, "an object or null")
    ends = record.ci95_median_ms
    pair = isinstance(ends, list | tuple) and len(ends) == 2 and all(map(is_number, ends))
    _require(ends is None or pair, source, "ci95_median_ms", "two numbers or null")


def _require(holds: bool, source: str, name: str, expected: str) -> None:
    if not holds:
        raise ArtifactError(f"{source}: {name!r} is not of its type.", expected=expected)
