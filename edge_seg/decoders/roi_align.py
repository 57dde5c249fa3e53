"""Crops of the bases under boxes (ROIAlign) and the ways to merge them into one mask.

Sources: ROIAlign from arXiv 1703.06870 with the half-pixel correction of detectron2's `ROIAlignV2`; the blender from
arXiv 2001.00309 (section 3.2); the other merges from arXiv 1904.02689 (YOLACT) and 1611.07709 (FCIS).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.errors import InputError

Array = NDArray[np.float32]


def roi_align(maps_khw: Array, boxes_xyxy_px: Array, stride_px: float, size: int) -> Array:
    """Samples maps under boxes, once in the middle of each of size x size bins, bilinear; [N, K, size, size].

    Cell i of a map has its centre at (i + 0.5) * stride. A sample more than one cell away from the outermost centres
    is 0, a nearer one outside takes the border's value. One sample in each bin makes rows and columns independent: a
    box is two small matrix products on the cells it covers.

    Args:
        maps_khw: [K, h, w].
        boxes_xyxy_px: [N, 4] in pixels of the network's input.
        stride_px: Pixels of a cell.
        size: Bins along each side.
    """
    _, height, width = maps_khw.shape
    rows, tops, bottoms = _sampling(boxes_xyxy_px[:, 1::2] / stride_px, height, size)
    columns, lefts, rights = _sampling(boxes_xyxy_px[:, 0::2] / stride_px, width, size)
    columns = np.ascontiguousarray(columns.swapaxes(1, 2))
    crops = np.empty((len(rows), len(maps_khw), size, size), np.float32)
    for n, (top, bottom, left, right) in enumerate(zip(tops, bottoms, lefts, rights, strict=True)):
        across = np.matmul(maps_khw[:, top:bottom, left:right], columns[n, left:right])
        np.matmul(rows[n, :, top:bottom], across, out=crops[n])
    return crops


def _sampling(bounds_cells: Array, cells: int, size: int) -> tuple[Array, list[int], list[int]]:
    """Weights of the cells in each sample along one axis, [N, size, cells], and the cells used: first and end, [N]."""
    low, high = bounds_cells[:, :1].astype(np.float64), bounds_cells[:, 1:].astype(np.float64)
    at = low - 0.5 + (np.arange(size) + 0.5) * ((high - low) / size)
    outside = (at < -1) | (at > cells)
    at = np.clip(at, 0, cells - 1)
    first, last = at[:, 0].astype(np.int64), np.minimum(at[:, -1].astype(np.int64) + 2, cells)
    weights = between_cells(at, cells)
    if outside.any():
        weights[outside] = 0
    return weights, first.tolist(), last.tolist()


def between_cells(at: NDArray[np.floating[Any]], cells: int) -> Array:
    """Bilinear weights of cells 0..cells-1 at positions, [..., cells]; a position outside takes the outermost cell."""
    at = np.clip(at, 0, cells - 1)
    low = np.minimum(at.astype(np.int64), max(cells - 2, 0))
    share = at - low
    weights = np.zeros((*at.shape, cells), np.float32)
    place = (np.arange(at.size).reshape(at.shape) * cells + low).ravel()
    weights.ravel()[place] = (1 - share).ravel()
    if cells > 1:
        weights.ravel()[place + 1] = share.ravel()
    return weights


@lru_cache(maxsize=8)
def enlarging(small: int, large: int) -> Array:
    """Weights of a bilinear resize along one axis with half-pixel centres, [large, small]; borders are repeated."""
    at = (np.arange(large) + 0.5) * (small / large) - 0.5
    return between_cells(at, small)


def blend(crops: Array, attention: Array) -> Array:
    """BlendMask's blender: attention, enlarged and then made shares over the bases, weighs the bases; [N, R, R].

    Args:
        crops: Bases under the boxes, [N, K, R, R].
        attention: Logits of the bases' shares, [N, K, M, M].

    Returns:
        Mask logits.
    """
    grow = enlarging(attention.shape[-1], crops.shape[-1])
    weights = np.matmul(grow, np.matmul(attention, grow.T))
    weights -= weights.max(axis=1, keepdims=True)
    np.exp(weights, out=weights)
    total = weights.sum(axis=1)
    weights *= crops
    return np.asarray(weights.sum(axis=1) / total)


def weighted_sum(crops: Array, attention: Array) -> Array:
    """YOLACT's assembly: one coefficient for each basis, of either sign and used as it is; [N, R, R] mask logits.

    Args:
        crops: [N, K, R, R].
        attention: [N, K, 1, 1].

    Raises:
        InputError: There is more than one coefficient for a basis.
    """
    if attention.shape[2:] != (1, 1):
        raise InputError(
            "The merge 'yolact' takes one coefficient for each basis.",
            expected="attention_size 1",
            got=str(attention.shape[-1]),
        )
    return np.asarray((crops * attention).sum(axis=1))


def position_sensitive(crops: Array, attention: Array) -> Array:
    """FCIS's assembly: a box is cut into g x g parts, part (y, x) shows basis y * g + x; [N, R, R] mask logits.

    There are g * g bases, each an expert of one part; the attention has no say. (FCIS has an inside and an outside
    map for each part; here one map holds the logit of inside against outside.)

    Args:
        crops: [N, K, R, R], K a square number.
        attention: Ignored.

    Raises:
        InputError: The number of bases is no square number.
    """
    bases, size = crops.shape[1], crops.shape[-1]
    parts = math.isqrt(bases)
    if parts * parts != bases:
        raise InputError("The merge 'fcis' needs a square number of bases.", expected="1, 4, 9, ...", got=str(bases))
    part = np.arange(size) * parts // size
    basis = part[:, None] * parts + part
    return np.ascontiguousarray(np.take_along_axis(crops, basis[None, None], axis=1)[:, 0])


MERGES: dict[str, Callable[[Array, Array], Array]] = {
    "blend": blend,
    "yolact": weighted_sum,
    "fcis": position_sensitive,
}
