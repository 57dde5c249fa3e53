"""Of several findings of one object keep one: boxes by greedy suppression, masks by Matrix NMS, grid cells by points.

Sources: greedy suppression as in torchvision's `batched_nms`; Matrix NMS and points NMS from arXiv 2003.10152
(section 3.3). Nothing here loops over pixels or over pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Words = NDArray[np.uint64]

_BLOCK = 128  # boxes compared at a time: bounds the memory whatever the number of boxes
_PAIRS = 4096  # masks compared at a time


def best(scores: Array, count: int) -> Ints:
    """Returns the places of the `count` greatest scores, best first; equal scores keep their order.

    Args:
        scores: [n].
        count: At least 0.
    """
    place = np.arange(len(scores))
    if 0 < count < len(scores):
        last = len(scores) - count
        place = np.flatnonzero(scores >= np.partition(scores, last)[last])
    return np.asarray(place[np.argsort(-scores[place], kind="stable")[:count]])


def overlapping(one_xyxy: Array, other_xyxy: Array, iou_threshold: float) -> Bools:
    """Tells which boxes overlap by more than a threshold, [n, m].

    Args:
        one_xyxy: [n, 4] left, top, right, bottom; any unit.
        other_xyxy: [m, 4].
        iou_threshold: Intersection over union, 0..1. Boxes without area overlap nothing.
    """
    one, other = np.ascontiguousarray(one_xyxy.T), np.ascontiguousarray(other_xyxy.T)
    shared = _shared_px(one, other, 0)
    shared *= _shared_px(one, other, 1)
    union = np.add.outer(_areas(one), _areas(other))
    union -= shared
    union *= np.float32(iou_threshold)
    return np.asarray(shared > union)


def _shared_px(one: Array, other: Array, axis: int) -> Array:
    """Length that boxes share along one axis, [n, m]."""
    length: Array = np.minimum.outer(one[axis + 2], other[axis + 2])
    length -= np.maximum.outer(one[axis], other[axis])
    return np.maximum(length, 0, out=length)


def _areas(boxes: Array) -> Array:
    return np.asarray((boxes[2] - boxes[0]) * (boxes[3] - boxes[1]))


def box_nms(boxes_xyxy: Array, labels: Ints, iou_threshold: float, limit: int) -> Ints:
    """Returns the boxes that no better kept box of the same label overlaps by more than a threshold.

    Time and memory are bounded: blocks of boxes are compared with those still alive, and the search ends with the
    last box that is wanted.

    Args:
        boxes_xyxy: [n, 4], best first.
        labels: [n]; give all the same to compare boxes of all classes.
        iou_threshold: Intersection over union above which the worse of two boxes goes.
        limit: Most boxes to keep.

    Returns:
        [k] places of the kept boxes, ascending.
    """
    alive, kept = np.arange(len(boxes_xyxy)), [np.zeros(0, np.int64)]
    while len(alive) and limit > 0:
        block, alive = alive[:_BLOCK], alive[_BLOCK:]
        rivals = overlapping(boxes_xyxy[block], boxes_xyxy[block], iou_threshold)
        rivals &= labels[block][:, None] == labels[block]
        chosen = block[_first_of_rivals(rivals, limit)]
        kept.append(chosen)
        limit -= len(chosen)
        if len(alive) and limit > 0:
            covered = overlapping(boxes_xyxy[chosen], boxes_xyxy[alive], iou_threshold)
            covered &= labels[chosen][:, None] == labels[alive]
            alive = alive[~covered.any(axis=0)]
    return np.concatenate(kept)


def _first_of_rivals(rivals: Bools, limit: int) -> list[int]:
    """Greedy choice in a block; each row of the matrix is one whole number, so that a step costs one operation."""
    rows = np.packbits(rivals, axis=1, bitorder="little")
    masks = [int.from_bytes(row.tobytes(), "little") for row in rows]
    gone, chosen = 0, []
    for place, mask in enumerate(masks):
        if not gone >> place & 1:
            chosen.append(place)
            gone |= mask
            if len(chosen) == limit:
                break
    return chosen


def points_peaks(logits_hwc: Array, floor: np.float32) -> Ints:
    """Finds the cells above `floor` that their left, upper and upper left neighbours do not exceed (points NMS).

    That is where a map equals its 2x2 maximum; of equal neighbours all stay. The official order compares
    probabilities: the same, but for logits so large that their probabilities round to 1.

    Args:
        logits_hwc: [h, w, C]; every class is a map of its own.
        floor: Logit that a cell must exceed.

    Returns:
        [n] places in the flat array, ascending: (row * w + column) * C + class.
    """
    _, width, classes = logits_hwc.shape
    flat = logits_hwc.ravel()
    place = np.flatnonzero(flat > floor)
    if not len(place):
        return place
    cell = place // classes
    row, column = np.divmod(cell, width)
    own = flat.take(place)
    keep = np.ones(len(place), np.bool_)
    for dy, dx in ((0, 1), (1, 0), (1, 1)):
        there = place - (dy * width + dx) * classes
        outside = (row < dy) | (column < dx)
        keep &= outside | (flat.take(np.where(outside, 0, there)) <= own)
    return place[keep]


@dataclass(frozen=True)
class PackedMasks:
    """Masks as bits, 64 pixels a word.

    Attributes:
        words: [n, words]; the rows of a mask are padded to bytes.
        areas: [n] pixels of each mask.
        spans: [n, 4] first row, first column, last row, last column of each mask, both inside it; of an empty mask,
            the whole map.
    """

    words: Words
    areas: Ints
    spans: Ints

    @classmethod
    def of(cls, masks_nhw: Bools) -> PackedMasks:
        """Packs masks, [n, h, w]."""
        count, height, width = masks_nhw.shape
        # rows of whole bytes may be packed as one, which is faster than row by row
        packed = np.packbits(masks_nhw, axis=2 if width % 8 else None)
        rows = packed.reshape(count, height, -(-width // 8))
        size = height * rows.shape[2]
        words = np.zeros((count, -(-size // 8)), np.uint64)
        words.view(np.uint8)[:, :size] = rows.reshape(count, size)
        columns = np.unpackbits(_all_rows(rows), axis=1, count=width)
        # the few bytes of a row one after the other: NumPy is slow at reducing along a short last axis
        used: list[NDArray[Any]] = [reduce(np.bitwise_or, np.moveaxis(rows, 2, 0)) != 0, columns]
        first = [line.argmax(axis=1) for line in used]
        last = [line.shape[1] - 1 - line[:, ::-1].argmax(axis=1) for line in used]
        areas = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
        return cls(words, areas, np.stack([*first, *last], axis=1))

    def take(self, places: Ints) -> PackedMasks:
        """Returns some of the masks, in the order given."""
        return PackedMasks(self.words[places], self.areas[places], self.spans[places])


def _all_rows(rows_nhb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bits that any row of a mask has, [n, b]: the lower half on the upper one; faster than a reduction.

    Of an odd number of rows both halves hold the middle one.
    """
    while rows_nhb.shape[1] > 1:
        half = -(-rows_nhb.shape[1] // 2)
        rows_nhb = rows_nhb[:, :half] | rows_nhb[:, -half:]
    return rows_nhb[:, 0]


def mask_ious(masks: PackedMasks, labels: Ints) -> Array:
    """Intersection over union of masks with the same label, better with worse, [n, n]; 0 elsewhere.

    Bits are counted only for pairs of one label whose boxes meet, some thousand pairs at a time.

    Args:
        masks: n masks, best first.
        labels: [n].

    Returns:
        float32; the entry (i, j) is of the better mask i and the worse mask j > i.
    """
    pairs = np.triu(labels[:, None] == labels, 1)
    for first, last in ((0, 2), (1, 3)):
        begins_before_end = np.less_equal.outer(masks.spans[:, first], masks.spans[:, last])
        pairs &= begins_before_end & begins_before_end.T
    better, worse = np.nonzero(pairs)
    ious = np.zeros(pairs.shape, np.float32)
    for start in range(0, len(better), _PAIRS):
        i, j = better[start : start + _PAIRS], worse[start : start + _PAIRS]
        shared = np.bitwise_count(masks.words[i] & masks.words[j]).sum(axis=1, dtype=np.int64)
        ious[i, j] = shared / np.maximum(masks.areas[i] + masks.areas[j] - shared, 1)
    return ious


def matrix_decay(ious: Array, kind: str, sigma: float) -> Array:
    """Returns the factor of each score, [n]: what its worst rival leaves of it, were that rival not rivalled itself.

    decay_j = min over i < j of f(iou_ij) / f(max over k < i of iou_ki), with f(x) = exp(-sigma x^2) ("gaussian") or
    1 - x ("linear"). (The paper writes exp(-x^2 / sigma) with 0.5.)

    Args:
        ious: From `mask_ious`, [n, n], zero on and below the diagonal.
        kind: "gaussian" or "linear".
        sigma: Of the Gaussian.
    """
    rivalled = ious.max(axis=0, initial=0.0)[:, None]
    # a factor above 1 counts as 1, also that of masks that are no better rivals, on and below the diagonal
    if kind == "gaussian":
        exponent = np.float32(sigma) * (np.square(rivalled) - np.square(ious))
        factors = np.exp(np.minimum(exponent, 0, out=exponent))
    else:
        # of equal masks the second has no say of its own; the first gives the rest their zero
        factors = (1 - ious) / np.maximum(1 - rivalled, np.float32(1e-6))
    return np.asarray(factors.min(axis=0, initial=1.0), np.float32)
