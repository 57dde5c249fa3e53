"""Sections of the report on the files themselves: size, operators, delegate verdict, parity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_seg.benchmarks.report import Document, ReportInput
from edge_seg.benchmarks.report_accuracy import dot
from edge_seg.benchmarks.report_html import (
    MISSING,
    Cell,
    Html,
    badge,
    bar,
    esc,
    join,
    number,
    paragraph,
    size,
    subtitle,
    table,
)
from edge_seg.benchmarks.report_plots import color_of


def files(found: ReportInput) -> Html | None:
    """Returns the size of each converted file and its operators."""
    if not found.conversions:
        return None
    names = [str(item.get("scheme", item.get("file", MISSING))) for item in found.conversions]
    largest = max((_count(item.get("size_bytes")) for item in found.conversions), default=0) or 1
    sizes: list[list[Cell]] = [
        [
            dot(name),
            size(item.get("size_bytes")),
            bar(_count(item.get("size_bytes")) / largest, color_of(name)),
            number(sum(_ops(item).values()), 0),
            number(item.get("transposes"), 0),
            number(item.get("seconds"), 1, unit="s"),
        ]
        for name, item in zip(names, found.conversions, strict=True)
    ]
    kinds = sorted({op for item in found.conversions for op in _ops(item)})
    operators: list[list[Cell]] = [[op, *(_ops(item).get(op, "") for item in found.conversions)] for op in kinds]
    return join(
        table(["file", "size", "", "operators", "transposes", "converted in"], sizes, left=(0, 2), label="sizes"),
        subtitle("Operators"),
        table(["operator", *names], operators, tall=len(kinds) > 16, label="operators of each file"),
    )


def _ops(item: Document) -> dict[str, int]:
    ops = item.get("ops")
    return {str(k): v for k, v in ops.items() if isinstance(v, int)} if isinstance(ops, Mapping) else {}


def _count(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def verdicts(found: ReportInput) -> Html | None:
    """Returns, per file, whether the delegate's rules accept every operator, and if not which and why."""
    if not found.checks:
        return None
    rows: list[list[Cell]] = []
    for name, check in found.checks:
        refused = check.get("refused")
        rows.append(
            [
                dot(name),
                str(check.get("delegate") or MISSING),
                _verdict(check),
                number(check.get("partitions"), 0),
                str(len(refused)) if isinstance(refused, list) else MISSING,
                str(check.get("rules_version") or MISSING),
            ]
        )
    head = ["file", "delegate", "verdict", "partitions", "refused", "rules version"]
    return join(table(head, rows, left=(0, 1, 2)), *(_refused(name, item) for name, item in found.checks))


def _verdict(check: Document) -> Html:
    version = check.get("rules_version") or "unknown"
    if check.get("fully_delegable") is True:
        return badge(f"fully delegable by rules version {version}", "good", title="rules, not a device run")
    if check.get("fully_delegable") is False:
        return badge("not fully delegable", "bad", title=f"by rules version {version}; rules, not a device run")
    return badge("no verdict", "warn")


def _refused(name: str, check: Document) -> Html:
    refused = check.get("refused")
    items = [item for item in refused if isinstance(item, Mapping)] if isinstance(refused, list) else []
    if not items:
        return Html("")
    rows: list[list[Cell]] = [
        [
            str(item.get("op", MISSING)),
            number(item.get("index"), 0),
            Html(f'<span class="mono">{esc(item.get("tensor") or MISSING)}</span>'),
            Html(f'<span class="mono">{esc(item.get("source") or MISSING)}</span>'),
            Html(f'<span class="wide">{esc(item.get("reason") or MISSING)}</span>'),
            Html(f'<span class="wide">{esc(item.get("rewrite") or "none known")}</span>'),
        ]
        for item in items
    ]
    head = ["operator", "index", "tensor", "source", "reason", "rewrite"]
    return join(
        subtitle(f"Refused by {check.get('delegate') or 'the delegate'} in {name}"),
        table(head, rows, left=(0, 2, 3, 4, 5), tall=len(rows) > 14, label=f"refused operators of {name}"),
    )


def parity(found: ReportInput) -> Html | None:
    """Returns how far the raw outputs of each file are from the network's."""
    if not found.verifications:
        return None
    rows = [row for name, item in found.verifications for row in _parity_rows(name, item)]
    head = ["file", "", "output", "largest difference", "SNR, dB", "cosine", "exact", "within 1 LSB", "largest, LSB"]
    notes = [_divergence(name, item) for name, item in found.verifications]
    return join(table(head, rows, left=(0, 1, 2)), *notes)


def _parity_rows(name: str, item: Document) -> list[list[Cell]]:
    outputs = item.get("outputs")
    listed = [o for o in outputs if isinstance(o, Mapping)] if isinstance(outputs, list) else []
    passed = _parity_badge(item)
    rows: list[list[Cell]] = []
    for position, output in enumerate(listed or [{}]):
        rows.append(
            [
                dot(name) if position == 0 else "",
                passed if position == 0 else "",
                str(output.get("name", MISSING)),
                _scientific(output.get("max_abs")),
                number(output.get("snr_db"), 1),
                number(output.get("cosine"), 6),
                number(output.get("exact"), 4),
                number(output.get("within_1_lsb"), 4),
                number(output.get("max_lsb"), 0),
            ]
        )
    return rows


def _parity_badge(item: Document) -> Html:
    if item.get("verdict") == "accumulated":
        return badge("far, but no layer is wrong", "warn")
    return badge("passed", "good") if item.get("passed") is True else badge("failed", "bad")


def _scientific(value: Any) -> str:
    return f"{value:.2e}" if isinstance(value, int | float) and not isinstance(value, bool) else MISSING


def _divergence(name: str, item: Document) -> Html:
    """Returns the first layer that parts from the original, and the integer mirror, where these are known."""
    lines = []
    first = item.get("first_divergence")
    if first:
        layer = first.get("name") or first.get("module") or first.get("tensor") if isinstance(first, Mapping) else first
        lines.append(f"{name}: the first layer that diverges is {layer}.")
    mirror = item.get("integer_mirror")
    if isinstance(mirror, Mapping):
        away = number(mirror.get("max_lsb"), 0, unit="LSB")
        equal = "equal bit for bit to" if mirror.get("max_lsb") == 0 else f"at most {away} away from"
        source = "trained network" if mirror.get("source") == "program" else "file"
        lines.append(f"{name}: {equal} the integer mirror of the {source}.")
    return join(*(paragraph(line) for line in lines))
