"""Section of the report on latency: tables, stages, warnings; measurements apart from what no device took."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_seg.benchmarks.report import ReportInput
from edge_seg.benchmarks.report_accuracy import dot
from edge_seg.benchmarks.report_cards import state_badges
from edge_seg.benchmarks.report_html import (
    MISSING,
    Cell,
    Html,
    badge,
    bullets,
    details,
    figure,
    interval,
    join,
    milliseconds,
    number,
    paragraph,
    subtitle,
    table,
)
from edge_seg.benchmarks.report_names import record_labels
from edge_seg.benchmarks.report_plots import stages_plot
from edge_seg.benchmarks.result import Record

_MOST_WARNINGS = 8


def latency(found: ReportInput) -> Html | None:
    """Returns the latency of every record: percentiles, stages and noise; what no device took is apart."""
    if not found.records:
        return None
    taken = [record for record in found.records if record.kind == "measured"]
    parts = [_measured(taken, found)] if taken else [paragraph("No record is a measurement on a device.", "absent")]
    for kind in sorted({record.kind for record in found.records} - {"measured"}):
        parts.append(_not_measured([record for record in found.records if record.kind == kind], found))
    return join(*parts, _warnings(found), _definitions(found.records[0]))


def _measured(records: list[Record], found: ReportInput) -> Html:
    rows = [_percentile_row(record, found) for record in records]
    head = ["file", "", "profile", "median", "95 % interval", "p90", "p99", "fastest", "first", "init", "delegate"]
    return join(
        table(head, rows, left=(0, 1, 2, 10), label="latency in milliseconds"),
        paragraph("Milliseconds. “init” opens the file and its contract; “first” is the very first run.", "note"),
        subtitle("Stages"),
        *_stages(records, found),
        subtitle("Stages, noise and protocol"),
        table(_NOISE_HEAD, [_noise_row(record, found) for record in records], left=(0, 1, 11)),
    )


def _stages(records: list[Record], found: ReportInput) -> list[Html]:
    """Returns one plot of stages per profile."""
    plots = []
    for position, profile in enumerate(dict.fromkeys(record.profile for record in records)):
        listed = [record for record in records if record.profile == profile]
        names = record_labels(listed, found.labels)
        caption = f"Where the time of one picture goes, {profile} (medians)."
        plots.append(figure(f"stages{position}", stages_plot(listed, names), caption))
    return [Html('<div class="pair">'), *plots, Html("</div>")] if len(plots) > 1 else plots


def _not_measured(records: list[Record], found: ReportInput) -> Html:
    kind = records[0].kind
    rows: list[list[Cell]] = [
        [
            dot(found.labels[record.sha256]),
            join(*state_badges(record)),
            _profile(record),
            milliseconds(record.median_ms),
            interval(*(record.ci95_median_ms or (None, None))),
            str(record.n),
            _delegate(record),
        ]
        for record in records
    ]
    head = ["file", "", "profile", f"{kind} median", "95 % interval", "runs", "delegate"]
    return join(
        subtitle(f"{kind.capitalize()}: no latency of any device"),
        table(head, rows, left=(0, 1, 2, 6), label=f"{kind} times in milliseconds"),
        paragraph("Milliseconds. These times are not to be held against those of a device.", "note"),
    )


_NOISE_HEAD = (
    "file",
    "profile",
    "prepare",
    "decode",
    "MAD",
    "p90, MLPerf",
    "runs",
    "warm-up",
    "outliers mild / severe",
    "drift, %/min",
    "peak memory, MB",
    "stopped by",
)


def _profile(record: Record) -> str:
    return record.profile if record.session == 1 else f"{record.profile}, session {record.session}"


def _percentile_row(record: Record, found: ReportInput) -> list[Cell]:
    return [
        dot(found.labels[record.sha256]),
        join(*(state_badges(record) or [badge("measured", "plain")])),
        _profile(record),
        milliseconds(record.median_ms),
        interval(*(record.ci95_median_ms or (None, None))),
        *(milliseconds(getattr(record, key)) for key in ("p90_ms", "p99_ms", "min_ms", "first_ms", "init_ms")),
        _delegate(record),
    ]


def _delegate(record: Record) -> Html:
    """Returns what really ran; where the runtime does not tell, that is said."""
    if record.delegate_actual is None:
        why = record.unknown.get("delegate_actual", "")
        return badge(f"{record.delegate_requested} asked, not told", "warn", title=why)
    taken = MISSING if record.nodes_delegated is None else str(record.nodes_delegated)
    total = MISSING if record.nodes_total is None else str(record.nodes_total)
    text = f"{record.delegate_actual} {taken}/{total}"
    return badge(text, "plain" if record.delegate_actual == record.delegate_requested else "bad", title="nodes taken")


def _noise_row(record: Record, found: ReportInput) -> list[Cell]:
    return [
        dot(found.labels[record.sha256]),
        _profile(record),
        *(milliseconds(record.stages.get(key)) for key in ("pre_ms", "post_ms")),
        milliseconds(record.mad_ms),
        milliseconds(record.early_stopping_p90_ms),
        str(record.n),
        str(record.warmup_n),
        " / ".join(str((record.outliers or {}).get(key, MISSING)) for key in ("mild", "severe")),
        number(record.drift.get("slope_pct_per_min"), 1, signed=True),
        number(record.peak_memory_mb, 1),
        {"target": "target reached", "ratio": "ratios known", "max_time": "time limit"}.get(
            str(record.protocol.get("stopped_by")), str(record.protocol.get("stopped_by", MISSING))
        ),
    ]


def _warnings(found: ReportInput) -> Html:
    names = record_labels(found.records, found.labels)
    items = [
        f"{name}: {'; '.join(map(str, record.warnings))}"
        for name, record in zip(names, found.records, strict=True)
        if record.warnings
    ]
    if len(items) > _MOST_WARNINGS:
        return details(f"Warnings of {len(items)} records", bullets(items, "warnings"))
    return join(subtitle("Warnings"), bullets(items, "warnings")) if items else Html("")


def _known(rules: Mapping[str, Any]) -> str:
    """What a file is run until: its own median is known, or the ratios of all files to the first one."""
    if rules.get("ratio_ci_pct") is None:
        return f"the 95 % interval of its median is at most {number(rules.get('target_ci_pct'), 1)} % wide"
    return f"the 95 % interval of every file’s ratio to the first is at most {number(rules['ratio_ci_pct'], 1)} % wide"


def _definitions(record: Record) -> Html:
    rules = record.protocol
    least = number(rules.get("min_runs"), 0)
    items = [
        f"A file is run until {_known(rules)}, at least {least} times and "
        f"for {number(rules.get('min_time_s'), 1)} s, at most {number(rules.get('max_time_s'), 1)} s; "
        f"files take turns ({rules.get('order', MISSING)}).",
        f"Percentiles: {rules.get('percentiles', MISSING)}. Interval: percentile bootstrap of the median.",
        "p90, MLPerf: its early-stopping estimate, not below the true p90 with 99 % confidence; needs 64 runs.",
        "Outliers: Tukey’s fences at 1.5 (mild) and 3 (severe) interquartile ranges; counted, never dropped.",
        "Drift: Theil-Sen slope in percent of the median per minute; over a run of seconds it is noise.",
    ]
    return details("How these figures are defined", bullets(items))
