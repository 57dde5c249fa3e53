"""From masks on a coarse grid to pixels of the original image, with half-pixel centres, crop by crop.

Two ways lead there: a mask of a box is laid into the box (BlendMask), a mask of the whole input is enlarged (SOLOv2).
Both are bilinear and therefore two matrix products, one for each axis; each is done on the crop of the image that the
object can reach, and large crops in strips, so that memory stays small.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from edge_seg.decoders.checked import sigmoid
from edge_seg.decoders.roi_align import between_cells
from edge_seg.decoders.run_lengths import RunLengths
from edge_seg.letterbox import Letterbox

Array = NDArray[np.float32]
Ints = NDArray[np.int64]

_TOGETHER = 16  # boxes whose weights are made at a time
_STRIP_PX = 1 << 20  # most pixels that exist as float32 at a time


@dataclass(frozen=True)
class Crop:
    """A mask inside a crop of the image.

    Attributes:
        mask_hw: [h, w] bool.
        top_left_px: Row and column of the crop's first pixel in the image.
    """

    mask_hw: NDArray[np.bool_]
    top_left_px: tuple[int, int]

    def run_lengths(self, size_hw: tuple[int, int]) -> RunLengths:
        """Returns the mask as run lengths of an image of this height and width."""
        return RunLengths.from_crop(self.mask_hw, self.top_left_px, size_hw)


def paste_boxes(probability_nrr: Array, boxes_xyxy_px: Array, box: Letterbox, threshold: float) -> Iterator[Crop]:
    """Lays masks into their boxes, one crop at a time.

    Texel i of R has its centre at (i + 0.5) / R of the box's side; the middle of each image pixel is looked up between
    the texel centres. Only pixels whose middle lies in the box are set. Beyond the outermost texel centres the mask
    goes on as it is there. (In detectron2's `paste_masks_in_image` it falls to 0 from there on, so that an object
    that fills its box loses up to half a texel on every side.)

    Args:
        probability_nrr: [N, R, R], 0..1.
        boxes_xyxy_px: [N, 4] in pixels of the network's input, not clipped.
        box: Geometry between image and input.
        threshold: A pixel is set where the probability is greater.

    Yields:
        One crop for each box, empty where the box has no pixel of the image.
    """
    texels = probability_nrr.shape[1]
    content_w, content_h = box.content_wh_px
    for start in range(0, len(boxes_xyxy_px), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        bounds = boxes_xyxy_px[part].astype(np.float64)
        rows = _lookups(bounds[:, 1::2] * (box.image_h_px / content_h), box.image_h_px, texels)
        columns = _lookups(bounds[:, 0::2] * (box.image_w_px / content_w), box.image_w_px, texels)
        for mask, (top, down), (left, across) in zip(probability_nrr[part], rows, columns, strict=True):
            yield Crop(_above(down, mask, across, threshold), (top, left))


def _lookups(bounds_px: NDArray[np.float64], size_px: int, texels: int) -> list[tuple[int, Array]]:
    """First pixel of each span and the weights of the texels in its pixels, [pixels, texels].

    A position beyond the outermost texel centres takes the outermost texel.

    Args:
        bounds_px: [n, 2] both ends of the spans in pixels of the image.
        size_px: Pixels of the image along this axis.
        texels: Texels of a span.
    """
    low, high = bounds_px[:, 0], bounds_px[:, 1]
    first, end = np.ceil(np.clip(bounds_px, 0, size_px) - 0.5).astype(np.int64).T
    count = np.where(high > low, np.maximum(end - first, 0), 0)
    stop = np.cumsum(count)
    scale = texels / np.where(high > low, high - low, 1)
    # pixel first + k of a span lies at place start + k of the list of all spans
    offset = (first + 0.5 - low - (stop - count)) * scale - 0.5
    at = np.arange(stop[-1] if len(stop) else 0) * np.repeat(scale, count) + np.repeat(offset, count)
    weights = between_cells(at, texels)
    ends = stop.tolist()
    return [(f, weights[e - c : e]) for f, c, e in zip(first.tolist(), count.tolist(), ends, strict=True)]


def _above(down: Array, mask: Array, across: Array, threshold: float) -> NDArray[np.bool_]:
    """Whether the enlarged mask is above the threshold, [h, w]: down @ mask @ across.T > threshold.

    The result lies column by column in memory, the order in which run lengths are counted.
    """
    left = across @ mask.T
    width, height = len(across), len(down)
    above = np.empty((width, height), np.bool_)
    strip = max(1, _STRIP_PX // max(height, 1))
    for start in range(0, width, strip):
        part = slice(start, start + strip)
        np.greater(left[part] @ down.T, np.float32(threshold), out=above[part])
    return above.T


@dataclass(frozen=True)
class AxisResize:
    """One axis of the way from a coarse map of the input to the image.

    Attributes:
        weights: [pixels, cells] share of each cell in each pixel of the image.
        first: First cell with a share in each pixel; ascending.
        last: Last cell with a share in each pixel; ascending.
    """

    weights: Array
    first: list[int]
    last: list[int]

    def span(self, low: int, high: int) -> tuple[slice, slice]:
        """Returns the pixels that cells low..high have a share in, and all cells with a share in these pixels."""
        start, stop = bisect_left(self.last, low), bisect_right(self.first, high)
        if start >= stop:
            return slice(0, 0), slice(0, 0)
        return slice(start, stop), slice(self.first[start], self.last[stop - 1] + 1)


@lru_cache(maxsize=4)
def axes_to_image(box: Letterbox, cells_hw: tuple[int, int]) -> tuple[AxisResize, AxisResize]:
    """Returns rows and columns of the enlargement of a coarse map of the input to the original image.

    SOLOv2's official order is: enlarge bilinearly to the size of the input, cut out the part that holds the picture,
    resize that bilinearly to the size of the image. Both resizes are linear and work on each axis alone, so the two
    together are one matrix for each axis: the same numbers but for rounding, borders included.

    Args:
        box: Geometry between image and input.
        cells_hw: Rows and columns of the coarse map, which covers the whole input.
    """
    content_w, content_h = box.content_wh_px
    rows = _axis(box.image_h_px, content_h, box.input_h_px, cells_hw[0])
    return rows, _axis(box.image_w_px, content_w, box.input_w_px, cells_hw[1])


def _axis(image_px: int, content_px: int, input_px: int, cells: int) -> AxisResize:
    low, share = _neighbours(image_px, content_px)
    weights = np.zeros((image_px, cells))
    used = []
    for pixel, part in ((low, 1 - share), (np.minimum(low + 1, content_px - 1), share)):
        before, after = _neighbours(input_px, cells)
        cell, inner = before[pixel], after[pixel]
        for place, weight in ((cell, 1 - inner), (np.minimum(cell + 1, cells - 1), inner)):
            np.add.at(weights, (np.arange(image_px), place), part * weight)
            used.append(place)
    return AxisResize(weights.astype(np.float32), np.min(used, axis=0).tolist(), np.max(used, axis=0).tolist())


def _neighbours(pixels: int, cells: int) -> tuple[Ints, NDArray[np.float64]]:
    """Of a bilinear resize with half-pixel centres: the cell before each pixel, and the share of the next, 0..1."""
    at = np.maximum((np.arange(pixels) + 0.5) * (cells / pixels) - 0.5, 0)
    low = np.minimum(at.astype(np.int64), cells - 1)
    return low, np.minimum(at - low, 1.0)


def paste_map(logits_hw: Array, span: Sequence[int], box: Letterbox, threshold: float) -> Crop:
    """Enlarges one mask of the whole input to the image, as far as it can be set.

    Exactly the pixels of the official order (see `axes_to_image`), which enlarges probabilities, though not of the
    whole image: every pixel is a mean of cells, so that it is above the threshold only where one of its cells is. What
    is *not* equal to the official order is to enlarge logits, or to go from cells to the image in one resize.

    Args:
        logits_hw: [h, w]; only cells near the span are read.
        span: First row, first column, last row and last column of the cells above the threshold, all inside.
        box: Geometry between image and input.
        threshold: A pixel is set where the probability is greater.
    """
    rows, columns = axes_to_image(box, logits_hw.shape)
    (y, cell_y), (x, cell_x) = rows.span(span[0], span[2]), columns.span(span[1], span[3])
    down, across = rows.weights[y, cell_y], columns.weights[x, cell_x]
    return Crop(_above(down, sigmoid(logits_hw[cell_y, cell_x]), across, threshold), (y.start, x.start))
