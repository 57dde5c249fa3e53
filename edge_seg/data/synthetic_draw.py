"""Shapes as signed distances and textures as scalar fields: what synthetic scenes are drawn with.

A shape is a function of local coordinates (u, v), rotated and in units of its radius, negative inside. One
evaluation gives the truth (the sign at the centre of a pixel) and the soft edge of the picture. A texture is
a function of pixel positions, so that only the pixels of its own region are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    Field = NDArray[np.floating[Any]]

ShapeFunction = Callable[["Field", "Field"], "Field"]


def _disc(u: Field, v: Field) -> Field:
    return np.sqrt(u * u + v * v) - 1.0


def _box(u: Field, v: Field) -> Field:
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def _triangle(u: Field, v: Field) -> Field:
    side = np.abs(u) * 0.8660254
    return np.maximum(side - 0.5 * v, v) - 0.55


def _star(u: Field, v: Field) -> Field:
    """Five arms by folding the angle, then the half-plane through an outer and an inner corner."""
    fold = 2.0 * math.pi / 5.0
    angle = np.arctan2(u, v)
    angle = np.abs(angle - fold * np.round(angle / fold))
    radius = np.sqrt(u * u + v * v)
    inner_x, inner_y = 0.45 * math.cos(fold / 2.0), 0.45 * math.sin(fold / 2.0)
    length = math.hypot(1.1 - inner_x, inner_y)
    normal_x, normal_y = inner_y / length, (1.1 - inner_x) / length
    return (radius * np.cos(angle) - 1.1) * normal_x + radius * np.sin(angle) * normal_y


def _ring(u: Field, v: Field) -> Field:
    return np.abs(np.sqrt(u * u + v * v) - 0.72) - 0.28


def _cross(u: Field, v: Field) -> Field:
    wide, high = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(wide, high) - 1.0, np.minimum(wide, high) - 0.33)


def _crescent(u: Field, v: Field) -> Field:
    return np.maximum(np.sqrt(u * u + v * v) - 1.0, 0.82 - np.sqrt((u - 0.5) ** 2 + v * v))


SHAPES: dict[str, ShapeFunction] = {
    "disc": _disc,
    "box": _box,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "crescent": _crescent,
}


def shape_distance_px(
    name: str, rows: Field, columns: Field, *, radius_px: float, angle: float, aspect: float
) -> Field:
    """Returns the signed distance to a shape's outline, approximately, in pixels.

    Args:
        name: A key of `SHAPES`.
        rows: Pixel centres below the shape's centre, [h, 1] float32, px.
        columns: Pixel centres right of it, [1, w] float32, px.
        radius_px: Half of the shape's length.
        angle: Rotation in radians.
        aspect: Width over length, 0..1.

    Returns:
        [h, w] float32; negative inside.
    """
    cos, sin = math.cos(angle) / radius_px, math.sin(angle) / radius_px
    u = columns * cos + rows * sin
    v = (rows * cos - columns * sin) * (1.0 / aspect)
    return SHAPES[name](u, v) * np.float32(radius_px * math.sqrt(aspect))


def smooth_noise(rng: np.random.Generator, cells: int, size_px: int) -> NDArray[np.uint8]:
    """Returns a smooth random field with about `cells` bumps per side, [size, size] uint8, mostly 40..215."""
    grid = Image.fromarray(rng.integers(40, 216, (cells, cells), np.uint8))
    return np.asarray(grid.resize((size_px, size_px), Image.Resampling.BICUBIC))


def wavy_field(rng: np.random.Generator, waves: int, size_px: int) -> Field:
    """Returns random cosines of up to `waves` half-periods per side, summed; [size, size] float32."""
    order = np.arange(waves + 1)
    basis = np.cos(math.pi / size_px * (np.arange(size_px) + 0.5)[:, None] * order).astype(np.float32)
    strength = 1.0 / (1.0 + order[:, None] + order)
    strength[0, 0] = 0.25
    weights = rng.standard_normal((waves + 1, waves + 1)) * strength
    field: Field = basis @ weights.astype(np.float32) @ basis.T
    return field


def largest_field(fields: list[Field]) -> NDArray[np.uint8]:
    """Returns the position of the largest field at every pixel, the first at a tie; [size, size] uint8."""
    best = fields[0].copy()
    label = np.zeros(best.shape, np.uint8)
    for position, field in enumerate(fields[1:], start=1):
        label[field > best] = position
        np.maximum(best, field, out=best)
    return label


def soften(image_chw: Field, share: float) -> Field:
    """Blurs in place with the kernel [s, 1 - 2 s, s] along both axes, and returns the picture.

    The border rows are not blurred vertically, the border columns not horizontally.

    Args:
        image_chw: Picture, [3, H, W] float32.
        share: Weight s of each neighbour, 0..1/3.
    """
    side, middle = np.float32(share), np.float32(1.0 - 2.0 * share)
    once, twice = image_chw.copy(), image_chw
    sides = image_chw[:, :-2] + image_chw[:, 2:]
    sides *= side
    once[:, 1:-1] *= middle
    once[:, 1:-1] += sides
    sides = once[..., :-2] + once[..., 2:]
    sides *= side
    np.multiply(once, middle, out=twice)
    twice[..., 1:-1] += sides
    twice[..., [0, -1]] = once[..., [0, -1]]
    return twice


class Surface:
    """The pixels of one region, with what textures are made of: turned coordinates and smooth noise.

    Args:
        rng: Source of angle, phase and noise.
        where_hw: The region, [size, size] bool.
        period_px: Size of the pattern.
    """

    def __init__(self, rng: np.random.Generator, where_hw: NDArray[np.bool_], period_px: float) -> None:
        self.rng, self.period_px = rng, period_px
        self.size_px = where_hw.shape[0]
        self.flat = np.flatnonzero(where_hw)

    def turned(self, unit_px: float) -> tuple[Field, Field]:
        """Returns coordinates in units of `unit_px`, turned and shifted at random; two [n] float32."""
        draws = self.rng.random(3)
        angle = 2.0 * math.pi * draws[0]
        x, y = (self.flat % self.size_px).astype(np.float32), (self.flat // self.size_px).astype(np.float32)
        x -= np.float32(draws[1] * self.size_px)
        y -= np.float32(draws[2] * self.size_px)
        cos, sin = np.float32(math.cos(angle) / unit_px), np.float32(math.sin(angle) / unit_px)
        return x * cos + y * sin, y * cos - x * sin

    def noise(self, cells: int) -> Field:
        """Returns smooth noise of the region's pixels, [n] float32, mostly 0..1."""
        return smooth_noise(self.rng, cells, self.size_px).ravel()[self.flat] * np.float32(1.0 / 255.0)


def _speckle(surface: Surface) -> Field:
    fine = surface.noise(max(4, round(2.5 * surface.size_px / surface.period_px)))
    return np.float32(1.4) * fine + np.float32(0.3) * surface.noise(12) - np.float32(0.35)


def _stripes(surface: Surface) -> Field:
    u, _ = surface.turned(surface.period_px)
    wave: Field = np.sin(u * np.float32(2.0 * math.pi))
    return 0.5 + 0.5 * wave


def _bricks(surface: Surface) -> Field:
    along, across = surface.turned(surface.period_px)
    row = np.floor(across)
    across -= row
    row_number = row.astype(np.int32)
    along = along * np.float32(0.5) + np.float32(0.5) * (row_number & 1)
    brick = np.floor(along)
    mortar = np.minimum(across, np.float32(2.0) * (along - brick)) < np.float32(0.2)
    shade = (row_number * 7 + brick.astype(np.int32) * 5) & 3
    return np.where(mortar, np.float32(0.0), np.float32(0.65) + np.float32(0.1) * shade)


def _plain(surface: Surface) -> Field:
    u, _ = surface.turned(float(surface.size_px))
    return np.float32(0.5) + np.float32(0.4) * u + np.float32(0.15) * surface.noise(4)


def _dots(surface: Surface) -> Field:
    u, v = surface.turned(surface.period_px)
    u -= np.rint(u)
    v -= np.rint(v)
    return np.float32(2.9) - np.float32(20.0) * (u * u + v * v)


def _ripples(surface: Surface) -> Field:
    u, v = surface.turned(surface.period_px / (2.0 * math.pi))
    wave: Field = np.sin(np.sqrt(u * u + v * v) + np.float32(3.0) * surface.noise(8))
    return 0.5 + 0.5 * wave


TEXTURES: dict[str, Callable[[Surface], Field]] = {
    "plain": _plain,
    "stripes": _stripes,
    "bricks": _bricks,
    "speckle": _speckle,
    "dots": _dots,
    "ripples": _ripples,
}
