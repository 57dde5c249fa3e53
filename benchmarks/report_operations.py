"""Section of the report on operators: where a network's time goes, each operator run alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_seg.artifact import read_json
from edge_seg.benchmarks.report import Document, ReportInput
from edge_seg.benchmarks.report_html import (
    Cell,
    Html,
    badge,
    details,
    figure,
    is_number,
    join,
    milliseconds,
    number,
    paragraph,
    subtitle,
    table,
)
from edge_seg.benchmarks.report_plots import SCHEMES, Spec, label_of
from edge_seg.errors import InputError

_MOST_KINDS = 7  # one colour each; the rest is one bar
_MOST_OPERATORS = 15
_BUSY_PCT = 10.0
_COLORS = ("#0f82c4", "#e69f00", "#0a9c74", "#d4572a", "#8a6fd1", "#35b5e5", "#c76b9f")
_REST_COLOR = "#7f8c9b"


def read_operations(path: Path) -> Document:
    """Reads a document of `edge_seg.studies.operation_speed`.

    Raises:
        InputError: Missing, not JSON, or another document.
    """
    document = read_json(path, "operation times")
    profiles = document.get("profiles") if isinstance(document, dict) else None
    if not isinstance(profiles, list) or not all(map(_is_profile, profiles)):
        raise InputError(
            f"{path} holds no operation times.",
            expected='"profiles": [{"file", "whole_ms", "sum_ms", "by_kind", "operations"}]',
            todo="python -m edge_seg.studies.operation_speed FILE... --json OUT writes it",
        )
    return dict(document)


def _is_profile(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("by_kind"), dict):
        return False
    kinds = all(isinstance(row, dict) and is_number(row.get("ms")) for row in item["by_kind"].values())
    rows = item.get("operations")
    one = isinstance(rows, list) and all(isinstance(r, dict) and is_number(r.get("median_ms")) for r in rows)
    return kinds and one and isinstance(item.get("file"), str) and all(map(is_number, map(item.get, _SUMS)))


_SUMS = ("whole_ms", "sum_ms")


def operations(found: ReportInput) -> Html | None:
    """Returns the operators of each profiled file: sums by kind as bars and a table, then the most expensive."""
    if not found.operations:
        return None
    return join(*(_document(i, document) for i, document in enumerate(found.operations)))


def _document(position: int, document: Document) -> Html:
    profiles = document["profiles"]
    kinds, titles = _kinds(profiles), [_title(profile["file"]) for profile in profiles]
    caption = "Milliseconds of each operator run alone, summed by kind. The grey mark is the whole network at once."
    return join(
        _about(document),
        figure(f"operations{position}", operations_plot(profiles, kinds), caption),
        table(["kind", *titles], _kind_rows(profiles), tall=True, label="operators by kind"),
        details(
            f"The {_MOST_OPERATORS} operators of each file that cost most", join(*(_expensive(p) for p in profiles))
        ),
    )


def _about(document: Document) -> Html:
    state, device = document.get("environment"), document.get("device")
    foreign = state.get("foreign_cpu_pct") if isinstance(state, Mapping) else None
    marks = [badge(str(document.get("kind") or "kind not told"), "plain")]
    if is_number(foreign) and foreign > _BUSY_PCT:
        marks.append(badge("busy machine", "warn", title=f"other processes used {foreign:.0f} % of the CPUs"))
    chip = device.get("cpu") if isinstance(device, Mapping) else None
    threads = sorted({str(p.get("threads")) for p in document["profiles"]})
    text = f"On {chip or 'an unnamed processor'}, threads: {', '.join(threads)}."
    return join(Html("<p>"), *marks, Html("</p>"), paragraph(text, "note"))


def _kinds(profiles: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the kinds that cost most over all files."""
    total: dict[str, float] = {}
    for profile in profiles:
        for kind, row in profile["by_kind"].items():
            total[kind] = total.get(kind, 0.0) + float(row["ms"])
    return sorted(total, key=lambda kind: -total[kind])


def operations_plot(profiles: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> Spec:
    """Plots the sums by kind as one stacked bar per file, the whole network's time as a mark.

    Args:
        profiles: Each with `file whole_ms by_kind`.
        kinds: Most expensive first; those beyond the seventh are one part.
    """
    names = [label_of(_title(str(profile["file"]))) for profile in profiles]
    shown, rest = kinds[:_MOST_KINDS], kinds[_MOST_KINDS:]
    parts = [(kind, [kind], _COLORS[i]) for i, kind in enumerate(shown)]
    parts += [("other kinds", list(rest), _REST_COLOR)] if rest else []
    data: list[dict[str, Any]] = [
        {
            "type": "bar",
            "orientation": "h",
            "name": label_of(title, breaks=False),
            "y": names,
            "x": [round(sum(float(p["by_kind"].get(k, {"ms": 0.0})["ms"]) for k in group), 4) for p in profiles],
            "marker": {"color": color},
            "hovertemplate": f"{label_of(title, breaks=False)}: %{{x:.3f}} ms<extra></extra>",
        }
        for title, group, color in parts
    ]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "whole network",
            "y": names,
            "x": [profile["whole_ms"] for profile in profiles],
            "marker": {"symbol": "line-ns-open", "size": 24, "color": _REST_COLOR, "line": {"width": 3}},
            "hovertemplate": "whole network: %{x:.3f} ms<extra></extra>",
        }
    )
    layout = {
        "barmode": "stack",
        "bargap": 0.35,
        "xaxis": {"title": {"text": "ms"}},
        "yaxis": {"autorange": "reversed", "type": "category"},
    }
    return {"data": data, "layout": layout, "height": 190 + 44 * len(names)}


def _kind_rows(profiles: Sequence[Mapping[str, Any]]) -> list[list[Cell]]:
    rows: list[list[Cell]] = []
    for kind in _kinds(profiles):
        cells = [p["by_kind"].get(kind) for p in profiles]
        rows.append(
            [kind, *("–" if c is None else f"{milliseconds(c['ms'])} ({number(c.get('operators'), 0)})" for c in cells)]
        )
    rows.append(["sum of operators alone", *(milliseconds(p["sum_ms"]) for p in profiles)])
    rows.append(["whole network at once", *(milliseconds(p["whole_ms"]) for p in profiles)])
    return rows


def _expensive(profile: Mapping[str, Any]) -> Html:
    most = sorted(profile["operations"], key=lambda row: -float(row["median_ms"]))[:_MOST_OPERATORS]
    rows: list[list[Cell]] = [
        [
            str(row.get("kind", "–")),
            str(row.get("module") or "–"),
            "×".join(map(str, row.get("output_shape") or [])) or "–",
            milliseconds(row["median_ms"]),
        ]
        for row in most
    ]
    head = ["kind", "module", "result", "ms"]
    return join(subtitle(_title(str(profile["file"]))), table(head, rows, left=(0, 1, 2), label=str(profile["file"])))


def _title(file: str) -> str:
    """Returns a file's name as model and scheme where it ends in one, which fits an axis on two lines."""
    stem = file.removesuffix(".tflite")
    ends = [scheme for scheme in sorted(SCHEMES, key=len, reverse=True) if stem.endswith(f"_{scheme}")]
    return f"{stem.removesuffix(f'_{ends[0]}')} {ends[0]}" if ends else stem
