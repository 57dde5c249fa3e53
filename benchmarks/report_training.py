"""Sections of the report on how the network came about: training curves and provenance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_seg.benchmarks.report import ReportInput
from edge_seg.benchmarks.report_html import (
    MISSING,
    Cell,
    Html,
    code,
    details,
    esc,
    figure,
    join,
    number,
    paragraph,
    subtitle,
    table,
)
from edge_seg.benchmarks.report_plots import losses_plot, progress_plot
from edge_seg.benchmarks.stats import median


def training(found: ReportInput) -> Html | None:
    """Returns losses and the metric on validation pictures over the pictures seen."""
    plots = []
    if found.training:
        plots.append(figure("losses", losses_plot(found.training), "Loss and its parts, logarithmic."))
    if found.progress:
        plots.append(
            figure(
                "progress", progress_plot(found.progress, found.metric), f"{found.metric.title} on validation pictures."
            )
        )
    if not plots:
        return None
    return join(Html('<div class="pair">'), *plots, Html("</div>"), paragraph(_rate(found), "note"))


def _rate(found: ReportInput) -> str:
    rates = [
        float(line["images_per_s"]) for line in found.training if isinstance(line.get("images_per_s"), int | float)
    ]
    last = found.training[-1] if found.training else {}
    seen = f"{number(last.get('images'), 0)} pictures in {number(last.get('step'), 0)} steps"
    return f"{seen}; median rate {number(median(rates), 1)} pictures per second." if rates else f"{seen}."


def provenance(found: ReportInput) -> Html | None:
    """Returns hashes, versions, device and settings: what it takes to make these figures again."""
    parts = [*_hashes(found), *_machine(found), *_command(found)]
    return join(*parts) if parts else None


def _hashes(found: ReportInput) -> list[Html]:
    rows: list[list[Cell]] = [
        [Path(str(c.get("file", MISSING))).name, _mono(c.get("sha256"))] for c in found.conversions
    ]
    known = {c.get("sha256") for c in found.conversions}
    rows += [
        [f"evaluated: {item['name']}", _mono(item["file_sha256"])]
        for item in found.evaluations
        if item.get("file_sha256") and item["file_sha256"] not in known
    ]
    known |= {item.get("file_sha256") for item in found.evaluations}
    measured = {record.sha256: found.labels[record.sha256] for record in found.all_records}
    rows += [[f"measured: {name}", _mono(sha256)] for sha256, name in measured.items() if sha256 not in known]
    return [subtitle("Files"), table(["file", "SHA-256"], rows, left=(0, 1))] if rows else []


def _machine(found: ReportInput) -> list[Html]:
    if not found.all_records:
        return []
    record = found.all_records[0]
    rows: list[list[Cell]] = [
        *_pairs("device", record.device),
        *_pairs("runtime", record.runtime),
        *_pairs("environment", record.environment),
        ["started", record.started_utc],
    ]
    unknown: list[list[Cell]] = [[key, _wide(reason)] for key, reason in record.unknown.items()]
    parts = [
        subtitle(f"Machine ({found.labels[record.sha256]}, {record.profile})"),
        table(["", "value"], rows, left=(0, 1)),
    ]
    if unknown:
        inside = table(["key", "why it is not known"], unknown, left=(0, 1))
        parts.append(details("What is not known, and why", inside))
    return parts


def _command(found: ReportInput) -> list[Html]:
    document = found.quickstart or {}
    parts = [subtitle("Command"), code(str(document["command"]))] if document.get("command") else []
    rest = {k: v for k, v in document.items() if k not in ("title", "command", "notes")}
    rows = _pairs("", rest)
    return [*parts, table(["", "value"], rows, left=(0, 1), label="settings")] if rows else parts


def _pairs(prefix: str, values: Mapping[str, Any]) -> list[list[Cell]]:
    """Flattens one level of nesting into rows."""
    rows: list[list[Cell]] = []
    for key, value in values.items():
        name = f"{prefix} {key}".strip().replace("_", " ")
        if isinstance(value, Mapping):
            rows += _pairs(name, value)
        elif isinstance(value, list | tuple):
            rows.append([name, _wide(", ".join(map(str, value)))])
        else:
            rows.append([name, _wide(MISSING if value is None else str(value))])
    return rows


def _wide(value: str) -> Html:
    return Html(f'<span class="wide">{esc(value)}</span>')


def _mono(value: Any) -> Html:
    return Html(f'<span class="mono">{esc(value)}</span>')
