"""Pictures of a panoptic result: colours by class, a shade per object, outlines and names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from edge_seg.contract import ClassInfo

_OPACITY = 0.55
_VOID_DIM = 0.45


class DrawnSegment(Protocol):
    """What a picture needs to know of a segment."""

    @property
    def id(self) -> int:
        """Number in the id map."""

    @property
    def class_index(self) -> int:
        """Position in the class list."""


def overlay(
    image_hwc_u8: NDArray[np.uint8],
    id_map_hw: NDArray[np.integer[Any]],
    segments: Sequence[DrawnSegment],
    classes: Sequence[ClassInfo],
    *,
    names: bool = True,
) -> NDArray[np.uint8]:
    """Draws segments over an image; void is dimmed.

    Args:
        image_hwc_u8: RGB image, [H, W, 3].
        id_map_hw: Segment ids, [H, W], 0 = void.
        segments: What each id is.
        classes: Names and colours.
        names: Whether the larger segments carry their class name.

    Returns:
        RGB image, [H, W, 3].
    """
    colors = _segment_colors(id_map_hw, segments, classes)
    tint = colors[id_map_hw]
    base = image_hwc_u8.astype(np.float32)
    void = (id_map_hw == 0)[..., None]
    mixed = np.where(void, base * _VOID_DIM, base * (1 - _OPACITY) + tint * _OPACITY)
    mixed[_outline(id_map_hw)] = 255
    picture = np.clip(mixed, 0, 255).astype(np.uint8)
    return _with_names(picture, id_map_hw, segments, classes) if names else picture


def _segment_colors(
    id_map_hw: NDArray[np.integer[Any]], segments: Sequence[DrawnSegment], classes: Sequence[ClassInfo]
) -> NDArray[np.float32]:
    count = max([int(id_map_hw.max(initial=0)), *[s.id for s in segments]]) + 1
    colors = np.zeros((count, 3), np.float32)
    for number, segment in enumerate(segments):
        info = classes[segment.class_index]
        shade = 1.0 if not info.isthing else 0.65 + 0.35 * ((number * 0.618) % 1.0)
        colors[segment.id] = np.array(info.color_rgb, np.float32) * shade
    return colors


def _outline(id_map_hw: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    edge = np.zeros(id_map_hw.shape, bool)
    edge[:, 1:] |= id_map_hw[:, 1:] != id_map_hw[:, :-1]
    edge[1:] |= id_map_hw[1:] != id_map_hw[:-1]
    return edge


def _with_names(
    picture: NDArray[np.uint8],
    id_map_hw: NDArray[np.integer[Any]],
    segments: Sequence[DrawnSegment],
    classes: Sequence[ClassInfo],
) -> NDArray[np.uint8]:
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=max(9, picture.shape[0] // 40))
    smallest_px = picture.shape[0] * picture.shape[1] * 0.01
    for segment in segments:
        ys, xs = np.nonzero(id_map_hw == segment.id)
        if len(ys) < smallest_px:
            continue
        place = (float(np.median(xs)), float(np.median(ys)))
        draw.text(
            place,
            classes[segment.class_index].name,
            fill="white",
            anchor="mm",
            font=font,
            stroke_width=2,
            stroke_fill="black",
        )
    return np.asarray(image)


def id_png(id_map_hw: NDArray[np.integer[Any]]) -> Image.Image:
    """Returns the id map as an RGB image in COCO panoptic's coding, id = R + 256 G + 65536 B."""
    ids = id_map_hw.astype(np.int64)
    return Image.fromarray(np.stack((ids & 255, ids >> 8 & 255, ids >> 16 & 255), -1).astype(np.uint8))
