"""From the figures of another program to a record: what it does not give is None, and the record is not valid.

Our protocol asks for an interval of the median from raw samples. A program that gives one median of all its runs
cannot meet it, however good that median is; repeated sessions still show how far it moves.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_seg.benchmarks.result import Record
from edge_seg.benchmarks.runner import ToolRun
from edge_seg.benchmarks.summary import PROTOCOL_VERSION, Subject, identity

_NO_SAMPLES = "the program gives figures of all its runs together and no raw samples"
_HOT = ("moderate", "severe", "critical", "emergency", "shutdown")
_PERCENTILES = "of the program: the value at n*p/100 of the sorted runs, for LiteRT and newer TFLite builds"


def summarise_tool(subject: Subject, run: ToolRun, log_file: str) -> Record:
    """Builds the record of one file measured by another program.

    Args:
        subject: What was measured.
        run: What the program told.
        log_file: Where its output is, relative to the results file.
    """
    profile, told, opened = subject.profile, run.told, run.opened
    return Record(
        **identity(subject, opened),
        n=told.n or 0,
        warmup_n=told.warmup_n or 0,
        median_ms=told.median_ms,
        p90_ms=None,
        p95_ms=told.p95_ms,
        p99_ms=None,
        min_ms=told.min_ms,
        mad_ms=None,
        ci95_median_ms=None,
        early_stopping_p90_ms=None,
        init_ms=told.init_ms,
        first_ms=told.first_ms,
        stages={"pre_ms": None, "run_ms": told.median_ms, "post_ms": None},
        peak_memory_mb=told.peak_memory_mb,
        drift={"slope_pct_per_min": None, "throttled": None},
        outliers=None,
        environment=dict(run.environment),
        valid=False,
        warnings=_warnings(run, subject.delegate),
        samples_file=None,
        protocol=_protocol(run, profile.min_runs, profile.min_time_s, profile.max_time_s, log_file),
        unknown=_unknown(run, subject),
    )


def _protocol(run: ToolRun, min_runs: int, min_time_s: float, max_time_s: float, log_file: str) -> dict[str, Any]:
    told = run.told
    return {
        "version": PROTOCOL_VERSION,
        "latency_of": "invoke, as the program times it; its input is random numbers",
        "stopped_by": "the program",
        "min_runs": min_runs,
        "min_time_s": min_time_s,
        "max_time_s": max_time_s,
        "order": "A-B in one session, B-A in the next",
        "images_n": 0,
        "percentiles": _PERCENTILES,
        "form": told.form,
        "avg_ms": told.avg_ms,
        "max_ms": told.max_ms,
        "std_ms": told.std_ms,
        "p5_ms": told.p5_ms,
        "warmup_avg_ms": told.warmup_avg_ms,
        "init_footprint_mb": told.init_footprint_mb,
        "overall_footprint_mb": told.overall_footprint_mb,
        "partitions": _partitions(run),
        "refused": list(told.residency.refused),
        "command": run.command,
        "log_file": log_file,
    }


def _partitions(run: ToolRun) -> int | None:
    share = run.told.residency.of(run.opened.delegate_actual or "")
    return share.partitions if share else None


def _unknown(run: ToolRun, subject: Subject) -> dict[str, str]:
    told, reasons = run.told, dict(run.opened.unknown)
    for key in ("p90_ms", "p99_ms", "mad_ms", "ci95_median_ms", "early_stopping_p90_ms", "outliers", "samples_file"):
        reasons[key] = _NO_SAMPLES
    reasons |= {"drift.slope_pct_per_min": _NO_SAMPLES, "drift.throttled": _NO_SAMPLES}
    reasons |= {
        f"stages.{name}": "the program runs the network alone, on random numbers" for name in ("pre_ms", "post_ms")
    }
    for key in ("median_ms", "p95_ms", "min_ms", "first_ms"):
        if getattr(told, key) is None:
            reasons[key] = told.unknown[key]
    if told.median_ms is None:
        reasons["stages.run_ms"] = told.unknown["median_ms"]
    if told.peak_memory_mb is None:
        reasons["peak_memory_mb"] = "not asked for: watching memory disturbs the times"
    if subject.accuracy is None:
        reasons["accuracy"] = "no evaluation of a file with this hash was given"
    reasons |= {f"environment.{key}": "the device does not say" for key, value in _silent(run.environment)}
    return reasons


def _silent(environment: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in environment.items() if value is None]


def _warnings(run: ToolRun, requested: str) -> list[str]:
    """Returns sentences that say what to know before a figure is quoted."""
    found = [f"{_NO_SAMPLES}: no interval, so the protocol's target cannot be checked"]
    opened, environment = run.opened, run.environment
    if opened.delegate_actual is None:
        found.append(f"{requested} was asked for; {opened.unknown.get('delegate_actual', 'what ran is not known')}")
    elif opened.delegate_actual != requested:
        found.append(f"{requested} was asked for, and {opened.delegate_actual} ran")
    if None not in (opened.nodes_delegated, opened.nodes_total) and opened.nodes_delegated != opened.nodes_total:
        found.append(f"{opened.nodes_delegated} of {opened.nodes_total} nodes ran on {requested}, the rest on the CPU")
    for key, when in (("thermal_status", "before"), ("thermal_status_after", "after")):
        if environment.get(key) in _HOT:
            found.append(f"the device reported {environment[key]} throttling {when} the run")
    if environment.get("wakefulness_after") not in (None, "awake"):
        found.append("the device fell asleep during the run")
    if "start_below_c" in environment and environment.get("start_temperature_c") is None:
        found.append("the device gives no battery temperature, so the profile's start condition was not checked")
    return found
