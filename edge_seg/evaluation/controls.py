"""Known damage to a prediction: a metric that does not collapse under it measures nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edge_seg.decoders.base import InstanceResult, PanopticResult, Result, SegmentResult
from edge_seg.decoders.run_lengths import RunLengths
from edge_seg.errors import InputError


def shift_masks(result: Result, shift_px: int = 8) -> Result:
    """Moves all masks right and down; what comes in is void, what leaves is lost.

    Args:
        result: A prediction.
        shift_px: Distance along both axes in pixels; negative moves left and up.

    Returns:
        The damaged prediction; areas and boxes are those of the moved masks.
    """
    return _shift_objects(result, shift_px) if isinstance(result, InstanceResult) else _shift_map(result, shift_px)


def _shift_map(result: PanopticResult, shift_px: int) -> PanopticResult:
    moved = _shifted(result.id_map_hw_i32, shift_px)
    segments = [_measured(segment, moved == segment.id) for segment in result.segments]
    return replace(result, id_map_hw_i32=moved, segments=tuple(s for s in segments if s is not None))


def _shift_objects(result: InstanceResult, shift_px: int) -> InstanceResult:
    moved = []
    for instance in result.instances:
        mask = RunLengths.from_mask(_shifted(instance.mask.mask().astype(np.int32), shift_px) > 0)
        left, top, right, bottom = instance.box_xyxy_px
        box = (left + shift_px, top + shift_px, right + shift_px, bottom + shift_px)
        moved.append(replace(instance, mask=mask, box_xyxy_px=box))
    return replace(result, instances=tuple(moved))


def _shifted(values_hw: NDArray[np.int32], shift_px: int) -> NDArray[np.int32]:
    """Moves a map right and down and fills with 0."""
    height, width = values_hw.shape
    rows, columns = np.arange(height) - shift_px, np.arange(width) - shift_px
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    moved = values_hw[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)]
    return np.where(inside, moved, 0).astype(np.int32)


def swap_classes(result: Result, a: int, b: int) -> Result:
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
    if isinstance(result, InstanceResult):
        instances = (replace(i, class_index=other.get(i.class_index, i.class_index)) for i in result.instances)
        return replace(result, instances=tuple(instances))
    swapped = tuple(replace(s, class_index=other.get(s.class_index, s.class_index)) for s in result.segments)
    return replace(result, segments=swapped)


def _measured(segment: SegmentResult, mask_hw: NDArray[np.bool_]) -> SegmentResult | None:
    """Returns the segment with the area and box of `mask_hw`, or None when nothing is left of it."""
    rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    if not rows.size:
        return None
    x, y = int(columns[0]), int(rows[0])
    box = (x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1)
    return replace(segment, area_px=int(mask_hw.sum()), bbox_xywh_px=box)
