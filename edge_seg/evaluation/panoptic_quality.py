"""Panoptic quality by COCO's rules, with per-picture statistics for confidence intervals.

Source: Kirillov et al., "Panoptic Segmentation", arXiv 1801.00868, sections 4.1 and 4.2 (void, groups).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_seg.artifact import plain_json
from edge_seg.contract import ClassInfo
from edge_seg.errors import InputError
from edge_seg.evaluation.bootstrap import picture_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_seg.data.sample import Sample
    from edge_seg.decoders.base import Result

_IOU_SUM, _TP, _FP, _FN = range(4)
_TABLE_LIMIT = 1 << 20


class PredictedSegment(Protocol):
    """What a predicted segment must have."""

    @property
    def id(self) -> int:
        """Its value in the id map, greater than 0."""

    @property
    def class_index(self) -> int:
        """Contiguous class index."""


class TrueSegment(PredictedSegment, Protocol):
    """What a segment of the truth must have."""

    @property
    def iscrowd(self) -> bool:
        """Whether it is a group that nobody separated."""


@dataclass(frozen=True)
class ClassScore:
    """Scores of one class in percent, nan where it has no tp, fp and fn; `iou_sum` is over the matches."""

    name: str
    isthing: bool
    pq: float
    sq: float
    rq: float
    tp: int
    fp: int
    fn: int
    iou_sum: float


@dataclass(frozen=True)
class PanopticScore:
    """Averages over classes in percent, 0..100; nan for a group (things, stuff) of which nothing occurred."""

    pq: float
    sq: float
    rq: float
    pq_th: float
    sq_th: float
    rq_th: float
    pq_st: float
    sq_st: float
    rq_st: float
    per_class: tuple[ClassScore, ...]
    images: int

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON types; nan becomes null."""
        document: dict[str, Any] = plain_json(asdict(self))
        return document


class PanopticQuality:
    """Collects pictures, then computes PQ = SQ * RQ per class and its averages.

    A prediction and a true segment match when their classes are equal and their IoU is above 0.5; the union
    leaves out what the prediction paints on void. Crowd segments are never matched and never missed. A
    prediction of which more than half lies on void and on crowds of its own class is no false positive.
    Classes without any tp, fp or fn are left out of the averages.

    Args:
        classes: The class list; class indices are positions in it.
    """

    metric = "pq"

    def __init__(self, classes: Sequence[ClassInfo]) -> None:
        self.classes = tuple(classes)
        self._statistics: list[NDArray[np.float64]] = []
        self._image_ids: list[int | str | None] = []

    def update(
        self,
        pred_id_map_hw: NDArray[np.integer[Any]],
        pred_segments: Sequence[PredictedSegment],
        true_id_map_hw: NDArray[np.integer[Any]],
        true_segments: Sequence[TrueSegment],
        *,
        image_id: int | str | None = None,
    ) -> None:
        """Adds one picture.

        Args:
            pred_id_map_hw: Predicted ids, [H, W] integers, 0 is void.
            pred_segments: One entry per predicted id.
            true_id_map_hw: True ids, [H, W] integers, 0 is void.
            true_segments: One entry per true id.
            image_id: Name of the picture, compared by `paired_bootstrap`.

        Raises:
            InputError: The maps differ in size, ids and segments do not name each other, an id is repeated,
                or a class index is out of range.
        """
        if pred_id_map_hw.shape != true_id_map_hw.shape or pred_id_map_hw.ndim != 2:
            raise InputError(
                "Prediction and truth have different sizes.",
                expected=f"[H, W] of the truth, {list(true_id_map_hw.shape)}",
                got=str(list(pred_id_map_hw.shape)),
                todo="decode at the size of the original picture",
            )
        true = _positions(true_id_map_hw, true_segments, "truth")
        pred = _positions(pred_id_map_hw, pred_segments, "prediction")
        shape = (len(true_segments) + 1, len(pred_segments) + 1)
        overlap_px = np.bincount((true * shape[1] + pred).ravel(), minlength=shape[0] * shape[1]).reshape(shape)
        _check_present(overlap_px.sum(1), true_segments, "truth")
        _check_present(overlap_px.sum(0), pred_segments, "prediction")
        true_class = self._class_indices(true_segments, "truth")
        pred_class = self._class_indices(pred_segments, "prediction")
        crowd = np.array([bool(segment.iscrowd) for segment in true_segments], np.bool_)
        self._statistics.append(_match(overlap_px, true_class, pred_class, crowd, len(self.classes)))
        self._image_ids.append(image_id)

    def merge(self, other: PanopticQuality) -> None:
        """Adds the pictures of another collection; raises InputError when its class list differs."""
        if self.classes != other.classes:
            raise InputError("Two class lists differ.", todo="merge scores of one data set only")
        self._statistics += other._statistics
        self._image_ids += other._image_ids

    @classmethod
    def interleaved(cls, parts: Sequence[PanopticQuality]) -> PanopticQuality:
        """Returns one collection in the order of the pictures, so that every sum is the same to the last digit.

        Args:
            parts: Of n parts, part k holds the pictures k, k + n, k + 2n, ... of the whole.

        Raises:
            InputError: The class lists differ, or the numbers of pictures cannot come from such parts.
        """
        order = picture_order(parts)
        whole = cls(parts[0].classes)
        whole._statistics = [parts[part]._statistics[position] for part, position in order]
        whole._image_ids = [parts[part]._image_ids[position] for part, position in order]
        return whole

    @property
    def statistics(self) -> NDArray[np.float64]:
        """Per picture and class: IoU sum, tp, fp, fn; [n_images, n_classes, 4] float64."""
        if not self._statistics:
            return np.zeros((0, len(self.classes), 4))
        return np.stack(self._statistics)

    @property
    def image_ids(self) -> tuple[int | str | None, ...]:
        """The names of the pictures, in order."""
        return tuple(self._image_ids)

    def compute(self) -> PanopticScore:
        """Returns the scores of all pictures so far; raises InputError when there is no picture."""
        totals = self._checked().sum(0)
        quality = _quality(totals)
        isthing = np.array([info.isthing for info in self.classes], np.bool_)
        groups = {"": np.ones_like(isthing), "_th": isthing, "_st": ~isthing}
        averages = {
            f"{name}{suffix}": _mean(quality[group, column])
            for suffix, group in groups.items()
            for column, name in enumerate(("pq", "sq", "rq"))
        }
        per_class = tuple(
            ClassScore(info.name, info.isthing, pq, sq, rq, int(tp), int(fp), int(fn), iou_sum)
            for info, (pq, sq, rq), (iou_sum, tp, fp, fn) in zip(
                self.classes, quality.tolist(), totals.tolist(), strict=True
            )
        )
        return PanopticScore(**averages, per_class=per_class, images=len(self._statistics))

    def score(self, result: Result, sample: Sample, objects: Callable[[], Any]) -> None:
        """Adds one picture (see `Quality`); objects that overlap are laid over each other."""
        shown = result.panoptic()
        self.update(shown.id_map_hw_i32, shown.segments, sample.id_map_hw_i32, sample.segments)

    def value(self) -> float:
        """Returns PQ in percent; raises InputError when there is no picture."""
        return self.compute().pq

    def figures(self) -> dict[str, float]:
        """Returns PQ, SQ, RQ, and PQ of things and stuff, in percent; raises InputError when there is no picture."""
        score = self.compute()
        return {name: getattr(score, name) for name in ("pq", "sq", "rq", "pq_th", "pq_st")}

    def per_class(self) -> list[dict[str, Any]]:
        """Returns the figures of each class as plain JSON types."""
        rows: list[dict[str, Any]] = self.compute().to_json()["per_class"]
        return rows

    def resampled(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the PQ of each resample (see `Resampled`); raises InputError when there is no picture."""
        return _resampled_pq(self._checked(), weights)

    def _checked(self) -> NDArray[np.float64]:
        if not self._statistics:
            raise InputError("There is nothing to score.", expected="at least one picture", got="0 pictures")
        return self.statistics

    def _class_indices(self, segments: Sequence[PredictedSegment], side: str) -> NDArray[np.intp]:
        indices = np.array([segment.class_index for segment in segments], np.intp)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self.classes):
            raise InputError(
                f"The {side} has a class index out of range.",
                expected=f"0..{len(self.classes) - 1}",
                got=f"{indices.min()}..{indices.max()}",
            )
        return indices


def _positions(
    id_map_hw: NDArray[np.integer[Any]], segments: Sequence[PredictedSegment], side: str
) -> NDArray[np.intp]:
    """Turns ids into 1 + position in `segments`, 0 for void."""
    ids = [segment.id for segment in segments]
    if len(set(ids)) != len(ids) or any(not 0 < i < 1 << 31 for i in ids):
        raise InputError(f"The {side}'s segment ids are not valid.", expected="distinct, above 0", got=str(ids)[:80])
    used, inverse = _unique(id_map_hw)
    position_of = {0: 0, **{segment_id: 1 + position for position, segment_id in enumerate(ids)}}
    if unnamed := [i for i in used.tolist() if i not in position_of]:
        raise InputError(
            f"The {side}'s id map has ids without a segment.",
            expected=f"0 and the {len(ids)} ids of its segments",
            got=f"{unnamed[0]} and {len(unnamed) - 1} more",
        )
    return np.array([position_of[i] for i in used.tolist()], np.intp)[inverse]


def _unique(id_map_hw: NDArray[np.integer[Any]]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """np.unique with inverse; by a table, without sorting, when the ids are small."""
    if id_map_hw.size and int(id_map_hw.min()) >= 0 and int(id_map_hw.max()) < _TABLE_LIMIT:
        used = np.flatnonzero(np.bincount(id_map_hw.ravel()))
        table = np.zeros(int(used[-1]) + 1, np.intp)
        table[used] = np.arange(len(used))
        return used, table[id_map_hw]
    used, inverse = np.unique(id_map_hw, return_inverse=True)
    return used, inverse.reshape(id_map_hw.shape)


def _check_present(area_px: NDArray[np.intp], segments: Sequence[PredictedSegment], side: str) -> None:
    """As COCO's evaluation does, refuses a listed segment that has no pixel."""
    if (area_px[1:] == 0).any():
        empty = segments[int(np.argmin(area_px[1:]))].id
        raise InputError(f"The {side} lists a segment without pixels.", expected="only visible ones", got=f"id {empty}")


def _match(
    overlap_px: NDArray[np.intp],
    true_class: NDArray[np.intp],
    pred_class: NDArray[np.intp],
    crowd: NDArray[np.bool_],
    n_classes: int,
) -> NDArray[np.float64]:
    """Matches one picture; `overlap_px` counts pixels [1 + true, 1 + predicted], 0 is void."""
    inside = overlap_px[1:, 1:]
    true_area, pred_area = overlap_px.sum(1)[1:], overlap_px.sum(0)[1:]
    on_void = overlap_px[0, 1:]
    union = true_area[:, None] + pred_area - inside - on_void
    same_class = true_class[:, None] == pred_class
    iou = np.where(same_class & ~crowd[:, None], inside / np.maximum(union, 1), 0.0)
    matched = iou > 0.5
    ignored = on_void + np.where(same_class & crowd[:, None], inside, 0).sum(0)
    true_hit, pred_hit = matched.any(1), matched.any(0)
    false_positive = ~pred_hit & ~(ignored > 0.5 * pred_area)
    statistics = np.zeros((n_classes, 4))
    statistics[:, _IOU_SUM] = np.bincount(true_class, np.where(matched, iou, 0.0).sum(1), n_classes)
    statistics[:, _TP] = np.bincount(true_class[true_hit], minlength=n_classes)
    statistics[:, _FP] = np.bincount(pred_class[false_positive], minlength=n_classes)
    statistics[:, _FN] = np.bincount(true_class[~true_hit & ~crowd], minlength=n_classes)
    return statistics


def _quality(totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turns [..., 4] statistics into PQ, SQ, RQ in percent, [..., 3]; nan where nothing occurred."""
    iou_sum, tp, fp, fn = np.moveaxis(totals, -1, 0)
    weight = tp + 0.5 * fp + 0.5 * fn
    occurs = weight > 0
    safe = np.where(occurs, weight, 1.0)
    columns = (iou_sum / safe, iou_sum / np.maximum(tp, 1.0), tp / safe)
    return 100.0 * np.stack([np.where(occurs, column, np.nan) for column in columns], -1)


def _resampled_pq(statistics: NDArray[np.float64], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    totals = np.tensordot(weights.astype(np.float64), statistics, axes=1)
    pq = _quality(totals)[..., 0]
    occurs = np.isfinite(pq)
    counts = occurs.sum(1)
    return np.where(counts > 0, np.where(occurs, pq, 0.0).sum(1) / np.maximum(counts, 1), np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan
