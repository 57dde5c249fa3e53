"""Sections of the report on devices: what was measured on, how each fact is known, and what the GPU really did."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edge_seg.benchmarks.machine import chip_name
from edge_seg.benchmarks.profile import Profile, load_profile, profile_names
from edge_seg.benchmarks.report import Document, ReportInput
from edge_seg.benchmarks.report_accuracy import dot
from edge_seg.benchmarks.report_cards import state_badges
from edge_seg.benchmarks.report_delegates import verdicts
from edge_seg.benchmarks.report_html import (
    MISSING,
    Cell,
    Html,
    Tone,
    badge,
    details,
    esc,
    join,
    number,
    paragraph,
    subtitle,
    table,
)
from edge_seg.benchmarks.result import Record

GPU = "gpu"
_TONES: dict[str, Tone] = {"vendor": "good", "measured": "good", "derived": "plain", "estimate": "warn"}


def devices(found: ReportInput) -> Html | None:
    """Returns every device of the records: state and settings, then each fact with its source and confidence."""
    if not found.all_records:
        return None
    groups = _groups(found)
    head = ["profile", "", "device", "processor", "system", "delegate", "threads", "precision", "load", "temperature"]
    rows = [_device_row(records) for records in groups.values()]
    facts = [_facts(name, records[0]) for (name, _, _), records in groups.items()]
    return join(table(head, rows, left=(0, 1, 2, 3, 4, 5, 7), label="devices"), *facts)


def _groups(found: ReportInput) -> dict[tuple[str, str, str], list[Record]]:
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in found.all_records:
        device = json.dumps(dict(record.device), sort_keys=True, default=str)
        groups.setdefault((record.profile, device, record.delegate_requested), []).append(record)
    return groups


def _device_row(records: list[Record]) -> list[Cell]:
    record = records[0]
    device, state = record.device, record.environment
    name = device.get("gpu") or device.get("name")
    kinds = [badge(k, "plain" if k == "measured" else "warn") for k in sorted({r.kind for r in records})]
    return [
        record.profile,
        join(*kinds),
        _text(name),
        _text(chip_name(device)),
        _text(device.get("os")),
        record.delegate_requested,
        f"{record.threads}" + (f", CPUs {record.cpu_mask}" if record.cpu_mask else ""),
        record.precision,
        _span(records, "load", "load_after", ""),
        _span(records, "temperature_c", "temperature_after_c", "°C") if "temperature_c" in state else MISSING,
    ]


def _span(records: list[Record], before: str, after: str, unit: str) -> str:
    """Returns the least and the largest of what was read before and after all runs."""
    read = [r.environment.get(key) for r in records for key in (before, after)]
    known = [float(v) for v in read if isinstance(v, int | float) and not isinstance(v, bool)]
    if not known:
        return MISSING
    ends = [number(value, 1) for value in (min(known), max(known))]
    return f"{'–'.join(dict.fromkeys(ends))}{unit}"


def _text(value: Any) -> str:
    return MISSING if value in (None, "") else str(value)


def _facts(name: str, record: Record) -> Html:
    """Returns what is known about a device, and how."""
    rows: list[list[Cell]] = [
        [key.replace("_", " "), _wide(value), badge("measured", "good"), _wide(f"read there by runner {record.runner}")]
        for key, value in record.device.items()
        if value is not None and not isinstance(value, Mapping | list)
    ]
    profile = load_profile(name) if name in profile_names() else None
    rows += _profile_rows(profile) if profile else []
    unknown = [key for key, value in record.device.items() if value is None]
    notes = [f"Not known: {', '.join(unknown)}."] if unknown else []
    notes += [] if profile else ["The profile is not one that comes with the program, so its sources are not here."]
    title = f"{profile.title} ({name})" if profile else name
    inside = join(
        table(["fact", "value", "confidence", "source"], rows, left=(0, 1, 2, 3), label=f"facts of {name}"),
        *(paragraph(note, "note") for note in notes),
    )
    return details(f"{title}: {len(rows)} facts with their sources", inside)


def _profile_rows(profile: Profile) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for cluster in profile.clusters:
        value = f"{cluster.count} × {cluster.core}, {number(cluster.clock_mhz, 0)} MHz"
        rows.append(["CPU cores", value, _confidence(cluster.confidence), _wide(cluster.source)])
        if cluster.cpus:
            numbers = ", ".join(map(str, cluster.cpus))
            known = _confidence(cluster.cpus_confidence)
            rows.append([f"numbers of {cluster.core}", numbers, known, _wide(cluster.cpus_source)])
    for fact in profile.hardware:
        rows.append([fact.name.replace("_", " "), _wide(fact.value), _confidence(fact.confidence), _wide(fact.source)])
    return rows


def _confidence(word: str) -> Html:
    return badge(word, _TONES.get(word, "warn"))


def _wide(value: Any) -> Html:
    return Html(f'<span class="wide">{esc(value)}</span>')


def gpu(found: ReportInput) -> Html | None:
    """Returns what was asked of a GPU and what ran there, and the offline verdict of the rules beside it."""
    asked = [record for record in found.all_records if record.delegate_requested == GPU]
    rules = {name: check for name, check in found.checks if check.get("delegate") == GPU}
    if not asked and not (rules and found.of_results):
        return None  # the page of a run has a section of its own for rules
    parts = [_runs(asked, rules, found)] if asked else [paragraph("No record asked for a GPU.", "absent")]
    by_rules = verdicts(found) if found.of_results else None
    text = "No offline verdict was given: edge-seg report --check FILE.tflite adds it."
    if by_rules:
        return join(*parts, subtitle("By the rules, offline"), by_rules)
    return join(*parts, *([paragraph(text, "note")] if found.of_results else []))


def _runs(asked: list[Record], rules: Mapping[str, Document], found: ReportInput) -> Html:
    head = ["file", "verdict", "profile", "asked", "ran", "nodes", "partitions", "device", "precision", "rules", ""]
    rows: list[list[Cell]] = []
    for record in asked:
        name = found.labels[record.sha256]
        rows.append(
            [
                dot(name),
                gpu_verdict(record),
                record.profile,
                record.delegate_requested,
                _told(record, "delegate_actual"),
                f"{_told(record, 'nodes_delegated')} of {_told(record, 'nodes_total')}",
                number(record.protocol.get("partitions"), 0),
                _text(record.device.get("gpu") or record.device.get("name")),
                record.precision,
                _by_rules(rules.get(name)),
                join(*state_badges(record)),
            ]
        )
    reasons = [paragraph(text, "note") for text in _reasons(asked, found)]
    return join(table(head, rows, left=(0, 1, 2, 3, 4, 7, 8, 9, 10), label="what ran on the GPU"), *reasons)


def _told(record: Record, key: str) -> str:
    value = getattr(record, key)
    return "not told" if value is None else str(value)


def _by_rules(check: Document | None) -> Cell:
    if check is None:
        return MISSING
    return "all operators" if check.get("fully_delegable") is True else "not all operators"


def gpu_verdict(record: Record) -> Html:
    """Returns one label for what a record says about the GPU; what the runtime did not tell is not guessed."""
    taken, total = record.nodes_delegated, record.nodes_total
    if record.delegate_actual is None:
        return badge("not told", "warn", title=str(record.unknown.get("delegate_actual", "")))
    if record.delegate_actual != GPU:
        return badge(f"not on the GPU: {record.delegate_actual} ran", "bad")
    if taken is None or total is None:
        return badge("on the GPU, share not told", "warn")
    if taken < total:
        return badge(f"partly: {taken} of {total} nodes", "bad")
    if record.kind != "measured":
        return badge("whole, on a driver in software", "warn", title="right numbers; the times are no GPU's")
    return badge("whole", "good")


def _reasons(asked: list[Record], found: ReportInput) -> list[str]:
    """Returns why something is not known, and what the runtime refused."""
    lines = []
    for record in asked:
        name = f"{found.labels[record.sha256]} on {record.profile}"
        keys = [k for k in ("delegate_actual", "nodes_delegated", "nodes_total") if getattr(record, k) is None]
        told = [str(record.unknown[k]) for k in keys if record.unknown.get(k)]
        lines += [f"{name}: {'; '.join(dict.fromkeys(told))}."] if told else []
        refused = record.protocol.get("refused")
        if isinstance(refused, list) and refused:
            lines.append(f"{name}, refused by the runtime: {'; '.join(map(str, refused[:8]))}.")
    return lines
