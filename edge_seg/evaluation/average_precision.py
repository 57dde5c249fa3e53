"""Mask AP and boundary AP by COCO's rules, with per-picture matches for confidence intervals.

Matching and averages follow pycocotools (`COCOeval`, BSD-2), to which a test holds them; mask IoU is its code. The
matches of each picture are kept instead of masks, so that a resample costs no matching and memory stays small.
Source: cocodataset.org/#detection-eval; boundary IoU: Cheng et al., arXiv 2103.16562.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from edge_seg.contract import ClassInfo
from edge_seg.data.sample import Sample, Segment
from edge_seg.decoders.base import Instance, InstanceResult, Result
from edge_seg.decoders.run_lengths import RunLengths
from edge_seg.errors import InputError
from edge_seg.evaluation.bootstrap import Resampled, picture_order

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALL_THRESHOLDS = np.linspace(0.0, 1.0, 101)
MAX_DETECTIONS = 100  # of one class in one picture
BOUNDARY_SHARE = 0.02  # width of the boundary as a share of the picture's diagonal
_AREAS_PX = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
_VARIANTS = ("ap", "ap_s", "ap_m", "ap_l", "boundary_ap")
_BOUNDARY = len(_AREAS_PX)
FIGURES = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "boundary_ap")
_RESAMPLES_AT_ONCE = 50
Objects = Callable[[], list[tuple[Segment, NDArray[np.bool_]]]]


class TrueObject(NamedTuple):
    """One object of the truth."""

    class_index: int
    iscrowd: bool
    mask: RunLengths


class _Matches(NamedTuple):
    """One class in one picture, for each variant V (areas, boundary) and IoU threshold T.

    Attributes:
        score: [D], falling.
        hit: [V, T, D], matched with an object that counts.
        ignored: [V, T, D], neither right nor wrong.
        positives: [V], objects to find.
    """

    score: NDArray[np.float64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    positives: NDArray[np.int64]


class AveragePrecision:
    """Collects pictures, then computes AP per class and its averages, in percent.

    Args:
        classes: The class list; class indices are positions in it.
    """

    metric = "ap"

    def __init__(self, classes: Sequence[ClassInfo]) -> None:
        self.classes = tuple(classes)
        self._pictures: list[list[_Matches]] = []
        self._image_ids: list[int | str | None] = []

    def update(self, result: InstanceResult, truth: Sequence[TrueObject], *, image_id: int | str | None = None) -> None:
        """Adds one picture.

        Args:
            result: What was found.
            truth: Every object, crowds included.
            image_id: Name of the picture, compared by `paired_bootstrap`.

        Raises:
            InputError: Prediction and truth differ in size, or a class index is out of range.
        """
        self._check(result, truth)
        self._pictures.append(
            [
                _match_class(
                    [i for i in result.instances if i.class_index == index],
                    [o for o in truth if o.class_index == index],
                    result.size_hw,
                )
                for index in range(len(self.classes))
            ]
        )
        self._image_ids.append(image_id)

    def score(self, result: Result, sample: Sample, objects: Objects) -> None:
        """Adds one picture (see `Quality`); of a panoptic result the things count."""
        truth = [TrueObject(s.class_index, s.iscrowd, RunLengths.from_mask(mask)) for s, mask in objects()]
        self.update(result.objects(), truth)

    @classmethod
    def interleaved(cls, parts: Sequence[AveragePrecision]) -> AveragePrecision:
        """Returns one collection in the order of the pictures.

        Args:
            parts: Of n parts, part k holds the pictures k, k + n, k + 2n, ... of the whole.

        Raises:
            InputError: The class lists differ, or the numbers of pictures cannot come from such parts.
        """
        order = picture_order(parts)
        whole = cls(parts[0].classes)
        whole._pictures = [parts[part]._pictures[position] for part, position in order]
        whole._image_ids = [parts[part]._image_ids[position] for part, position in order]
        return whole

    @property
    def image_ids(self) -> tuple[int | str | None, ...]:
        """The names of the pictures, in order."""
        return tuple(self._image_ids)

    def value(self) -> float:
        """Returns AP in percent; raises InputError when there is no picture."""
        return self.figures()["ap"]

    def figures(self) -> dict[str, float]:
        """Returns AP over IoU 0.5 to 0.95, at 0.5 and 0.75, by size and of boundaries, in percent; nan where absent.

        Raises:
            InputError: There is no picture.
        """
        return _figures(np.stack([self._precision(index) for index in range(len(self.classes))]))

    def per_class(self) -> list[dict[str, Any]]:
        """Returns the figures of each class with its number of objects; None where there is nothing to find."""
        rows = []
        for index, info in enumerate(self.classes):
            figures = _figures(self._precision(index)[None])
            objects = sum(int(picture[index].positives[0]) for picture in self._pictures)
            rows.append(
                {
                    "name": info.name,
                    "isthing": info.isthing,
                    **{k: round(v, 3) if math.isfinite(v) else None for k, v in figures.items()},
                    "objects": objects,
                }
            )
        return rows

    def figure(self, name: str) -> Resampled:
        """Returns one of FIGURES as a score of its own, for intervals; raises InputError for an unknown name."""
        if name not in FIGURES:
            raise InputError(f"There is no figure {name!r}.", expected=", ".join(FIGURES), got=name)
        return _Figure(self, name)

    def resampled(self, weights: NDArray[np.int64], figure: str = "ap") -> NDArray[np.float64]:
        """Returns the AP, or another figure, of each resample in percent, [n] (see `Resampled`)."""
        self._checked()
        variant, levels = _place_of(figure)
        per_class = []
        for index in range(len(self.classes)):
            joined = _joined([picture[index] for picture in self._pictures]).only(variant, levels)
            parts = [_resampled_ap(joined, part) for part in np.array_split(weights, _chunks(len(weights)))]
            per_class.append(np.concatenate(parts))
        values = np.stack(per_class)
        known = np.isfinite(values)
        counts = known.sum(0)
        mean = np.where(known, values, 0.0).sum(0) / np.maximum(counts, 1)
        return np.where(counts > 0, 100.0 * mean, np.nan)

    def _precision(self, index: int) -> NDArray[np.float64]:
        """Precision of a class at each recall, [V, T, R]; nan where there is nothing to find."""
        joined = _joined([picture[index] for picture in self._checked()])
        out = np.full((len(_VARIANTS), len(IOU_THRESHOLDS), len(RECALL_THRESHOLDS)), np.nan)
        for variant in range(len(_VARIANTS)):
            positives = int(joined.positives[:, variant].sum())
            if positives:
                hit, counted = joined.hit[variant], ~joined.ignored[variant]
                true, false = np.cumsum(hit & counted, -1), np.cumsum(~hit & counted, -1)
                out[variant] = [_at_recalls(*row, float(positives)) for row in zip(true, false, strict=True)]
        return out

    def _checked(self) -> list[list[_Matches]]:
        if not self._pictures:
            raise InputError("There is nothing to score.", expected="at least one picture", got="0 pictures")
        return self._pictures

    def _check(self, result: InstanceResult, truth: Sequence[TrueObject]) -> None:
        sizes = {o.mask.size_hw for o in truth} | {i.mask.size_hw for i in result.instances}
        if sizes - {result.size_hw}:
            raise InputError(
                "Prediction and truth have different sizes.",
                expected=str(result.size_hw),
                got=str(sorted(sizes)),
                todo="decode at the size of the original picture",
            )
        used = {o.class_index for o in truth} | {i.class_index for i in result.instances}
        if used - set(range(len(self.classes))):
            raise InputError("A class index is out of range.", expected=f"0..{len(self.classes) - 1}", got=str(used))


class _Joined(NamedTuple):
    """One class over all pictures, best score first; `picture` is where each detection comes from."""

    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    positives: NDArray[np.int64]
    picture: NDArray[np.int64]

    def only(self, variant: int, levels: slice) -> _Joined:
        """Returns one variant at some IoU thresholds."""
        one = slice(variant, variant + 1)
        return self._replace(
            hit=self.hit[one, levels], ignored=self.ignored[one, levels], positives=self.positives[:, one]
        )


def _joined(pictures: Sequence[_Matches]) -> _Joined:
    score = np.concatenate([p.score for p in pictures])
    order = np.argsort(-score, kind="stable")
    source = np.repeat(np.arange(len(pictures)), [len(p.score) for p in pictures])
    return _Joined(
        np.concatenate([p.hit for p in pictures], -1)[..., order],
        np.concatenate([p.ignored for p in pictures], -1)[..., order],
        np.stack([p.positives for p in pictures]),
        source[order],
    )


def _match_class(found: Sequence[Instance], truth: Sequence[TrueObject], size_hw: tuple[int, int]) -> _Matches:
    """Matches one class of one picture, best detection first (as `COCOeval.evaluateImg`)."""
    found = sorted(found, key=lambda i: -i.score)[:MAX_DETECTIONS]
    crowd = np.array([o.iscrowd for o in truth], np.bool_)
    true_area = np.array([o.mask.area_px for o in truth], np.float64)
    found_area = np.array([i.mask.area_px for i in found], np.float64)
    iou = _iou([i.mask for i in found], [o.mask for o in truth], crowd)
    hits: list[NDArray[np.bool_]] = []
    ignores: list[NDArray[np.bool_]] = []
    positives: list[int] = []
    for low, high in (*_AREAS_PX, _AREAS_PX[0]):
        if len(hits) == _BOUNDARY and iou.any():  # a detection is laid into a crowd by its area, whatever its rim
            iou = np.where(crowd, iou, np.minimum(iou, _boundary_iou(found, truth, crowd, size_hw)))
        left_out = crowd | (true_area < low) | (true_area > high)
        hit, ignored = _match(iou, crowd, left_out)
        outside = (found_area < low) | (found_area > high)
        hits.append(hit)
        ignores.append(ignored | (~hit & outside))
        positives.append(int((~left_out).sum()))
    score = np.array([i.score for i in found], np.float64)
    return _Matches(score, np.stack(hits), np.stack(ignores), np.array(positives, np.int64))


def _match(
    iou: NDArray[np.float64], crowd: NDArray[np.bool_], left_out: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Gives each detection, best first, the free object of largest IoU; one that counts before one that does not.

    Returns:
        hit and ignored, [T, D]; a detection on an object that is left out is a hit that is ignored.
    """
    detections, objects = iou.shape
    hit = np.zeros((len(IOU_THRESHOLDS), detections), np.bool_)
    ignored = np.zeros_like(hit)
    if not objects or not detections:
        return hit, ignored
    order = np.argsort(left_out, kind="stable")
    for t, threshold in enumerate(np.minimum(IOU_THRESHOLDS, 1 - 1e-10)):
        free = np.ones(objects, np.bool_)
        for d in np.flatnonzero((iou >= threshold).any(1)):
            usable = (free | crowd) & (iou[d] >= threshold)
            counted = usable & ~left_out
            pool = order[(counted if counted.any() else usable)[order]]
            if not len(pool):
                continue
            # the last of equals, as in COCO's loop, which replaces on "not smaller"
            best = pool[len(pool) - 1 - int(np.argmax(iou[d, pool][::-1]))]
            hit[t, d], ignored[t, d] = True, left_out[best]
            free[best] = False
    return hit, ignored


def mask_iou(found: Sequence[RunLengths], truth: Sequence[RunLengths]) -> NDArray[np.float64]:
    """Returns the IoU of every mask with every other, [found, truth], as pycocotools computes it."""
    return _iou(found, truth, np.zeros(len(truth), np.bool_))


def _iou(found: Sequence[RunLengths], truth: Sequence[RunLengths], crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """IoU of masks, [D, G]; of a crowd, the share of the detection that lies in it."""
    from pycocotools import mask as coco_mask

    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    rles = [[{**m.to_coco(), "counts": m.to_coco()["counts"].encode()} for m in masks] for masks in (found, truth)]
    return np.asarray(coco_mask.iou(rles[0], rles[1], crowd.astype(np.uint8).tolist()), np.float64)


def _boundary_iou(
    found: Sequence[Instance], truth: Sequence[TrueObject], crowd: NDArray[np.bool_], size_hw: tuple[int, int]
) -> NDArray[np.float64]:
    width_px = max(1, round(BOUNDARY_SHARE * math.hypot(*size_hw)))
    masks = [[boundary(m.mask, width_px) for m in side] for side in (found, truth)]
    return _iou(masks[0], masks[1], crowd)


def boundary(mask: RunLengths, width_px: int) -> RunLengths:
    """Returns the pixels of a mask within a distance of its outline; the picture's edge counts as outline.

    Args:
        mask: The mask.
        width_px: Distance, as steps of a 3x3 erosion.
    """
    x, y, w, h = mask.bbox_xywh_px
    if not w:
        return mask
    crop = mask.mask()[y : y + h, x : x + w]
    side = 2 * width_px + 1
    inner = crop.astype(np.uint8)
    for axis in (0, 1):
        inner = ndimage.minimum_filter1d(inner, side, axis=axis, mode="constant", cval=0)
    return RunLengths.from_crop(crop & (inner == 0), (y, x), mask.size_hw)


def _at_recalls(
    true: NDArray[np.integer[Any]], false: NDArray[np.integer[Any]], positives: float
) -> NDArray[np.float64]:
    """Precision at each recall threshold from running counts: the best precision at this recall or above it."""
    recall = true / positives
    precision = true / (true + false + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, RECALL_THRESHOLDS, side="left")
    return np.where(place < len(precision), np.append(precision, 0.0)[place], 0.0)


def _figures(precision: NDArray[np.float64]) -> dict[str, float]:
    """Averages of [classes, V, T, R] in percent, over the classes that occur."""

    def mean(values: NDArray[np.float64]) -> float:
        known = values[np.isfinite(values)]
        return 100.0 * float(known.mean()) if known.size else math.nan

    found = {name: mean(precision[:, variant]) for variant, name in enumerate(_VARIANTS)}
    found["ap50"], found["ap75"] = mean(precision[:, 0, 0]), mean(precision[:, 0, 5])
    return {name: found[name] for name in FIGURES}


def _chunks(resamples: int) -> int:
    return max(1, math.ceil(resamples / _RESAMPLES_AT_ONCE))


def _place_of(figure: str) -> tuple[int, slice]:
    """Returns the variant and the IoU thresholds that a figure averages over."""
    level = {"ap50": 0, "ap75": 5}.get(figure)
    return (_VARIANTS.index(figure), slice(None)) if level is None else (0, slice(level, level + 1))


@dataclass(frozen=True)
class _Figure:
    """One figure of a score."""

    score: AveragePrecision
    name: str

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        return self.score.classes

    @property
    def image_ids(self) -> tuple[int | str | None, ...]:
        return self.score.image_ids

    def value(self) -> float:
        return self.score.figures()[self.name]

    def resampled(self, weights: NDArray[np.int64]) -> NDArray[np.float64]:
        return self.score.resampled(weights, self.name)


def _resampled_ap(joined: _Joined, weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """AP of one class and variant in each resample, [n], 0..1; nan where a resample has none of its objects."""
    positives = weights @ joined.positives[:, 0]
    of_detection = weights[:, joined.picture]
    total = np.zeros(len(weights))
    for hit, ignored in zip(joined.hit[0], joined.ignored[0], strict=True):
        true = np.cumsum(of_detection * (hit & ~ignored), -1)
        false = np.cumsum(of_detection * (~hit & ~ignored), -1)
        for n, count in enumerate(positives.tolist()):
            if count:
                total[n] += _at_recalls(true[n], false[n], float(count)).mean()
    return np.where(positives > 0, total / joined.hit.shape[1], np.nan)
