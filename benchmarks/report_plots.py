"""Plots of the report as plain Plotly documents: data and layout, no drawing here.

Colours and fonts of axes come from the page, so that they follow its light or dark theme.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_seg.benchmarks.report_metric import Metric
from edge_seg.benchmarks.result import Record

Spec = dict[str, Any]

SCHEMES = ("fp32", "fp16", "w8_dynamic", "w8a8", "qat_w8a8", "w8a16", "mixed")
_ORDER = ("truth", "torch", *SCHEMES)
# Okabe and Ito's colours, told apart by most colour-blind readers and legible on light and dark ground
_COLORS = {
    "torch": "#7f8c9b",
    "fp32": "#0f82c4",
    "fp16": "#35b5e5",
    "w8_dynamic": "#e69f00",
    "w8a8": "#d4572a",
    "qat_w8a8": "#0a9c74",
    "w8a16": "#c76b9f",
    "mixed": "#8a6fd1",
}
_SPARE = ("#a0824f", "#5b7f3a", "#b0507c", "#4a6fa5")
STAGE_COLORS = {"pre_ms": "#8fa3b5", "run_ms": "#0f82c4", "post_ms": "#e69f00"}
_DASHES = ("solid", "dash", "dot", "dashdot")
_LONG_LABEL = 18
_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross")
_MOST_POINTS = 800


def variant_key(name: str) -> tuple[int, str]:
    """Returns a sort key: PyTorch first, then the schemes from wide to narrow, then the rest by name.

    A label of model and scheme comes by model first.
    """
    model, _, scheme = name.partition(" ")
    if scheme:
        return 2 * len(_ORDER) + 1, f"{model} {variant_key(scheme)[0]:04d} {scheme}"
    for rank, known in enumerate(_ORDER):
        if name == known:
            return 2 * rank, name
        if name.startswith(f"{known}_") and name not in _ORDER:
            return 2 * rank + 1, name
    return 2 * len(_ORDER), name


def color_of(name: str) -> str:
    """Returns the colour of a variant, the same in every plot: that of its scheme, whatever the model."""
    known = next((word for word in reversed(name.split()) if word in _COLORS), "")
    return _COLORS.get(known) or _SPARE[sum(name.encode()) % len(_SPARE)]


def accuracy_plot(evaluations: Sequence[Mapping[str, Any]], metric: Metric) -> Spec:
    """Plots a metric with its interval, one line per variant, best read from top to bottom.

    Args:
        evaluations: Documents with `name`, the metric (percent) and perhaps its interval.
        metric: The metric.
    """
    data = []
    for item in evaluations:
        name, value = str(item["name"]), item[metric.key]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [value],
                "y": [label_of(name)],
                "error_x": _error(value, item.get(metric.interval_key)),
                "marker": {"color": color_of(name), "size": 12},
                "hovertemplate": f"%{{y}}: {metric.title} %{{x:.2f}}<extra></extra>",
                "showlegend": False,
            }
        )
    title = {"text": f"{metric.title}, %"}
    layout = {"xaxis": {"title": title}, "yaxis": {"autorange": "reversed", "type": "category"}}
    return {"data": data, "layout": layout, "height": 80 + 40 * len(data)}


def pareto_plot(
    points: Sequence[tuple[str, Record, Mapping[str, Any]]],
    metric: Metric,
    lines: Mapping[str, Sequence[tuple[float, float]]],
) -> Spec:
    """Plots a metric against the median latency, both with their intervals; open marks are not to be judged.

    Args:
        points: Label, record and evaluation of each file; each record has a median.
        metric: The metric.
        lines: Ends (ms, percent) of each profile's Pareto line, fastest first.
    """
    profiles = sorted({record.profile for _, record, _ in points})
    symbols = {profile: _SYMBOLS[i % len(_SYMBOLS)] for i, profile in enumerate(profiles)}
    dashes = {profile: _DASHES[i % len(_DASHES)] for i, profile in enumerate(profiles)}
    data = [_pareto_line(profile, ends, dashes[profile]) for profile, ends in lines.items() if len(ends) > 1]
    ordered = sorted(points, key=lambda point: float(point[1].median_ms or 0.0))
    data += [_pareto_point(*point, metric, symbols[point[1].profile]) for point in ordered]
    files = dict.fromkeys(name for name, _, _ in points)
    data += [_legend_mark(name, "circle", color_of(name)) for name in files]
    data += [_legend_mark(profile, symbols[profile], "#7f8c9b") for profile in profiles if len(profiles) > 1]
    layout = {
        "xaxis": {"title": {"text": "median latency of one run, ms"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": f"{metric.title}, %"}},
    }
    return {"data": data, "layout": layout, "height": 420}


def _pareto_line(profile: str, ends: Sequence[tuple[float, float]], dash: str) -> dict[str, Any]:
    """Returns the steps of what is reachable within a latency."""
    return {
        "type": "scatter",
        "mode": "lines",
        "line": {"shape": "hv", "color": "#7f8c9b", "width": 2, "dash": dash},
        "x": [x for x, _ in ends],
        "y": [y for _, y in ends],
        "name": label_of(f"Pareto line, {profile}", breaks=False),
        "hoverinfo": "skip",
    }


def _pareto_point(name: str, record: Record, item: Mapping[str, Any], metric: Metric, symbol: str) -> dict[str, Any]:
    solid = record.valid and not record.drift.get("throttled")
    state = "" if solid else "<br>invalid or throttled"
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [record.median_ms],
        "y": [item[metric.key]],
        "error_x": _error(float(record.median_ms or 0.0), record.ci95_median_ms),
        "error_y": _error(item[metric.key], item.get(metric.interval_key)),
        "cliponaxis": False,
        "marker": {"color": color_of(name), "size": 13, "symbol": symbol if solid else f"{symbol}-open"},
        "name": label_of(f"{name}, {record.profile}", breaks=False),
        "hovertemplate": f"{label_of(name)}<br>%{{x:.3f}} ms, {metric.title} %{{y:.2f}}{state}<extra>"
        f"{label_of(record.profile)}</extra>",
        "showlegend": False,
    }


def stages_plot(records: Sequence[Record], names: Sequence[str]) -> Spec:
    """Plots the medians of preparing, running and decoding as stacked bars.

    Args:
        records: Records.
        names: A label for each.
    """
    labels = {"pre_ms": "prepare the picture", "run_ms": "run the network", "post_ms": "decode"}
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label,
            "y": [label_of(name) for name in names],
            "x": [record.stages.get(stage) for record in records],
            "marker": {"color": STAGE_COLORS[stage]},
            "hovertemplate": f"{label}: %{{x:.3f}} ms<extra></extra>",
        }
        for stage, label in labels.items()
    ]
    layout = {
        "barmode": "stack",
        "bargap": 0.35,
        "xaxis": {"title": {"text": "medians, ms"}},
        "yaxis": {"autorange": "reversed", "type": "category"},
    }
    return {"data": data, "layout": layout, "height": 130 + 40 * len(records)}


def losses_plot(lines: Sequence[Mapping[str, Any]]) -> Spec:
    """Plots the loss and its parts over the pictures seen, logarithmic."""
    names = {"loss": "total", "loss_center": "center", "loss_bce": "mask BCE", "loss_dice": "mask dice"}
    colors = ("#7f8c9b", "#0f82c4", "#e69f00", "#0a9c74")
    data = [
        _line(lines, key, name=label, color=color, width=2.5 if key == "loss" else 1.5)
        for (key, label), color in zip(names.items(), colors, strict=True)
        if any(key in line for line in lines)
    ]
    layout = {
        "xaxis": {"title": {"text": "pictures seen"}},
        "yaxis": {"type": "log", "dtick": "D2", "title": {"text": "loss"}},
    }
    return {"data": data, "layout": layout, "height": 340}


def progress_plot(lines: Sequence[Mapping[str, Any]], metric: Metric) -> Spec:
    """Plots a metric on validation pictures over the pictures seen."""
    data = [
        {**_line(lines, key, name=label, color=color, width=2), "mode": "lines+markers"}
        for key, label, color in metric.curves
        if any(key in line for line in lines)
    ]
    layout = {
        "xaxis": {"title": {"text": "pictures seen"}},
        "yaxis": {"title": {"text": f"{metric.title}, %"}, "rangemode": "tozero"},
    }
    return {"data": data, "layout": layout, "height": 340}


def _line(lines: Sequence[Mapping[str, Any]], key: str, *, name: str, color: str, width: float) -> dict[str, Any]:
    there = [line for line in lines if isinstance(line.get(key), int | float)]
    keep = _evenly(len(there))
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [there[i].get("images", there[i].get("step")) for i in keep],
        "y": [there[i][key] for i in keep],
        "line": {"color": color, "width": width},
        "hovertemplate": f"{name} %{{y:.4g}} at %{{x}} pictures<extra></extra>",
    }


def _legend_mark(name: str, symbol: str, color: str) -> dict[str, Any]:
    marker = {"symbol": symbol, "color": color, "size": 11}
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [None],
        "y": [None],
        "name": label_of(name, breaks=False),
        "marker": marker,
    }


def _error(value: float, ends: object) -> dict[str, Any]:
    """Returns asymmetric error bars, or none where the interval is not known."""
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        return {"visible": False}
    plus, minus = max(0.0, float(ends[1]) - value), max(0.0, value - float(ends[0]))
    return {
        "type": "data",
        "symmetric": False,
        "array": [plus],
        "arrayminus": [minus],
        "thickness": 1.5,
        "width": 4,
    }


def label_of(text: str, *, breaks: bool = True) -> str:
    """Escapes text for Plotly, which reads some HTML tags in labels, and sets a long one on two lines.

    Args:
        text: Any text.
        breaks: Whether the first space of a long one becomes a line break, which an axis shows and a legend does not.
    """
    safe = html.escape(text, quote=False)
    return safe.replace(" ", "<br>", 1) if breaks and len(text) > _LONG_LABEL else safe


def _evenly(count: int) -> list[int]:
    if count <= _MOST_POINTS:
        return list(range(count))
    return sorted({int(i) for i in np.linspace(0, count - 1, _MOST_POINTS).round()})
