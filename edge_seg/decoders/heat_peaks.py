"""Peaks of a heat map: 3x3 maxima of each class, looked for only where the score is high enough."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Ints = NDArray[np.int64]


def peaks(heat_hwc: Array, floor: np.float32, single: NDArray[np.bool_]) -> tuple[Ints, Ints, Array]:
    """Finds the cells above `floor` that are the 3x3 maximum of their class, best first.

    Of equal neighbours only the first in reading order is a peak: ties are common on an int8 grid, where two cells of
    one object often share the largest value. Equal scores keep reading order.

    Args:
        heat_hwc: Logits, [h, w, C].
        floor: Logit that a peak must exceed.
        single: [C] classes that keep their best peak only, before any cut of the list.

    Returns:
        Flat cell, class and logit of each peak, [N].
    """
    height, width, classes = heat_hwc.shape
    padded = np.full((height + 2, width + 2, classes), -np.inf, np.float32)
    padded[1:-1, 1:-1] = heat_hwc
    heat = padded.ravel()
    # the neighbours in the row on the whole map, those in other rows only where it is worth it
    left, own, right = heat[: -2 * classes], heat[classes:-classes], heat[2 * classes :]
    place = np.flatnonzero((own > floor) & (own > left) & (own >= right)) + classes
    for dx in (-1, 0, 1):
        step = (width + 2 + dx) * classes
        own = heat.take(place)
        place = place[(own > heat.take(place - step)) & (own >= heat.take(place + step))]
    place = place[np.argsort(-heat.take(place), kind="stable")]
    cell, class_index = np.divmod(place, classes)
    # of a single class the first is its greatest: that one is always a peak
    first, rank = np.zeros(classes, np.int64), np.arange(len(place))
    first[class_index[::-1]] = rank[::-1]
    kept = (first.take(class_index) == rank) | ~single.take(class_index)
    y, x = np.divmod(cell[kept], width + 2)
    return (y - 1) * width + x - 1, class_index[kept], heat.take(place[kept])
