"""Targets against hand-made id maps and a slow count."""

import tracemalloc

import numpy as np
import pytest

from edge_seg.data.center_targets import CenterTargetConfig, center_targets, cover_counts, gaussian_sigma
from edge_seg.data.sample import Segment
from edge_seg.data.transforms import TrainCrop

THING, STUFF = 0, 1
ISTHING = (True, False, True, False)


def crop(id_map, segments, valid=None):
    id_map = np.asarray(id_map, np.int32)
    valid = np.ones(id_map.shape, bool) if valid is None else valid
    image = np.zeros((*id_map.shape, 3), np.uint8)
    return TrainCrop(image, id_map, valid, tuple(segments))


def targets(id_map, segments, valid=None, seed=0, **config):
    config = CenterTargetConfig(**{"stuff_min_area_share": 0.0, **config})
    return center_targets(crop(id_map, segments, valid), ISTHING, config, np.random.default_rng(seed))


def blank(side=64, fill=0):
    return np.full((side, side), fill, np.int32)


@pytest.mark.parametrize(
    ("cells", "sigma"), [(4, 0.5), (8, 0.83), (16, 1.5), (32, 2.83), (80, 7.17), (2, 0.167), (0.5, 0.167), (0, 0.167)]
)
def test_sigma_has_its_published_values(cells, sigma):
    assert gaussian_sigma(cells, cells) == pytest.approx(sigma, abs=0.005)


def test_sigma_does_not_care_which_side_is_long():
    assert gaussian_sigma(30, 7) == gaussian_sigma(7, 30)


def test_a_thing_is_positive_at_the_middle_of_its_box():
    ids = blank()
    ids[10:31, 20:45] = 7  # rows 10..30, columns 20..44: centre (20, 32), cell (2, 4)
    t = targets(ids, [Segment(7, THING)])
    assert np.argwhere(t.heat_chw == 1).tolist() == [[THING, 2, 4]]
    assert (t.class_index[0], t.cell[0]) == (THING, 2 * 8 + 4)
    assert t.class_index[1:].tolist() == [-1] * 49
    assert t.heat_chw[1:].max() == 0
    assert t.heat_weight_chw.min() == t.heat_weight_chw.max() == 1


def test_the_heat_around_a_centre_is_a_gaussian():
    ids = blank(128)
    ids[0:65, 0:65] = 1  # sides 64 px = 8 cells: sigma 5/6, centre (32, 32), cell (4, 4)
    heat = targets(ids, [Segment(1, THING)]).heat_chw[THING]
    sigma = 5 / 6
    for y, x in ((4, 4), (4, 5), (5, 5), (2, 4), (0, 0)):
        assert heat[y, x] == pytest.approx(np.exp(-((y - 4) ** 2 + (x - 4) ** 2) / (2 * sigma**2)), rel=1e-5)


def test_two_things_of_one_class_keep_the_larger_heat():
    ids = blank(128)
    ids[0:65, 0:65], ids[0:65, 72:128] = 1, 2
    both = targets(ids, [Segment(1, THING), Segment(2, THING)]).heat_chw[THING]
    one = targets(np.where(ids == 1, 1, 0), [Segment(1, THING)]).heat_chw[THING]
    two = targets(np.where(ids == 2, 2, 0), [Segment(2, THING)]).heat_chw[THING]
    assert np.array_equal(both, np.maximum(one, two))
    assert np.argwhere(both == 1).tolist() == [[4, 4], [4, 12]]


def test_the_mask_option_takes_the_centre_of_mass():
    """An L: 64 rows of column 0..7 and 64 columns of row 0..7; its box and its mass have other centres."""
    ids = blank()
    ids[:, :8], ids[:8] = 3, 3
    mass = (64 * 8 * 3.5 + 56 * 8 * 35.5) / (64 * 8 + 56 * 8)  # same along both axes
    assert int(mass // 8) == 2
    segment = [Segment(3, THING)]
    assert targets(ids, segment, centers="box").cell[0] == 3 * 8 + 3
    assert targets(ids, segment, centers="mask").cell[0] == 2 * 8 + 2


def test_masks_are_covered_shares_in_the_order_of_the_slots():
    ids = blank(16)
    ids[0:6, 0:4] = 5  # mask cells of 4 px: (0, 0) full, (1, 0) half
    t = targets(ids, [Segment(5, THING)], max_slots=3)
    assert t.masks_qhw.shape == (3, 4, 4)
    expected = np.zeros((4, 4))
    expected[0, 0], expected[1, 0] = 1, 0.5
    assert np.array_equal(t.masks_qhw[0], expected)
    assert t.masks_qhw[1:].max() == 0


def test_pieces_of_one_stuff_class_share_a_slot_and_a_mask():
    ids = blank()
    ids[:16], ids[48:], ids[24:40, 24:40] = 1, 2, 3
    t = targets(ids, [Segment(1, STUFF), Segment(3, THING), Segment(2, STUFF)])
    assert t.class_index[:3].tolist() == [STUFF, THING, -1]  # stuff first
    assert np.array_equal(t.masks_qhw[0] == 1, np.kron((ids == 1) | (ids == 2), 1)[::4, ::4] == 1)


def test_every_cell_that_stuff_covers_is_a_positive_and_they_share_their_weight():
    ids = blank()
    ids[:20] = 4  # rows of cells 0 and 1 are full, row 2 is half
    t = targets(ids, [Segment(4, STUFF)])
    heat, weight = t.heat_chw[STUFF], t.heat_weight_chw[STUFF]
    assert (heat[:2] == 1).all()
    assert (heat[2] == 0.5).all()
    assert (heat[3:] == 0).all()
    assert np.allclose(weight[:2], 1 / np.sqrt(16))
    assert (weight[2:] == 1).all()
    assert (t.heat_weight_chw[THING] == 1).all()


def test_the_embedding_of_dense_stuff_is_read_at_any_of_its_cells_and_only_there():
    ids = blank()
    ids[:16] = 4
    seen = {int(targets(ids, [Segment(4, STUFF)], seed=s).cell[0]) for s in range(60)}
    assert seen <= set(range(16))
    assert len(seen) > 8


def test_stuff_that_fills_no_cell_is_positive_where_it_covers_most():
    ids = blank()
    ids[:3] = 4
    ids[:4, 24:32] = 4
    t = targets(ids, [Segment(4, STUFF)])
    assert np.argwhere(t.heat_chw[STUFF] == 1).tolist() == [[0, 3]]
    assert t.cell[0] == 3
    assert t.heat_weight_chw[STUFF, 0, 3] == 1


@pytest.mark.parametrize("dense", [True, False])
def test_small_stuff_is_left_out_of_heat_and_slots_relative_to_the_picture(dense):
    """A 16 x 16 piece is 6.25 % of 64 x 64 and 1.6 % of 128 x 128."""
    for side, kept in ((64, True), (128, False)):
        ids = blank(side)
        ids[:16, :16] = 4
        t = targets(ids, [Segment(4, STUFF)], dense_stuff=dense, stuff_min_area_share=0.0624)
        assert (t.class_index[0] == STUFF) == kept
        assert (t.heat_chw.max() == 1) == kept


def test_the_published_form_takes_the_middle_of_the_largest_blob_and_the_mask_of_all():
    """Pieces 30 px and more apart are blobs of their own; the mask target is the whole class."""
    ids = blank(256)
    ids[8:40, 8:40] = 1  # 32 x 32
    ids[160:224, 128:248] = 2  # larger: rows 160..223, columns 128..247, centre (191.5, 187.5)
    t = targets(ids, [Segment(1, STUFF), Segment(2, STUFF)], dense_stuff=False)
    assert np.argwhere(t.heat_chw == 1).tolist() == [[STUFF, 191 // 8, 187 // 8]]
    assert t.cell[0] == 23 * 32 + 23
    assert t.masks_qhw[0].sum() * 16 == 32 * 32 + 64 * 120
    sigma = gaussian_sigma(119 / 8, 63 / 8)
    assert t.heat_chw[STUFF, 23, 24] == pytest.approx(np.exp(-1 / (2 * sigma**2)), rel=1e-5)


def test_the_published_form_joins_pieces_closer_than_the_reach():
    ids = blank(256)
    ids[100:132, 20:60], ids[100:132, 100:140] = 1, 2  # 40 px apart: the grown pieces touch
    t = targets(ids, [Segment(1, STUFF), Segment(2, STUFF)], dense_stuff=False)
    assert t.cell[0] == (115 // 8) * 32 + 79 // 8
    ids = blank(256)
    ids[100:132, 20:60], ids[100:132, 180:228] = 1, 2  # 120 px apart
    t = targets(ids, [Segment(1, STUFF), Segment(2, STUFF)], dense_stuff=False)
    assert t.cell[0] == (115 // 8) * 32 + 203 // 8


def test_the_published_area_limit_is_that_of_the_blob_not_of_the_class():
    ids = blank(256)
    for number, x in enumerate((0, 120, 240)):
        ids[0:16, x : x + 16] = number + 1
    segments = [Segment(n, STUFF) for n in (1, 2, 3)]
    share = 16 * 16 / 256**2
    assert targets(ids, segments, dense_stuff=False, stuff_min_area_share=share).class_index[0] == STUFF
    assert targets(ids, segments, dense_stuff=False, stuff_min_area_share=share * 1.01).class_index[0] == -1


def test_when_slots_run_out_stuff_and_the_largest_things_stay():
    ids = blank(64, 100)
    segments = [Segment(100, STUFF)]
    for n in range(6):
        ids[n * 10 : n * 10 + n + 2, 0 : n + 2] = n + 1  # areas 4, 9, 16, 25, 36, 49
        segments.insert(0, Segment(n + 1, THING))
    t = targets(ids, segments, max_slots=4)
    assert t.class_index.tolist() == [STUFF, THING, THING, THING]
    assert (t.masks_qhw.sum((1, 2)) * 16)[1:].tolist() == [49, 36, 25]
    assert (t.heat_chw[THING] == 1).sum() == 6  # the heat map keeps all of them


def test_two_things_of_a_class_in_one_cell_get_cells_of_their_own():
    ids = blank()
    ids[17:23, 17:23] = 1  # inside cell (2, 2)
    ids[18:22, 23:28] = 2  # middle (19.5, 25): cell (2, 3)
    ids[10:32, 10:32] = np.where(ids[10:32, 10:32] == 0, 3, ids[10:32, 10:32])  # around both, middle cell (2, 2)
    t = targets(ids, [Segment(1, THING), Segment(2, THING), Segment(3, THING)])
    cells = {int(m): divmod(int(c), 8) for m, c in zip(t.masks_qhw.sum((1, 2)) * 16, t.cell, strict=True) if m}
    area = {n: int((ids == n).sum()) for n in (1, 2, 3)}
    assert cells[area[3]] == (2, 2)  # the largest keeps its cell
    assert cells[area[2]] == (2, 3)
    assert area[1] not in cells  # wholly inside (2, 2): there is no other cell it covers
    assert (t.class_index >= 0).sum() == 2


def test_the_smaller_of_two_moves_to_the_neighbour_it_covers_most():
    ids = blank()
    ids[16:24, 16:24] = 2  # middle (19.5, 19.5), cell (2, 2)
    ids[12:28, 4:36] = np.where(ids[12:28, 4:36] == 0, 1, ids[12:28, 4:36])  # middle (19.5, 19.5) too
    ids[16:24, 24:27], ids[14:16, 16:24] = 2, 2  # now 2 reaches into (2, 3) by 24 px and (1, 2) by 16 px
    t = targets(ids, [Segment(1, THING), Segment(2, THING)])
    assert t.class_index[:3].tolist() == [THING, THING, -1]
    assert t.cell[:2].tolist() == [2 * 8 + 2, 2 * 8 + 3]


def test_things_of_different_classes_may_share_a_cell():
    ids = blank()
    ids[16:20, 16:24], ids[20:24, 16:24] = 1, 2
    t = targets(ids, [Segment(1, 0), Segment(2, 2)])
    assert t.cell[:2].tolist() == [18, 18]
    assert sorted(t.class_index[:2].tolist()) == [0, 2]


def test_crowds_and_padding_count_nowhere():
    ids = blank()
    ids[:16, :16], ids[32:, 32:] = 1, 9
    valid = np.ones((64, 64), bool)
    valid[:, 44:] = False  # cell column 5 is half padding: not counted
    ids[:, 44:] = 0
    t = targets(ids, [Segment(1, THING), Segment(9, THING, iscrowd=True)], valid)
    counted = np.ones((8, 8), bool)
    counted[:, 5:], counted[4:, 4:] = False, False
    for plane in t.heat_weight_chw:
        assert np.array_equal(plane > 0, counted)
    pixels = np.ones((64, 64), bool)
    pixels[:, 44:], pixels[32:, 32:] = False, False
    assert np.array_equal(t.mask_weight_hw, pixels.reshape(16, 4, 16, 4).mean((1, 3)))
    assert (t.class_index >= 0).sum() == 1
    assert np.argwhere(t.heat_chw == 1).tolist() == [[THING, 0, 0]]


def test_void_is_background_or_left_out():
    ids = blank()
    ids[:32] = 1
    segment = [Segment(1, STUFF)]
    assert (targets(ids, segment, void_is_negative=True).mask_weight_hw == 1).all()
    left_out = targets(ids, segment, void_is_negative=False).mask_weight_hw
    assert (left_out[:8] == 1).all()
    assert (left_out[8:] == 0).all()


def test_an_empty_picture_has_no_slot_and_no_heat():
    t = targets(blank(), [])
    assert (t.class_index == -1).all()
    assert t.heat_chw.max() == t.masks_qhw.max() == 0
    assert (t.mask_weight_hw == 1).all()


def test_ids_may_be_as_large_as_three_bytes_at_no_cost():
    ids = blank()
    ids[:8, :8], ids[8:16, 8:16] = 2**24 - 1, 5
    segments = [Segment(2**24 - 1, THING), Segment(5, THING), Segment(2**24 - 2, THING)]  # the last has no pixel
    tracemalloc.start()
    t = targets(ids, segments)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert t.cell[:2].tolist() == [0, 9]
    assert t.class_index[:3].tolist() == [THING, THING, -1]
    assert peak_bytes < 2e6


def test_ids_that_no_segment_names_are_void():
    ids = blank(64, 77)
    ids[:8, :8] = 5
    t = targets(ids, [Segment(5, THING)], void_is_negative=False)
    assert t.mask_weight_hw.sum() == 4


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_cover_counts_equals_a_slow_count(stride):
    rng = np.random.default_rng(stride)
    index = rng.integers(0, 6, (16, 24))
    got = cover_counts(index, 4, stride)
    assert got.shape == (4, 16 // stride, 24 // stride)
    for i in range(4):
        for y in range(16 // stride):
            for x in range(24 // stride):
                cell = index[y * stride : (y + 1) * stride, x * stride : (x + 1) * stride]
                assert got[i, y, x] == np.float32((cell == i).mean())


def test_shapes_and_dtypes_are_what_the_loss_expects():
    arrays = targets(blank(), [], max_slots=5).arrays()
    assert {k: (v.shape, v.dtype.name) for k, v in arrays.items()} == {
        "heat_chw": ((4, 8, 8), "float32"),
        "heat_weight_chw": ((4, 8, 8), "float32"),
        "class_index": ((5,), "int64"),
        "cell": ((5,), "int64"),
        "masks_qhw": ((5, 16, 16), "float32"),
        "mask_weight_hw": ((16, 16), "float32"),
    }
