"""Sections of the report on latency: tables, stages, samples over time, accuracy against latency."""

from __future__ import annotations

from edge_seg.benchmarks.report import ReportInput
from edge_seg.benchmarks.report_accuracy import dot
from edge_seg.benchmarks.report_cards import evaluation_of, records_of, state_badges, variants
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
from edge_seg.benchmarks.report_plots import pareto_plot, samples_plot, stages_plot
from edge_seg.benchmarks.result import Record


def tradeoff(found: ReportInput) -> Html | None:
    """Returns accuracy against latency of the files that have both."""
    points = []
    for name in variants(found):
        item = evaluation_of(found, name)
        if item is not None:
            points += [(record, item) for record in records_of(found, name)]
    if not points:
        return None
    caption = f"{found.metric.title} against the median latency of one run, both with 95 % intervals."
    if any(record.kind != "measured" or not record.valid for record, _ in points):
        caption += " Open marks are emulated, estimated or invalid."
    return figure("tradeoff", pareto_plot(points, found.metric), caption)


def latency(found: ReportInput) -> Html | None:
    """Returns the latency of every record: percentiles, stages, noise, and every sample over time."""
    if not found.records:
        return None
    names = [_name(record, found) for record in found.records]
    percentiles = [_percentile_row(record) for record in found.records]
    head = ["file", "profile", "median", "95 % interval", "p90", "p99", "fastest", "first", "init", "delegate", ""]
    return join(
        table(head, percentiles, left=(0, 1, 9, 10), label="latency in milliseconds"),
        paragraph("Milliseconds. “init” opens the file and its contract; “first” is the very first run.", "note"),
        figure("stages", stages_plot(found.records, names), "Where the time of one picture goes (medians)."),
        _over_time(found, names),
        subtitle("Stages, noise and protocol"),
        table(_NOISE_HEAD, [_noise_row(record) for record in found.records], left=(0, 1, 10)),
        _warnings(found, names),
        _definitions(found.records[0]),
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
    "stopped by",
)


def _name(record: Record, found: ReportInput) -> str:
    parts = [record.scheme]
    if len({r.profile for r in found.records}) > 1:
        parts.append(record.profile)
    if len({r.delegate_requested for r in found.records}) > 1:
        parts.append(record.delegate_requested)
    if any(r.session > 1 for r in found.records):
        parts.append(f"session {record.session}")
    return ", ".join(parts)


def _percentile_row(record: Record) -> list[Cell]:
    return [
        dot(record.scheme),
        record.profile if record.session == 1 else f"{record.profile}, session {record.session}",
        milliseconds(record.median_ms),
        interval(*(record.ci95_median_ms or (None, None))),
        *(milliseconds(getattr(record, key)) for key in ("p90_ms", "p99_ms", "min_ms", "first_ms", "init_ms")),
        _delegate(record),
        join(*(state_badges(record) or [badge("measured", "plain")])),
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


def _noise_row(record: Record) -> list[Cell]:
    return [
        dot(record.scheme),
        record.profile if record.session == 1 else f"{record.profile}, session {record.session}",
        *(milliseconds(record.stages.get(key)) for key in ("pre_ms", "post_ms")),
        milliseconds(record.mad_ms),
        milliseconds(record.early_stopping_p90_ms),
        str(record.n),
        str(record.warmup_n),
        " / ".join(str((record.outliers or {}).get(key, MISSING)) for key in ("mild", "severe")),
        number(record.drift.get("slope_pct_per_min"), 1, signed=True),
        {"target": "target reached", "max_time": "time limit"}.get(
            str(record.protocol.get("stopped_by")), str(record.protocol.get("stopped_by", MISSING))
        ),
    ]


def _over_time(found: ReportInput, names: list[str]) -> Html:
    """Returns one plot of raw samples per profile."""
    plots = []
    for number_of, profile in enumerate(dict.fromkeys(record.profile for record in found.records)):
        runs = [
            (names[i].replace(f", {profile}", ""), found.records[i].scheme, found.samples[i])
            for i in sorted(found.samples)
            if found.records[i].profile == profile
        ]
        if runs:
            caption = f"Every run over time, {profile}. A slope is drift, a step a change of state."
            plots.append(figure(f"samples{number_of}", samples_plot(runs), caption))
    return join(*plots) if plots else paragraph("No raw samples are in this folder.", "absent")


def _warnings(found: ReportInput, names: list[str]) -> Html:
    items = [
        f"{name}: {'; '.join(record.warnings)}"
        for name, record in zip(names, found.records, strict=True)
        if record.warnings
    ]
    return join(subtitle("Warnings"), bullets(items, "warnings")) if items else Html("")


def _definitions(record: Record) -> Html:
    rules = record.protocol
    target, least = number(rules.get("target_ci_pct"), 1), number(rules.get("min_runs"), 0)
    items = [
        f"A file is run until the 95 % interval of its median is at most {target} % wide, at least {least} times and "
        f"for {number(rules.get('min_time_s'), 1)} s, at most {number(rules.get('max_time_s'), 1)} s; "
        f"files take turns ({rules.get('order', MISSING)}).",
        f"Percentiles: {rules.get('percentiles', MISSING)}. Interval: percentile bootstrap of the median.",
        "p90, MLPerf: its early-stopping estimate, not below the true p90 with 99 % confidence; needs 64 runs.",
        "Outliers: Tukey’s fences at 1.5 (mild) and 3 (severe) interquartile ranges; counted, never dropped.",
        "Drift: Theil-Sen slope in percent of the median per minute; over a run of seconds it is noise.",
    ]
    return details("How these figures are defined", bullets(items))
