"""Which masks can win a pixel of which square: a list, less those that another mask beats all over the square.

Two masks that lie on the same segment have bounds that overlap nearly everywhere, so bounds alone leave both. But the
pixels of a square are weighted means of its corners, so what is convex and holds at the corners holds at every pixel:
a mask that is ahead of another at four corners can be ahead all over the square.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_WORTHWHILE = 0.9  # another round is made if the last one left less than this share


@dataclass(frozen=True)
class Rivals:
    """Masks in squares, m such pairs, sorted by square and then by mask.

    Attributes:
        place: [m] the square, as a position in some list of squares.
        mask: [m] the mask.
        lower: [m] least corner of its value (weight * probability).
        upper: [m] greatest corner.
    """

    place: Ints
    mask: Ints
    lower: Array
    upper: Array

    @classmethod
    def joined(cls, parts: Sequence[Rivals]) -> Rivals:
        """Returns the pairs of several lists as one list."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def __getitem__(self, chosen: Bools | Ints) -> Rivals:
        """Returns the pairs that a mask [m] or indices choose."""
        return Rivals(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def moved(self, places: int) -> Rivals:
        """Returns the pairs with their squares so many places later."""
        return replace(self, place=self.place + places)

    def counts(self, places: int) -> Ints:
        """Returns how many pairs each of `places` squares has, [places]."""
        return np.bincount(self.place, minlength=places)


@dataclass(frozen=True)
class Corners:
    """What the pairs of some `Rivals` are compared by.

    Attributes:
        logit: [4, m] logits at the corners of the square.
        value: [4, m] weight * probability there.
        weight: [m] the mask's weight; none so small that a value is denormal.
    """

    logit: Array
    value: Array
    weight: Array

    def take(self, pairs: Ints) -> Corners:
        """Returns the pairs with these indices."""
        return Corners(*(getattr(self, f.name).take(pairs, axis=-1) for f in fields(self)))


def unbeaten(place: Ints, corners: Corners, margin: np.float32) -> Ints:
    """Finds the pairs that no other pair of the same square is known to beat at every pixel.

    In each round the strongest pair of a square that was not it before is compared with the others.

    Args:
        place: [m] the square of each pair, rising; of equal values the first of a square wins.
        corners: Logits, values and weights.
        margin: Relative difference of values, and difference of logits, that rounding cannot make.

    Returns:
        Indices of pairs, rising.
    """
    left = np.arange(len(place))
    strength = corners.value.sum(axis=0)
    before = np.inf
    while 0 < len(left) < _WORTHWHILE * before:
        before = len(left)
        start = np.flatnonzero(np.diff(place, prepend=-1))
        group = np.repeat(np.arange(len(start)), np.diff(start, append=before))
        best = np.flatnonzero(strength == np.maximum.reduceat(strength, start).take(group))
        leader = best[np.flatnonzero(np.diff(group.take(best), prepend=-1))]
        strength[leader] = -1
        stays = np.flatnonzero(~_beaten(corners, leader.take(group), margin))
        place, left, strength, corners = place.take(stays), left.take(stays), strength.take(stays), corners.take(stays)
    return left


def _beaten(corners: Corners, by: Ints, margin: np.float32) -> Bools:
    """Whether each pair is beaten at every pixel by the pair `by` [m] of its square.

    w / (1 + exp(-l)) > w' / (1 + exp(-l')) follows from l + log w > l' + log w' where w > w', which is linear. Where
    w < w' it is the convex set l' < -log(w'/w - 1 + w'/w exp(-l)). Where the weights are equal, or so nearly that
    rounding could turn the values, the same expression of a greater logit is not less: then the first wins.
    """
    other = corners.take(by)
    ratio = other.weight / corners.weight
    first = (ratio >= 1) & (by < np.arange(len(by)))
    lead = np.where(ratio > 1 + margin, np.log(ratio), np.where(first, np.float32(0), np.float32(-np.inf)))
    ahead = np.all(other.logit - corners.logit > margin - lead, axis=0)
    greater = np.all(other.value > corners.value * (1 + margin), axis=0)
    return np.asarray(ahead | (greater & (ratio < 1)))
