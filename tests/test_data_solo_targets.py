"""SOLOv2's targets: the published case to the cell, then sharing, ranges, limits, crowds and padding by hand."""

import numpy as np
import pytest
import torch

from edge_seg.data.sample import Segment
from edge_seg.data.solo_targets import (
    SoloObject,
    SoloTargetConfig,
    box_side,
    center_cells,
    countable,
    crop_objects,
    solo_targets,
    stride_4_mask,
)
from edge_seg.data.transforms import TrainCrop

SIDES = (40, 36, 24, 16, 12)
LIGHT_RANGES = ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896))
STARTS = (0, 1600, 2896, 3472, 3728, 3872)


def rectangle(x0, y0, x1, y1, size=256):
    mask = np.zeros((size, size), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def made(objects, *, sides=SIDES, ranges=LIGHT_RANGES, valid=None, **config):
    valid = np.ones(objects[0].mask_hw.shape, bool) if valid is None else valid
    return solo_targets(objects, valid, sides, ranges, SoloTargetConfig(**config), np.random.default_rng(0))


def of_level(targets, level, number=None):
    inside = (targets.positive_cell >= STARTS[level]) & (targets.positive_cell < STARTS[level + 1])
    if number is not None:
        inside &= targets.positive_object == number
    return (targets.positive_cell[inside] - STARTS[level]).tolist()


def test_the_published_case_has_its_cells():
    """Values that the authors' code gives for two boxes in 256 x 256 pixels with the light networks' ranges."""
    targets = made([SoloObject(3, rectangle(20, 30, 100, 90)), SoloObject(7, rectangle(60, 60, 220, 240))])
    assert [len(of_level(targets, level)) for level in range(5)] == [0, 9, 15, 9, 0]
    assert of_level(targets, 1) == [259, 260, 261, 295, 296, 297, 331, 332, 333]
    assert of_level(targets, 2, 0) == [124, 125, 126, 148, 149, 150]
    assert of_level(targets, 2, 1) == [324, 325, 326, 348, 349, 350, 372, 373, 374]
    assert of_level(targets, 3) == [135, 136, 137, 151, 152, 153, 167, 168, 169]
    classes = {level: set(targets.category[STARTS[level] :][of_level(targets, level)]) for level in (1, 2, 3)}
    assert classes == {1: {3}, 2: {3, 7}, 3: {7}}
    assert (targets.category >= 0).sum() == 33


def test_a_later_object_takes_the_category_of_a_shared_cell_and_both_masks_stay():
    first, second = rectangle(96, 96, 160, 160), rectangle(112, 112, 144, 144)
    targets = made([SoloObject(1, first), SoloObject(2, second)], ranges=[(1, 999)] * 5)
    shared = set(of_level(targets, 4, 0)) & set(of_level(targets, 4, 1))
    assert shared
    assert all(targets.category[STARTS[4] + cell] == 2 for cell in shared)
    assert np.array_equal(targets.masks_qhw[0], stride_4_mask(first))
    assert np.array_equal(targets.masks_qhw[1], stride_4_mask(second))


@pytest.mark.parametrize(("side_px", "levels"), [(27, [0]), (28, [0, 1]), (56, [0, 1, 2]), (57, [1, 2]), (240, [3, 4])])
def test_ranges_overlap_and_include_both_ends(side_px, levels):
    targets = made([SoloObject(0, rectangle(4, 4, 4 + side_px, 4 + side_px))])
    assert [level for level in range(5) if of_level(targets, level)] == levels


def test_an_object_of_one_pixel_owns_the_cell_it_lies_in():
    for y, x in ((0, 0), (255, 255), (100, 37)):
        mask = rectangle(x, y, x + 1, y + 1)
        assert box_side(mask) == 1
        assert center_cells(mask, 16) == [y // 16 * 16 + x // 16]


def test_the_centre_is_that_of_the_mask_and_not_of_its_box():
    mask = rectangle(0, 0, 32, 256)
    mask[248:, :] = True
    rows, columns = np.nonzero(mask)
    assert center_cells(mask, 8)[0] % 8 == max(int(columns.mean() - 25.6) // 32, 0)
    assert {c // 8 for c in center_cells(mask, 8)} <= {int(rows.mean()) // 32 + d for d in (-1, 0, 1)}
    assert 3 not in {c % 8 for c in center_cells(mask, 8)}  # where the box has its centre


def test_a_large_object_owns_at_most_three_by_three_cells_inside_the_grid():
    assert center_cells(rectangle(0, 0, 256, 256), 40) == [y * 40 + x for y in (18, 19, 20) for x in (18, 19, 20)]
    assert len(center_cells(rectangle(0, 0, 8, 256), 40)) == 3


@pytest.mark.parametrize("seed", range(4))
def test_masks_are_resized_bilinearly_with_half_pixel_centres(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((48, 64)) < 0.5
    small = torch.nn.functional.interpolate(
        torch.from_numpy(mask)[None, None].double(), size=(12, 16), mode="bilinear", align_corners=False
    )
    assert np.array_equal(stride_4_mask(mask), (small[0, 0].numpy() >= 0.5).astype(np.uint8))


def test_more_cells_than_fit_are_drawn_at_random_and_categories_stay_whole():
    objects = [SoloObject(0, rectangle(x, 40, x + 60, 100)) for x in range(0, 180, 20)]
    every, few = made(objects), made(objects, max_positives=20)
    assert few.positive_cell.shape == few.positive_object.shape == (20,)
    pairs = set(zip(every.positive_cell.tolist(), every.positive_object.tolist(), strict=True))
    chosen = list(zip(few.positive_cell.tolist(), few.positive_object.tolist(), strict=True))
    assert len(set(chosen)) == 20
    assert set(chosen) <= pairs
    assert np.array_equal(every.category, few.category)


def test_a_picture_without_objects_has_negatives_only():
    valid = np.ones((64, 64), bool)
    targets = solo_targets([], valid, (8, 4), [(1, 32), (16, 64)], SoloTargetConfig(), np.random.default_rng(0))
    assert set(targets.category) == {-1}
    assert set(targets.positive_cell) == {-1}
    assert targets.cell_weight.sum() == 80
    assert not targets.masks_qhw.any()


def crop(ids, segments, valid=None):
    valid = np.ones(ids.shape, bool) if valid is None else valid
    return TrainCrop(np.zeros((*ids.shape, 3), np.uint8), ids, valid, segments)


def test_padding_and_crowds_do_not_count():
    ids = np.zeros((64, 64), np.int32)
    ids[:16, :16] = 1
    ids[32:, :32] = 2
    valid = np.ones((64, 64), bool)
    valid[:, 48:] = False
    picture = crop(ids, (Segment(1, 0), Segment(2, 1, iscrowd=True)), valid)
    objects = crop_objects(picture, 5)
    assert [o.class_index for o in objects] == [0]
    targets = made(objects, sides=(4,), ranges=[(1, 64)], valid=countable(picture))
    assert targets.cell_weight.reshape(4, 4).tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert targets.mask_weight_hw.shape == (16, 16)
    assert targets.mask_weight_hw.sum() == 16 * 12 - 8 * 8


def test_a_cell_with_a_category_counts_even_inside_a_crowd():
    ids = np.full((64, 64), 2, np.int32)
    ids[20:28, 20:28] = 1
    picture = crop(ids, (Segment(1, 0), Segment(2, 1, iscrowd=True)))
    targets = made(crop_objects(picture, 5), sides=(4,), ranges=[(1, 64)], valid=countable(picture))
    assert targets.cell_weight.tolist() == (targets.category >= 0).astype(float).tolist()
    assert targets.cell_weight.sum() > 0


def test_the_largest_objects_are_kept_and_come_first():
    ids = np.zeros((64, 64), np.int32)
    ids[:4, :4], ids[10:30, 10:30], ids[40:50, 40:50] = 5, 9, 7
    picture = crop(ids, (Segment(5, 0), Segment(7, 1), Segment(9, 2), Segment(11, 3)))
    assert [o.class_index for o in crop_objects(picture, 2)] == [2, 1]
    assert [o.class_index for o in crop_objects(picture, 9)] == [2, 1, 0]


def test_arrays_have_one_shape_whatever_the_picture_holds():
    one = made([SoloObject(0, rectangle(9, 9, 90, 90))])
    many = made([SoloObject(0, rectangle(9 + n, 9, 90, 90)) for n in range(20)])
    shapes = {k: (v.shape, v.dtype) for k, v in one.arrays().items()}
    assert shapes == {k: (v.shape, v.dtype) for k, v in many.arrays().items()}
    assert shapes["masks_qhw"] == ((50, 64, 64), np.uint8)
    assert shapes["category"] == ((3872,), np.int64)
