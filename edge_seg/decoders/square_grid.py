"""Image pixels sorted into the squares between four neighbouring cell centres of a coarse map.

Inside one square a bilinear enlargement mixes the same four cells, so the least and the greatest of the four bound
every pixel of it: whoever compares enlarged maps can decide most squares without computing a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_seg.letterbox import Letterbox

Array = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Axis:
    """One axis of the image, cut into runs of pixels between the same two cell centres.

    Attributes:
        cells: Cells of the coarse map along this axis.
        pair: [S] number of the cell centre after the run, 0..cells; the outermost runs have a centre on one side only.
        length_px: [S] pixels of the run, at least 1; they sum to the image's side.
        pixel: [P, S] pixels of the run; a run shorter than the longest repeats its last pixel.
        share: [P, S] weight of the cell `high` at each pixel, 0..1.
    """

    cells: int
    pair: Ints
    length_px: Ints
    pixel: Ints
    share: Array

    @property
    def low(self) -> Ints:
        """[S] cell before the run."""
        return np.maximum(self.pair - 1, 0)

    @property
    def high(self) -> Ints:
        """[S] cell after the run."""
        return np.minimum(self.pair, self.cells - 1)

    @property
    def valid(self) -> Bools:
        """[P, S] false where `pixel` is a repetition."""
        return np.arange(len(self.pixel))[:, None] < self.length_px


@dataclass(frozen=True)
class SquareGrid:
    """The squares of an image: square q is row run q // columns and column run q % columns.

    Pixels of squares are arrays [P, Q, n]: row and column within the square, then the square. The squares are last
    because a square is a few pixels wide and NumPy is fast along long rows only.

    Attributes:
        rows: Row runs.
        columns: Column runs.
    """

    rows: Axis
    columns: Axis

    @property
    def count(self) -> int:
        """Number of squares."""
        return len(self.rows.pair) * len(self.columns.pair)

    @property
    def square_hw_px(self) -> tuple[int, int]:
        """Rows and columns of pixels of the largest square, P and Q."""
        return len(self.rows.pixel), len(self.columns.pixel)

    def runs(self, squares: Ints) -> tuple[Ints, Ints]:
        """Returns row run and column run of each square, [n] each."""
        return np.divmod(squares, len(self.columns.pair))

    def areas_px(self) -> Ints:
        """Returns the pixels of each square, [S]."""
        return np.multiply.outer(self.rows.length_px, self.columns.length_px).ravel()

    def valid(self, squares: Ints) -> tuple[Bools, Bools]:
        """Returns which pixel rows [P, 1, n] and columns [1, Q, n] of squares are no repetitions."""
        row, column = self.runs(squares)
        return self.rows.valid[:, None, row], self.columns.valid[None, :, column]

    def corner_range(self, values_khw: Array) -> tuple[Array, Array]:
        """Returns the least and the greatest corner of each square, [K, S] each.

        Args:
            values_khw: Maps, [K, cells, cells].
        """
        least, greatest = (
            _at_pairs(op, _at_pairs(op, values_khw, self.rows, 1), self.columns, 2) for op in (np.minimum, np.maximum)
        )
        return least.reshape(-1, self.count), greatest.reshape(-1, self.count)


@dataclass(frozen=True)
class PairPixels:
    """Enlarged pixels of n chosen (map, square) pairs, computed some pixel rows at a time.

    Attributes:
        edges: [2, Q, n] values at the pixel columns on the upper and the lower edge of the square.
        share: [P, 1, n] weight of the lower edge at each pixel row.
    """

    edges: Array
    share: Array

    @classmethod
    def of(cls, maps_khw: Array, grid: SquareGrid, maps: Ints, squares: Ints) -> PairPixels:
        """Interpolates along the upper and the lower edge of squares.

        Args:
            maps_khw: Coarse maps, [K, cells, cells].
            grid: Geometry.
            maps: [n] map of each pair.
            squares: [n] square of each pair.
        """
        row, column = grid.runs(squares)
        flat, (_, height, width) = maps_khw.ravel(), maps_khw.shape
        line = (maps * height + np.stack([grid.rows.low[row], grid.rows.high[row]])) * width
        left = flat[line + grid.columns.low[column]][:, None]
        right = flat[line + grid.columns.high[column]][:, None]
        share = grid.columns.share[:, column]
        return cls(left * (1 - share) + right * share, grid.rows.share[:, None, row])

    def rows(self, rows: slice) -> Array:
        """Returns some pixel rows, [rows, Q, n].

        In float32 and in this order: left (1 - x) + right x on both edges, then upper (1 - y) + lower y.
        """
        share = self.share[rows]
        value: Array = self.edges[0] * (1 - share)
        value += self.edges[1] * share
        return value

    def __neg__(self) -> PairPixels:
        """Returns the pixels with the other sign; rounding is symmetric, so they are exactly the negatives."""
        return PairPixels(-self.edges, self.share)


def square_grid(box: Letterbox, cells_hw: tuple[int, int], stride_px: int) -> SquareGrid:
    """Returns the squares of an image under a map of body cells; the letterbox's padding has none.

    Args:
        box: Geometry.
        cells_hw: Rows and columns of the map.
        stride_px: Network pixels per cell.
    """
    content_w, content_h = box.content_wh_px
    rows = axis_runs(box.image_h_px, cells_hw[0], content_h / box.image_h_px / stride_px)
    columns = axis_runs(box.image_w_px, cells_hw[1], content_w / box.image_w_px / stride_px)
    return SquareGrid(rows, columns)


def axis_runs(pixels: int, cells: int, cells_per_px: float) -> Axis:
    """Cuts one axis into runs; half-pixel centres, clamped before the first and after the last cell's centre.

    Args:
        pixels: Side of the image.
        cells: Side of the coarse map.
        cells_per_px: Scale.
    """
    place = (np.arange(pixels) + 0.5) * cells_per_px - 0.5
    after = np.clip(np.floor(place).astype(np.int64) + 1, 0, cells)
    first = np.flatnonzero(np.diff(after, prepend=-1))
    pair, length = after[first], np.diff(first, append=pixels)
    pixel = first + np.minimum(np.arange(length.max())[:, None], length - 1)
    share = np.clip(place, 0, cells - 1)[pixel] - np.maximum(pair - 1, 0)
    return Axis(cells, pair, length, pixel, share.astype(np.float32))


def _at_pairs(op: np.ufunc, values: Array, axis: Axis, dimension: int) -> Array:
    """Combines the two cells of every run of an axis; at the border that is one cell twice."""
    shape = list(values.shape)
    shape[dimension] += 1
    result = np.empty(shape, np.float32)
    cells, pairs = values.swapaxes(0, dimension), result.swapaxes(0, dimension)
    op(cells[1:], cells[:-1], out=pairs[1:-1])
    pairs[0], pairs[-1] = cells[0], cells[-1]
    first, last = int(axis.pair[0]), int(axis.pair[-1])
    # a view where it can be: only an image that is smaller than the map skips a pair
    chosen = slice(first, last + 1) if last + 1 - first == len(axis.pair) else axis.pair
    return pairs[chosen].swapaxes(0, dimension)
