"""Sections of the report on accuracy: PQ, classes, controls, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_seg.benchmarks.report import Document, Picture, ReportInput
from edge_seg.benchmarks.report_html import (
    Cell,
    Html,
    badge,
    details,
    esc,
    figure,
    interval,
    join,
    number,
    paragraph,
    table,
)
from edge_seg.benchmarks.report_plots import accuracy_plot, color_of, variant_key

_COLLAPSE_SHARE = 0.5  # a damage that costs more than half is a collapse
_RESPONSE_SHARE = 0.25  # one that costs less than a quarter is suspicious


def dot(name: str) -> Html:
    """Returns a variant's name with its colour."""
    return Html(f'<span class="dot" style="background:{color_of(name)}"></span>{esc(name)}')


def accuracy(found: ReportInput) -> Html | None:
    """Returns PQ of each variant, as a plot and a table."""
    if not found.evaluations:
        return None
    forced = any("pq_teacher_forced" in item for item in found.evaluations)
    head = ["variant", "PQ", "95 % interval", "SQ", "RQ", "PQ things", "PQ stuff"]
    head += ["PQ, true centers"] if forced else []
    rows = [_accuracy_row(item, forced) for item in found.evaluations]
    caption = "Panoptic quality of PyTorch and of each converted file, with 95 % intervals."
    return join(
        figure("accuracy", accuracy_plot(found.evaluations), caption),
        table([*head, "pictures", "data"], rows, left=(0, len(head) + 1), label="accuracy"),
        _forced_note(forced),
    )


def _accuracy_row(item: Document, forced: bool) -> list[Cell]:
    ends = item.get("pq_ci95")
    low, high = ends if isinstance(ends, list | tuple) and len(ends) == 2 else (None, None)
    figures = [number(item.get(key), 2) for key in ("sq", "rq", "pq_th", "pq_st")]
    figures += [number(item.get("pq_teacher_forced"), 2)] if forced else []
    return [
        dot(str(item["name"])),
        number(item["pq"], 2),
        interval(low, high, formatted=lambda v: number(v, 1)),
        *figures,
        number(item.get("images"), 0),
        str(item.get("data") or "–"),
    ]


def _forced_note(forced: bool) -> Html:
    if not forced:
        return Html("")
    return paragraph(
        "“True centers” gives the decoder the true centers and classes, so it judges the masks alone: the gap to it is "
        "what better detection could gain.",
        "note",
    )


def classes(found: ReportInput) -> Html | None:
    """Returns PQ per class and variant, and the counts of the first variant."""
    scored = [item for item in found.evaluations if isinstance(item.get("per_class"), list) and item["per_class"]]
    if not scored:
        return None
    names = list(dict.fromkeys(str(row["name"]) for item in scored for row in item["per_class"]))
    by_variant = {str(item["name"]): {str(row["name"]): row for row in item["per_class"]} for item in scored}
    first = by_variant[str(scored[0]["name"])]
    rows: list[list[Cell]] = []
    for name in names:
        thing = next((rows[name].get("isthing") for rows in by_variant.values() if name in rows), None)
        kind = "–" if thing is None else "thing" if thing else "stuff"
        rows.append([name, kind, *(_heat(rows.get(name, {}).get("pq")) for rows in by_variant.values())])
    counts = [_counts_row(name, first.get(name, {})) for name in names]
    return join(
        table(["class", "kind", *by_variant], rows, left=(0, 1), tall=len(names) > 14, label="PQ per class"),
        details(
            f"Quality and counts per class of {scored[0]['name']}",
            table(["class", "PQ", "SQ", "RQ", "hits", "false alarms", "misses"], counts, tall=len(names) > 14),
        ),
    )


def _heat(value: Any) -> Html:
    text = number(value, 1)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return Html(f'<span class="heat">{esc(text)}</span>')
    alpha = 0.55 * min(1.0, max(0.0, float(value) / 100.0))
    return Html(f'<span class="heat" style="background:rgba(var(--heat),{alpha:.2f})">{esc(text)}</span>')


def _counts_row(name: str, row: Mapping[str, Any]) -> list[Cell]:
    quality = [number(row.get(key), 1) for key in ("pq", "sq", "rq")]
    return [name, *quality, *(number(row.get(key), 0) for key in ("tp", "fp", "fn"))]


def controls(found: ReportInput) -> Html | None:
    """Returns what the metric says about predictions damaged on purpose."""
    if not found.controls:
        return None
    reference = _pq(found.controls.get("reference_pq"))
    damaged = {key: value for key, value in found.controls.items() if key != "reference_pq"}
    rows: list[list[Cell]] = [["prediction as it is", number(reference, 2), "", "", "", ""]]
    rows += [_control_row(key, value, reference) for key, value in damaged.items()]
    header = ["prediction", "PQ", "change", "classes it hits, PQ", "lost there", ""]
    losses = [_lost_share(row, reference) for row in damaged.values()]
    return join(table(header, rows, left=(0, 5)), _control_sentence(losses))


def _lost_share(row: Any, reference: float | None) -> float | None:
    """Share of PQ lost over the classes that a damage hits; None where a figure is missing."""
    before, after = reference, _pq(row)
    if isinstance(row, Mapping) and "pq_classes" in row:
        before, after = _pq(row.get("pq_classes_before")), _pq(row["pq_classes"])
    return None if after is None or not before else 1 - after / before


def _pq(value: Any) -> float | None:
    inside = value.get("pq") if isinstance(value, Mapping) else value
    return float(inside) if isinstance(inside, int | float) and not isinstance(inside, bool) else None


def _control_row(key: str, row: Any, reference: float | None) -> list[Cell]:
    names = {"shift_8px": "every mask moved by 8 px", "swap_a_b": "two classes swapped"}
    value = _pq(row)
    change = None if value is None or reference is None else value - reference
    hit = "all"
    if isinstance(row, Mapping) and "pq_classes" in row:
        hit = f"{number(row['pq_classes_before'], 1)} to {number(row['pq_classes'], 1)}"
    lost = _lost_share(row, reference)
    share = "" if lost is None else f"{lost:.0%}"
    change_text = number(change, 2, signed=True)
    return [names.get(key, key), number(value, 2), change_text, hit, share, _control_mark(lost)]


def _control_mark(lost: float | None) -> Html:
    if lost is None:
        return Html("")
    if lost > _COLLAPSE_SHARE:
        return badge("collapses", "good")
    return badge("falls", "good") if lost > _RESPONSE_SHARE else badge("hardly moves", "bad")


def _control_sentence(losses: list[float | None]) -> Html:
    known = [lost for lost in losses if lost is not None]
    if not known or len(known) < len(losses):
        return paragraph("A value is missing, so nothing can be said about the metric.", "note")
    if min(known) > _COLLAPSE_SHARE:
        text = "Every damage costs more than half of PQ where it hits: PQ depends on places and on names."
    elif min(known) > _RESPONSE_SHARE:
        text = "Every damage costs more than a quarter of PQ where it hits: PQ depends on places and on names."
    else:
        text = "PQ hardly falls under at least one damage. Do not trust the accuracy above before this is understood."
    return paragraph(text)


def pictures(found: ReportInput) -> Html | None:
    """Returns the input, the truth and each variant's prediction, one row per picture."""
    if not found.pictures:
        return None
    rows = "".join(_row(row) for row in found.pictures)
    return Html(f'<div class="pictures">{rows}</div>')


def _row(row: Mapping[str, Picture]) -> str:
    first = [name for name in ("image", "truth") if name in row]
    names = first + sorted(set(row) - set(first), key=variant_key)
    return '<div class="row">' + "".join(_cell(name, row[name]) for name in names) + "</div>"


def _cell(name: str, picture: Picture) -> str:
    label = {"image": "input"}.get(name, name)
    if not picture.data_uri:
        inside = '<div class="gone">missing</div>'
    else:
        inside = f'<img loading="lazy" alt="{esc(label)} of {esc(picture.name)}" src="{esc(picture.data_uri)}">'
    return f"<figure>{inside}<figcaption>{esc(label)}</figcaption></figure>"
