"""Section of the report on accuracy against latency: who is beaten by whom, and the line of those who are not.

Only measurements share an axis of latency. An emulation or estimate is counted and named, and drawn nowhere here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from edge_seg.benchmarks.report import Document, ReportInput
from edge_seg.benchmarks.report_accuracy import dot
from edge_seg.benchmarks.report_cards import evaluation_of, records_of, state_badges, variants
from edge_seg.benchmarks.report_html import (
    Cell,
    Html,
    badge,
    figure,
    interval,
    join,
    milliseconds,
    number,
    paragraph,
    subtitle,
    table,
)
from edge_seg.benchmarks.report_metric import Metric, metric_of
from edge_seg.benchmarks.report_plots import pareto_plot
from edge_seg.benchmarks.result import Record


@dataclass(frozen=True)
class Point:
    """Accuracy and latency of one file on one profile.

    Attributes:
        name: Label of the file.
        record: The record, with a median.
        item: The evaluation of the same file.
        metric: Its metric.
    """

    name: str
    record: Record
    item: Document
    metric: Metric

    @property
    def score(self) -> float:
        """The metric, percent."""
        return float(self.metric.value(self.item) or 0.0)

    @property
    def sound(self) -> bool:
        """Whether it may be judged: measured, valid and not throttled."""
        return self.record.kind == "measured" and self.record.valid and not self.record.drift.get("throttled")

    def beats(self, other: Point) -> bool:
        """Whether it is nowhere worse and somewhere better, by the point estimates."""
        mine = (-float(self.record.median_ms or 0.0), self.score)
        theirs = (-float(other.record.median_ms or 0.0), other.score)
        return mine != theirs and mine[0] >= theirs[0] and mine[1] >= theirs[1]


def pareto_line(points: Sequence[Point]) -> list[Point]:
    """Returns the sound points of one profile that no other sound point beats, fastest first."""
    sound = [point for point in points if point.sound]
    best = [point for point in sound if not any(other.beats(point) for other in sound)]
    return sorted(best, key=lambda point: (float(point.record.median_ms or 0.0), point.score))


def tradeoff(found: ReportInput) -> Html | None:
    """Returns accuracy against latency of the files that have both; one plot for each metric and data set."""
    points, aside = _points(found)
    if not points:
        return paragraph(_aside(aside), "absent") if aside else None
    groups: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        data = str(point.item.get("data_sha256") or point.item.get("data") or "")
        groups.setdefault((point.metric.key, data), []).append(point)
    drawn = [_group(i, group, several=len(groups) > 1) for i, group in enumerate(groups.values())]
    return join(*drawn, *([paragraph(_aside(aside), "note")] if aside else []))


def _points(found: ReportInput) -> tuple[list[Point], list[Record]]:
    """Returns what has a place on an axis of latency, and the records that have none: not measured, or no median."""
    points, aside = [], []
    for name in variants(found):
        item = evaluation_of(found, name)
        if item is None:
            continue
        for record in records_of(found, name):
            if record.kind == "measured" and record.median_ms is not None:
                points.append(Point(name, record, item, metric_of([item])))
            else:
                aside.append(record)
    return points, aside


def _aside(aside: Sequence[Record]) -> str:
    kinds = sorted({record.kind if record.kind != "measured" else "without a median" for record in aside})
    where = ", ".join(sorted({record.profile for record in aside}))
    return f"{len(aside)} records ({', '.join(kinds)}; {where}) have no place on an axis of measured latency."


def _group(position: int, points: Sequence[Point], *, several: bool) -> Html:
    metric, item = points[0].metric, points[0].item
    by_profile: dict[str, list[Point]] = {}
    for point in points:
        by_profile.setdefault(point.record.profile, []).append(point)
    lines = {profile: pareto_line(listed) for profile, listed in by_profile.items()}
    spec = pareto_plot(
        [(point.name, point.record, point.item) for point in points],
        metric,
        {profile: [(float(p.record.median_ms or 0.0), p.score) for p in line] for profile, line in lines.items()},
    )
    caption = f"{metric.title} against the median latency of one run, both with 95 % intervals."
    caption += " Open marks are invalid or throttled." if not all(point.sound for point in points) else ""
    head = ["file", "", "profile", metric.title, "95 % interval", "median, ms", "95 % interval, ms", "Pareto line"]
    rows = [_row(point, by_profile[point.record.profile]) for point in points]
    title = subtitle(f"{metric.what} ({metric.title}){_where(item)}") if several else Html("")
    return join(
        title,
        figure(f"tradeoff{position or ''}", spec, caption),
        _no_line(lines),
        table(head, rows, left=(0, 1, 2, 7), label=f"{metric.title} against latency"),
    )


def _where(item: Mapping[str, Any]) -> str:
    data, images = item.get("data"), item.get("images")
    name = PurePosixPath(str(data)).name if data else "a data set without a name"
    return f" on {name}" + (f", {images} pictures" if images else "")


def _no_line(lines: Mapping[str, Sequence[Point]]) -> Html:
    empty = [profile for profile, line in lines.items() if not line]
    if not empty:
        return Html("")
    return paragraph(
        f"No Pareto line for {', '.join(empty)}: a line is drawn through valid measurements, and there is none.", "note"
    )


def _row(point: Point, rivals: Sequence[Point]) -> list[Cell]:
    record, ends = point.record, point.item.get(point.metric.interval_key)
    low, high = ends if isinstance(ends, list | tuple) and len(ends) == 2 else (None, None)
    return [
        dot(point.name),
        join(*(state_badges(record) or [badge("measured", "plain")])),
        record.profile,
        number(point.score, 2),
        interval(low, high, formatted=lambda v: number(v, 1)),
        milliseconds(record.median_ms),
        interval(*(record.ci95_median_ms or (None, None))),
        _standing(point, rivals),
    ]


def _standing(point: Point, rivals: Sequence[Point]) -> Cell:
    if not point.sound:
        return "not judged"
    winners = [rival for rival in rivals if rival.sound and rival.beats(point)]
    if not winners:
        return badge("on the line", "good")
    winner = min(winners, key=lambda rival: float(rival.record.median_ms or 0.0))
    name = winner.record.scheme if winner.record.model == point.record.model else winner.name
    return f"beaten by {name}{'' if _apart(point, winner) else '; an interval overlaps'}"


def _apart(point: Point, winner: Point) -> bool:
    """Whether both intervals are disjoint; False where one is not known."""
    mine, theirs = point.record.ci95_median_ms, winner.record.ci95_median_ms
    key = point.metric.interval_key
    scores, better = point.item.get(key), winner.item.get(key)
    if not (mine and theirs and isinstance(scores, list | tuple) and isinstance(better, list | tuple)):
        return False
    return bool(theirs[1] < mine[0] and better[0] > scores[1])
