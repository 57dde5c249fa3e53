"""FCOS targets against golden values of the published code, and objects, masks and ignored cells by hand."""

import numpy as np
import pytest

from edge_seg.data.fcos_targets import counted_cells, fcos_targets, locations_px, object_masks, object_table
from edge_seg.data.sample import Segment
from edge_seg.data.transforms import TrainCrop

RT = {"levels": (3, 4, 5), "bounds_px": (64, 128)}
BOXES = np.array([[20, 30, 100, 90], [60, 60, 220, 240]], np.float32)


def crop_of(id_map, crowds=(), classes=None, valid=None):
    ids = [i for i in np.unique(id_map).tolist() if i]
    segments = tuple(Segment(i, (classes or {}).get(i, i), i in crowds) for i in ids)
    side = len(id_map)
    full = np.ones((side, side), bool) if valid is None else valid
    return TrainCrop(np.zeros((side, side, 3), np.uint8), id_map.astype(np.int32), full, segments)


def test_locations_are_x_y_row_by_row_from_half_a_stride():
    assert locations_px((2, 2), 8).tolist() == [[4, 4], [12, 4], [4, 12], [12, 12]]


def level(targets, start, size):
    part = slice(start, start + size)
    return targets.object_of_cell[part], targets.ltrb_units[part]


def test_the_targets_of_two_boxes_are_those_of_the_published_code():
    targets = fcos_targets(BOXES, (256, 256), **RT)
    assert len(targets.object_of_cell) == 32 * 32 + 16 * 16 + 8 * 8
    for start, size, box, cells, first in (
        (0, 1024, 0, [198, 199, 200, 230, 231, 232, 262, 263, 264], [4, 2.75, 6, 4.75]),
        (1024, 256, 1, [135, 136, 137, 151, 152, 153, 167, 168, 169], [3.75, 4.75, 6.25, 6.5]),
        (1280, 64, 1, [27, 28, 29], [1.625, 1.625, 3.375, 4.0]),
    ):
        objects, ltrb = level(targets, start, size)
        assert np.flatnonzero(objects >= 0).tolist() == cells
        assert set(objects[cells].tolist()) == {box}
        assert ltrb[cells[0]].tolist() == first
        assert not ltrb[objects < 0].any()


def test_a_point_on_the_edge_is_outside_and_the_smallest_box_wins():
    """Points lie at 4, 12, 20, ...: a box that ends on 12 does not hold it."""
    alone = fcos_targets(np.array([[0, 0, 12, 12]], np.float32), (32, 32), (3,), (), radius=0)
    assert np.flatnonzero(alone.object_of_cell >= 0).tolist() == [0]
    nested = np.array([[0, 0, 32, 32], [8, 8, 24, 24]], np.float32)
    both = fcos_targets(nested, (32, 32), (3,), (), radius=0)
    assert both.object_of_cell.reshape(4, 4).tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_a_level_takes_both_ends_of_its_range():
    """From the point (68, 68) the largest distance is exactly 64: levels 3 and 4 both take it."""
    box = np.array([[4, 56, 80, 80]], np.float32)
    targets = fcos_targets(box, (128, 128), (3, 4, 5), (64, 128), radius=0)
    assert targets.object_of_cell[8 * 16 + 8] == 0
    assert fcos_targets(box, (128, 128), (3, 4, 5), (63, 128), radius=0).object_of_cell[8 * 16 + 8] == -1


def test_no_box_means_no_positive():
    targets = fcos_targets(np.zeros((0, 4), np.float32), (64, 64), **RT)
    assert (targets.object_of_cell == -1).all()
    assert targets.ltrb_units.shape == (64 + 16 + 4, 4)


def test_an_extra_level_of_an_odd_map_is_rounded_up():
    targets = fcos_targets(BOXES, (96, 96), (3, 4, 5, 6), (8, 16, 32))
    assert len(targets.object_of_cell) == 144 + 36 + 9 + 4


def picture():
    id_map = np.zeros((64, 64), int)
    id_map[4:20, 8:40] = 5  # 512 pixels
    id_map[30:50, 30:60] = 9  # 600 pixels
    id_map[60:64, 0:8] = 11  # 32 pixels
    return id_map


def test_objects_are_sorted_by_size_with_tight_boxes_and_the_rest_is_empty():
    table = object_table(crop_of(picture(), classes={5: 2, 9: 0, 11: 1}), 4)
    assert table.class_index.tolist() == [0, 2, 1, -1]
    assert table.boxes_xyxy_px.tolist() == [[30, 30, 60, 50], [8, 4, 40, 20], [0, 60, 8, 64], [0, 0, 0, 0]]
    assert (table.slot_hw[4:20, 8:40] == 1).all()
    assert table.counted_hw.all()


def test_padding_crowds_and_objects_without_a_slot_do_not_count():
    valid = np.ones((64, 64), bool)
    valid[:, 62:] = False
    table = object_table(crop_of(picture(), crowds={9}, valid=valid), 1)
    assert table.class_index.tolist() == [5]
    expected = valid & (picture() != 9) & (picture() != 11)
    assert np.array_equal(table.counted_hw, expected)
    assert table.slot_hw.max() == 1


def test_a_cell_counts_when_half_of_it_does():
    counted = np.ones((64, 64), bool)
    counted[:4, :8] = False
    counted[:5, 8:16] = False
    cells = counted_cells(counted, (3, 6))
    assert cells.tolist()[:3] == [True, False, True]
    assert len(cells) == 65
    assert cells[64]


def test_a_mask_is_its_own_pixels_where_the_box_has_as_many_bins():
    id_map = np.zeros((32, 32), int)
    disc = (np.arange(12)[:, None] - 5.5) ** 2 + (np.arange(12) - 5.5) ** 2 < 34
    id_map[6:18, 3:15][disc] = 1
    table = object_table(crop_of(id_map), 3)
    masks = object_masks(table, 12)
    assert np.array_equal(masks[0] > 0, disc)
    assert not masks[1:].any()
    halved = object_masks(table, 6)[0]
    shares = disc.reshape(6, 2, 6, 2).mean((1, 3))
    assert np.array_equal(halved[shares != 0.5] > 0, shares[shares != 0.5] > 0.5)


@pytest.mark.parametrize("size", [7, 28, 56])
def test_a_full_rectangle_fills_its_box_at_any_size(size):
    """But for the corners of one a few pixels small: a sample there weighs both sides' outside, as published."""
    id_map = np.zeros((64, 64), int)
    id_map[10:41, 5:26] = 3
    id_map[20:23, 50:54] = 4
    large, tiny = object_masks(object_table(crop_of(id_map), 2), size)
    assert large.all()
    middle = slice(size // 4, -(size // 4))
    assert tiny[middle].all()
    assert tiny[:, middle].all()
    assert (size == 7) == tiny.all()
