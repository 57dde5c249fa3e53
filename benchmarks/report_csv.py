"""The records of a page as CSV: one row each, measured times apart from those that no device took."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from typing import Any

from edge_seg.benchmarks.report import ReportInput
from edge_seg.benchmarks.report_cards import evaluation_by_hash
from edge_seg.benchmarks.report_metric import metric_of
from edge_seg.benchmarks.report_samples import changes_of
from edge_seg.benchmarks.result import Record

_TIMES = ("median_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "mad_ms", "early_stopping_p90_ms", "init_ms", "first_ms")
_STAGES = ("pre_ms", "post_ms")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def records_csv(found: ReportInput) -> str:
    """Returns all records as CSV with a header; numbers as they are in the records, nothing for what is not known.

    Times of a record that is not measured are in columns of their own, `emulated_median_ms` and
    `estimated_median_ms`, and in no other. Text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    rows = [_row(record, found) for record in found.all_records]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else ["file"], lineterminator="\n")
    writer.writeheader()
    writer.writerows([{key: _cell(value) for key, value in row.items()} for row in rows])
    return buffer.getvalue()


def _row(record: Record, found: ReportInput) -> dict[str, Any]:
    protocol, drift = record.protocol, record.drift
    return {
        "file": found.labels[record.sha256],
        **{k: getattr(record, k) for k in ("model", "scheme", "sha256", "size_bytes", "profile", "runner", "session")},
        "kind": record.kind,
        "valid": record.valid,
        "throttled": drift.get("throttled"),
        "mode": protocol.get("mode"),
        "n": record.n,
        "warmup_n": record.warmup_n,
        **_measured(record),
        "emulated_median_ms": record.median_ms if record.kind == "emulated" else None,
        "estimated_median_ms": record.median_ms if record.kind == "estimated" else None,
        "peak_memory_mb": record.peak_memory_mb,
        "drift_pct_per_min": drift.get("slope_pct_per_min"),
        "changes": "; ".join(f"{c['change_pct']} % at {c['at_s']} s" for c in changes_of(drift)),
        **{f"outliers_{key}": (record.outliers or {}).get(key) for key in ("mild", "severe")},
        **{key: protocol.get(key) for key in ("stopped_by", "target_fps", "minutes", "frames", "missed", "partitions")},
        **{k: getattr(record, k) for k in ("delegate_requested", "delegate_actual", "nodes_delegated", "nodes_total")},
        **{k: getattr(record, k) for k in ("precision", "threads", "cpu_mask")},
        **_accuracy(record, found),
        "device": json.dumps(dict(record.device), sort_keys=True, default=str),
        "runtime": json.dumps(dict(record.runtime), sort_keys=True, default=str),
        "started_utc": record.started_utc,
        "warnings": "; ".join(map(str, record.warnings)),
    }


def _measured(record: Record) -> dict[str, Any]:
    """Returns the times of a measurement; all None for what no device took."""
    taken = record.kind == "measured"
    low, high = record.ci95_median_ms or (None, None)
    times: dict[str, Any] = {"median_ms": record.median_ms, "ci95_low_ms": low, "ci95_high_ms": high}
    times |= {key: getattr(record, key) for key in _TIMES} | {key: record.stages.get(key) for key in _STAGES}
    return times if taken else dict.fromkeys(times)


def _accuracy(record: Record, found: ReportInput) -> dict[str, Any]:
    item: Mapping[str, Any] = evaluation_by_hash(found, record.sha256) or {}
    metric = metric_of([item])
    ends = item.get(metric.interval_key)
    low, high = ends if isinstance(ends, list | tuple) and len(ends) == 2 else (None, None)
    known = bool(item)
    return {
        "metric": metric.key if known else None,
        "accuracy_pct": metric.value(item),
        "accuracy_ci95_low_pct": low,
        "accuracy_ci95_high_pct": high,
        "data_sha256": item.get("data_sha256"),
    }


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return value if isinstance(value, int | float) else str(value)
