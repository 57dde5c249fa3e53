"""The cards at the top of the report: one per variant with accuracy, size, latency and delegate verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_seg.benchmarks.report import Document, ReportInput
from edge_seg.benchmarks.report_html import Html, badge, breakable, esc, interval, join, milliseconds, number, size
from edge_seg.benchmarks.report_metric import Metric, metric_of
from edge_seg.benchmarks.report_plots import color_of, variant_key
from edge_seg.benchmarks.result import Record


def variants(found: ReportInput) -> list[str]:
    """Returns the names of all variants that were evaluated, converted or measured, PyTorch first."""
    names = {str(item["name"]) for item in found.evaluations}
    names |= {str(item["scheme"]) for item in found.conversions if "scheme" in item}
    hashes = {item.get("file_sha256") for item in found.evaluations} | {c.get("sha256") for c in found.conversions}
    names |= {found.labels[record.sha256] for record in found.all_records if record.sha256 not in hashes}
    return sorted(names, key=variant_key)


def evaluation_of(found: ReportInput, name: str) -> Document | None:
    """Returns the evaluation of a variant, or None."""
    return next((item for item in found.evaluations if item["name"] == name), None)


def evaluation_by_hash(found: ReportInput, sha256: str) -> Document | None:
    """Returns the evaluation of a file by its hash, or None."""
    return next((item for item in found.evaluations if item.get("file_sha256") == sha256), None)


def conversion_of(found: ReportInput, name: str) -> Document | None:
    """Returns the conversion of a scheme, or None."""
    return next((item for item in found.conversions if item.get("scheme") == name), None)


def records_of(found: ReportInput, name: str) -> list[Record]:
    """Returns the records of a variant: of the file its evaluation or conversion names, else of its scheme."""
    hashes = {(evaluation_of(found, name) or {}).get("file_sha256"), (conversion_of(found, name) or {}).get("sha256")}
    same = [record for record in found.records if record.sha256 in hashes]
    return same or [r for r in found.records if found.labels[r.sha256] == name and not hashes - {None}]


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
    shown = next((r for r in found.records if r.kind == "measured"), next(iter(found.records), None))
    drawn = "".join(_card(found, name, base, shown.profile if shown else None).text for name in names)
    where = ""
    if shown:
        where = (
            f'<p class="note">Latency: median of one run of the network with its 95 % interval, profile '
            f"{esc(shown.profile)}, on {esc(shown.device.get('cpu') or shown.device.get('name'))}.</p>"
        )
    return join(_counts(found), Html(f'<div class="cards">{drawn}</div>{where}'))


def _counts(found: ReportInput) -> Html:
    """Returns how many records there are, and how many of them may be quoted."""
    records = found.all_records
    if not records:
        return Html("")
    fit = [r for r in records if r.kind == "measured" and r.valid and not r.drift.get("throttled")]
    files, profiles = len({r.sha256 for r in records}), len({r.profile for r in records})
    text = f"{len(records)} records: {files} files, {profiles} profiles."
    marks = [badge(f"{len(fit)} fit to quote", "good" if fit else "bad")]
    marks += [badge(f"{n} {kind}", "warn") for kind in ("emulated", "estimated") if (n := _kind_n(records, kind))]
    invalid = sum(r.kind == "measured" and not r.valid for r in records)
    throttled = sum(bool(r.drift.get("throttled")) for r in records)
    marks += [badge(f"{n} {word}", "bad") for n, word in ((invalid, "invalid"), (throttled, "throttled")) if n]
    return Html(f'<p class="counts">{esc(text)} {" ".join(mark.text for mark in marks)}</p>')


def _kind_n(records: Sequence[Record], kind: str) -> int:
    return sum(record.kind == kind for record in records)


def _card(found: ReportInput, name: str, base: Document | None, profile: str | None) -> Html:
    item, converted = evaluation_of(found, name), conversion_of(found, name)
    records = [record for record in records_of(found, name) if record.profile == profile]
    metric = metric_of([item]) if item else found.metric
    rows = [*_accuracy_rows(item, base, metric), *_file_rows(converted, records)]
    listed = "".join(f"<dt>{esc(key)}</dt><dd>{esc(value)}</dd>" for key, value in rows)
    foot = [*(state_badges(records[0]) if records else [])]
    foot += [
        verdict_badge(check) for variant, check in found.checks if variant == name and check.get("delegate") == "gpu"
    ]
    big = f'<div class="big">{number(item.get(metric.key), 1)} <small>{metric.title} %</small></div>' if item else ""
    return Html(
        f'<article class="card" style="--tint:{color_of(name)}"><h3>{breakable(name).text}</h3>'
        f"{big}<dl>{listed}</dl>"
        f'<div class="foot">{" ".join(mark.text for mark in foot)}</div></article>'
    )


def _accuracy_rows(item: Document | None, base: Document | None, metric: Metric) -> list[tuple[str, str]]:
    if item is None:
        return [("accuracy", "not evaluated")]
    ends = _ends(item.get(metric.interval_key))
    rows = [(f"{metric.title}, 95 %", interval(*ends, formatted=lambda v: number(v, 1)))]
    if base is not None and base is not item and metric.value(base) is not None:
        rows.append(("against torch", number(item[metric.key] - base[metric.key], 1, signed=True)))
    return rows


def _file_rows(converted: Document | None, records: list[Record]) -> list[tuple[str, str]]:
    known = (converted or {}).get("size_bytes", records[0].size_bytes if records else None)
    rows = [("size", size(known))] if known is not None else []
    if records:
        name = "latency" if records[0].kind == "measured" else f"{records[0].kind} time"
        rows.append((name, milliseconds(records[0].median_ms, unit=True)))
        rows.append((f"{name}, 95 %", interval(*(records[0].ci95_median_ms or (None, None)))))
    return rows


def _ends(value: Any) -> tuple[Any, Any]:
    return (value[0], value[1]) if isinstance(value, list | tuple) and len(value) == 2 else (None, None)
