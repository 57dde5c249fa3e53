"""Sections of the report on time: every record's runs with their drift, and the sustained runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.benchmarks.report import ReportInput
from edge_seg.benchmarks.report_accuracy import dot
from edge_seg.benchmarks.report_cards import state_badges
from edge_seg.benchmarks.report_html import (
    Cell,
    Html,
    badge,
    esc,
    figure,
    is_number,
    join,
    milliseconds,
    number,
    paragraph,
    table,
)
from edge_seg.benchmarks.report_names import record_labels
from edge_seg.benchmarks.report_plots import Spec, color_of
from edge_seg.benchmarks.result import Record, Samples
from edge_seg.benchmarks.stats_change import ALPHA

PARTS = 200  # a plot of 500 px shows no more
_MOST_PLOTS = 36
_DRIFT_COLOR, _CHANGE_COLOR = "#7f8c9b", "#b0507c"


def thinned(values: NDArray[np.float32], parts: int = PARTS) -> list[int]:
    """Returns which samples to draw: the smallest and the largest of each of so many equal parts, in order.

    Args:
        values: [N] samples in the order they were taken.
        parts: Number of parts; a series of at most twice as many is kept whole.
    """
    if values.size <= 2 * parts:
        return list(range(values.size))
    edges = np.linspace(0, values.size, parts + 1).round().astype(int)
    kept: set[int] = set()
    for begin, end in itertools.pairwise(edges):
        part = values[begin:end]
        kept |= {int(begin + part.argmin()), int(begin + part.argmax())}
    return sorted(kept)


def samples(found: ReportInput) -> Html | None:
    """Returns one plot per record: its runs over time, the drift line and the change points."""
    if not found.records:
        return None
    names = record_labels(found.records, found.labels)
    shown = [i for i in sorted(found.samples) if i < len(found.records)]
    if not shown:
        return paragraph("No raw samples are in this folder.", "absent")
    plots = [
        _plot(f"samples{i}", names[i], found.records[i], found.samples[i], found.labels) for i in shown[:_MOST_PLOTS]
    ]
    over = len(shown) - _MOST_PLOTS
    more = [paragraph(f"{over} more records are left out to keep the page small; their samples lie beside it.", "note")]
    silent = [names[i] for i in range(len(names)) if i not in found.samples]
    note = [paragraph(f"Without raw samples: {', '.join(silent)}.", "note")] if silent else []
    return join(Html('<div class="pair">'), *plots, Html("</div>"), *(more if over > 0 else []), *note)


def _plot(anchor: str, name: str, record: Record, runs: Samples, labels: Mapping[str, str]) -> Html:
    keep = thinned(runs.run_ms)
    spec = samples_plot(record, runs, keep, color_of(labels[record.sha256]))
    badges = join(*state_badges(record)).text
    caption = f"{_shown(len(keep), int(runs.run_ms.size))} {_drift_words(record.drift)}"
    return Html(f"<div><h4>{esc(name)} {badges}</h4>{figure(anchor, spec, caption).text}</div>")


def _shown(kept: int, total: int) -> str:
    if kept == total:
        return f"All {total} runs."
    return f"{kept} of {total} runs: the fastest and the slowest of each of {PARTS} equal parts."


def _drift_words(drift: Mapping[str, Any]) -> str:
    slope, trend_p = drift.get("slope_pct_per_min"), drift.get("trend_p")
    if not is_number(slope):
        return "Drift is not known."
    text = f"Drift {number(slope, 1, signed=True)} % per minute"
    if not is_number(trend_p):
        return f"{text}; too few runs to test for a trend or a change of level."
    text += f" (trend p = {trend_p:.2g})" if trend_p < ALPHA else f", no trend found (p = {trend_p:.2g})"
    changes = changes_of(drift)
    steps = [f"{number(c['change_pct'], 1, signed=True)} % at {number(c['at_s'], 1)} s" for c in changes]
    return f"{text}. " + (f"Change of level: {', '.join(steps)}." if steps else "No change of level found.")


def changes_of(drift: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the change points of a record that have a time and a size."""
    listed = drift.get("changes")
    items = [c for c in listed if isinstance(c, Mapping)] if isinstance(listed, list | tuple) else []
    return [c for c in items if is_number(c.get("at_s")) and is_number(c.get("change_pct"))]


def samples_plot(record: Record, runs: Samples, keep: Sequence[int], color: str) -> Spec:
    """Plots the runs of a record over time with its drift line and its change points.

    Args:
        record: The record.
        runs: Its raw samples.
        keep: Which of them to draw.
        color: Of the runs.
    """
    index = np.asarray(keep, np.int64)
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "one run",
            "x": np.round(runs.t_s[index].astype(float), 4).tolist(),
            "y": np.round(runs.run_ms[index].astype(float), 4).tolist(),
            "marker": {"color": color, "size": 5, "opacity": 0.65},
            "hovertemplate": "%{x:.2f} s: %{y:.3f} ms<extra></extra>",
        }
    ]
    line = drift_line(record, runs)
    if line is not None:
        data.append({**_stroke("drift", _DRIFT_COLOR, "solid"), "x": line[0], "y": line[1]})
    at_s = [float(change["at_s"]) for change in changes_of(record.drift)]
    if at_s:
        low, high = float(runs.run_ms.min()), float(runs.run_ms.max())
        x: list[float | None] = [value for s in at_s for value in (s, s, None)]
        data.append({**_stroke("change of level", _CHANGE_COLOR, "dash"), "x": x, "y": [low, high, None] * len(at_s)})
    layout = {"xaxis": {"title": {"text": "s"}}, "yaxis": {"title": {"text": "ms"}}}
    return {"data": data, "layout": layout, "height": 250}


def drift_line(record: Record, runs: Samples) -> tuple[list[float], list[float]] | None:
    """Returns the ends of the Theil-Sen line through the medians of time and latency, or None where it is not known."""
    slope, middle_ms = record.drift.get("slope_pct_per_min"), record.median_ms
    if not is_number(slope) or middle_ms is None:
        return None
    times_s = runs.t_s.astype(float)
    ends_s = [float(times_s.min()), float(times_s.max())]
    per_s = slope / 100.0 * middle_ms / 60.0
    centre_s = float(np.median(times_s))
    return ends_s, [round(middle_ms + per_s * (s - centre_s), 4) for s in ends_s]


def _stroke(name: str, color: str, dash: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "line": {"color": color, "width": 2, "dash": dash},
        "hoverinfo": "skip",
    }


def sustained(found: ReportInput) -> Html | None:
    """Returns the runs of minutes at a frame rate: first minute against last, throttling, missed frames."""
    if not found.sustained:
        return None
    records = [item.record for item in found.sustained]
    names = record_labels(records, found.labels)
    head = ["file", "", "profile", "rate", "minutes", "first window", "last window", "change", "throttled", "missed"]
    rows = [_sustained_row(record, found.labels) for record in records]
    plots = [
        _plot(f"sustained{i}", names[i], item.record, item.samples, found.labels)
        for i, item in enumerate(found.sustained[:_MOST_PLOTS])
        if item.samples is not None
    ]
    return join(
        table(head, rows, left=(0, 1, 2, 8), label="sustained runs"),
        paragraph("Windows are the first and the last minute of a run, medians in milliseconds.", "note"),
        Html('<div class="pair">'),
        *plots,
        Html("</div>"),
    )


def _sustained_row(record: Record, labels: Mapping[str, str]) -> list[Cell]:
    drift, protocol = record.drift, record.protocol
    first, last = drift.get("first_window_ms"), drift.get("last_window_ms")
    change = 100.0 * (last / first - 1.0) if is_number(first) and is_number(last) and first else None
    fps = protocol.get("target_fps")
    at_s = number(drift.get("throttled_at_s"), 0, unit="s")
    told = {"True": badge(f"after {at_s}", "bad"), "False": badge("no", "good")}
    unknown = badge("not known", "warn", title=str(record.unknown.get("drift.throttled", "")))
    missed = f"{number(protocol.get('missed'), 0)} of {number(protocol.get('frames'), 0)}"
    return [
        dot(labels[record.sha256]),
        join(*(state_badges(record) or [badge("measured", "plain")])),
        record.profile,
        number(fps, 1, unit="fps") if fps else "no pause",
        number(protocol.get("minutes"), 1),
        milliseconds(first),
        milliseconds(last),
        number(change, 1, signed=True, unit="%"),
        told.get(str(drift.get("throttled")), unknown),
        missed,
    ]
