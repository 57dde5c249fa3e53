"""Which mask shows at each pixel, kept by square, and what is read from it: areas, boxes, id map."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.decoders.square_grid import SquareGrid

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Labels = NDArray[np.unsignedinteger[Any]]

VOID, MIXED = 0, -1


@dataclass(frozen=True)
class Parts:
    """What is known of some masks in some squares whose pixels were computed, m such pairs.

    Attributes:
        mask: [m] the mask.
        square: [m] the square.
        own_px: [m] pixels that the mask would have alone.
        visible_px: [m] pixels at which it shows.
        in_row: [P, m] whether it shows in a pixel row of the square.
        in_column: [Q, m] whether it shows in a pixel column.
    """

    mask: Ints
    square: Ints
    own_px: Ints
    visible_px: Ints
    in_row: Bools
    in_column: Bools

    def __getitem__(self, chosen: Bools) -> Parts:
        """Returns the parts that a mask [m] marks."""
        return Parts(*(getattr(self, f.name)[..., chosen] for f in fields(self)))

    def __add__(self, other: Parts) -> Parts:
        """Returns the parts of both."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Parts(*(np.concatenate(pair, axis=-1) for pair in pairs))


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
        solid = np.bincount(np.maximum(self.solid, VOID), weights=grid.areas_px, minlength=count + 1)[1:]
        mixed = np.bincount(self.parts.mask, weights=self.parts.visible_px, minlength=count)
        return (solid + mixed).astype(np.int64)

    def id_map(self, number: NDArray[np.int32], grid: SquareGrid) -> NDArray[np.int32]:
        """Returns the image, [H, W], in which label i is written as `number[i]`; `number[VOID]` is 0."""
        row, column = (run.take(self.mixed) for run in grid.runs)
        squares = number.take(np.maximum(self.solid, VOID)).reshape(len(grid.rows.pair), -1)
        image = squares.repeat(grid.columns.length_px, axis=1).repeat(grid.rows.length_px, axis=0)
        flat, x_px = image.reshape(-1), grid.columns.pixel.take(column, axis=1)
        for y_px, labels in zip(grid.rows.pixel.take(row, axis=1), self.pixels, strict=True):
            # a repeated pixel of a short run is written first as void and then as it is
            flat[y_px * image.shape[1] + x_px] = number.take(labels)
        return image

    def boxes_xywh_px(self, number: NDArray[np.int32], count: int, grid: SquareGrid) -> Ints:
        """Returns the tight box of each value 1..count of `id_map`, [count, 4]; every one of them must show."""
        solid, values = number.take(np.maximum(self.solid, VOID)), number.take(self.parts.mask + 1)
        values *= self.parts.visible_px > 0
        spans_px = []
        for axis, run, hit in zip(
            (grid.columns, grid.rows), grid.runs[::-1], (self.parts.in_column, self.parts.in_row), strict=True
        ):
            at = run.take(self.parts.square)
            in_run = np.zeros((count + 1, len(axis.pair)), bool)
            in_run[solid, run] = True
            in_pixel = in_run.repeat(axis.length_px, axis=1)
            in_run[values, at] = True
            first, length = _span(in_run)
            # only the outermost runs need the pixels of their parts
            outer = np.flatnonzero((at == first.take(values)) | (at == (first + length - 1).take(values)))
            offset, part = np.nonzero(hit[:, outer])
            in_pixel[values[outer].take(part), axis.pixel[offset, at[outer].take(part)]] = True
            spans_px.append(_span(in_pixel[1:]))
        (left, width), (top, height) = spans_px
        return np.stack([left, top, width, height], axis=1)


def _span(present: Bools) -> tuple[Ints, Ints]:
    """First marked place of each row and the length up to the last one."""
    first = present.argmax(axis=1)
    return first, present.shape[1] - present[:, ::-1].argmax(axis=1) - first
