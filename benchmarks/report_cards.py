"""The cards at the top of the report: one per variant with accuracy, size, latency and delegate verdict."""

from __future__ import annotations

from typing import Any

from edge_seg.benchmarks.report import Document, ReportInput
from edge_seg.benchmarks.report_html import Html, badge, esc, interval, join, milliseconds, number, size
from edge_seg.benchmarks.report_metric import Metric
from edge_seg.benchmarks.report_plots import color_of, variant_key
from edge_seg.benchmarks.result import Record


def variants(found: ReportInput) -> list[str]:
    """Returns the names of all variants that were evaluated, converted or measured, PyTorch first."""
    names = {str(item["name"]) for item in found.evaluations}
    names |= {str(item["scheme"]) for item in found.conversions if "scheme" in item}
    names |= {record.scheme for record in found.records}
    return sorted(names, key=variant_key)


def evaluation_of(found: ReportInput, name: str) -> Document | None:
    """Returns the evaluation of a variant, or None."""
    return next((item for item in found.evaluations if item["name"] == name), None)


def conversion_of(found: ReportInput, name: str) -> Document | None:
    """Returns the conversion of a scheme, or None."""
    return next((item for item in found.conversions if item.get("scheme") == name), None)


def records_of(found: ReportInput, name: str) -> list[Record]:
    """Returns the records of a variant: of the file its evaluation or conversion names, else of its scheme."""
    hashes = {(evaluation_of(found, name) or {}).get("file_sha256"), (conversion_of(found, name) or {}).get("sha256")}
    same = [record for record in found.records if record.sha256 in hashes]
    return same or [record for record in found.records if record.scheme == name and not hashes - {None}]


def state_badges(record: Record) -> list[Html]:
    """Returns what must be said beside a latency: not measured, not valid, throttled."""
    found = []
    if record.kind != "measured":
        found.append(badge(record.kind, "warn", title="not a measurement on the device"))
    if not record.valid:
        found.append(badge("invalid", "bad", title="; ".join(record.warnings) or "the protocol was not met"))
    if record.drift.get("throttled"):
        found.append(badge("throttled", "bad"))
    return found


def verdict_badge(check: Document) -> Html:
    """Returns the verdict of the offline delegate rules."""
    if check.get("fully_delegable") is True:
        return badge("GPU: all ops", "good", title="by rules, not by a run on a device")
    refused = check.get("refused")
    count = len(refused) if isinstance(refused, list) else None
    return badge(f"GPU: {count} refused" if count else "GPU: not fully", "bad", title="by rules, not by a run")


def cards(found: ReportInput) -> Html | None:
    """Returns one card per variant."""
    names = variants(found)
    if not names:
        return None
    base = evaluation_of(found, "torch")
    profile = found.records[0].profile if found.records else None
    drawn = "".join(_card(found, name, base, profile).text for name in names)
    where = ""
    if profile:
        device = found.records[0].device
        where = (
            f'<p class="note">Latency: median of one run of the network with its 95 % interval, profile '
            f"{esc(profile)}, on {esc(device.get('cpu') or device.get('name'))}.</p>"
        )
    return Html(f'<div class="cards">{drawn}</div>{where}')


def _card(found: ReportInput, name: str, base: Document | None, profile: str | None) -> Html:
    item, converted = evaluation_of(found, name), conversion_of(found, name)
    records = [record for record in records_of(found, name) if record.profile == profile]
    metric = found.metric
    rows = [*_accuracy_rows(item, base, metric), *_file_rows(converted, records)]
    listed = "".join(f"<dt>{esc(key)}</dt><dd>{esc(value)}</dd>" for key, value in rows)
    foot = [*(state_badges(records[0]) if records else [])]
    foot += [
        verdict_badge(check) for variant, check in found.checks if variant == name and check.get("delegate") == "gpu"
    ]
    value = number((item or {}).get(metric.key), 1)
    return Html(
        f'<article class="card" style="--tint:{color_of(name)}"><h3>{esc(name)}</h3>'
        f'<div class="big">{value} <small>{metric.title} %</small></div><dl>{listed}</dl>'
        f'<div class="foot">{join(*foot).text}</div></article>'
    )


def _accuracy_rows(item: Document | None, base: Document | None, metric: Metric) -> list[tuple[str, str]]:
    if item is None:
        return [("accuracy", "not evaluated")]
    ends = _ends(item.get(metric.interval_key))
    rows = [(f"{metric.title}, 95 %", interval(*ends, formatted=lambda v: number(v, 1)))]
    if base is not None and base is not item:
        rows.append(("against torch", number(item[metric.key] - base[metric.key], 1, signed=True)))
    return rows


def _file_rows(converted: Document | None, records: list[Record]) -> list[tuple[str, str]]:
    rows = []
    if converted is not None:
        rows.append(("size", size(converted.get("size_bytes"))))
    if records:
        rows.append(("latency", milliseconds(records[0].median_ms, unit=True)))
        rows.append(("latency, 95 %", interval(*(records[0].ci95_median_ms or (None, None)))))
    return rows


def _ends(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, list | tuple) and len(value) == 2 else (None, None)
