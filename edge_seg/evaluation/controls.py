"""Known damage to a prediction: a metric that does not collapse under it measures nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edge_seg.errors import InputError

if TYPE_CHECKING:
    from edge_seg.decoders.base import PanopticResult, SegmentResult


def shift_masks(result: PanopticResult, shift_px: int = 8) -> PanopticResult:
    """Moves all masks right and down; what comes in is void, what leaves is lost.

    Args:
        result: A prediction.
        shift_px: Distance along both axes in pixels; negative moves left and up.

    Returns:
        The damaged prediction; areas and boxes are those of the moved masks.
    """
    id_map = result.id_map_hw_i32
    height, width = id_map.shape
    rows, columns = np.arange(height) - shift_px, np.arange(width) - shift_px
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    moved = id_map[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
    moved = np.where(inside, moved, 0).astype(np.int32)
    segments = [_measured(segment, moved == segment.id) for segment in result.segments]
    return replace(result, id_map_hw_i32=moved, segments=tuple(s for s in segments if s is not None))


def swap_classes(result: PanopticResult, a: int, b: int) -> PanopticResult:
    """Gives the segments of class `a` to class `b` and the other way round; masks stay.

    Args:
        result: A prediction.
        a: Contiguous class index.
        b: Another class index; both things or both stuff, since `isthing` is kept.

    Raises:
        InputError: The two are the same class.
    """
    if a == b:
        raise InputError("A swap needs two classes.", expected="two different indices", got=f"{a} and {b}")
    other = {a: b, b: a}
    swapped = tuple(replace(s, class_index=other.get(s.class_index, s.class_index)) for s in result.segments)
    return replace(result, segments=swapped)


def _measured(segment: SegmentResult, mask_hw: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> SegmentResult | None:
    """Returns the segment with the area and box of `mask_hw`, or None when nothing is left of it."""
    rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    if not rows.size:
        return None
    x, y = int(columns[0]), int(rows[0])
    box = (x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1)
    return replace(segment, area_px=int(mask_hw.sum()), bbox_xywh_px=box)
