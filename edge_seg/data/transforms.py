"""From a sample to a square training crop: one resampling of the crop alone, ids at the same geometry."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edge_seg.data.sample import Sample, Segment
from edge_seg.errors import ConfigError
from edge_seg.letterbox import Letterbox, letterbox_image

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class AugmentConfig:
    """How a training crop is drawn. A strength of 0 switches a change off.

    Attributes:
        flip_probability: Chance of a horizontal flip, 0..1.
        scale_min: Smallest scale, relative to the scale at which the whole picture fits the crop.
        scale_max: Largest scale, relative likewise.
        brightness: Gain is drawn from 1 - b .. 1 + b.
        contrast: Gain about mid-grey is drawn from 1 - c .. 1 + c.
        saturation: Gain about the luma is drawn from 1 - s .. 1 + s.
        hue: Rotation of the hue is drawn from -h .. h turns (0.5 is the opposite colour).
        copy_paste_prob: Chance that things of a second picture are pasted over the crop, 0..1.
        copy_paste_max_things: Most things pasted at once.
    """

    flip_probability: float = 0.5
    scale_min: float = 0.1
    scale_max: float = 1.9
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.25
    hue: float = 0.03
    copy_paste_prob: float = 0.0
    copy_paste_max_things: int = 10

    def __post_init__(self) -> None:
        """Checks the ranges; raises ConfigError."""
        if not 0.0 <= self.flip_probability <= 1.0:
            raise _out_of_range("flip_probability", "0..1", self.flip_probability)
        if not 0.0 <= self.copy_paste_prob <= 1.0:
            raise _out_of_range("copy_paste_prob", "0..1", self.copy_paste_prob)
        if self.copy_paste_max_things < 1:
            raise _out_of_range("copy_paste_max_things", "1 or more", self.copy_paste_max_things)
        if not 0.0 < self.scale_min <= self.scale_max <= 16.0:
            raise _out_of_range(
                "scale_min, scale_max", "0 < scale_min <= scale_max <= 16", (self.scale_min, self.scale_max)
            )
        for name, limit in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
            if not 0.0 <= getattr(self, name) <= limit:
                raise _out_of_range(name, f"0..{limit}", getattr(self, name))


@dataclass(frozen=True)
class TrainCrop:
    """A square crop with its truth.

    Attributes:
        image_hwc_u8: [S, S, 3] uint8, RGB; padding has the fill colour.
        id_map_hw_i32: [S, S] int32; 0 is void, padding included.
        valid_hw: [S, S] bool; False in the padding.
        segments: The segments that still have pixels.
    """

    image_hwc_u8: NDArray[np.uint8]
    id_map_hw_i32: NDArray[np.int32]
    valid_hw: NDArray[np.bool_]
    segments: tuple[Segment, ...]


def augment(
    sample: Sample,
    input_px: int,
    config: AugmentConfig,
    rng: np.random.Generator,
    fill_rgb: tuple[int, int, int],
) -> TrainCrop:
    """Draws a random scale, crop, flip and colour change.

    A scaled picture larger than the crop is cut at a random place; a smaller one lies at the top left, as in
    `Letterbox`, and the rest is padding. Ids use nearest neighbour at the picture's own geometry.

    Args:
        sample: The picture and its truth.
        input_px: Side S of the crop.
        config: The strengths.
        rng: The only source of randomness; the number of draws does not depend on the picture.
        fill_rgb: Colour of the padding.
    """
    height, width = sample.id_map_hw_i32.shape
    draws = rng.random(8)
    relative = config.scale_min + (config.scale_max - config.scale_min) * draws[0]
    scale = Letterbox(width, height, input_px, input_px).scale * relative
    columns = _Axis.draw(width, scale, input_px, draws[1])
    rows = _Axis.draw(height, scale, input_px, draws[2])
    image = _resample_image(sample.image_hwc_u8, columns, rows, _color_matrix(config, draws[4:]))
    ids = sample.id_map_hw_i32[rows.nearest()[:, None], columns.nearest()]
    if draws[3] < config.flip_probability:
        image, ids = image[:, ::-1], ids[:, ::-1]
    return _place(image, ids, sample.segments, input_px, fill_rgb)


def letterbox_sample(sample: Sample, input_px: int, fill_rgb: tuple[int, int, int]) -> TrainCrop:
    """Returns the whole picture at the network's size, exactly as `letterbox_image` makes it, with ids.

    Args:
        sample: The picture and its truth.
        input_px: Side S of the square.
        fill_rgb: Colour of the padding.
    """
    image, box = letterbox_image(sample.image_hwc_u8, (input_px, input_px), fill_rgb)
    height, width = sample.id_map_hw_i32.shape
    content_w, content_h = box.content_wh_px
    columns, rows = _Axis(width, content_w, 0, content_w), _Axis(height, content_h, 0, content_h)
    ids = sample.id_map_hw_i32[rows.nearest()[:, None], columns.nearest()]
    return _place(image[:content_h, :content_w], ids, sample.segments, input_px, fill_rgb)


@dataclass(frozen=True)
class _Axis:
    """One axis of the crop: `full_px` is the scaled picture, of which [start, start + size) is kept."""

    image_px: int
    full_px: int
    start_px: int
    size_px: int

    @classmethod
    def draw(cls, image_px: int, scale: float, input_px: int, draw: float) -> _Axis:
        full_px = max(1, math.floor(image_px * scale + 0.5))
        spare_px = max(0, full_px - input_px)
        start_px = min(spare_px, int(draw * (spare_px + 1)))
        return cls(image_px, full_px, start_px, min(full_px, input_px))

    @property
    def interval_px(self) -> tuple[float, float]:
        """The kept part in pixels of the picture."""
        step = self.image_px / self.full_px
        return self.start_px * step, min((self.start_px + self.size_px) * step, float(self.image_px))

    def nearest(self) -> NDArray[np.intp]:
        """Returns the picture's pixel under the centre of every kept pixel."""
        centres = (np.arange(self.start_px, self.start_px + self.size_px) + 0.5) * (self.image_px / self.full_px)
        return np.minimum(centres.astype(np.intp), self.image_px - 1)


def _resample_image(
    image_hwc_u8: NDArray[np.uint8], columns: _Axis, rows: _Axis, matrix: tuple[float, ...] | None
) -> NDArray[np.uint8]:
    """Scales the kept part only, with Pillow's BILINEAR, then changes its colours."""
    (left, right), (top, bottom) = columns.interval_px, rows.interval_px
    # Only the rows and columns that the filter can reach are handed to Pillow: the copy is the cost.
    reach_x, reach_y = (math.ceil(max(1.0, axis.image_px / axis.full_px)) + 1 for axis in (columns, rows))
    x0, y0 = max(0, math.floor(left) - reach_x), max(0, math.floor(top) - reach_y)
    part = image_hwc_u8[y0 : math.ceil(bottom) + reach_y, x0 : math.ceil(right) + reach_x]
    source = Image.fromarray(np.ascontiguousarray(part))
    box = (left - x0, top - y0, min(right - x0, part.shape[1]), min(bottom - y0, part.shape[0]))
    scaled = source.resize((columns.size_px, rows.size_px), Image.Resampling.BILINEAR, box=box)
    return np.asarray(scaled if matrix is None else scaled.convert("RGB", matrix))


def _color_matrix(config: AugmentConfig, draws: NDArray[np.float64]) -> tuple[float, ...] | None:
    """Brightness, contrast, saturation and hue are all affine in RGB: one 3 x 4 matrix, one pass.

    Hue turns the chroma plane of YIQ; saturation scales it. Contrast turns about mid-grey, so that no
    statistics of the picture are needed. None when nothing changes.
    """
    strengths = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    if not strengths.any():
        return None
    brightness, contrast, saturation, hue = strengths * (2.0 * draws - 1.0)
    to_yiq = np.stack([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    angle = 2.0 * math.pi * hue
    cos, sin = (1.0 + saturation) * math.cos(angle), (1.0 + saturation) * math.sin(angle)
    turn = np.array([[1.0, 0.0, 0.0], [0.0, cos, -sin], [0.0, sin, cos]])
    gain = (1.0 + brightness) * (1.0 + contrast)
    matrix = np.empty((3, 4))
    matrix[:, :3] = gain * (np.linalg.inv(to_yiq) @ turn @ to_yiq)
    matrix[:, 3] = -127.5 * contrast
    return tuple(matrix.ravel().tolist())


def _place(
    image: NDArray[np.uint8],
    ids: NDArray[np.int32],
    segments: tuple[Segment, ...],
    input_px: int,
    fill_rgb: tuple[int, int, int],
) -> TrainCrop:
    """Lays the content at the top left of the padded square and drops the segments without pixels."""
    height, width = ids.shape
    canvas = np.empty((input_px, input_px, 3), np.uint8)
    canvas[:] = fill_rgb
    canvas[:height, :width] = image
    id_map = np.zeros((input_px, input_px), np.int32)
    id_map[:height, :width] = ids
    valid = np.zeros((input_px, input_px), np.bool_)
    valid[:height, :width] = True
    present = set(np.unique(ids).tolist())
    return TrainCrop(canvas, id_map, valid, tuple(s for s in segments if s.id in present))


def _out_of_range(name: str, expected: str, got: object) -> ConfigError:
    return ConfigError(f"Augmentation: {name} is out of range.", expected=expected, got=str(got))
