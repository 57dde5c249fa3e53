"""A mask is where the object is: drawn shapes go through letterbox, ideal raw outputs and decoder, and come back.

The raw outputs are made from the picture that the network would see: the shape is scaled like any picture, averaged
over cells of stride 4, and turned into logits. The truth is the drawn shape itself, at the size of the image.
"""

from functools import lru_cache

import numpy as np
import pytest
from decoders_instances import blendmask_outputs, contract_of, raw_of, solov2_outputs

from edge_seg.decoders.base import DECODERS
from edge_seg.decoders.paste import Crop
from edge_seg.letterbox import Letterbox, letterbox_image

SIDE, CLASSES = 320, 3
IMAGES_WH_PX = [(320, 320), (641, 427), (333, 517), (127, 95)]
LARGE_PX = 96
MOST_ERROR_PX = 0.5
LEAST_IOU = 0.97


def polygon(shape):
    """Corners of a shape of width and height 1 around the origin, [n, 2] x and y."""
    if shape == "rectangle":
        return np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]])
    if shape == "ellipse":
        angle = np.arange(96) * 2 * np.pi / 96
        return 0.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    angle = np.arange(10) * np.pi / 5 - np.pi / 2
    points = np.where(np.arange(10) % 2, 0.6, 1)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    low, high = points.min(axis=0), points.max(axis=0)
    return (points - low) / (high - low) - 0.5


def filled(corners_xy_px, width, height):
    """Pixels whose middle is inside a polygon, by counting edges to the right; [H, W]."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    inside = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(corners_xy_px, np.roll(corners_xy_px, -1, axis=0), strict=True):
        if y0 != y1:
            crosses = (y0 <= y) != (y1 <= y)
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


class Drawn:
    """A shape in an image: its true mask, and the raw outputs of a network without fault."""

    def __init__(self, shape, size_px, image_wh_px, *, aspect=0.8, middle=(0.53, 0.48)):
        """Size: longer side in pixels of the network's input; middle: share of the image's sides."""
        width, height = image_wh_px
        box = Letterbox(width, height, SIDE, SIDE)
        scale = np.array(box.content_wh_px) / image_wh_px
        place = np.array(middle) * image_wh_px + 0.3  # off the pixel grid
        self.corners_px = polygon(shape) * np.array([1, aspect]) * size_px / scale + place
        self.truth = filled(self.corners_px, width, height)
        picture = np.repeat(np.where(self.truth, 255, 0).astype(np.uint8)[:, :, None], 3, axis=2)
        seen, self.box = letterbox_image(picture, (SIDE, SIDE), (0, 0, 0))
        self.seen = seen[:, :, 0] / 255
        network = self.corners_px * scale
        self.box_xyxy_px = np.concatenate([network.min(axis=0), network.max(axis=0)])
        edges = np.roll(network, -1, axis=0) - network
        self.perimeter_px = float(np.hypot(*edges.T).sum())
        self.pixel_area = float(scale.prod())

    def logits(self, shift_px=(0, 0)):
        """Area-averaged mask of the shifted picture at stride 4."""
        moved = np.roll(self.seen, shift_px, axis=(0, 1))
        share = moved.reshape(SIDE // 4, 4, SIDE // 4, 4).mean(axis=(1, 3))
        return np.log(np.clip(share, 0.01, 0.99) / np.clip(1 - share, 0.01, 0.99))

    def blendmask(self, shift_px=(0, 0)):
        """All bases hold the mask, so that any attention blends it."""
        outputs = blendmask_outputs(SIDE, CLASSES, width=4 * 49)
        rng = np.random.default_rng(0)
        x0, y0, x1, y1 = self.box_xyxy_px
        column, row = int((x0 + x1) / 16), int((y0 + y1) / 16)
        x, y = 8 * column + 4, 8 * row + 4
        outputs["class_p3"][3][0, row, column, 1] = 4
        outputs["box_p3"][3][0, row, column] = np.array([x - x0, y - y0, x1 - x, y1 - y]) / 8
        outputs["attention_p3"][3][:] = rng.normal(0, 3, outputs["attention_p3"][3].shape)
        outputs["bases"][3][:] = self.logits(shift_px)[None, :, :, None]
        return outputs

    def solov2(self, shift_px=(0, 0)):
        """One feature holds the mask, another is constant, so that both are at least 0."""
        outputs = solov2_outputs(SIDE, CLASSES, width=2, features=2)
        outputs["category_1"][3][0, 5, 5, 1] = 4
        outputs["kernel_1"][3][0, 5, 5] = (1, -5)
        outputs["mask_features"][3][0] = np.stack([self.logits(shift_px) + 5, np.ones((SIDE // 4, SIDE // 4))], -1)
        return outputs

    def decoded(self, family, shift_px=(0, 0), **params):
        outputs = getattr(self, family)(shift_px)
        decoder = DECODERS[family](contract_of(family, outputs, CLASSES, SIDE, **params), {})
        (instance,) = decoder(raw_of(outputs), self.box).instances
        return instance

    def error_px(self, mask):
        """Mean distance of the two outlines, in pixels of the network's input: wrong area over perimeter."""
        return float((mask != self.truth).sum()) * self.pixel_area / self.perimeter_px

    def offset_yx_px(self, mask):
        """From the true centre of mass to the mask's, in pixels of the network's input."""
        centres = [np.mean(np.nonzero(m), axis=1) for m in (mask, self.truth)]
        return (centres[0] - centres[1]) * np.divide(self.box.content_wh_px[::-1], self.truth.shape)

    def iou(self, mask):
        return float((mask & self.truth).sum() / (mask | self.truth).sum())


drawn_once = lru_cache(maxsize=None)(Drawn)
FAMILIES = [("blendmask", {"mask_size": 28}), ("blendmask", {"mask_size": 56}), ("solov2", {})]


@pytest.mark.parametrize(("family", "params"), FAMILIES)
@pytest.mark.parametrize("image_wh_px", IMAGES_WH_PX)
@pytest.mark.parametrize("shape", ["ellipse", "rectangle", "star"])
@pytest.mark.parametrize("size_px", [32, 64, 96, 160])
def test_a_mask_is_where_the_object_is(family, params, image_wh_px, shape, size_px):
    drawn = drawn_once(shape, size_px, image_wh_px)
    mask = drawn.decoded(family, **params).mask.mask()
    if size_px >= LARGE_PX:
        assert drawn.iou(mask) >= LEAST_IOU
    else:
        assert drawn.error_px(mask) <= MOST_ERROR_PX


@pytest.mark.parametrize(("family", "params"), FAMILIES)
def test_an_object_as_large_as_the_input_keeps_its_outline_within_a_seventh_of_a_texel(family, params):
    for shape in ("ellipse", "rectangle", "star"):
        drawn = drawn_once(shape, 290, (320, 320))
        texel_px = 290 / params["mask_size"] if params else 4
        assert drawn.error_px(drawn.decoded(family, **params).mask.mask()) <= texel_px / 7


def mean_offset_yx_px(family, shift_px=(0, 0)):
    """Mean over many objects: rounding goes either way and averages out, a wrong half pixel does not."""
    rng = np.random.default_rng(4)
    offsets = []
    for shape in ("ellipse", "rectangle"):
        for size_px, middle in zip(rng.uniform(40, 90, 10), rng.uniform(0.3, 0.7, (10, 2)), strict=True):
            drawn = drawn_once(shape, size_px, (320, 320), middle=tuple(middle))
            offsets.append(drawn.offset_yx_px(drawn.decoded(family, shift_px).mask.mask()))
    return np.mean(offsets, axis=0)


@pytest.mark.parametrize("family", ["blendmask", "solov2"])
def test_masks_are_not_shifted_and_a_shift_of_one_pixel_would_be_seen(family, monkeypatch):
    assert np.abs(mean_offset_yx_px(family)).max() < 0.1
    # planted in the raw outputs: the boxes of BlendMask stay, and cut one side of a shifted mask
    assert (mean_offset_yx_px(family, (1, 0)) > (0.4, -0.1)).all()
    assert (mean_offset_yx_px(family, (0, -1)) < (0.1, -0.4)).all()
    # planted in the pasting
    plain = Crop.run_lengths
    monkeypatch.setattr(
        Crop, "run_lengths", lambda crop, size: plain(Crop(crop.mask_hw, tuple(np.add(crop.top_left_px, (0, 1)))), size)
    )
    assert np.allclose(mean_offset_yx_px(family), (0, 1), rtol=0, atol=0.1)


@pytest.mark.parametrize(("family", "params"), FAMILIES)
def test_a_planted_shift_of_one_pixel_fails_the_rule_for_small_objects(family, params):
    drawn = drawn_once("ellipse", 64, (320, 320))
    mask = drawn.decoded(family, **params).mask.mask()
    assert drawn.error_px(mask) <= MOST_ERROR_PX < drawn.error_px(np.roll(mask, (1, 1), axis=(0, 1)))


@pytest.mark.parametrize("family", ["blendmask", "solov2"])
def test_the_box_is_in_pixels_of_the_image(family):
    for image_wh_px in IMAGES_WH_PX:
        drawn = drawn_once("rectangle", 96, image_wh_px)
        truth = [*drawn.corners_px.min(axis=0), *drawn.corners_px.max(axis=0)]
        tolerance_px = 1e-3 if family == "blendmask" else 1 / drawn.box.scale + 0.5
        assert drawn.decoded(family).box_xyxy_px == pytest.approx(truth, abs=tolerance_px)
