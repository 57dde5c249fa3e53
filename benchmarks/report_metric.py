"""What the report calls the figures of a metric: PQ of panoptic networks, AP of instance networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        key: Key of its main figure.
        title: Its short name.
        what: What the figure is, in words.
        figures: Keys and titles of the other averages.
        counts: Keys, titles and decimals of what is listed per class.
        curves: Keys, titles and colours of the curves of a training.
    """

    key: str
    title: str
    what: str
    figures: tuple[tuple[str, str], ...]
    counts: tuple[tuple[str, str, int], ...]
    curves: tuple[tuple[str, str, str], ...]

    def value(self, document: Any) -> float | None:
        """Returns the main figure of a document, or of a bare number."""
        inside = document.get(self.key) if isinstance(document, Mapping) else document
        return float(inside) if isinstance(inside, int | float) and not isinstance(inside, bool) else None

    @property
    def interval_key(self) -> str:
        """Key of the 95 % interval."""
        return f"{self.key}_ci95"


METRICS = (
    Metric(
        "pq",
        "PQ",
        "Panoptic quality",
        (("sq", "SQ"), ("rq", "RQ"), ("pq_th", "PQ things"), ("pq_st", "PQ stuff")),
        (("sq", "SQ", 1), ("rq", "RQ", 1), ("tp", "hits", 0), ("fp", "false alarms", 0), ("fn", "misses", 0)),
        (
            ("pq", "PQ", "#0f82c4"),
            ("pq_th", "PQ things", "#d4572a"),
            ("pq_st", "PQ stuff", "#0a9c74"),
            ("pq_teacher_forced", "PQ, true centers", "#7f8c9b"),
        ),
    ),
    Metric(
        "ap",
        "AP",
        "Mask AP",
        (
            ("ap50", "AP50"),
            ("ap75", "AP75"),
            ("ap_s", "AP small"),
            ("ap_m", "AP medium"),
            ("ap_l", "AP large"),
            ("boundary_ap", "boundary AP"),
        ),
        (("ap50", "AP50", 1), ("ap75", "AP75", 1), ("boundary_ap", "boundary AP", 1), ("objects", "objects", 0)),
        (
            ("ap", "AP", "#0f82c4"),
            ("ap50", "AP50", "#d4572a"),
            ("ap75", "AP75", "#0a9c74"),
            ("boundary_ap", "boundary AP", "#7f8c9b"),
        ),
    ),
)


def metric_of(documents: Sequence[Mapping[str, Any]]) -> Metric:
    """Returns the metric whose main figure the first document has; PQ where there is none."""
    for document in documents:
        for metric in METRICS:
            if metric.key in document:
                return metric
    return METRICS[0]
