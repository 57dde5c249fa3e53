"""From a measured series to a record: percentiles, drift, outliers, and the warnings a reader needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.benchmarks import stats
from edge_seg.benchmarks.harness import Plan, Series
from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.result import Kind, Record
from edge_seg.benchmarks.runner import Opened
from edge_seg.benchmarks.stats_change import Drift, drift_of
from edge_seg.benchmarks.sustain import Sustain

PROTOCOL_VERSION = 2  # 2: the stopping rule takes the dependence of neighbouring runs into account
_DRIFT_WARN_PCT = 5.0
_FOREIGN_WARN_PCT = 10.0
_STEAL_WARN_PCT = 2.0
_SEVERE_WARN_SHARE = 0.05
_MISSED_WARN_SHARE = 0.01


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
        images_sha256: Hash of these pictures (`sustain.images_sha256`), or None where it is not known.
        peak_memory_mb: Peak of the file in a process of its own, or None where it was not asked for.
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
    images_sha256: str | None = None
    peak_memory_mb: float | None = None


def identity(subject: Subject, opened: Opened) -> dict[str, Any]:
    """Returns the fields of a record that say what was measured where; they come from no figure."""
    profile = subject.profile
    return {
        "model": opened.model,
        "sha256": subject.sha256,
        "size_bytes": subject.path.stat().st_size,
        "scheme": opened.scheme,
        "profile": profile.name,
        "runner": profile.runner,
        "device": dict(subject.device),
        "runtime": dict(opened.runtime),
        "delegate_requested": subject.delegate,
        "delegate_actual": opened.delegate_actual,
        "nodes_delegated": opened.nodes_delegated,
        "nodes_total": opened.nodes_total,
        "precision": profile.precision_for(subject.delegate),
        "threads": profile.threads,
        "cpu_mask": profile.cpu_mask,
        "session": subject.session,
        "accuracy": subject.accuracy,
        "kind": subject.kind,
        "started_utc": subject.started_utc,
    }


def summarise(
    subject: Subject,
    opened: Opened,
    series: Series,
    plan: Plan | Sustain,
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
    run_ms = series.samples.run_ms
    early, drift = stats.early_stopping_percentile(run_ms), _drift(series)
    outliers = stats.tukey_outliers(run_ms)
    record = Record(
        **identity(subject, opened),
        n=int(run_ms.size),
        warmup_n=series.warmup_n,
        **_latency(series),
        early_stopping_p90_ms=_round(early.value),
        init_ms=_round(opened.init_ms),
        first_ms=_round(series.first_ms),
        stages={name: _stage(getattr(series.samples, name)) for name in ("pre_ms", "run_ms", "post_ms")},
        peak_memory_mb=subject.peak_memory_mb,
        drift=_drift_document(drift),
        outliers={"mild": outliers.mild, "severe": outliers.severe},
        environment=dict(environment),
        valid=series.target_met and subject.kind == "measured",
        warnings=[
            *_not_measured(subject.kind),
            *_not_delegated(subject, opened),
            *_warnings(series, plan, environment, outliers),
        ],
        samples_file=samples_file,
        protocol={
            **_protocol(series, plan, subject),
            "partitions": opened.partitions,
            "refused": list(opened.refused),
        },
        unknown=_unknown(subject, opened, early, drift),
    )
    return _without_times(record, opened.no_latency) if opened.no_latency else record


def _without_times(record: Record, reason: str) -> Record:
    """Returns the record without any figure of time, so that none can be taken for a latency; samples are kept."""
    names = ("median_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "mad_ms", "ci95_median_ms", "early_stopping_p90_ms")
    times: dict[str, Any] = dict.fromkeys((*names, "init_ms", "first_ms"))
    unknown = {**record.unknown, **dict.fromkeys((*times, "stages", "drift.slope_pct_per_min"), reason)}
    drift = {key: None for key in record.drift}
    return replace(record, **times, stages=dict.fromkeys(record.stages), drift=drift, unknown=unknown)


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


def _stage(samples_ms: NDArray[np.float32]) -> float | None:
    """Returns the median of a stage, or None where the runner could not measure it."""
    return None if np.isnan(samples_ms).any() else _round(stats.median(samples_ms))


def _drift(series: Series) -> Drift | None:
    """Returns what changed during the run, or None for runs at one time."""
    times_s = series.samples.t_s
    if times_s.size < 2 or float(np.ptp(times_s)) == 0.0:
        return None
    return drift_of(times_s, series.samples.run_ms)


def _drift_document(drift: Drift | None) -> dict[str, Any]:
    if drift is None:
        return {"slope_pct_per_min": None, "throttled": None}
    return {
        "slope_pct_per_min": round(drift.slope_pct_per_min, 3),
        "throttled": drift.throttled,
        "throttled_at_s": drift.throttled_at_s,
        "trend_p": drift.trend_p,
        "window_s": round(drift.window_s, 2),
        "first_window_ms": _round(drift.first_ms),
        "last_window_ms": _round(drift.last_ms),
        "changes": [
            {"at_s": round(c.at_s, 2), "change_pct": round(c.change_pct, 2), "p": c.p_value} for c in drift.changes
        ],
    }


def _protocol(series: Series, plan: Plan | Sustain, subject: Subject) -> dict[str, Any]:
    pace = series.pace
    return {
        "version": PROTOCOL_VERSION,
        "latency_of": "run_ms: write the input, invoke, read every output",
        "stopped_by": series.stopped_by,
        "reached_ci_pct": round(series.interval.width_pct, 3),
        **plan.rule(),
        **({"block_runs": series.block_runs} if series.block_runs else {}),
        **({} if pace is None else {"frames": pace.slots_n, "missed": pace.missed_n, "late": pace.late_n}),
        "images_n": subject.images_n,
        "images_sha256": subject.images_sha256,
        "percentiles": stats.PERCENTILE_DEFINITION,
        "outside_us_per_run": None if series.outside_us is None else round(series.outside_us, 2),
    }


def _unknown(subject: Subject, opened: Opened, early: stats.EarlyStopping, drift: Drift | None) -> dict[str, str]:
    reasons = dict(opened.unknown)
    if opened.partitions is None:
        reasons.setdefault("protocol.partitions", "the runner does not tell")
    if subject.peak_memory_mb is None:
        reasons["peak_memory_mb"] = "not asked for: it takes a process of its own (--memory)"
    if subject.accuracy is None:
        reasons["accuracy"] = "no evaluation of a file with this hash was given"
    if not early.valid:
        reasons["early_stopping_p90_ms"] = f"needs at least {early.n_needed} runs"
    if drift is None:
        reasons["drift.slope_pct_per_min"] = reasons["drift.throttled"] = "needs two runs at different times"
    elif drift.throttled is None:
        reasons["drift.throttled"] = drift.unknown
    return reasons


def _not_measured(kind: Kind) -> list[str]:
    return [] if kind == "measured" else [f"{kind}: no device takes these times; do not quote them as its latency"]


def _not_delegated(subject: Subject, opened: Opened) -> list[str]:
    if None in (opened.nodes_delegated, opened.nodes_total) or opened.nodes_delegated == opened.nodes_total:
        return []
    taken = f"{opened.nodes_delegated} of {opened.nodes_total} nodes"
    return [] if subject.delegate == "none" else [f"{taken} ran on {subject.delegate}, the rest outside it"]


def _warnings(
    series: Series, plan: Plan | Sustain, environment: Mapping[str, Any], outliers: stats.Outliers
) -> list[str]:
    """Returns sentences that say what is wrong and what to do about it."""
    found = []
    n = series.samples.run_ms.size
    if series.stopped_by == "lost":
        found.append(f"the device was lost after {n} runs; measure again")
    elif series.stopped_by == "ratio" and isinstance(plan, Plan):
        found.append(
            f"stopped when the ratios to the first file were known to {plan.ratio_ci_pct:g} %; the median's interval is"
            f" {series.interval.width_pct:.1f} % wide, the target is {plan.target_ci_pct:g} %: good for ratios only"
        )
    elif series.stopped_by == "max_time" and isinstance(plan, Plan) and plan.ratio_ci_pct is not None:
        found.append(
            f"stopped after {plan.max_time_s:g} s, before the ratios to the first file were known to"
            f" {plan.ratio_ci_pct:g} %; the median's interval is {series.interval.width_pct:.1f} % wide; use a quieter"
            " machine or more time"
        )
    elif not series.target_met and isinstance(plan, Plan):
        found.append(
            f"stopped after {plan.max_time_s:g} s with the median's interval"
            f" {series.interval.width_pct:.1f} % wide,"
            f" the target is {plan.target_ci_pct:g} %; use a quieter machine or more time"
        )
    if not series.warm:
        found.append("latency was still changing when warm-up ended; measure again on a settled machine")
    if outliers.severe > _SEVERE_WARN_SHARE * n:
        found.append(f"{outliers.severe} of {n} runs are severe outliers; something else used the machine")
    found += _heat_warnings(series)
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


def _heat_warnings(series: Series) -> list[str]:
    found, drift, pace = [], _drift(series), series.pace
    if drift is not None and drift.throttled:
        found.append(
            f"throttled after {drift.throttled_at_s or 0.0:.0f} s: the last {drift.window_s:.0f} s are"
            f" {drift.change_pct:+.1f} % against the first; the median is of two states, quote both"
        )
    if pace is not None and pace.missed_n > _MISSED_WARN_SHARE * pace.slots_n:
        found.append(f"{pace.missed_n} of {pace.slots_n} frames were missed; it cannot keep up with this rate")
    return found


def _change_pct(series: Series) -> float:
    run_ms = series.samples.run_ms
    third = max(1, run_ms.size // 3)
    first = stats.median(run_ms[:third])
    return 100.0 * (stats.median(run_ms[-third:]) - first) / first if first else 0.0
