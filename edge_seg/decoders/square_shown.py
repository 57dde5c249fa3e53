"""Which mask shows at each pixel, kept by square, and what is read from it: areas, boxes, id map."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from edge_seg.decoders.square_grid import Axis, SquareGrid

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Labels = NDArray[np.int16]

VOID, MIXED = 0, -1


@dataclass(frozen=True)
class Parts:
    """Pixels of one mask in one square, m such parts; all arrays [m].

    Attributes:
        label: Mask + 1, or VOID.
        square: The square.
        area_px: Pixels; a part of none is not there.
        top_px: First row of the image that has a pixel of the part.
        bottom_px: Last such row.
        left_px: First such column.
        right_px: Last such column.
    """

    label: Ints
    square: Ints
    area_px: Ints
    top_px: Ints
    bottom_px: Ints
    left_px: Ints
    right_px: Ints

    @classmethod
    def whole(cls, label: Ints, grid: SquareGrid) -> Parts:
        """Returns every square of a grid as one part.

        Args:
            label: [S] its label; VOID where it is no part.
            grid: Geometry.
        """
        square = np.arange(grid.count)
        row, column = grid.runs(square)
        y, x = grid.rows.pixel, grid.columns.pixel
        return cls(label, square, grid.areas_px(), y[0, row], y[-1, row], x[0, column], x[-1, column])

    def __getitem__(self, chosen: Bools) -> Parts:
        """Returns the parts that a mask [m] marks."""
        return Parts(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def __add__(self, other: Parts) -> Parts:
        """Returns the parts of both."""
        return Parts(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))


@dataclass(frozen=True)
class Shown:
    """What shows in some squares: a label (mask + 1, or VOID) for each square or for each of its pixels.

    Attributes:
        solid: [S] label of each square; MIXED where its pixels differ.
        mixed: [n] the mixed squares, in the order of `pixels`.
        pixels: [P, Q, n] labels of their pixels.
        parts: What the mixed squares consist of, void left out.
    """

    solid: Ints
    mixed: Ints
    pixels: Labels
    parts: Parts

    def replaced(self, fresh: Shown, squares: Ints) -> Shown:
        """Returns this with `squares` as in `fresh`, which holds nothing else."""
        solid = self.solid.copy()
        solid[squares] = fresh.solid
        stays = np.ones(len(solid), bool)
        stays[squares] = False
        return Shown(
            solid,
            np.concatenate([self.mixed[stays[self.mixed]], fresh.mixed]),
            np.concatenate([self.pixels[:, :, stays[self.mixed]], fresh.pixels], axis=2),
            self.parts[stays[self.parts.square]] + fresh.parts,
        )

    def visible_px(self, count: int, grid: SquareGrid) -> Ints:
        """Returns at how many pixels each of `count` masks shows, [count]."""
        solid = np.bincount(np.maximum(self.solid, VOID), weights=grid.areas_px(), minlength=count + 1)
        mixed = np.bincount(self.parts.label, weights=self.parts.area_px, minlength=count + 1)
        return (solid + mixed).astype(np.int64)[1:]

    def id_map(self, number: NDArray[np.int32], grid: SquareGrid) -> NDArray[np.int32]:
        """Returns the image, [H, W], in which label i is written as `number[i]`; `number[VOID]` is 0."""
        row, column = grid.runs(self.mixed)
        squares = number[np.maximum(self.solid, VOID)].reshape(len(grid.rows.pair), -1)
        image = squares.repeat(grid.columns.length_px, axis=1).repeat(grid.rows.length_px, axis=0)
        x_px = grid.columns.pixel[:, column]
        for y_px, labels in zip(grid.rows.pixel[:, row], self.pixels, strict=True):
            # a repeated pixel of a short run is written twice, with the same value
            image.ravel()[y_px * image.shape[1] + x_px] = number.take(labels)
        return image

    def boxes_xywh_px(self, number: NDArray[np.int32], count: int, grid: SquareGrid) -> Ints:
        """Returns the tight box of each value 1..count of `id_map`, [count, 4]; every one of them must show."""
        parts = Parts.whole(np.maximum(self.solid, VOID), grid) + self.parts
        value = number[parts.label]
        left, width = _spans(value, (parts.left_px, parts.right_px), grid.columns, count)
        top, height = _spans(value, (parts.top_px, parts.bottom_px), grid.rows, count)
        return np.stack([left, top, width, height], axis=1)


def _spans(value: NDArray[np.int32], ends_px: tuple[Ints, Ints], axis: Axis, count: int) -> tuple[Ints, Ints]:
    """First pixel and length of what each value 1..count covers along an axis."""
    side_px = int(axis.length_px.sum())
    present = np.zeros((count + 1, side_px), bool)
    for end_px in ends_px:
        present[value, end_px] = True
    first = present[1:].argmax(axis=1)
    return first, side_px - present[1:, ::-1].argmax(axis=1) - first
