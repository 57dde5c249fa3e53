"""Geometry of the input: hand-computed sizes, a round trip, and Pillow's own bytes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edge_seg.letterbox import Letterbox, letterbox_image

FILL = (128, 64, 32)


@pytest.mark.parametrize(
    ("image_wh", "input_wh", "content_wh"),
    [
        ((512, 512), (256, 256), (256, 256)),
        ((512, 256), (256, 256), (256, 128)),
        ((256, 512), (256, 256), (128, 256)),
        ((640, 427), (256, 256), (256, 171)),  # 427 * 0.4 = 170.8
        ((427, 640), (256, 256), (171, 256)),
        ((4, 3), (2, 2), (2, 2)),  # 1.5 rounds up
        ((8, 5), (4, 4), (4, 3)),  # 2.5 rounds up, not to even
        ((1, 1), (64, 64), (64, 64)),
        ((1000, 1), (64, 64), (64, 1)),  # 0.064 pixels are still one
        ((1, 1000), (64, 64), (1, 64)),
        ((3, 7), (64, 32), (14, 32)),  # 13.714
        ((7, 3), (64, 32), (64, 27)),  # 27.43
        ((100, 100), (64, 32), (32, 32)),
    ],
)
def test_the_content_has_the_size_computed_by_hand(image_wh, input_wh, content_wh):
    assert Letterbox(*image_wh, *input_wh).content_wh_px == content_wh


def test_the_content_never_exceeds_the_input():
    for width in range(1, 70):
        for height in range(1, 70):
            content_w, content_h = Letterbox(width, height, 64, 32).content_wh_px
            assert 1 <= content_w <= 64
            assert 1 <= content_h <= 32
            assert content_w == 64 or content_h == 32


@pytest.mark.parametrize("image_wh", [(640, 427), (3, 7), (1, 1), (1000, 1), (63, 64), (511, 513)])
def test_points_go_to_the_network_and_back(image_wh):
    box = Letterbox(*image_wh, 256, 192)
    for x, y in ((0.0, 0.0), (0.5, 0.5), (image_wh[0], image_wh[1]), (image_wh[0] / 3, image_wh[1] / 7)):
        assert box.to_image(*box.to_network(x, y)) == pytest.approx((x, y), abs=1e-9)


def test_corners_of_the_picture_are_corners_of_the_content():
    box = Letterbox(640, 427, 256, 256)
    assert box.to_network(0, 0) == (0, 0)
    assert box.to_network(640, 427) == pytest.approx((256, 171))
    assert box.to_image(256, 171) == pytest.approx((640, 427))


def test_centres_of_pixels_are_at_a_half():
    # 4 pixels to 2: the first network pixel covers image pixels 0 and 1, so its centre lies between them.
    box = Letterbox(4, 4, 2, 2)
    assert box.to_image(0.5, 0.5) == (1.0, 1.0)
    assert box.to_network(0.5, 0.5) == (0.25, 0.25)


def test_a_picture_of_the_input_size_is_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    canvas, box = letterbox_image(image, (64, 32), FILL)
    np.testing.assert_array_equal(canvas, image)
    assert box.to_network(3.5, 7.5) == (3.5, 7.5)


@pytest.mark.parametrize("image_wh", [(100, 61), (61, 100), (17, 5), (1, 9), (200, 200)])
def test_the_content_has_pillows_bytes_and_the_rest_is_filled(image_wh):
    image = np.random.default_rng(1).integers(0, 256, (image_wh[1], image_wh[0], 3), np.uint8)
    canvas, box = letterbox_image(image, (64, 48), FILL)
    width, height = box.content_wh_px
    expected = Image.new("RGB", (64, 48), FILL)
    expected.paste(Image.fromarray(image).resize((width, height), resample=Image.Resampling.BILINEAR), (0, 0))
    np.testing.assert_array_equal(canvas, np.asarray(expected))
    assert canvas.dtype == np.uint8
    assert canvas.flags.writeable


def test_halving_averages_with_a_widened_triangle_not_with_two_samples():
    # Pillow's support is scaled by 2: weights 1 3 3 1 over 8 inside, 3 3 1 over 7 at the border.
    row = np.array([0, 0, 255, 255, 0, 0, 0, 0], np.uint8)
    image = np.repeat(row[None, :, None], 3, axis=2).repeat(8, axis=0)
    canvas, _ = letterbox_image(image, (4, 4), FILL)
    exact = [255 * 1 / 7, 255 * 6 / 8, 255 * 1 / 8, 0]
    np.testing.assert_allclose(canvas[0, :, 0], exact, atol=0.51)


def test_the_picture_is_not_changed_and_may_be_read_only():
    image = np.full((10, 20, 3), 7, np.uint8)
    image.flags.writeable = False
    letterbox_image(image, (32, 32), FILL)
    assert (image == 7).all()
