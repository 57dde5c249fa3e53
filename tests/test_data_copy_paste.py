"""Things pasted over a crop: every pixel of picture and ids worked out by hand; one generator decides everything."""

import dataclasses

import numpy as np
import pytest

from edge_seg.contract import ClassInfo
from edge_seg.data.copy_paste import TrainCrops, paste_things
from edge_seg.data.loader import BatchLoader
from edge_seg.data.sample import Segment
from edge_seg.data.synthetic import SyntheticScenes
from edge_seg.data.transforms import AugmentConfig, TrainCrop, augment
from edge_seg.errors import ConfigError

CUP, SKY = 0, 1
ISTHING = (True, False)
FILL = (127, 128, 129)


def crop(ids, segments, grey, valid=None):
    """A crop of one grey; what is not valid is padding."""
    ids = np.array(ids, np.int32)
    valid = np.ones(ids.shape, bool) if valid is None else np.array(valid, bool)
    return TrainCrop(np.full((*ids.shape, 3), grey, np.uint8), ids, valid, tuple(segments))


BELOW = crop(
    [[7, 7, 1, 1], [7, 7, 1, 1], [7, 7, 7, 7], [0, 0, 0, 0]],
    [Segment(7, SKY), Segment(1, CUP)],
    10,
    [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]],
)


def paste(above, *, most=1, below=BELOW, seed=0):
    return paste_things(below, above, ISTHING, most, np.random.default_rng(seed))


def test_a_thing_covers_what_lies_below_in_picture_ids_and_segments():
    """The pasted cup has id 1 in its own crop; below, 1 is taken, and 2 is the smallest free id."""
    above = crop([[9, 9, 9, 9], [9, 1, 1, 9], [9, 1, 9, 9], [9, 1, 9, 9]], [Segment(9, SKY), Segment(1, CUP)], 200)
    got = paste(above)
    assert got.id_map_hw_i32.tolist() == [[7, 7, 1, 1], [7, 2, 2, 1], [7, 2, 7, 7], [0, 0, 0, 0]]
    assert got.image_hwc_u8[..., 1].tolist() == [[10, 10, 10, 10], [10, 200, 200, 10], [10, 200, 10, 10], [10] * 4]
    assert got.segments == (Segment(7, SKY), Segment(1, CUP), Segment(2, CUP))
    assert np.array_equal(got.valid_hw, BELOW.valid_hw)


def test_a_segment_that_is_covered_completely_vanishes_and_the_crop_below_is_left_alone():
    above = crop([[0, 0, 5, 5], [0, 0, 5, 5], [0, 0, 0, 0], [0, 0, 0, 0]], [Segment(5, CUP)], 200)
    got = paste(above)
    assert got.id_map_hw_i32.tolist() == [[7, 7, 2, 2], [7, 7, 2, 2], [7, 7, 7, 7], [0, 0, 0, 0]]
    assert got.segments == (Segment(7, SKY), Segment(2, CUP))
    assert BELOW.id_map_hw_i32.tolist()[0] == [7, 7, 1, 1]
    assert (BELOW.image_hwc_u8 == 10).all()


def test_nothing_is_pasted_into_the_padding():
    above = crop([[0] * 4, [0] * 4, [5] * 4, [5] * 4], [Segment(5, CUP)], 200)
    assert paste(above).id_map_hw_i32.tolist()[2:] == [[2, 2, 2, 2], [0, 0, 0, 0]]
    only = crop([[0] * 4, [0] * 4, [0] * 4, [5] * 4], [Segment(5, CUP)], 200)
    assert paste(only) is BELOW


@pytest.mark.parametrize("segment", [Segment(5, SKY), Segment(5, CUP, iscrowd=True)], ids=["stuff", "crowd"])
def test_stuff_and_crowds_are_not_pasted(segment):
    assert paste(crop(np.full((4, 4), 5), [segment], 200), most=9) is BELOW


def test_a_crowd_below_shrinks_and_stays_a_crowd():
    below = crop([[3, 3], [3, 3]], [Segment(3, CUP, iscrowd=True)], 10)
    got = paste(crop([[8, 0], [0, 0]], [Segment(8, CUP)], 200), below=below)
    assert got.id_map_hw_i32.tolist() == [[1, 3], [3, 3]]
    assert got.segments == (Segment(3, CUP, iscrowd=True), Segment(1, CUP))


def test_a_random_part_of_the_things_is_pasted_and_never_more_than_allowed():
    ids = np.arange(1, 10).reshape(3, 3)
    above = crop(ids, [Segment(i, CUP) for i in range(1, 10)], 200)
    below = crop(np.zeros((3, 3)), [], 10)
    seen, counts = set(), set()
    for seed in range(60):
        got = paste(above, most=3, below=below, seed=seed)
        pasted = got.id_map_hw_i32 > 0
        seen |= set(ids[pasted].tolist())
        counts.add(int(pasted.sum()))
        assert sorted(got.id_map_hw_i32[pasted].tolist()) == [s.id for s in got.segments]
        assert np.array_equal(got.image_hwc_u8[..., 0] == 200, pasted)
    assert counts == {1, 2, 3}
    assert seen == set(range(1, 10))


CONFIG = {"flip_probability": 0.5, "scale_min": 0.5, "scale_max": 1.5}


@pytest.fixture(scope="module")
def scenes():
    return SyntheticScenes("easy", split="train", length=12)


def same(a, b):
    return np.array_equal(a.image_hwc_u8, b.image_hwc_u8) and np.array_equal(a.id_map_hw_i32, b.id_map_hw_i32)


def test_switched_off_it_draws_nothing_and_changes_nothing(scenes):
    config = AugmentConfig(**CONFIG)
    one, two = np.random.default_rng(3), np.random.default_rng(3)
    crops = TrainCrops(scenes, 64, config, FILL)
    assert same(crops(scenes[0], one), augment(scenes[0], 64, config, two, FILL))
    assert one.random() == two.random()


def test_the_chance_decides_how_many_crops_are_changed(scenes):
    config = AugmentConfig(**CONFIG, copy_paste_prob=0.5, copy_paste_max_things=20)
    changed = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        got = TrainCrops(scenes, 64, config, FILL)(scenes[seed % 12], rng)
        changed += not same(got, augment(scenes[seed % 12], 64, config, np.random.default_rng(seed), FILL))
        assert sorted(s.id for s in got.segments) == [i for i in np.unique(got.id_map_hw_i32).tolist() if i]
        assert not got.id_map_hw_i32[~got.valid_hw].any()
    assert 30 <= changed <= 60


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_pasted_picture_depends_on_seed_step_and_slot_and_on_no_process(scenes, world):
    config = AugmentConfig(**CONFIG, copy_paste_prob=1.0)

    def batches(**options):
        crops = TrainCrops(scenes, 64, config, FILL)
        with BatchLoader(scenes, crops, batch_size=4, seed=5, **options) as loader:
            return [next(loader) for _ in range(2)]

    whole = batches(workers=0)
    for rank in range(world):
        for step, part in enumerate(batches(workers=2, rank=rank, world=world)):
            assert all(same(a, b) for a, b in zip(part, whole[step][rank::world], strict=True))


class Changed:
    """Scenes with other pictures or other classes."""

    def __init__(self, scenes, classes, paint=None):
        self.scenes, self.classes, self.paint = scenes, classes, paint

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        sample = self.scenes[index]
        return dataclasses.replace(sample, image_hwc_u8=self.paint(sample)) if self.paint else sample


def grey_of(class_index):
    return 20 + 10 * class_index


def greys(sample):
    """Every class in one grey of its own."""
    table = np.zeros(max(s.id for s in sample.segments) + 1, np.uint8)
    for s in sample.segments:
        table[s.id] = grey_of(s.class_index)
    return np.repeat(table[sample.id_map_hw_i32][..., None], 3, -1)


def test_a_pasted_thing_keeps_its_class(scenes):
    """The colour of a pixel is that of its segment's class; resampling blends at the edges only."""
    painted = Changed(scenes, scenes.classes, greys)
    still = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    config = AugmentConfig(scale_min=0.9, scale_max=1.1, **still, copy_paste_prob=1.0)
    checked = 0
    for seed in range(10):
        got = TrainCrops(painted, 128, config, FILL)(painted[seed], np.random.default_rng(seed))
        for s in got.segments:
            grey = got.image_hwc_u8[got.id_map_hw_i32 == s.id][:, 0]
            if len(grey) >= 200:
                assert np.median(grey) == grey_of(s.class_index)
                checked += 1
    assert checked > 30


def test_the_class_list_decides_what_a_thing_is(scenes):
    """With every class declared stuff nothing can be pasted."""
    stuff = Changed(scenes, tuple(ClassInfo(c.id, c.name, False, c.color_rgb) for c in scenes.classes))
    config = AugmentConfig(**CONFIG, copy_paste_prob=1.0)
    for seed in range(5):
        got = TrainCrops(stuff, 64, config, FILL)(stuff[0], np.random.default_rng(seed))
        assert same(got, augment(stuff[0], 64, config, np.random.default_rng(seed), FILL))


@pytest.mark.parametrize("change", [{"copy_paste_prob": 1.1}, {"copy_paste_prob": -0.1}, {"copy_paste_max_things": 0}])
def test_a_setting_out_of_range_is_refused(change):
    with pytest.raises(ConfigError, match="copy_paste"):
        AugmentConfig(**change)
