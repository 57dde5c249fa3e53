"""From a measured series to a record: percentiles, drift, outliers, and the warnings a reader needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_seg.benchmarks import stats
from edge_seg.benchmarks.harness import Plan, Series
from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.result import Kind, Record
from edge_seg.benchmarks.runner import Opened

PROTOCOL_VERSION = 1
_THROTTLE_LEAST_S = 60.0
_THROTTLE_PCT = 5.0
_DRIFT_WARN_PCT = 5.0
_FOREIGN_WARN_PCT = 10.0
_STEAL_WARN_PCT = 2.0
_SEVERE_WARN_SHARE = 0.05


@dataclass(frozen=True)
class Subject:
    """What was measured: the file, where, and what is known about it besides its latency.

    Attributes:
        path: The file.
        sha256: Its hash.
        profile: The profile.
        delegate: The delegate asked for.
        kind: What the runner's figures are.
        device: `name soc os cpu`.
        session: Number from 1.
        started_utc: ISO 8601.
        images_n: Number of pictures that took turns.
        accuracy: Accuracy of the same file, or None.
    """

    path: Path
    sha256: str
    profile: Profile
    delegate: str
    kind: Kind
    device: Mapping[str, Any]
    session: int
    started_utc: str
    images_n: int
    accuracy: Mapping[str, Any] | None


def summarise(
    subject: Subject,
    opened: Opened,
    series: Series,
    plan: Plan,
    *,
    environment: Mapping[str, Any],
    samples_file: str,
) -> Record:
    """Builds the record of one file.

    Args:
        subject: What was measured.
        opened: What the runner told about the open file.
        series: The counted runs.
        plan: The stopping rule that was used.
        environment: What was read about the device before and after.
        samples_file: Where the raw samples are, relative to the results file.
    """
    profile, run_ms = subject.profile, series.samples.run_ms
    early, drift = stats.early_stopping_percentile(run_ms), _drift(series)
    outliers = stats.tukey_outliers(run_ms)
    return Record(
        model=opened.model,
        sha256=subject.sha256,
        size_bytes=subject.path.stat().st_size,
        scheme=opened.scheme,
        profile=profile.name,
        runner=profile.runner,
        device=dict(subject.device),
        runtime=dict(opened.runtime),
        delegate_requested=subject.delegate,
        delegate_actual=opened.delegate_actual,
        nodes_delegated=opened.nodes_delegated,
        nodes_total=opened.nodes_total,
        precision=profile.precision,
        threads=profile.threads,
        cpu_mask=profile.cpu_mask,
        session=subject.session,
        n=int(run_ms.size),
        warmup_n=series.warmup_n,
        accuracy=subject.accuracy,
        **_latency(series),
        early_stopping_p90_ms=_round(early.value),
        init_ms=_round(opened.init_ms),
        first_ms=_round(series.first_ms),
        stages={name: _round(stats.median(getattr(series.samples, name))) for name in ("pre_ms", "run_ms", "post_ms")},
        peak_memory_mb=None,
        drift=drift,
        outliers={"mild": outliers.mild, "severe": outliers.severe},
        environment=dict(environment),
        kind=subject.kind,
        valid=series.target_met,
        warnings=_warnings(series, plan, environment, outliers),
        samples_file=samples_file,
        started_utc=subject.started_utc,
        protocol=_protocol(series, plan, subject.images_n),
        unknown=_unknown(subject, opened, early, drift),
    )


def _latency(series: Series) -> dict[str, Any]:
    run_ms = series.samples.run_ms
    return {
        "median_ms": _round(stats.median(run_ms)),
        "p90_ms": _round(stats.percentile(run_ms, 90)),
        "p95_ms": _round(stats.percentile(run_ms, 95)),
        "p99_ms": _round(stats.percentile(run_ms, 99)),
        "min_ms": _round(float(run_ms.min())),
        "mad_ms": _round(stats.mad(run_ms)),
        "ci95_median_ms": [_round(series.interval.low), _round(series.interval.high)],
    }


def _round(value_ms: float | None) -> Any:
    """Rounds to a tenth of a microsecond: below what the clock resolves, and readable."""
    return None if value_ms is None else round(value_ms, 4)


def _drift(series: Series) -> dict[str, Any]:
    """Returns the slope; whether it throttled is only said of a run of a minute or more."""
    times_s, run_ms = series.samples.t_s, series.samples.run_ms
    if times_s.size < 2 or float(np.ptp(times_s)) == 0.0:
        return {"slope_pct_per_min": None, "throttled": None}
    slope_pct = stats.drift_pct_per_min(times_s, run_ms)
    minutes = float(np.ptp(times_s)) / 60.0
    throttled = slope_pct * minutes > _THROTTLE_PCT if minutes * 60.0 >= _THROTTLE_LEAST_S else None
    return {"slope_pct_per_min": round(slope_pct, 3), "throttled": throttled}


def _protocol(series: Series, plan: Plan, images_n: int) -> dict[str, Any]:
    return {
        "version": PROTOCOL_VERSION,
        "latency_of": "run_ms: write the input, invoke, read every output",
        "stopped_by": series.stopped_by,
        "target_ci_pct": plan.target_ci_pct,
        "reached_ci_pct": round(series.interval.width_pct, 3),
        "min_runs": plan.min_runs,
        "min_time_s": plan.min_time_s,
        "max_time_s": plan.max_time_s,
        "order": "A-B-B-A",
        "block_runs": plan.block_runs,
        "images_n": images_n,
        "percentiles": stats.PERCENTILE_DEFINITION,
    }


def _unknown(subject: Subject, opened: Opened, early: stats.EarlyStopping, drift: Mapping[str, Any]) -> dict[str, str]:
    reasons = dict(opened.unknown)
    reasons["peak_memory_mb"] = "several files share one process, so a peak belongs to none of them"
    if subject.accuracy is None:
        reasons["accuracy"] = "no evaluation of a file with this hash was given"
    if not early.valid:
        reasons["early_stopping_p90_ms"] = f"needs at least {early.n_needed} runs"
    if drift["slope_pct_per_min"] is None:
        reasons["drift.slope_pct_per_min"] = "needs two runs at different times"
    if drift["throttled"] is None:
        reasons["drift.throttled"] = f"measured for less than {_THROTTLE_LEAST_S:.0f} s"
    return reasons


def _warnings(series: Series, plan: Plan, environment: Mapping[str, Any], outliers: stats.Outliers) -> list[str]:
    """Returns sentences that say what is wrong and what to do about it."""
    found = []
    n = series.samples.run_ms.size
    if not series.target_met:
        found.append(
            f"stopped after {plan.max_time_s:g} s with the median's interval"
            f" {series.interval.width_pct:.1f} % wide,"
            f" the target is {plan.target_ci_pct:g} %; use a quieter machine or more time"
        )
    if not series.warm:
        found.append("latency was still changing when warm-up ended; measure again on a settled machine")
    if outliers.severe > _SEVERE_WARN_SHARE * n:
        found.append(f"{outliers.severe} of {n} runs are severe outliers; something else used the machine")
    change_pct = _change_pct(series)
    if abs(change_pct) > _DRIFT_WARN_PCT:
        found.append(f"the last third of the runs is {change_pct:+.1f} % against the first third")
    for key, limit, what in (
        ("foreign_cpu_pct", _FOREIGN_WARN_PCT, "other processes used {:.0f} % of the CPUs meanwhile"),
        ("steal_pct", _STEAL_WARN_PCT, "the hypervisor took {:.0f} % of the CPUs meanwhile"),
    ):
        if (environment.get(key) or 0.0) > limit:
            found.append(what.format(environment[key]))
    return found


def _change_pct(series: Series) -> float:
    run_ms = series.samples.run_ms
    third = max(1, run_ms.size // 3)
    first = stats.median(run_ms[:third])
    return 100.0 * (stats.median(run_ms[-third:]) - first) / first if first else 0.0
