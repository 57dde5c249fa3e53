"""The panoptic merge of bilinear masks, decided square by square; pixels are computed only where masks contend.

What is merged: each pixel goes to the mask with the largest weight * probability (the first of equal ones), unless
that probability is too faint; masks that are too small or too much covered are rejected.

Between four cell centres a mask stays within its least and greatest corner. A square whose best least corner beats
every other mask's greatest corner is decided for all its pixels at once; the others are refined with the masks that
can still win there (`square_rivals`). The bounds are compared with a margin wider than the rounding of float32, and
the pixels are computed by the same float32 expressions as without bounds, so the result is the same pixel for pixel.
Against an interpolation that adds its two products in another order or in one instruction, as a matrix product does,
exact ties may fall differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.decoders.square_grid import PairPixels, SquareGrid
from edge_seg.decoders.square_rivals import Corners, Rivals, unbeaten
from edge_seg.decoders.square_shown import MIXED, VOID, Labels, Parts, Shown
from edge_seg.errors import InputError

Array = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAX_MASKS = 16_000  # twice as many codes fit into 16 bits
_LOGIT_LIMIT = np.float32(60)  # exp stays finite; beyond it a probability does not change any more
_LEAST_PROBABILITY = 1e-26  # above the probability of the limit
_LEAST_VALUE = np.float32(1e-37)  # below this float32 is denormal and a relative margin means nothing
_LEAST_WEIGHT = np.float32(1e-10)  # below this a faint value can be denormal
_LEAST_LOGIT = np.float32(1e-30)  # a share of a smaller one can vanish
_FEW, _WORTHWHILE = 6, 1000  # rivals of a square, and pairs in all, up to which comparing costs more than pixels
_BLOCK_PX = 1 << 16


@dataclass(frozen=True)
class MergeRules:
    """Options of the contract that steer the merge.

    Attributes:
        mask_threshold: Probability that the best mask of a pixel must exceed; otherwise the pixel is void.
        overlap_threshold: Share of its own pixels (logit > 0) that a mask must exceed with the visible ones.
        min_area_share: Share of the image that they must exceed.
        reassign_rejected: Whether the pixels of a rejected mask go to the next best one.
    """

    mask_threshold: float
    overlap_threshold: float
    min_area_share: float
    reassign_rejected: bool


@dataclass(frozen=True)
class Merged:
    """Result of the merge.

    Attributes:
        shown: Which mask shows where, rejected ones included.
        keep: [K] masks that are segments.
        visible_px: [K] pixels at which each shows.
    """

    shown: Shown
    keep: Bools
    visible_px: Ints


def merge(logits_khw: Array, weight: Array, grid: SquareGrid, rules: MergeRules) -> Merged:
    """Merges masks at the size of the image.

    Args:
        logits_khw: Masks at body resolution, [K, cells, cells]; not copied where the masks are last in memory.
        weight: [K] factor of each mask's probability.
        grid: The squares of the image.
        rules: Options.

    Raises:
        InputError: There are more masks than labels.
    """
    if len(weight) > MAX_MASKS:
        raise InputError("Too many masks to merge.", expected=f"at most {MAX_MASKS}", got=str(len(weight)))
    contest = _Contest(np.ascontiguousarray(np.moveaxis(logits_khw, 0, -1)), weight, grid, rules.mask_threshold)
    area_min_px = rules.min_area_share * int(grid.areas_px.sum())
    shown = contest.shown(np.arange(grid.count))
    own = _OwnAreas(contest, shown.parts)
    while True:
        visible_px = shown.visible_px(len(weight), grid)
        keep = contest.alive & (visible_px > area_min_px)
        keep &= own.shows_enough(visible_px, keep, rules.overlap_threshold)
        if not rules.reassign_rejected or (keep == contest.alive).all():
            return Merged(shown, keep, visible_px)
        rejected = np.flatnonzero(contest.alive & ~keep)
        rejected = rejected[np.argsort(weight[rejected], kind="stable")]
        # The worst mask goes first: its pixels may save another. As far as that cannot be, they go together.
        most_px = np.zeros_like(visible_px)
        most_px[rejected] = np.cumsum(visible_px[rejected])
        saved = (most_px > area_min_px) & own.may_show_enough(most_px, rules.overlap_threshold)
        together = np.logical_and.accumulate(~saved[rejected[1:]])
        freed = contest.give_up(rejected[: 1 + np.count_nonzero(together)])
        shown = shown.replaced(contest.shown(freed), freed)


class _Contest:
    """Bounds of weight * probability of each mask in each square, and the pixels where they do not decide."""

    def __init__(self, logits_hwk: Array, weight: Array, grid: SquareGrid, mask_threshold: float) -> None:
        self.logits_hwk, self.weight, self.grid = logits_hwk, weight, grid
        self.mask_threshold = mask_threshold
        self.alive = np.ones(len(weight), bool)
        self.able = np.zeros((grid.count, len(weight)), bool)
        self.margin = _margin(logits_hwk)
        self.value_hwk = np.empty_like(logits_hwk)
        for rows in _blocks(len(logits_hwk), logits_hwk[0].size):
            self.value_hwk[rows] = _value(weight, -logits_hwk[rows])

    def exceeds(self, level: Array) -> Array:
        """Returns what a bound must exceed so that every pixel it stands for exceeds `level`."""
        return np.asarray(level * (1 + self.margin) + _LEAST_VALUE, np.float32)

    def reaches(self, level: Array) -> Array:
        """Returns what a bound must reach so that a pixel it stands for may exceed `level`; never negative."""
        return np.asarray(np.maximum(level * (1 - self.margin) - _LEAST_VALUE, 0))

    def give_up(self, masks: Ints) -> Ints:
        """Takes masks out of the contest and returns the squares in which one of them could have won."""
        self.value_hwk[:, :, masks] = -1
        self.alive[masks] = False
        return np.flatnonzero(self.able[:, masks].any(axis=1))

    def shown(self, squares: Ints) -> Shown:
        """Decides some squares; `solid` is in their order."""
        rivals = self._rivals(squares)
        may_show = np.ones(len(rivals.mask), bool)
        if self.mask_threshold > 0:
            may_show = rivals.upper >= self.reaches(self.weight * np.float32(self.mask_threshold)).take(rivals.mask)
        sure = rivals.lower > self.exceeds(self.weight * self._sure_probability).take(rivals.mask)
        alone = rivals[sure & (rivals.counts(len(squares)).take(rivals.place) == 1)]
        solid = np.full(len(squares), VOID)
        solid[rivals.place[may_show]] = MIXED
        solid[alone.place] = alone.mask + 1
        return self._refined(squares, solid, rivals[solid.take(rivals.place) == MIXED])

    @property
    def _sure_probability(self) -> np.float32:
        """A probability above this is above the threshold; the limit of the logits hides what is smaller."""
        return np.float32(max(self.mask_threshold, _LEAST_PROBABILITY) if self.mask_threshold > 0 else 0)

    def _rivals(self, squares: Ints) -> Rivals:
        """Finds the masks that can win in each square, and notes them in `able`."""
        if len(squares) == self.grid.count:
            rivals = self._rivals_everywhere()
        else:
            corners = self.grid.all_corners(self.value_hwk, squares)
            rivals = self._within_bounds(corners.min(axis=0), corners.max(axis=0))
        crowded = rivals.counts(len(squares)).take(rivals.place) > _FEW
        if np.count_nonzero(crowded) > _WORTHWHILE and self.margin < 1 and self.weight.min() > _LEAST_WEIGHT:
            rivals = rivals[~crowded | self._unbeaten(rivals, squares, crowded)]
        self.able[squares] = False
        self.able[squares.take(rivals.place), rivals.mask] = True
        return rivals

    def _rivals_everywhere(self) -> Rivals:
        """Goes through the squares in strips, so that what is made of them stays in the cache."""
        found, start = [], 0
        for rows in _blocks(len(self.grid.rows.pair), self.value_hwk[0].size):
            strip, cells = self.grid.strip(rows)
            bounds = (strip.at_corners(op, self.value_hwk[cells]) for op in (np.minimum, np.maximum))
            found.append(self._within_bounds(*bounds).moved(start))
            start += strip.count
        return Rivals.joined(found)

    def _within_bounds(self, lower: Array, upper: Array) -> Rivals:
        """Lists the masks whose greatest corner [n, K] is not below another one's least corner."""
        flat = np.flatnonzero(upper >= self._floor(lower))
        return Rivals(*np.divmod(flat, lower.shape[1]), lower.ravel().take(flat), upper.ravel().take(flat))

    def _unbeaten(self, rivals: Rivals, squares: Ints, chosen: Bools) -> Bools:
        """Marks the chosen rivals that no other one of their square is known to beat at every pixel."""
        pairs = rivals[chosen]
        at = squares.take(pairs.place)
        corners = Corners(
            self.grid.corners(self.logits_hwk, at, pairs.mask),
            self.grid.corners(self.value_hwk, at, pairs.mask),
            self.weight.take(pairs.mask),
        )
        result = np.zeros_like(chosen)
        result[np.flatnonzero(chosen)[unbeaten(pairs.place, corners, self.margin)]] = True
        return result

    def _floor(self, lower: Array) -> Array:
        """What the greatest corner of a mask must reach to matter in each square, [n, 1].

        Below the threshold times the least weight no mask is bright: one that wins there makes void, like no mask.
        """
        least_weight = self.weight[self.alive].min(initial=np.inf)
        bright = least_weight * np.float32(self.mask_threshold) if self.mask_threshold > 0 else np.float32(0)
        return self.reaches(np.maximum(lower.max(axis=1, keepdims=True), bright))

    def _refined(self, squares: Ints, solid: Ints, rivals: Rivals) -> Shown:
        """Computes the pixels of the squares that are MIXED, whose rivals are given."""
        pairs, order = _ranked(rivals, np.flatnonzero(solid == MIXED))
        mixed, square = squares.take(order), squares.take(pairs.place)
        # rounding is symmetric: these are exactly minus the pixels
        doubt_of = PairPixels.of(-self.grid.corners(self.logits_hwk, square, pairs.mask), self.grid, square)
        # labels and codes are as small as they can be: NumPy compares and multiplies bytes many at a time
        label = (pairs.mask + 1).astype(np.min_scalar_type(2 * len(self.weight) + 1))
        weight, (height, width) = self.weight.take(pairs.mask), self.grid.square_hw_px
        pixels = np.empty((height, width, len(mixed)), label.dtype)
        own_px, visible_px = np.zeros((2, len(label)), np.int64)
        in_row, in_column = np.zeros((height, len(label)), bool), np.zeros((width, len(label)), bool)
        for rows in _blocks(height, width * len(label)):
            doubt = doubt_of.rows(rows)
            own_px += _count_px(doubt < 0)
            codes = (doubt < -logit(self.mask_threshold)).view(np.uint8) + 2 * label
            pixels[rows] = _best(_value(weight, doubt), codes, pairs.ranks)
            hit = np.empty(doubt.shape, bool)
            for rank in pairs.ranks:
                np.equal(pixels[rows, :, : rank.stop - rank.start], label[rank], out=hit[:, :, rank])
            visible_px += _count_px(hit)
            in_row[rows] = hit.any(axis=1)
            in_column |= hit.any(axis=0)
        return Shown(solid, mixed, pixels, Parts(pairs.mask, square, own_px, visible_px, in_row, in_column))


@dataclass(frozen=True)
class _RankedPairs:
    """(mask, square) pairs by rank: first the first rival of each square, then the second of those that have one.

    The squares are sorted by falling number of rivals, so the pairs `ranks[r]` belong to the first squares, in order.
    Masks rise with the rank.
    """

    mask: Ints
    place: Ints
    ranks: tuple[slice, ...]


def _ranked(rivals: Rivals, places: Ints) -> tuple[_RankedPairs, Ints]:
    """Sorts the rivals of some squares by rank; returns them and the order of the squares."""
    count = rivals.counts(int(places.max(initial=-1)) + 1)
    order = places[np.argsort(-count[places], kind="stable")]
    position = np.empty_like(count)
    position[order] = np.arange(len(order))
    rank = np.arange(len(rivals.place)) - (np.cumsum(count) - count).take(rivals.place)
    by_rank = rivals[np.argsort(rank * len(order) + position.take(rivals.place))]
    ends = np.cumsum(np.bincount(rank, minlength=1)).tolist()
    ranks = tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))
    return _RankedPairs(by_rank.mask, by_rank.place, ranks), order


def _best(value: Array, codes: Labels, ranks: tuple[slice, ...]) -> Labels:
    """Returns the labels of the best masks of some pixels, VOID where the best is faint; overwrites its arguments.

    The code of label i is 2 i, and 1 more where it is bright. Codes rise with the rank and a mask must exceed all
    before it, so the last winner has the greatest code: a maximum replaces masked copies, which are fifty times slower.
    """
    best, code = value[:, :, ranks[0]], codes[:, :, ranks[0]]
    code *= (best > 0).view(np.uint8)
    for pairs in ranks[1:]:
        some = slice(pairs.stop - pairs.start)
        challenger = codes[:, :, pairs]
        challenger *= (value[:, :, pairs] > best[:, :, some]).view(np.uint8)
        np.maximum(code[:, :, some], challenger, out=code[:, :, some])
        np.maximum(best[:, :, some], value[:, :, pairs], out=best[:, :, some])
    return (code >> 1) * (code & 1)


class _OwnAreas:
    """How many pixels each mask would have alone (logit > 0): bounds first, exact numbers where they matter.

    Args:
        contest: The masks.
        parts: Pairs whose pixels have been counted.
    """

    def __init__(self, contest: _Contest, parts: Parts) -> None:
        self._contest, grid = contest, contest.grid
        inside = grid.at_corners(np.logical_and, contest.logits_hwk > _LEAST_LOGIT)
        edge = grid.at_corners(np.logical_or, contest.logits_hwk > 0) & ~inside
        own_px = parts.own_px * edge[parts.square, parts.mask]
        edge[parts.square, parts.mask] = False
        self._square, self._mask = np.divmod(np.flatnonzero(edge), edge.shape[1])  # what is not counted yet
        # float32 is exact along one column of squares
        by_row = inside.reshape(len(grid.rows.pair), -1).astype(np.float32)
        by_column = (grid.rows.length_px.astype(np.float32) @ by_row).reshape(-1, inside.shape[1])
        self._least_px = grid.columns.length_px @ by_column.astype(np.int64) + self._sum_px(parts.mask, own_px)
        self._most_px = self._least_px + self._sum_px(self._mask, grid.areas_px.take(self._square))

    def may_show_enough(self, visible_px: Ints, share: float) -> Bools:
        """Whether masks perhaps own a pixel and show at more than a share of their own ones, [K]."""
        return (self._most_px > 0) & (visible_px > share * self._least_px)

    def shows_enough(self, visible_px: Ints, wanted: Bools, share: float) -> Bools:
        """Whether masks own a pixel and show at more than a share of their own ones; [K], right where wanted."""
        sure = (self._least_px > 0) & (visible_px > share * self._most_px)
        self._settle(wanted & self.may_show_enough(visible_px, share) & ~sure)
        return (self._least_px > 0) & (visible_px > share * self._most_px)

    def _settle(self, masks: Bools) -> None:
        """Counts the pixels of some masks where they are not counted yet."""
        contest, grid, chosen = self._contest, self._contest.grid, masks.take(self._mask)
        square, mask = self._square[chosen], self._mask[chosen]
        self._square, self._mask = self._square[~chosen], self._mask[~chosen]
        logits = PairPixels.of(grid.corners(contest.logits_hwk, square, mask), grid, square)
        own_px = np.zeros(len(square), np.int64)
        for rows in _blocks(grid.square_hw_px[0], grid.square_hw_px[1] * len(square)):
            own_px += _count_px(logits.rows(rows) > 0)
        self._least_px += self._sum_px(mask, own_px)
        self._most_px[masks] = self._least_px[masks]

    def _sum_px(self, mask: Ints, area_px: Ints) -> Ints:
        """Adds up areas by mask, [K]."""
        return np.bincount(mask, weights=area_px, minlength=len(self._contest.weight)).astype(np.int64)


def _blocks(count: int, size_px: int) -> list[slice]:
    """Returns slices of 0..count that hold about `_BLOCK_PX` pixels each, where one item has `size_px`."""
    step = max(1, _BLOCK_PX // max(1, size_px))
    return [slice(start, start + step) for start in range(0, count, step)]


def _count_px(marked: Bools) -> NDArray[np.unsignedinteger[Any]]:
    """Counts the marked pixels of each square, [n] from [rows, Q, n]."""
    flat = marked.reshape(marked.shape[0] * marked.shape[1], -1)
    # the smallest integer that holds the count sums several times faster than the usual one
    return np.asarray(np.add.reduce(flat.view(np.uint8), axis=0, dtype=np.min_scalar_type(len(flat))))


def _value(weight: Array, doubt: Array) -> Array:
    """Turns minus a logit into weight * probability in its place, weight / (1 + exp(doubt))."""
    value = np.minimum(doubt, _LOGIT_LIMIT, out=doubt)
    np.exp(value, out=value)
    value += 1
    return np.divide(weight, value, out=value)


def _margin(logits: Array) -> np.float32:
    """Relative margin of a comparison of bounds: more than rounding can change a value.

    Interpolation errs by less than six half units in the last place of the greatest logit, and an error d of a logit
    changes its probability by less than a factor exp(d); exp, sum, quotient and weight add a few units of their own.
    """
    greatest = max(float(logits.max(initial=0)), -float(logits.min(initial=0)))
    return np.float32(min(1.0, 2e-5 + 2e-6 * greatest))


def logit(p: float) -> np.float32:
    """Returns the logit of a probability, infinite at 0 and 1."""
    if p <= 0:
        return np.float32(-np.inf)
    return np.float32(np.log(p / (1 - p))) if p < 1 else np.float32(np.inf)
