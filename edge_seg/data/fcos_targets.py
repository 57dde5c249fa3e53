"""Targets of FCOS and BlendMask in NumPy: which cell of which level learns which object, and the objects' masks.

Source: FCOS (arXiv 1904.01355, section 3; centre sampling from its later form), BlendMask (arXiv 2001.00309).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from edge_seg.data.transforms import TrainCrop

_COUNTS = 0.5  # share of a cell that must be neither padding nor crowd

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ObjectTable:
    """Objects of a crop, largest first, in a fixed number of slots.

    Attributes:
        class_index: [Q] int64, -1 where the slot is empty.
        boxes_xyxy_px: [Q, 4] float32, tight boxes of the visible pixels, right and bottom exclusive.
        slot_hw: [H, W] int64, slot of every pixel; Q for none.
        counted_hw: [H, W] bool; False in padding, in crowds and on objects that found no slot.
    """

    class_index: NDArray[np.int64]
    boxes_xyxy_px: Floats
    slot_hw: NDArray[np.int64]
    counted_hw: NDArray[np.bool_]


@dataclass(frozen=True)
class FcosTargets:
    """Targets of all cells of all levels, levels in order, row-major within each.

    Attributes:
        object_of_cell: [L] int64, row of the box table; -1 for background.
        ltrb_units: [L, 4] float32, distances to left, top, right, bottom in strides; 0 for background.
    """

    object_of_cell: NDArray[np.int64]
    ltrb_units: Floats


def object_table(crop: TrainCrop, max_objects: int) -> ObjectTable:
    """Returns the crop's objects: every segment that is no crowd.

    Args:
        crop: Picture with its id map.
        max_objects: Number of slots; the largest objects get them.
    """
    segments = sorted(crop.segments, key=lambda s: s.id)
    row_hw = _rows(crop.id_map_hw_i32, [s.id for s in segments])
    areas = np.bincount(row_hw.ravel(), minlength=len(segments) + 1)
    objects = [row for row, s in enumerate(segments) if not s.iscrowd and areas[row]]
    kept = sorted(objects, key=lambda row: (-areas[row], row))[:max_objects]
    slot_of = np.full(len(segments) + 1, max_objects, np.int64)
    slot_of[kept] = np.arange(len(kept))
    counts_of = slot_of < max_objects
    counts_of[-1] = True  # background
    slot_hw = slot_of[row_hw]
    class_index = np.full(max_objects, -1, np.int64)
    boxes = np.zeros((max_objects, 4), np.float32)
    found = ndimage.find_objects(slot_hw + 1, max_label=max_objects)
    for slot, row in enumerate(kept):
        class_index[slot] = segments[row].class_index
        rows, columns = found[slot]
        boxes[slot] = columns.start, rows.start, columns.stop, rows.stop
    return ObjectTable(class_index, boxes, slot_hw, crop.valid_hw & counts_of[row_hw])


def _rows(id_map: NDArray[np.int32], ids: list[int]) -> NDArray[np.intp]:
    """Returns for every pixel the position of its id in a sorted list; the list's length for other ids."""
    known = np.array(ids, np.int32)  # searched, not indexed: COCO's ids go up to 2^24
    rows = np.searchsorted(known, id_map)
    rows[np.append(known, -1)[rows] != id_map] = len(ids)
    return rows


def locations_px(size_hw: tuple[int, int], stride_px: int) -> Floats:
    """Returns the point of every cell, x then y, [h * w, 2] float32, row-major: index * stride + stride // 2."""
    y, x = np.divmod(np.arange(size_hw[0] * size_hw[1]), size_hw[1])
    return (np.stack([x, y], 1) * stride_px + stride_px // 2).astype(np.float32)


def level_sizes(size_hw: tuple[int, int], levels: Sequence[int]) -> list[tuple[int, int]]:
    """Returns rows and columns of each level's map; sides are rounded up where a level halves an odd map."""
    return [(-(-size_hw[0] // 2**level), -(-size_hw[1] // 2**level)) for level in levels]


def fcos_targets(
    boxes_xyxy_px: Floats,
    size_hw: tuple[int, int],
    levels: Sequence[int],
    bounds_px: Sequence[float],
    radius: float = 1.5,
) -> FcosTargets:
    """Assigns cells to boxes.

    A cell is positive for a box when its point lies strictly inside the square of half-side `radius` strides round
    the box's centre, clipped to the box, and when its largest distance to the box's sides is in the level's range
    (both ends included). The box of smallest area wins.

    Args:
        boxes_xyxy_px: [M, 4].
        size_hw: Picture in pixels.
        levels: Pyramid levels, stride 2 ** level.
        bounds_px: Upper end of each level's range but the last's.
        radius: Half-side of the centre square in strides; 0 takes the whole box.
    """
    ranges = list(zip((-1.0, *bounds_px), (*bounds_px, np.inf), strict=True))
    objects, distances = [], []
    for level, size, reach in zip(levels, level_sizes(size_hw, levels), ranges, strict=True):
        chosen, ltrb = _assign(boxes_xyxy_px, locations_px(size, 2**level), 2**level, reach, radius)
        objects.append(chosen)
        distances.append(ltrb / np.float32(2**level))
    return FcosTargets(np.concatenate(objects), np.concatenate(distances))


def _assign(
    boxes: Floats, points: Floats, stride_px: int, reach_px: tuple[float, float], radius: float
) -> tuple[NDArray[np.int64], Floats]:
    """Returns the box of every point (-1 for none) and the distances to its sides in pixels."""
    if not len(boxes):
        return np.full(len(points), -1, np.int64), np.zeros((len(points), 4), np.float32)
    ltrb = _distances(points, boxes)
    largest = ltrb.max(2)
    positive = _distances(points, _centre_squares(boxes, stride_px, radius)).min(2) > 0
    positive &= (largest >= reach_px[0]) & (largest <= reach_px[1])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    cost = np.where(positive, areas, np.inf)
    best = cost.argmin(1)
    found = positive.any(1)
    chosen = np.where(found, best, -1)
    return chosen, np.where(found[:, None], ltrb[np.arange(len(points)), best], 0).astype(np.float32)


def _distances(points: Floats, boxes: Floats) -> Floats:
    """Returns left, top, right, bottom distances, [points, boxes, 4]."""
    low = points[:, None] - boxes[None, :, :2]
    high = boxes[None, :, 2:] - points[:, None]
    return np.concatenate([low, high], 2)


def _centre_squares(boxes: Floats, stride_px: int, radius: float) -> Floats:
    if not radius:
        return boxes
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = np.float32(radius * stride_px)
    return np.concatenate([np.maximum(centre - half, boxes[:, :2]), np.minimum(centre + half, boxes[:, 2:])], 1)


def counted_cells(counted_hw: NDArray[np.bool_], levels: Sequence[int]) -> NDArray[np.bool_]:
    """Returns for every cell whether at least half of it counts, [L] bool.

    Args:
        counted_hw: [H, W].
        levels: Pyramid levels, rising.
    """
    share = counted_hw.astype(np.float32)
    parts, reached = [], 0
    for level in levels:
        for _ in range(level - reached):
            share = _halved(share)
        reached = level
        parts.append(share.ravel() >= _COUNTS)
    return np.concatenate(parts)


def _halved(share_hw: Floats) -> Floats:
    """Returns the means of 2x2 cells; beyond an odd end lies nothing that counts."""
    odd = [(0, side % 2) for side in share_hw.shape]
    padded = np.pad(share_hw, odd)
    rows = padded[0::2] + padded[1::2]
    mean: Floats = (rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25)
    return mean


def object_masks(table: ObjectTable, size: int) -> Floats:
    """Returns the mask of every object inside its box, [Q, size, size] float32 of 0 and 1.

    The mean of bilinear samples, as many per bin as pixels, and then >= 0.5.
    Source: RoIAlign (arXiv 1703.06870) on the bitmask, aligned, as detectron2 crops masks.
    """
    masks = np.zeros((len(table.class_index), size, size), np.float32)
    for slot in np.flatnonzero(table.class_index >= 0):
        x0, y0, x1, y1 = table.boxes_xyxy_px[slot].astype(int).tolist()
        # A sample of the outermost bins can lie half a pixel outside the box: one pixel more on every side.
        top, left = max(0, y0 - 1), max(0, x0 - 1)
        pixels = (table.slot_hw[top : y1 + 1, left : x1 + 1] == slot).astype(np.float32)
        rows = _bin_matrix(y0 - top, y1 - top, size, pixels.shape[0])
        columns = _bin_matrix(x0 - left, x1 - left, size, pixels.shape[1])
        masks[slot] = rows @ pixels @ columns.T >= 0.5
    return masks


def _bin_matrix(start_px: float, stop_px: float, size: int, length: int) -> Floats:
    """Returns the weights of the mean of linear samples in each of `size` bins, [size, length]."""
    samples = max(1, int(np.ceil((stop_px - start_px) / size)))
    place = start_px - 0.5 + (np.arange(size * samples) + 0.5) * (stop_px - start_px) / (size * samples)
    distance = np.abs(np.clip(place, 0, length - 1)[:, None] - np.arange(length))
    weights = np.maximum(0, 1 - distance).reshape(size, samples, length).mean(1)
    narrow: Floats = weights.astype(np.float32)
    return narrow
