"""Augmentation: picture and ids stay together, nothing depends on anything but the generator."""

import numpy as np
import pytest
from PIL import Image

from edge_seg.data.sample import Sample, Segment
from edge_seg.data.transforms import AugmentConfig, augment, letterbox_sample
from edge_seg.errors import ConfigError
from edge_seg.letterbox import letterbox_image

FILL = (127, 128, 129)
STILL = {"flip_probability": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
GEOMETRY = {**STILL, "flip_probability": 0.5}


def blocks(height=96, width=128, cell=16):
    """Ids 1.. in cells of 16 px, the picture painted with red = 2 * id."""
    rows, columns = np.arange(height) // cell, np.arange(width) // cell
    ids = (1 + rows[:, None] * (width // cell) + columns).astype(np.int32)
    image = np.stack([ids * 2, np.full_like(ids, 50), 255 - ids * 2], -1).astype(np.uint8)
    return Sample(0, "a.png", image, ids, tuple(Segment(i, i % 3) for i in np.unique(ids).tolist()))


def test_the_same_generator_gives_the_same_crop_and_another_a_different_one():
    def crop(seed):
        return augment(blocks(), 64, AugmentConfig(), np.random.default_rng(seed), FILL)

    one, two, other = crop(1), crop(1), crop(2)
    assert np.array_equal(one.image_hwc_u8, two.image_hwc_u8)
    assert np.array_equal(one.id_map_hw_i32, two.id_map_hw_i32)
    assert one.segments == two.segments
    assert not np.array_equal(one.image_hwc_u8, other.image_hwc_u8)


@pytest.mark.parametrize("seed", range(40))
def test_ids_lie_where_their_colour_lies(seed):
    """Away from the edges of the cells, the picture must have the colour of its id, exactly."""
    crop = augment(blocks(), 64, AugmentConfig(**GEOMETRY, scale_min=0.8), np.random.default_rng(seed), FILL)
    ids = crop.id_map_hw_i32
    inner = np.ones(ids.shape, bool)
    for shift in [(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2)]:
        inner &= np.roll(ids, shift, (0, 1)) == ids
    inner &= crop.valid_hw
    inner[:2], inner[-2:], inner[:, :2], inner[:, -2:] = False, False, False, False
    assert inner.sum() > 20
    assert np.array_equal(crop.image_hwc_u8[inner][:, 0], ids[inner] * 2)


@pytest.mark.parametrize("relative", [1.3, 2.0, 5.0])
@pytest.mark.parametrize("seed", range(5))
def test_a_crop_equals_the_same_window_of_the_whole_scaled_picture(seed, relative):
    """Every pixel has an id of its own: the first one tells about where the window lies."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (90, 120, 3), np.uint8)
    sample = Sample(0, "a.png", noise, np.arange(90 * 120, dtype=np.int32).reshape(90, 120) + 1, ())
    crop = augment(sample, 48, AugmentConfig(**STILL, scale_min=relative, scale_max=relative), rng, FILL)
    width, height = round(48 * relative), round(36 * relative)
    whole = np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    row, column = divmod(int(crop.id_map_hw_i32[0, 0]) - 1, 120)
    tops = range(max(0, int(row * height / 90) - 3), min(height - 48, int(row * height / 90) + 3) + 1)
    lefts = range(max(0, int(column * width / 120) - 3), min(width - 48, int(column * width / 120) + 3) + 1)
    content = crop.image_hwc_u8[: min(48, height)]
    windows = [whole[y : y + 48, x : x + 48] for y in tops or [0] for x in lefts]
    assert min(np.abs(w - content).max() for w in windows) <= 1


def test_a_small_picture_lies_at_the_top_left_and_the_rest_is_padding():
    config = AugmentConfig(**STILL, scale_min=0.25, scale_max=0.25)
    crop = augment(blocks(), 64, config, np.random.default_rng(0), FILL)
    assert crop.valid_hw[:12, :16].all()
    assert crop.valid_hw.sum() == 12 * 16
    assert (crop.image_hwc_u8[~crop.valid_hw] == FILL).all()
    assert not crop.id_map_hw_i32[~crop.valid_hw].any()
    assert crop.id_map_hw_i32[0, 0] == 1


def test_a_flip_mirrors_picture_and_ids_inside_the_content():
    options = {**STILL, "scale_min": 0.5, "scale_max": 0.5}
    crops = [
        augment(blocks(), 64, AugmentConfig(**{**options, "flip_probability": p}), np.random.default_rng(0), FILL)
        for p in (0.0, 1.0)
    ]
    plain, flipped = crops
    assert np.array_equal(plain.id_map_hw_i32[:24, :32], flipped.id_map_hw_i32[:24, 31::-1])
    assert np.array_equal(plain.image_hwc_u8[:24, :32], flipped.image_hwc_u8[:24, 31::-1])
    assert np.array_equal(plain.valid_hw, flipped.valid_hw)


def test_only_segments_with_pixels_remain_and_crowds_stay_crowds():
    sample = blocks()
    segments = tuple(Segment(s.id, s.class_index, iscrowd=True) for s in sample.segments)
    sample = Sample(0, "a.png", sample.image_hwc_u8, sample.id_map_hw_i32, segments)
    crop = augment(sample, 32, AugmentConfig(scale_min=4.0, scale_max=4.0), np.random.default_rng(3), FILL)
    ids = [s.id for s in crop.segments]
    assert 0 < len(ids) < len(segments)
    assert set(ids) == set(np.unique(crop.id_map_hw_i32).tolist())
    assert all(s.iscrowd for s in crop.segments)


def test_without_colour_strengths_colours_stay():
    config = AugmentConfig(**STILL, scale_min=1.0, scale_max=1.0)
    crop = augment(blocks(64, 64), 64, config, np.random.default_rng(0), FILL)
    assert np.array_equal(crop.image_hwc_u8, blocks(64, 64).image_hwc_u8)


@pytest.mark.parametrize("strength", ["brightness", "contrast", "saturation", "hue"])
def test_each_colour_strength_changes_colours_and_not_ids(strength):
    config = AugmentConfig(**{**STILL, strength: 0.2, "scale_min": 1.0, "scale_max": 1.0})
    crop = augment(blocks(64, 64), 64, config, np.random.default_rng(1), FILL)
    assert not np.array_equal(crop.image_hwc_u8, blocks(64, 64).image_hwc_u8)
    assert np.array_equal(crop.id_map_hw_i32, blocks(64, 64).id_map_hw_i32)


@pytest.mark.parametrize("strength", ["saturation", "hue"])
def test_grey_stays_grey_under_saturation_and_hue(strength):
    sample = Sample(0, "a.png", np.full((8, 8, 3), 90, np.uint8), np.ones((8, 8), np.int32), ())
    config = AugmentConfig(**{**STILL, strength: 0.5, "scale_min": 1.0, "scale_max": 1.0})
    crop = augment(sample, 8, config, np.random.default_rng(1), FILL)
    assert np.abs(crop.image_hwc_u8.astype(int) - 90).max() <= 1


def test_contrast_turns_about_mid_grey_as_computed_by_hand():
    """With rng.random() = r, the gain is 1 + 0.5 (2 r - 1): 200 -> 127.5 + gain * 72.5."""
    draw = np.random.default_rng(5).random(8)[5]
    sample = Sample(0, "a.png", np.full((8, 8, 3), 200, np.uint8), np.ones((8, 8), np.int32), ())
    config = AugmentConfig(**{**STILL, "contrast": 0.5, "scale_min": 1.0, "scale_max": 1.0})
    crop = augment(sample, 8, config, np.random.default_rng(5), FILL)
    assert abs(int(crop.image_hwc_u8[0, 0, 0]) - min(255.0, 127.5 + (1 + 0.5 * (2 * draw - 1)) * 72.5)) <= 1


@pytest.mark.parametrize(("height", "width"), [(96, 128), (128, 96), (64, 64), (1, 50), (7, 3), (300, 20)])
def test_letterboxed_samples_are_what_the_predictor_feeds(height, width):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    ids = rng.integers(0, 4, (height, width)).astype(np.int32)
    crop = letterbox_sample(Sample(0, "a.png", image, ids, (Segment(1, 0), Segment(9, 0))), 64, FILL)
    expected, box = letterbox_image(image, (64, 64), FILL)
    content_w, content_h = box.content_wh_px
    nearest = Image.fromarray(ids.astype(np.uint8)).resize((content_w, content_h), Image.Resampling.NEAREST)
    assert np.array_equal(crop.image_hwc_u8, expected)
    assert np.array_equal(crop.id_map_hw_i32[:content_h, :content_w], np.asarray(nearest))
    assert crop.valid_hw.sum() == content_w * content_h
    assert Segment(9, 0) not in crop.segments


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 5)])
def test_tiny_and_thin_pictures_can_be_augmented(size):
    ids = np.ones(size, np.int32)
    sample = Sample(0, "a.png", np.zeros((*size, 3), np.uint8), ids, (Segment(1, 0),))
    for seed in range(20):
        crop = augment(sample, 32, AugmentConfig(), np.random.default_rng(seed), FILL)
        assert crop.valid_hw.any()
        assert crop.segments == (Segment(1, 0),)


@pytest.mark.parametrize(
    "change",
    [
        {"flip_probability": 1.1},
        {"scale_min": 0.0},
        {"scale_min": 2.0, "scale_max": 1.0},
        {"scale_max": 17.0},
        {"brightness": -0.1},
        {"hue": 0.6},
    ],
    ids=str,
)
def test_a_strength_out_of_range_is_refused(change):
    with pytest.raises(ConfigError, match="out of range"):
        AugmentConfig(**change)
