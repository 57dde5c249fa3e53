"""Geometry of the network's input: one function pair, image to network and network to image.

Pixels have half-pixel centres: pixel i covers [i, i + 1) and its centre is i + 0.5. The picture is scaled by one
factor, lies at the top left of a square, and the rest is filled with one colour (docs of `Contract.preprocess`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Letterbox:
    """Maps between an image and the network's input.

    Attributes:
        image_w_px: Width of the image.
        image_h_px: Height of the image.
        input_w_px: Width of the network's input.
        input_h_px: Height of the network's input.
    """

    image_w_px: int
    image_h_px: int
    input_w_px: int
    input_h_px: int

    @property
    def scale(self) -> float:
        """Network pixels per image pixel."""
        return min(self.input_w_px / self.image_w_px, self.input_h_px / self.image_h_px)

    @property
    def content_wh_px(self) -> tuple[int, int]:
        """Width and height of the scaled picture inside the input, rounded half up, at least one pixel."""
        width = min(self.input_w_px, max(1, math.floor(self.image_w_px * self.scale + 0.5)))
        height = min(self.input_h_px, max(1, math.floor(self.image_h_px * self.scale + 0.5)))
        return width, height

    def to_network(self, x_px: float, y_px: float) -> tuple[float, float]:
        """Maps a point of the image (pixels) to the network's input (pixels)."""
        width, height = self.content_wh_px
        return x_px * width / self.image_w_px, y_px * height / self.image_h_px

    def to_image(self, x_px: float, y_px: float) -> tuple[float, float]:
        """Maps a point of the network's input (pixels) to the image (pixels)."""
        width, height = self.content_wh_px
        return x_px * self.image_w_px / width, y_px * self.image_h_px / height


def letterbox_image(
    image_hwc_u8: NDArray[np.uint8], input_wh_px: tuple[int, int], fill_rgb: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scales an image with Pillow's BILINEAR filter and pads it to the network's input.

    Args:
        image_hwc_u8: Image, [H, W, 3], RGB.
        input_wh_px: Width and height of the network's input.
        fill_rgb: Colour of the padding, the mean colour of the normalisation.

    Returns:
        The input, [input_h, input_w, 3] uint8, and the geometry that leads back to the image.
    """
    import numpy as np
    from PIL import Image

    height, width = image_hwc_u8.shape[:2]
    box = Letterbox(width, height, *input_wh_px)
    canvas = np.empty((input_wh_px[1], input_wh_px[0], 3), np.uint8)
    canvas[:] = fill_rgb
    content_w, content_h = box.content_wh_px
    scaled = Image.fromarray(image_hwc_u8).resize((content_w, content_h), Image.Resampling.BILINEAR)
    canvas[:content_h, :content_w] = np.asarray(scaled)
    return canvas, box
