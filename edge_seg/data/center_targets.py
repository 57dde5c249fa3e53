"""Centre targets of MaskConver in NumPy: heat map, mask slots and low-resolution masks of one picture.

Source: arXiv 2312.06052 and its published mobile recipe (box centres, one blob per stuff class, CenterNet radius);
dense stuff positives, mask centres and the handling of collisions are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from edge_seg.data.sample import Segment
from edge_seg.data.transforms import TrainCrop

_RADIUS_OVERLAP = 0.7  # CenterNet's smallest IoU of a shifted box
_STUFF_REACH_PX = 30  # three 21 x 21 max-pools, as published
_FULL = 0.9  # share of a cell a stuff class must cover to be a positive


@dataclass(frozen=True)
class CenterTargetConfig:
    """How targets are made.

    Attributes:
        stride_px: Pixels per cell of the heat map.
        mask_stride_px: Pixels per cell of the mask targets (published: 1).
        centers: "box" (published for the mobile variant) or "mask" (centre of mass).
        dense_stuff: Every cell that a stuff class covers is a positive; otherwise one blob centre, as published.
        stuff_min_area_share: Smallest stuff piece as a share of the input (published: 1024 px of 640 x 640).
        max_slots: Most mask slots of a picture; stuff is kept first, then the largest things.
        void_is_negative: Whether unlabelled pixels are background of every mask (published) or left out.
    """

    stride_px: int = 8
    mask_stride_px: int = 4
    centers: Literal["box", "mask"] = "box"
    dense_stuff: bool = True
    stuff_min_area_share: float = 0.0025
    max_slots: int = 50
    void_is_negative: bool = True


class Slot(NamedTuple):
    """One mask slot: row of the segment table, class, cell (row, column) and its visible area in pixels."""

    segment: int
    class_index: int
    cell_yx: tuple[int, int]
    area_px: int


@dataclass(frozen=True)
class CenterTargets:
    """Targets of one picture.

    Attributes:
        heat_chw: Target of the centre loss, [C, h, w] float32; exactly 1 at positives.
        heat_weight_chw: Weight of each cell; 0 in padding and crowds.
        class_index: [Q] int64, -1 where the slot is empty.
        cell: [Q] int64, flat cell index (row * w + column).
        masks_qhw: [Q, H/s, W/s] float32, covered share of each mask cell.
        mask_weight_hw: [H/s, W/s] float32, share of each mask cell that counts.
    """

    heat_chw: NDArray[np.float32]
    heat_weight_chw: NDArray[np.float32]
    class_index: NDArray[np.int64]
    cell: NDArray[np.int64]
    masks_qhw: NDArray[np.float32]
    mask_weight_hw: NDArray[np.float32]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the targets by name."""
        return dict(vars(self))


def gaussian_sigma(width_cells: float, height_cells: float) -> float:
    """Returns the Gaussian's sigma in cells for a box of the given size.

    CornerNet's root formula as the published code uses it (not divided by 2a). Golden values: 4x4 cells 0.5, 8x8
    0.83, 16x16 1.5, 32x32 2.83, 80x80 7.17, 2x2 and less 0.167.
    """
    o = _RADIUS_OVERLAP
    a, b, c = 4 * o, 2 * o * (width_cells + height_cells), (o - 1) * width_cells * height_cells
    radius = (-b + np.sqrt(b * b - 4 * a * c)) / 2
    return float((2 * np.floor(radius) + 1) / 6)


def cover_counts(index_hw: NDArray[np.integer[Any]], count: int, stride_px: int) -> NDArray[np.float32]:
    """Returns for each index 0..count-1 the share of each stride x stride cell it covers, [count, h, w].

    Args:
        index_hw: Index of every pixel, [H, W]; `count` and above are left out.
        count: Number of indices.
        stride_px: Side of a cell.
    """
    height, width = index_hw.shape[0] // stride_px, index_hw.shape[1] // stride_px
    cells = np.arange(height)[:, None] * width + np.arange(width)
    cells = np.repeat(np.repeat(cells, stride_px, 0), stride_px, 1)
    flat = np.minimum(index_hw, count) * (height * width) + cells
    counts = np.bincount(flat.ravel(), minlength=(count + 1) * height * width)
    shares = counts.reshape(count + 1, height, width)[:count] / float(stride_px * stride_px)
    return shares.astype(np.float32)


def center_targets(
    crop: TrainCrop, isthing: Sequence[bool], config: CenterTargetConfig, rng: np.random.Generator
) -> CenterTargets:
    """Makes the targets of one picture.

    Args:
        crop: Picture at the input size with its id map.
        isthing: Thing or stuff, per class.
        config: How.
        rng: Chooses the embedding's cell of dense stuff.
    """
    return _Builder(crop, isthing, config, rng).build()


class _Builder:
    """Holds the arrays of one picture while its targets are made."""

    def __init__(
        self, crop: TrainCrop, isthing: Sequence[bool], config: CenterTargetConfig, rng: np.random.Generator
    ) -> None:
        self.config, self.isthing, self.rng = config, isthing, rng
        self.segments = [s for s in crop.segments if not s.iscrowd]
        crowd = [s.id for s in crop.segments if s.iscrowd]
        self.index_hw = self._segment_index(crop.id_map_hw_i32)
        self.valid_hw = crop.valid_hw & ~np.isin(crop.id_map_hw_i32, crowd) if crowd else crop.valid_hw
        size = crop.id_map_hw_i32.shape
        self.h, self.w = size[0] // config.stride_px, size[1] // config.stride_px
        self.void_hw = self.index_hw == len(self.segments)
        valid_share = cover_counts(1 - self.valid_hw.astype(np.int64), 1, config.stride_px)[0]
        self.heat = np.zeros((len(isthing), self.h, self.w), np.float32)
        self.weight = np.repeat((valid_share > 0.5).astype(np.float32)[None], len(isthing), 0)

    def _segment_index(self, id_map: NDArray[np.int32]) -> NDArray[np.int64]:
        """Row of the segment table for every pixel; stuff pieces of one class share a row."""
        first: dict[int, int] = {}
        merged: list[Segment] = []
        rows: dict[int, int] = {}
        for segment in self.segments:
            row = len(merged)
            if not self.isthing[segment.class_index]:
                row = first.setdefault(segment.class_index, row)
            if row == len(merged):
                merged.append(segment)
            rows[segment.id] = row
        self.segments = merged
        ids = np.array(sorted(rows), np.int64)  # searched, not indexed: COCO's ids go up to 2^24
        place = np.searchsorted(ids, id_map)
        place[np.append(ids, -1)[place] != id_map] = len(ids)
        return np.array([*(rows[i] for i in ids.tolist()), len(merged)], np.int64)[place]

    def build(self) -> CenterTargets:
        slots: list[Slot] = []
        boxes = ndimage.find_objects(self.index_hw + 1, max_label=max(1, len(self.segments)))
        areas = np.bincount(self.index_hw.ravel(), minlength=len(self.segments) + 1)
        for row, segment in enumerate(self.segments):
            if boxes[row] is None:
                continue
            make = self._thing if self.isthing[segment.class_index] else self._stuff
            slot = make(row, segment.class_index, boxes[row], int(areas[row]))
            if slot is not None:
                slots.append(slot)
        return self._pack(self._separate(slots))

    def _cell(self, y_px: float, x_px: float) -> tuple[int, int]:
        stride = self.config.stride_px
        return min(self.h - 1, int(y_px // stride)), min(self.w - 1, int(x_px // stride))

    def _splat(self, class_index: int, cell_yx: tuple[int, int], width_px: float, height_px: float) -> None:
        stride = self.config.stride_px
        sigma = gaussian_sigma(width_px / stride, height_px / stride)
        ys = np.exp(-((np.arange(self.h) - cell_yx[0]) ** 2) / (2 * sigma * sigma))
        xs = np.exp(-((np.arange(self.w) - cell_yx[1]) ** 2) / (2 * sigma * sigma))
        plane = self.heat[class_index]
        np.maximum(plane, (ys[:, None] * xs).astype(np.float32), out=plane)

    def _thing(self, row: int, class_index: int, box: tuple[slice, slice], area_px: int) -> Slot:
        ys, xs = box
        # tight inclusive bounds: width is the last minus the first pixel, as published
        height, width = ys.stop - 1 - ys.start, xs.stop - 1 - xs.start
        center = (ys.start + height / 2, xs.start + width / 2)
        if self.config.centers == "mask":
            inside_y, inside_x = np.nonzero(self.index_hw[box] == row)
            center = (ys.start + float(inside_y.mean()), xs.start + float(inside_x.mean()))
        cell = self._cell(*center)
        self._splat(class_index, cell, width, height)
        return Slot(row, class_index, cell, area_px)

    def _stuff(self, row: int, class_index: int, _box: tuple[slice, slice], area_px: int) -> Slot | None:
        if self.config.dense_stuff:
            return self._dense_stuff(row, class_index, area_px)
        stride = self.config.mask_stride_px
        mask = cover_counts((self.index_hw != row).astype(np.int64), 1, stride)[0] > 0.5
        reach = 2 * (_STUFF_REACH_PX // stride) + 1
        labels, count = ndimage.label(ndimage.maximum_filter(mask, size=reach))
        if count == 0:
            return None
        largest = 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
        ys, xs = np.nonzero(mask & (labels == largest))
        limit_px = self.config.stuff_min_area_share * self.index_hw.size
        if len(ys) * stride * stride < limit_px:
            return None
        top, left = float(ys.min()) * stride, float(xs.min()) * stride
        height, width = float(ys.max() + 1) * stride - 1 - top, float(xs.max() + 1) * stride - 1 - left
        cell = self._cell(top + height / 2, left + width / 2)
        self._splat(class_index, cell, width, height)
        return Slot(row, class_index, cell, area_px)

    def _dense_stuff(self, row: int, class_index: int, area_px: int) -> Slot | None:
        if area_px < self.config.stuff_min_area_share * self.index_hw.size:
            return None
        share = cover_counts((self.index_hw != row).astype(np.int64), 1, self.config.stride_px)[0]
        positive = share >= min(_FULL, float(share.max()))
        self.heat[class_index] = np.where(positive, 1.0, np.minimum(share, 0.999))
        # all positives of one stuff class together weigh the square root of their number
        count = int(positive.sum())
        self.weight[class_index][positive] /= np.sqrt(count)
        chosen = int(self.rng.choice(np.flatnonzero(positive)))
        return Slot(row, class_index, (chosen // self.w, chosen % self.w), area_px)

    def _separate(self, slots: list[Slot]) -> list[Slot]:
        """Orders slots (stuff, then things by area), gives same-class neighbours in one cell cells of their own."""
        slots.sort(key=lambda s: (self.isthing[s.class_index], -s.area_px))
        taken: set[tuple[int, int, int]] = set()
        kept = []
        for slot in slots:
            cell = self._free_cell(slot, taken)
            if cell is not None:
                taken.add((slot.class_index, *cell))
                kept.append(slot._replace(cell_yx=cell))
        return kept[: self.config.max_slots]

    def _free_cell(self, slot: Slot, taken: set[tuple[int, int, int]]) -> tuple[int, int] | None:
        if (slot.class_index, *slot.cell_yx) not in taken:
            return slot.cell_yx
        stride = self.config.stride_px
        best, best_px = None, 0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                y, x = slot.cell_yx[0] + dy, slot.cell_yx[1] + dx
                inside = 0 <= y < self.h and 0 <= x < self.w and (slot.class_index, y, x) not in taken
                patch = self.index_hw[y * stride : (y + 1) * stride, x * stride : (x + 1) * stride]
                covered = int((patch == slot.segment).sum()) if inside else 0
                if covered > best_px:
                    best, best_px = (y, x), covered
        return best

    def _pack(self, slots: list[Slot]) -> CenterTargets:
        config = self.config
        class_index = np.full(config.max_slots, -1, np.int64)
        cell = np.zeros(config.max_slots, np.int64)
        order = np.full(len(self.segments) + 1, config.max_slots, np.int64)
        for number, slot in enumerate(slots):
            class_index[number] = slot.class_index
            cell[number] = slot.cell_yx[0] * self.w + slot.cell_yx[1]
            order[slot.segment] = number
        masks = cover_counts(order[self.index_hw], config.max_slots, config.mask_stride_px)
        counted = self.valid_hw if config.void_is_negative else self.valid_hw & ~self.void_hw
        weight = cover_counts(1 - counted.astype(np.int64), 1, config.mask_stride_px)[0]
        return CenterTargets(self.heat, self.weight, class_index, cell, masks, weight)
