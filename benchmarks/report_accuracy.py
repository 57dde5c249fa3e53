"""Sections of the report on accuracy: PQ or AP, classes, controls, pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edge_seg.benchmarks.report import Document, Picture, ReportInput
from edge_seg.benchmarks.report_html import (
    Cell,
    Html,
    badge,
    breakable,
    details,
    esc,
    figure,
    interval,
    join,
    number,
    paragraph,
    table,
)
from edge_seg.benchmarks.report_metric import Metric
from edge_seg.benchmarks.report_plots import accuracy_plot, color_of, variant_key

_COLLAPSE_SHARE = 0.5  # a damage that costs more than half is a collapse
_RESPONSE_SHARE = 0.25  # one that costs less than a quarter is suspicious


def dot(name: str) -> Html:
    """Returns a variant's name with its colour."""
    return Html(f'<span class="dot" style="background:{color_of(name)}"></span>{breakable(name).text}')


def accuracy(found: ReportInput) -> Html | None:
    """Returns the metric of each variant, as a plot and a table."""
    if not found.evaluations:
        return None
    metric = found.metric
    forced = any("pq_teacher_forced" in item for item in found.evaluations)
    head = ["variant", metric.title, "95 % interval", *(title for _, title in metric.figures)]
    head += ["PQ, true centers"] if forced else []
    rows = [_accuracy_row(item, metric, forced) for item in found.evaluations]
    caption = f"{metric.what} of PyTorch and of each converted file, with 95 % intervals."
    return join(
        figure("accuracy", accuracy_plot(found.evaluations, metric), caption),
        table([*head, "pictures", "data"], rows, left=(0, len(head) + 1), label="accuracy"),
        _forced_note(forced),
    )


def _accuracy_row(item: Document, metric: Metric, forced: bool) -> list[Cell]:
    ends = item.get(metric.interval_key)
    low, high = ends if isinstance(ends, list | tuple) and len(ends) == 2 else (None, None)
    figures = [number(item.get(key), 2) for key, _ in metric.figures]
    figures += [number(item.get("pq_teacher_forced"), 2)] if forced else []
    return [
        dot(str(item["name"])),
        number(item.get(metric.key), 2),
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
    """Returns the metric per class and variant, and the counts of the first variant."""
    metric = found.metric
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
        rows.append([name, kind, *(_heat(rows.get(name, {}).get(metric.key)) for rows in by_variant.values())])
    counts = [_counts_row(name, first.get(name, {}), metric) for name in names]
    columns = [title for _, title, _ in metric.counts]
    return join(
        table(
            ["class", "kind", *by_variant], rows, left=(0, 1), tall=len(names) > 14, label=f"{metric.title} per class"
        ),
        details(
            f"Quality and counts per class of {scored[0]['name']}",
            table(["class", metric.title, *columns], counts, tall=len(names) > 14),
        ),
    )


def _heat(value: Any) -> Html:
    text = number(value, 1)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return Html(f'<span class="heat">{esc(text)}</span>')
    alpha = 0.55 * min(1.0, max(0.0, float(value) / 100.0))
    return Html(f'<span class="heat" style="background:rgba(var(--heat),{alpha:.2f})">{esc(text)}</span>')


def _counts_row(name: str, row: Mapping[str, Any], metric: Metric) -> list[Cell]:
    listed = [number(row.get(key), decimals) for key, _, decimals in metric.counts]
    return [name, number(row.get(metric.key), 1), *listed]


def controls(found: ReportInput) -> Html | None:
    """Returns what the metric says about predictions damaged on purpose."""
    if not found.controls:
        return None
    metric = found.metric
    reference_key = f"reference_{metric.key}"
    reference = metric.value(found.controls.get(reference_key))
    damaged = {key: value for key, value in found.controls.items() if key != reference_key}
    rows: list[list[Cell]] = [["prediction as it is", number(reference, 2), "", "", "", ""]]
    rows += [_control_row(key, value, reference, metric) for key, value in damaged.items()]
    header = ["prediction", metric.title, "change", f"classes it hits, {metric.title}", "lost there", ""]
    losses = [_lost_share(row, reference, metric) for row in damaged.values()]
    return join(table(header, rows, left=(0, 5)), _control_sentence(losses, metric.title))


def _classes_hit(row: Any, metric: Metric) -> tuple[Any, Any] | None:
    """The metric of the classes that a damage hits, before and after; None where it hits all."""
    key = f"{metric.key}_classes"
    return (row.get(f"{key}_before"), row[key]) if isinstance(row, Mapping) and key in row else None


def _lost_share(row: Any, reference: float | None, metric: Metric) -> float | None:
    """Share of the metric lost over the classes that a damage hits; None where a figure is missing."""
    hit = _classes_hit(row, metric)
    before, after = (metric.value(v) for v in hit) if hit else (reference, metric.value(row))
    return None if after is None or not before else 1 - after / before


def _control_row(key: str, row: Any, reference: float | None, metric: Metric) -> list[Cell]:
    names = {"shift_8px": "every mask moved by 8 px", "swap_a_b": "two classes swapped"}
    value = metric.value(row)
    change = None if value is None or reference is None else value - reference
    ends = _classes_hit(row, metric)
    hit = f"{number(ends[0], 1)} to {number(ends[1], 1)}" if ends else "all"
    lost = _lost_share(row, reference, metric)
    share = "" if lost is None else f"{lost:.0%}"
    change_text = number(change, 2, signed=True)
    return [names.get(key, key), number(value, 2), change_text, hit, share, _control_mark(lost)]


def _control_mark(lost: float | None) -> Html:
    if lost is None:
        return Html("")
    if lost > _COLLAPSE_SHARE:
        return badge("collapses", "good")
    return badge("falls", "good") if lost > _RESPONSE_SHARE else badge("hardly moves", "bad")


def _control_sentence(losses: list[float | None], title: str) -> Html:
    known = [lost for lost in losses if lost is not None]
    if not known or len(known) < len(losses):
        return paragraph("A value is missing, so nothing can be said about the metric.", "note")
    if min(known) > _COLLAPSE_SHARE:
        text = f"Every damage costs more than half of {title} where it hits: {title} depends on places and on names."
    elif min(known) > _RESPONSE_SHARE:
        share = "more than a quarter"
        text = f"Every damage costs {share} of {title} where it hits: {title} depends on places and on names."
    else:
        advice = "Do not trust the accuracy above before this is understood."
        text = f"{title} hardly falls under at least one damage. {advice}"
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
