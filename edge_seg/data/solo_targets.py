"""Training targets of SOLOv2: which grid cells an object owns on which levels, and its mask at stride 4.

Source: arXiv 2003.10152, section 3, with the published centre region, ranges and order of writing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.data.transforms import TrainCrop

MASK_STRIDE_PX = 4
_CENTER_SHARE = 0.2  # published: side of the centre region as a share of the box
_REACH_CELLS = 1  # published: at most one cell beside the centre's own


@dataclass(frozen=True)
class SoloTargetConfig:
    """How targets are made.

    Attributes:
        max_objects: Most objects of a picture, the largest first.
        max_positives: Most cells of a picture whose masks are trained, chosen at random where there are more
            (published: all). An object has up to 9 cells on each of about two levels.
    """

    max_objects: int = 50
    max_positives: int = 256


@dataclass(frozen=True)
class SoloObject:
    """One object of a picture.

    Attributes:
        class_index: Its class.
        mask_hw: [H, W] bool, its visible pixels.
    """

    class_index: int
    mask_hw: NDArray[np.bool_]


@dataclass(frozen=True)
class SoloTargets:
    """Targets of one picture. Cells of all grids are numbered in a row: level 0 row by row, then level 1, ...

    Attributes:
        category: [cells] int64, class index of the cell, -1 where there is none.
        cell_weight: [cells] float32, 0 where padding or a crowd covers more than half of a cell without category.
        positive_cell: [P] int64, cells whose mask is trained, -1 where the row is empty. A cell that two objects
            share is there twice.
        positive_object: [P] int64, row of `masks_qhw` for each of them.
        masks_qhw: [Q, H/4, W/4] uint8, the masks at stride 4.
        mask_weight_hw: [H/4, W/4] float32, share of each mask cell that counts.
    """

    category: NDArray[np.int64]
    cell_weight: NDArray[np.float32]
    positive_cell: NDArray[np.int64]
    positive_object: NDArray[np.int64]
    masks_qhw: NDArray[np.uint8]
    mask_weight_hw: NDArray[np.float32]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the targets by name."""
        return dict(vars(self))


def center_cells(mask_hw: NDArray[np.bool_], side: int) -> list[int]:
    """Returns the cells of one grid that an object owns, row by row.

    They are the cells that the centre region (a fifth of the box about the mask's centroid) touches, at most 3 x 3
    about the centroid's own.

    Args:
        mask_hw: [H, W] with at least one pixel.
        side: Cells per side of the grid.
    """
    rows, columns = (_owned(mask_hw.sum(axis, dtype=np.int64), side) for axis in (1, 0))
    return [y * side + x for y in rows for x in columns]


def _owned(counts: NDArray[np.int64], side: int) -> range:
    """Cells along one axis, from the number of mask pixels at each position."""
    size_px = len(counts)
    pixels = np.flatnonzero(counts)
    center_px = float((counts * np.arange(size_px)).sum() / counts.sum())
    half_px = 0.5 * _CENTER_SHARE * float(pixels[-1] + 1 - pixels[0])
    own = _cell(center_px, size_px, side)
    first = max(0, _cell(center_px - half_px, size_px, side), own - _REACH_CELLS)
    last = min(side - 1, _cell(center_px + half_px, size_px, side), own + _REACH_CELLS)
    return range(first, last + 1)


def _cell(position_px: float, size_px: int, side: int) -> int:
    return int((position_px / size_px) // (1.0 / side))


def box_side(mask_hw: NDArray[np.bool_]) -> float:
    """Returns the square root of the area of a mask's tight box, in pixels."""
    rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    return math.sqrt(float(rows[-1] + 1 - rows[0]) * float(columns[-1] + 1 - columns[0]))


def stride_4_mask(mask_hw: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Returns a mask at a quarter of its size: bilinear with half-pixel centres, not averaged over all 16 pixels.

    A cell's sample lies between its four central pixels; a half rounds up, as in an 8-bit resize.
    """
    inner = mask_hw.astype(np.uint8)
    rows = inner[1::4] + inner[2::4]
    four: NDArray[np.uint8] = rows[:, 1::4] + rows[:, 2::4]
    return (four >= 2).astype(np.uint8)


def solo_targets(
    objects: Sequence[SoloObject],
    countable_hw: NDArray[np.bool_],
    sides: Sequence[int],
    ranges_px: Sequence[tuple[float, float]],
    config: SoloTargetConfig,
    rng: np.random.Generator,
) -> SoloTargets:
    """Makes the targets of one picture.

    Args:
        objects: In the order of writing: of two objects that own one cell, the later one gives its category, and
            both masks are trained.
        countable_hw: [H, W], False in padding and crowds.
        sides: Cells per side of each grid.
        ranges_px: For each grid, the square roots of box areas it is responsible for, both ends included. Ranges may
            overlap: then an object has cells on several grids.
        config: Sizes of the arrays.
        rng: Chooses the positive cells where there are too many.
    """
    starts = np.concatenate([[0], np.cumsum([s * s for s in sides])])
    category = np.full(int(starts[-1]), -1, np.int64)
    positives: list[tuple[int, int]] = []
    for number, found in enumerate(objects):
        side_px = box_side(found.mask_hw)
        for level, (side, (low_px, high_px)) in enumerate(zip(sides, ranges_px, strict=True)):
            if low_px <= side_px <= high_px:
                cells = starts[level] + np.array(center_cells(found.mask_hw, side), np.int64)
                category[cells] = found.class_index
                positives += [(int(cell), number) for cell in cells]
    weight = np.concatenate([_cell_weight(countable_hw, side) for side in sides])
    cell, row = _packed(positives, config.max_positives, rng)
    height, width = countable_hw.shape
    masks = np.zeros((config.max_objects, height // MASK_STRIDE_PX, width // MASK_STRIDE_PX), np.uint8)
    for number, found in enumerate(objects):
        masks[number] = stride_4_mask(found.mask_hw)
    return SoloTargets(category, np.where(category >= 0, np.float32(1), weight), cell, row, masks, _share(countable_hw))


def _packed(
    positives: Sequence[tuple[int, int]], limit: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    pairs = np.array(positives, np.int64).reshape(-1, 2)
    if len(pairs) > limit:
        pairs = pairs[np.sort(rng.choice(len(pairs), limit, replace=False))]
    cell, row = np.full(limit, -1, np.int64), np.zeros(limit, np.int64)
    cell[: len(pairs)], row[: len(pairs)] = pairs[:, 0], pairs[:, 1]
    return cell, row


def _share(countable_hw: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Share of each stride-4 cell that counts."""
    height, width = (n // MASK_STRIDE_PX for n in countable_hw.shape)
    blocks = countable_hw.reshape(height, MASK_STRIDE_PX, width, MASK_STRIDE_PX)
    share: NDArray[np.float32] = blocks.mean((1, 3), dtype=np.float32)
    return share


def _cell_weight(countable_hw: NDArray[np.bool_], side: int) -> NDArray[np.float32]:
    """1 for the cells of a grid of which at least half counts, [side * side]; a pixel lies in one cell."""
    if countable_hw.all():
        return np.ones(side * side, np.float32)
    height, width = countable_hw.shape
    rows, columns = np.arange(height) * side // height, np.arange(width) * side // width
    cells = rows[:, None] * side + columns
    covered = np.bincount(cells.ravel(), countable_hw.ravel(), minlength=side * side)
    pixels = np.bincount(cells.ravel(), minlength=side * side)
    return (2 * covered >= pixels).astype(np.float32)


def crop_objects(crop: TrainCrop, limit: int) -> list[SoloObject]:
    """Returns the objects of a crop that are no crowds, the largest first, so that small ones write last.

    Args:
        crop: Picture with its truth.
        limit: Most objects.
    """
    ids, areas = np.unique(crop.id_map_hw_i32, return_counts=True)
    area_px = dict(zip(ids.tolist(), areas.tolist(), strict=True))
    single = [s for s in crop.segments if not s.iscrowd and area_px.get(s.id, 0)]
    single.sort(key=lambda s: -area_px[s.id])
    return [SoloObject(s.class_index, crop.id_map_hw_i32 == s.id) for s in single[:limit]]


def countable(crop: TrainCrop) -> NDArray[np.bool_]:
    """Returns [H, W]: False in padding and crowds."""
    crowds = [s.id for s in crop.segments if s.iscrowd]
    return crop.valid_hw & ~np.isin(crop.id_map_hw_i32, crowds) if crowds else crop.valid_hw
