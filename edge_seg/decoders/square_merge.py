"""The panoptic merge of bilinear masks, decided square by square; pixels are computed only where masks contend.

What is merged: each pixel goes to the mask with the largest weight * probability (the first of equal ones), unless
that probability is too faint; masks that are too small or too much covered are rejected.

Between four cell centres a mask stays within its least and greatest corner. A square whose best least corner beats
every other mask's greatest corner is decided for all its pixels at once; the others are refined with the masks that
can still win there. The bounds are compared with a margin wider than the rounding of float32, and the pixels are
computed by the same float32 expressions as without bounds, so the result is the same pixel for pixel. Against an
interpolation that adds its two products in another order or in one instruction, as a matrix product does, exact ties
may fall differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.decoders.square_grid import PairPixels, SquareGrid
from edge_seg.decoders.square_shown import MIXED, VOID, Labels, Parts, Shown
from edge_seg.errors import InputError

Array = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

MAX_MASKS = 16_000  # twice as many codes fit into 16 bits
_LOGIT_LIMIT = np.float32(60)  # exp stays finite; beyond it a probability does not change any more
_LEAST_PROBABILITY = 1e-26  # above the probability of the limit
_LEAST_VALUE = np.float32(1e-37)  # below this float32 is denormal and a relative margin means nothing
_BLOCK_PX = 1 << 16  # pixels computed at a time: a few arrays of them stay in the second-level cache


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
        logits_khw: Masks at body resolution, [K, cells, cells].
        weight: [K] factor of each mask's probability.
        grid: The squares of the image.
        rules: Options.

    Raises:
        InputError: There are more masks than labels.
    """
    if len(weight) > MAX_MASKS:
        raise InputError("Too many masks to merge.", expected=f"at most {MAX_MASKS}", got=str(len(weight)))
    contest = _Contest(logits_khw, weight, grid, rules.mask_threshold)
    own = _OwnAreas(contest)
    area_min_px = rules.min_area_share * int(grid.areas_px().sum())
    shown = contest.shown(np.arange(grid.count))
    while True:
        visible_px = shown.visible_px(len(weight), grid)
        keep = contest.alive & (visible_px > area_min_px)
        keep &= own.shows_enough(visible_px, keep, rules.overlap_threshold)
        if not rules.reassign_rejected or (keep == contest.alive).all():
            return Merged(shown, keep, visible_px)
        # give up the worst rejected mask only: its pixels may save another
        rejected = np.flatnonzero(contest.alive & ~keep)
        worst = int(rejected[np.argmin(weight[rejected])])
        freed = contest.give_up(worst)
        shown = shown.replaced(contest.shown(freed), freed)


class _Contest:
    """Bounds of weight * probability of each mask in each square, and the pixels where they do not decide."""

    def __init__(self, logits_khw: Array, weight: Array, grid: SquareGrid, mask_threshold: float) -> None:
        self.logits_khw, self.weight, self.grid = logits_khw, weight, grid
        self.mask_threshold = mask_threshold
        self.alive = np.ones(len(weight), bool)
        self.margin = _margin(logits_khw)
        self.lower = np.empty((len(weight), grid.count), np.float32)
        self.upper = np.empty_like(self.lower)
        for masks in _blocks(len(weight), logits_khw[0].size):
            value = _value(weight[masks, None, None], -logits_khw[masks])
            self.lower[masks], self.upper[masks] = grid.corner_range(value)

    def exceeds(self, level: Array | np.float32) -> Array:
        """Returns what a bound must exceed so that every pixel it stands for exceeds `level`."""
        return np.asarray(level * (1 + self.margin) + _LEAST_VALUE, np.float32)

    def reaches(self, level: Array | np.float32) -> Array:
        """Returns what a bound must reach so that a pixel it stands for may exceed `level`; never negative."""
        return np.maximum(level * (1 - self.margin) - _LEAST_VALUE, 0)

    def shown(self, squares: Ints) -> Shown:
        """Decides some squares; `solid` is in their order."""
        every = len(squares) == self.grid.count
        lower, upper = (self.lower, self.upper) if every else (self.lower[:, squares], self.upper[:, squares])
        able = upper >= self._floor(lower)
        # number and index sum of the masks that can win: exact in float32 where the number is 1
        count, index_sum = np.stack([np.ones(len(able)), np.arange(len(able))]).astype(np.float32) @ able
        alone = np.where(count == 1, index_sum, 0).astype(np.int64)
        bright = lower[alone, np.arange(len(squares))] > self.exceeds(self.weight * self._sure_probability)[alone]
        solid = np.where((count == 1) & bright, alone + 1, MIXED)
        may_show = able
        if self.mask_threshold > 0:
            may_show = able & (upper >= self.reaches(self.weight * np.float32(self.mask_threshold))[:, None])
        solid[~may_show.any(axis=0)] = VOID
        unsure = np.flatnonzero(solid == MIXED)
        order = unsure[np.argsort(-count[unsure], kind="stable")]
        return Shown(solid, squares[order], *self._refined(squares[order], able[:, order]))

    @property
    def _sure_probability(self) -> np.float32:
        """A probability above this is above the threshold; the limit of the logits hides what is smaller."""
        return np.float32(max(self.mask_threshold, _LEAST_PROBABILITY) if self.mask_threshold > 0 else 0)

    def give_up(self, mask: int) -> Ints:
        """Takes a mask out of the contest and returns the squares in which it could have won."""
        able = self.upper[mask] >= self._floor(self.lower)
        self.lower[mask] = self.upper[mask] = -1
        self.alive[mask] = False
        return np.flatnonzero(able)

    def _floor(self, lower: Array) -> Array:
        """What the greatest corner of a mask must reach to matter in each square, [n].

        Below the threshold times the least weight no mask is bright: one that wins there makes void, like no mask.
        """
        least_weight = self.weight[self.alive].min(initial=np.inf)
        bright = least_weight * np.float32(self.mask_threshold) if self.mask_threshold > 0 else np.float32(0)
        return self.reaches(np.maximum(lower.max(axis=0), bright))

    def _refined(self, squares: Ints, able: Bools) -> tuple[Labels, Parts]:
        """Computes the pixels of squares that are sorted by falling number of able masks [K, n]."""
        pairs = _ranked(squares, able)
        doubt_of = -PairPixels.of(self.logits_khw, self.grid, pairs.mask, pairs.square)
        weight, code = self.weight[pairs.mask], (2 * pairs.mask + 2).astype(np.int16)
        labels = np.empty((*self.grid.square_hw_px, len(squares)), np.int16)
        for rows in _blocks(len(labels), labels.shape[1] * len(weight)):
            doubt = doubt_of.rows(rows)
            codes = (doubt < -logit(self.mask_threshold)) + code
            labels[rows] = _best(_value(weight, doubt), codes, pairs.ranks)
        return labels, _parts(labels, squares, pairs, self.grid)


@dataclass(frozen=True)
class _RankedPairs:
    """(mask, square) pairs by rank: first the first able mask of each square, then the second of those that have one.

    The squares are sorted by falling number of able masks, so the pairs `ranks[r]` belong to the first squares, in
    order. Masks rise with the rank.
    """

    mask: Ints
    square: Ints
    ranks: tuple[slice, ...]


def _ranked(squares: Ints, able: Bools) -> _RankedPairs:
    position, mask = np.divmod(np.flatnonzero(able.T), max(len(able), 1))
    count = np.bincount(position, minlength=len(squares))
    rank = np.arange(len(mask)) - (np.cumsum(count) - count)[position]
    order = np.argsort(rank, kind="stable")
    ends = np.cumsum(np.bincount(rank, minlength=1)).tolist()
    ranks = tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))
    return _RankedPairs(mask[order], squares[position[order]], ranks)


def _best(value: Array, codes: Labels, ranks: tuple[slice, ...]) -> Labels:
    """Returns the labels of the best masks of some pixels, VOID where the best is faint; overwrites its arguments.

    The code of mask k is 2 k + 2, and 1 more where it is bright. Codes rise with the rank and a mask must exceed all
    before it, so the last winner has the greatest code: a maximum replaces masked copies, which are fifty times slower.
    """
    best, code = value[:, :, ranks[0]], codes[:, :, ranks[0]]
    code *= best > 0
    for pairs in ranks[1:]:
        some = slice(pairs.stop - pairs.start)
        challenger = codes[:, :, pairs]
        challenger *= value[:, :, pairs] > best[:, :, some]
        np.maximum(code[:, :, some], challenger, out=code[:, :, some])
        np.maximum(best[:, :, some], value[:, :, pairs], out=best[:, :, some])
    return (code >> 1) * (code & 1)


def _parts(labels: Labels, squares: Ints, pairs: _RankedPairs, grid: SquareGrid) -> Parts:
    """Measures what each mask shows of each mixed square."""
    height, width, _ = labels.shape
    row_valid, column_valid = grid.valid(squares)
    once = labels * row_valid
    once *= column_valid
    label = (pairs.mask + 1).astype(np.int16)
    area_px = np.zeros(len(label), np.int64)
    in_row, in_column = np.zeros((height, len(label)), bool), np.zeros((width, len(label)), bool)
    for rows in _blocks(height, width * len(label)):
        hit = np.empty((len(in_row[rows]), width, len(label)), bool)
        for rank in pairs.ranks:
            np.equal(once[rows, :, : rank.stop - rank.start], label[rank], out=hit[:, :, rank])
        in_row[rows] = hit.any(axis=1)
        in_column |= hit.any(axis=0)
        area_px += _count_px(hit)
    row, column = grid.runs(pairs.square)
    ends = (*_ends(in_row, grid.rows.pixel[:, row]), *_ends(in_column, grid.columns.pixel[:, column]))
    return Parts(pairs.mask + 1, pairs.square, area_px, *ends)[area_px > 0]


def _ends(hit: Bools, pixel: Ints) -> tuple[Ints, Ints]:
    """First and last marked pixel of each column of [P, m], found by products and maxima because they are fast."""
    offset, pairs = np.arange(len(hit), dtype=np.int32)[:, None], np.arange(hit.shape[1])
    last = (hit * offset).max(axis=0)
    first = len(hit) - 1 - (hit * offset[::-1]).max(axis=0)
    return pixel[first, pairs], pixel[last, pairs]


class _OwnAreas:
    """How many pixels each mask would have alone (logit > 0): bounds first, exact numbers where they matter."""

    def __init__(self, contest: _Contest) -> None:
        half = contest.weight * np.float32(0.5)
        inside = contest.lower > contest.exceeds(half)[:, None]
        touched = contest.upper >= contest.reaches(half)[:, None]
        self._contest = contest
        self._edge = touched & ~inside
        self._least_px, self._most_px = self._areas_px(inside), self._areas_px(touched)

    def _areas_px(self, squares: Bools) -> Ints:
        """Pixels of the marked squares [K, S] of each mask; float32 is exact along one row of squares."""
        rows, columns = self._contest.grid.rows, self._contest.grid.columns
        by_row = squares.reshape(-1, len(columns.pair)) @ columns.length_px.astype(np.float32)
        return by_row.reshape(len(squares), -1).astype(np.int64) @ rows.length_px

    def shows_enough(self, visible_px: Ints, wanted: Bools, share: float) -> Bools:
        """Whether masks own a pixel and show at more than a share of their own ones; [K], right where wanted."""
        sure = (self._least_px > 0) & (visible_px > share * self._most_px)
        possible = (self._most_px > 0) & (visible_px > share * self._least_px)
        self._settle(np.flatnonzero(wanted & possible & ~sure))
        return (self._least_px > 0) & (visible_px > share * self._most_px)

    def _settle(self, masks: Ints) -> None:
        """Counts the pixels of the squares at the edge of some masks."""
        contest, grid = self._contest, self._contest.grid
        number, square = np.nonzero(self._edge[masks])
        logits = PairPixels.of(contest.logits_khw, grid, masks[number], square)
        positive = np.zeros(len(square), np.int64)
        height, width = grid.square_hw_px
        row_valid, column_valid = grid.valid(square)
        for rows in _blocks(height, width * len(square)):
            positive += _count_px((logits.rows(rows) > 0) & row_valid[rows] & column_valid)
        self._least_px[masks] += np.bincount(number, weights=positive, minlength=len(masks)).astype(np.int64)
        self._most_px[masks] = self._least_px[masks]


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
    """Returns weight * probability of minus a logit, weight / (1 + exp(doubt))."""
    value = np.minimum(doubt, _LOGIT_LIMIT)
    np.exp(value, out=value)
    value += 1
    return np.divide(weight, value, out=value)


def _margin(logits_khw: Array) -> np.float32:
    """Relative margin of a comparison of bounds: more than rounding can change a value.

    Interpolation errs by less than six half units in the last place of the greatest logit, and an error d of a logit
    changes its probability by less than a factor exp(d); exp, sum, quotient and weight add a few units of their own.
    """
    greatest = max(float(logits_khw.max(initial=0)), -float(logits_khw.min(initial=0)))
    return np.float32(min(1.0, 2e-5 + 2e-6 * greatest))


def logit(p: float) -> np.float32:
    """Returns the logit of a probability, infinite at 0 and 1."""
    if p <= 0:
        return np.float32(-np.inf)
    return np.float32(np.log(p / (1 - p))) if p < 1 else np.float32(np.inf)
