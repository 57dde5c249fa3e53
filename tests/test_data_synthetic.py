"""Synthetic scenes: exact, repeatable, and no easier than they claim."""

import numpy as np
import pytest

from edge_seg.data.synthetic import LEVELS, VERSION, SyntheticScenes
from edge_seg.data.synthetic_draw import SHAPES, shape_distance_px
from edge_seg.errors import DataError

LEVEL_NAMES = sorted(LEVELS)


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_a_scene_is_the_same_whenever_it_is_drawn(level):
    one, two = (SyntheticScenes(level, split="train", seed=3) for _ in range(2))
    two[0]
    a, b = one[5], two[5]
    assert np.array_equal(a.image_hwc_u8, b.image_hwc_u8)
    assert np.array_equal(a.id_map_hw_i32, b.id_map_hw_i32)
    assert a.segments == b.segments


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_splits_seeds_and_indices_share_no_scene(level):
    sets = [SyntheticScenes(level, split=s, seed=n, length=6) for s in ("train", "val") for n in (0, 1)]
    scenes = [scenes[i].image_hwc_u8.tobytes() for scenes in sets for i in range(6)]
    assert len(set(scenes)) == 24


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_ids_and_segments_name_each_other(level):
    scenes = SyntheticScenes(level, split="val")
    for index in range(15):
        sample = scenes[index]
        assert sample.image_hwc_u8.shape == (256, 256, 3)
        assert sample.image_hwc_u8.dtype == np.uint8
        assert sample.id_map_hw_i32.dtype == np.int32
        ids = [s.id for s in sample.segments]
        assert len(set(ids)) == len(ids)
        assert set(np.unique(sample.id_map_hw_i32).tolist()) - {0} == set(ids)
        stuff = [s.class_index for s in sample.segments if not scenes.classes[s.class_index].isthing]
        assert len(set(stuff)) == len(stuff)


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_every_segment_is_large_enough_to_be_named(level):
    scenes = SyntheticScenes(level, split="val")
    areas_px = []
    for sample in (scenes[i] for i in range(15)):
        counts = np.bincount(sample.id_map_hw_i32.ravel())
        areas_px += [counts[s.id] for s in sample.segments]
    assert min(areas_px) >= 20


def test_every_class_occurs_and_hard_scenes_have_void():
    for level in LEVEL_NAMES:
        scenes = SyntheticScenes(level, split="val")
        samples = [scenes[i] for i in range(25)]
        seen = {s.class_index for sample in samples for s in sample.segments}
        assert seen == set(range(len(scenes.classes)))
        if level == "hard":
            assert sum((sample.id_map_hw_i32 == 0).sum() for sample in samples) > 1000


def test_the_class_lists_have_the_promised_sizes_and_distinct_colours():
    for level, things, stuff in (("easy", 4, 4), ("hard", 7, 6)):
        classes = SyntheticScenes(level, split="val").classes
        assert [sum(c.isthing for c in classes), sum(not c.isthing for c in classes)] == [things, stuff]
        assert len({c.color_rgb for c in classes}) == len({c.name for c in classes}) == things + stuff


def test_colour_gives_the_class_away_in_easy_scenes_and_not_in_hard_ones():
    """Mean colour of each thing, nearest class mean of other scenes: good when easy, chance when hard."""
    correct = {}
    for level in LEVEL_NAMES:
        scenes = SyntheticScenes(level, split="train")
        colors, labels = [], []
        for sample in (scenes[i] for i in range(60)):
            for s in sample.segments:
                if scenes.classes[s.class_index].isthing:
                    mean = sample.image_hwc_u8[sample.id_map_hw_i32 == s.id].mean(0)
                    colors.append(mean / mean.sum())
                    labels.append(s.class_index)
        x, y = np.array(colors), np.array(labels)
        half = len(x) // 2
        means = np.stack([x[:half][y[:half] == c].mean(0) for c in range(y.max() + 1)])
        guess = np.linalg.norm(x[half:, None] - means, axis=-1).argmin(1)
        correct[level] = (guess == y[half:]).mean()
    assert correct["easy"] > 0.8
    assert correct["hard"] < 0.35


@pytest.mark.parametrize("level", LEVEL_NAMES)
def test_most_things_are_large_enough_for_a_stride_of_eight(level):
    scenes = SyntheticScenes(level, split="val")
    widths_px = []
    for sample in (scenes[i] for i in range(30)):
        for s in sample.segments:
            if scenes.classes[s.class_index].isthing:
                widths_px.append(np.ptp(np.flatnonzero((sample.id_map_hw_i32 == s.id).any(0))) + 1)
    assert np.mean([24 <= w <= 90 for w in widths_px]) > 0.5
    assert min(widths_px) < 20


@pytest.mark.parametrize(
    ("name", "area"),
    [
        ("disc", np.pi),
        ("box", 1.7**2),
        ("triangle", 3**0.5 * 3 * 0.55**2),
        ("ring", np.pi * (1 - 0.44**2)),
        ("cross", 4 * (2 * 0.33 - 0.33**2)),
        ("star", 5 * 1.1 * 0.45 * np.sin(np.pi / 5)),
    ],
)
def test_a_shape_has_the_area_that_geometry_gives_it(name, area):
    axis = np.arange(-150, 150, dtype=np.float32) + 0.5
    distance = shape_distance_px(name, axis[:, None], axis[None, :], radius_px=100.0, angle=0.7, aspect=0.8)
    assert (distance < 0).sum() / (100.0**2 * 0.8) == pytest.approx(area, rel=0.01)


def test_a_crescent_is_a_disc_without_the_disc_beside_it():
    axis = np.linspace(-1.2, 1.2, 121, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    expected = (u**2 + v**2 < 1) & ((u - 0.5) ** 2 + v**2 > 0.82**2)
    assert np.array_equal(SHAPES["crescent"](u, v) < 0, expected)


def test_the_size_of_a_scene_can_be_chosen():
    scenes = SyntheticScenes("hard", split="val", size_px=96, length=2)
    assert scenes[1].id_map_hw_i32.shape == (96, 96)
    assert len(scenes) == 2
    with pytest.raises(IndexError):
        scenes[2]


@pytest.mark.parametrize(
    "change", [{"level": "medium"}, {"split": "test"}, {"seed": -1}, {"size_px": 16}, {"length": 0}], ids=str
)
def test_a_value_out_of_range_is_refused(change):
    options = {"level": "easy", "split": "val", **change}
    with pytest.raises(DataError):
        SyntheticScenes(options.pop("level"), **options)


def test_the_fingerprint_tells_sets_apart():
    kinds = [
        ("easy", "val", 0, 256),
        ("hard", "val", 0, 256),
        ("easy", "train", 0, 256),
        ("easy", "val", 1, 256),
    ]
    kinds += [("easy", "val", 0, 320)]
    prints = {SyntheticScenes(lv, split=s, seed=n, size_px=px).fingerprint() for lv, s, n, px in kinds}
    assert len(prints) == 5


PINNED = {
    "easy": ([4, 5, 7, 3, 1, 0, 0, 0], [108.5, 110.6, 138.6]),
    "hard": ([11, 12, 9, 2, 6, 4, 3, 4, 5, 5, 2], [96.6, 94.0, 88.5]),
}


def test_scenes_only_change_together_with_the_version():
    """If this fails, the drawing changed: raise VERSION, then write the new numbers here."""
    found = {}
    for level in LEVEL_NAMES:
        sample = SyntheticScenes(level, split="val")[0]
        found[level] = ([s.class_index for s in sample.segments], sample.image_hwc_u8.mean((0, 1)))
    assert VERSION == 1
    for level, (classes, mean_rgb) in PINNED.items():
        assert found[level][0] == classes
        assert np.abs(found[level][1] - mean_rgb).max() < 0.5
