"""Image pixels sorted into the squares between four neighbouring cell centres of a coarse map.

Inside one square a bilinear enlargement mixes the same four cells, so the least and the greatest of the four bound
every pixel of it: whoever compares enlarged maps can decide most squares without computing a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_seg.letterbox import Letterbox

Array = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Maps = TypeVar("Maps", Array, Bools)


@dataclass(frozen=True)
class Axis:
    """One axis of the image, cut into runs of pixels between the same two cell centres.

    Attributes:
        cells: Cells of the coarse map along this axis.
        pair: [S] number of the cell centre after the run, 0..cells; the outermost runs have a centre on one side only.
        length_px: [S] pixels of the run, at least 1; they sum to the image's side.
        pixel: [P, S] pixels of the run; one shorter than the longest first repeats its first pixel.
        share: [P, S] weight of the cell `high` at each pixel, 0..1; not a number at a repetition: comparisons with
            what is made of it are false, so that it counts nowhere.
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


@dataclass(frozen=True)
class SquareGrid:
    """The squares of an image: square q is row run q // columns and column run q % columns.

    Pixels of squares are arrays [P, Q, n]: row and column within the square, then the square. The squares are last
    because a square is a few pixels wide and NumPy is fast along long rows only. For the same reason the maps of K
    masks are arrays [cells, cells, K].

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

    @cached_property
    def runs(self) -> tuple[Ints, Ints]:
        """Row run and column run of each square, [S] each."""
        row, column = np.divmod(np.arange(self.count), len(self.columns.pair))
        return row, column

    @cached_property
    def areas_px(self) -> Ints:
        """Pixels of each square, [S]."""
        return np.multiply.outer(self.rows.length_px, self.columns.length_px).ravel()

    @cached_property
    def _corner_cells(self) -> Ints:
        """Flat cell at each square's corners: upper left, upper right, lower left, lower right; [4, S]."""
        rows, columns = (np.stack([axis.low, axis.high]) for axis in (self.rows, self.columns))
        return (rows[:, None, :, None] * self.columns.cells + columns[None, :, None, :]).reshape(4, -1)

    def strip(self, rows: slice) -> tuple[SquareGrid, slice]:
        """Returns some row runs as a grid of their own, and the rows of cells that it lies on."""
        axis = self.rows
        cells = slice(int(axis.low[rows][0]), int(axis.high[rows][-1]) + 1)
        count, pair = cells.stop - cells.start, axis.pair[rows] - cells.start
        part = Axis(count, pair, axis.length_px[rows], axis.pixel[:, rows], axis.share[:, rows])
        return SquareGrid(part, self.columns), cells

    def at_corners(self, op: np.ufunc, maps_hwk: Maps) -> Maps:
        """Combines the four corners of each square by an operation like `minimum`, [S, K].

        Args:
            op: Binary operation; the order of the corners must not matter.
            maps_hwk: Maps, [cells, cells, K].
        """
        pairs = _at_pairs(op, _at_pairs(op, maps_hwk, self.rows, 0), self.columns, 1)
        return pairs.reshape(self.count, -1)

    def all_corners(self, maps_hwk: Array, squares: Ints) -> Array:
        """Returns the corners of n chosen squares in every map, [4, n, K].

        Args:
            maps_hwk: Maps, [cells, cells, K].
            squares: [n] the squares.
        """
        cells = maps_hwk.reshape(-1, maps_hwk.shape[2])
        return np.asarray(cells.take(self._corner_cells.take(squares, axis=1), axis=0))

    def corners(self, maps_hwk: Array, squares: Ints, maps: Ints) -> Array:
        """Returns the corners of n chosen (square, map) pairs, [4, n].

        Args:
            maps_hwk: Maps, [cells, cells, K].
            squares: [n] square of each pair.
            maps: [n] map of each pair.
        """
        places = self._corner_cells.take(squares, axis=1) * maps_hwk.shape[2] + maps
        return np.asarray(maps_hwk.ravel().take(places))


@dataclass(frozen=True)
class PairPixels:
    """Enlarged pixels of n chosen (square, map) pairs, computed some pixel rows at a time.

    Attributes:
        edges: [2, Q, n] values at the pixel columns on the upper and the lower edge of the square.
        share: [P, 1, n] weight of the lower edge at each pixel row.
    """

    edges: Array
    share: Array

    @classmethod
    def of(cls, corners: Array, grid: SquareGrid, squares: Ints) -> PairPixels:
        """Interpolates along the upper and the lower edge of squares.

        Args:
            corners: [4, n] as `SquareGrid.corners` gives them.
            grid: Geometry.
            squares: [n] square of each pair.
        """
        row, column = (run.take(squares) for run in grid.runs)
        share = grid.columns.share.take(column, axis=1)
        edges = corners[0::2, None] * (1 - share)
        edges += corners[1::2, None] * share
        return cls(edges, grid.rows.share.take(row, axis=1)[:, None])

    def rows(self, rows: slice) -> Array:
        """Returns some pixel rows, [rows, Q, n]; repeated pixels are not numbers.

        In float32 and in this order: left (1 - x) + right x on both edges, then upper (1 - y) + lower y.
        """
        share = self.share[rows]
        value: Array = self.edges[0] * (1 - share)
        value += self.edges[1] * share
        return value


@lru_cache(maxsize=8)
def square_grid(box: Letterbox, cells_hw: tuple[int, int], stride_px: int) -> SquareGrid:
    """Returns the squares of an image under a map of body cells; the letterbox's padding has none.

    Kept for the next pictures of the same size: nobody may write into it.

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
    offset = np.arange(length.max())[:, None] - (length.max() - length)
    pixel = first + np.maximum(offset, 0)
    share = np.clip(place, 0, cells - 1)[pixel] - np.maximum(pair - 1, 0)
    return Axis(cells, pair, length, pixel, np.where(offset < 0, np.nan, share).astype(np.float32))


def _at_pairs(op: np.ufunc, maps: Maps, axis: Axis, dimension: int) -> Maps:
    """Combines the two cells of every run along a dimension; at the border that is one cell twice."""
    shape = list(maps.shape)
    shape[dimension] += 1
    result = np.empty(shape, maps.dtype)
    cells, pairs = maps.swapaxes(0, dimension), result.swapaxes(0, dimension)
    op(cells[1:], cells[:-1], out=pairs[1:-1])
    pairs[0], pairs[-1] = cells[0], cells[-1]
    first, last = int(axis.pair[0]), int(axis.pair[-1])
    # a view where it can be: only an image that is smaller than the map skips a pair
    chosen = slice(first, last + 1) if last + 1 - first == len(axis.pair) else axis.pair
    return pairs[chosen].swapaxes(0, dimension)
