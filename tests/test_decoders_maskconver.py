"""MaskConver's decoder on hand-made pictures: an ideal network whose kernels pick one channel each."""

import math

import numpy as np
import pytest
from decoders_slow import CLASSES, contract, named

from edge_seg.decoders.maskconver import MaskConverDecoder, Proposals
from edge_seg.errors import InputError
from edge_seg.letterbox import Letterbox


def ideal(heat_at, label_hw, cells, **params):
    """Builds a decoder and raw outputs in which centre n has exactly the mask `label_hw == n`.

    The embedding at centre n is the n-th unit vector; LayerNorm and ReLU leave its entry alone, sqrt(C - 1), and the
    last layer maps it to +20 there and -20 elsewhere. Mask features are unit vectors too.
    """
    width = int(label_hw.max()) + 2
    g, on = 20.0, math.sqrt(width - 1)
    k = {
        "class_embedding.weight": np.ones((len(CLASSES), width)),
        "fc1.weight": np.eye(width),
        "fc1.bias": np.zeros(width),
        "norm.weight": np.ones(width),
        "norm.bias": np.zeros(width),
        "fc2.weight": np.eye(width) * 2 * g / on,
        "fc2.bias": np.full(width, -g),
    }
    heat = np.full((*cells, len(CLASSES)), -9.0)
    embedding = np.zeros((*cells, width))
    for n, (y, x, class_index, score) in enumerate(heat_at):
        heat[y, x, class_index] = math.log(score / (1 - score))
        embedding[y, x, n] = 1
    raw = named(heat, embedding, np.eye(width)[label_hw])
    k = {name: np.asarray(v, np.float32) for name, v in k.items()}
    return MaskConverDecoder(contract(**params), k), raw


QUARTERS = np.kron(np.array([[0, 1], [2, 3]]), np.ones((4, 4), int))
BOX = Letterbox(64, 64, 64, 64)


def test_no_centre_gives_an_empty_picture_of_the_right_size():
    decoder, raw = ideal([], QUARTERS, (8, 8))
    result = decoder(raw, Letterbox(70, 31, 64, 64))
    assert result.segments == ()
    assert result.id_map_hw_i32.shape == (31, 70)
    assert not result.id_map_hw_i32.any()


def test_one_centre_gives_its_mask_and_nothing_else_with_a_mask_threshold():
    """The right half: half-way between the cells, the edge falls on column 32 exactly."""
    decoder, raw = ideal([(1, 5, 1, 0.8)], 1 - QUARTERS % 2, (8, 8), mask_threshold=0.5)
    result = decoder(raw, BOX)
    (segment,) = result.segments
    assert (segment.class_index, segment.isthing, segment.score) == (1, True, pytest.approx(0.8))
    assert (result.id_map_hw_i32[:, 32:] == 1).all()
    assert (result.id_map_hw_i32[:, :32] == 0).all()
    assert (segment.area_px, segment.bbox_xywh_px) == (64 * 32, (32, 0, 32, 64))


def test_without_a_mask_threshold_every_pixel_goes_to_the_best_mask_as_published():
    decoder, raw = ideal([(1, 5, 1, 0.8)], np.where(QUARTERS == 1, 0, 1), (8, 8), mask_threshold=0.0)
    assert decoder(raw, BOX).segments[0].area_px == 64 * 64


def test_segments_are_numbered_by_score_and_stuff_of_one_class_is_one_segment():
    centres = [(1, 1, 3, 0.6), (1, 6, 0, 0.9), (6, 1, 3, 0.7), (6, 6, 0, 0.8)]
    decoder, raw = ideal(centres, QUARTERS, (8, 8))
    result = decoder(raw, BOX)
    found = [(s.id, s.class_index, round(s.score, 3), s.area_px) for s in result.segments]
    assert found == [(1, 0, 0.9, 1024), (2, 0, 0.8, 1024), (3, 3, 0.7, 2048)]
    assert result.id_map_hw_i32[[0, 0, 63, 63], [0, 63, 0, 63]].tolist() == [3, 1, 3, 2]
    assert result.segments[2].bbox_xywh_px == (0, 0, 32, 64)


def test_a_stuff_class_may_be_held_to_its_best_cell():
    centres = [(1, 1, 3, 0.6), (1, 6, 0, 0.9), (6, 1, 3, 0.7), (6, 6, 0, 0.8)]
    decoder, raw = ideal(centres, QUARTERS, (8, 8), one_peak_per_stuff_class=True, mask_threshold=0.5)
    result = decoder(raw, BOX)
    assert [s.class_index for s in result.segments] == [0, 0, 3]
    assert [s.area_px for s in result.segments] == pytest.approx([1024] * 3, abs=8)  # corners are rounded off


def test_equal_maxima_of_a_stuff_class_do_not_push_things_out():
    """An int8 heat map is flat at the top: sixteen equal cells of stuff, three centres allowed."""
    decoder, raw = ideal([(6, 6, 0, 0.6)], QUARTERS, (8, 8), one_peak_per_stuff_class=True, top_k=3)
    raw["out_heatmap"][0, :4, :4, 2] = 3.0
    raw["out_heatmap"][0, :4, 4:, 3] = 2.0
    proposals = decoder.propose(raw)
    assert proposals.class_index.tolist() == [2, 3, 0]
    assert proposals.cell.tolist() == [0, 4, 6 * 8 + 6]


def test_top_k_keeps_the_best_over_all_classes():
    centres = [(1, 1, 3, 0.6), (1, 6, 0, 0.9), (6, 1, 2, 0.7), (6, 6, 1, 0.8)]
    for top_k, classes in ((0, []), (1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (99, [0, 1, 2, 3])):
        decoder, raw = ideal(centres, QUARTERS, (8, 8), top_k=top_k)
        assert decoder.propose(raw).class_index.tolist() == classes
        assert len(decoder(raw, BOX).segments) == len(classes)


def test_of_equal_neighbours_only_the_first_is_a_peak():
    decoder, raw = ideal([], QUARTERS, (8, 8))
    for y, x in ((3, 3), (3, 4), (4, 3)):
        raw["out_heatmap"][0, y, x, 0] = 2.0
    assert decoder.propose(raw).cell.tolist() == [3 * 8 + 3]


@pytest.mark.parametrize("bad", [{"top_k": -1}, {"score_threshold": 2.0}, {"mask_threshold": 1.5}])
def test_a_parameter_out_of_range_is_refused(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        ideal([], QUARTERS, (8, 8), **bad)


def test_a_peak_suppresses_its_eight_neighbours_in_its_own_class_only():
    decoder, raw = ideal([], QUARTERS, (8, 8))
    raw["out_heatmap"][0, 3, 3, 0] = 2.0
    raw["out_heatmap"][0, 4, 4, 0] = 1.9
    raw["out_heatmap"][0, 4, 4, 1] = 1.0
    raw["out_heatmap"][0, 0, 0, 1] = 1.0
    proposals = decoder.propose(raw)
    assert sorted(zip(proposals.cell.tolist(), proposals.class_index.tolist(), strict=True)) == [
        (0, 1),
        (27, 0),
        (36, 1),
    ]


@pytest.mark.parametrize(("threshold", "kept"), [(0.49, 2), (0.51, 1), (0.89, 1), (0.91, 0), (1.0, 0)])
def test_the_score_threshold_is_a_probability(threshold, kept):
    decoder, raw = ideal([(1, 1, 0, 0.9), (6, 6, 0, 0.5)], QUARTERS, (8, 8), score_threshold=threshold)
    assert len(decoder.propose(raw).cell) == kept


def test_without_a_score_threshold_even_the_lowest_peak_is_kept_without_an_overflow():
    decoder, raw = ideal([(1, 1, 0, 0.9)], QUARTERS, (8, 8), score_threshold=0.0, one_peak_per_stuff_class=True)
    raw["out_heatmap"][raw["out_heatmap"] == -9] = -500
    found = decoder.propose(raw)
    assert found.class_index.tolist()[0] == 0
    assert set(found.class_index.tolist()) == {0, 1, 2, 3}
    assert found.score[-1] < 1e-20


def overlapping(**params):
    """Centre 0 (score 0.9) owns columns 0..4, centre 1 (0.8) columns 3..7: five each, of which it sees three."""
    decoder, raw = ideal([(1, 1, 0, 0.9), (6, 6, 1, 0.8)], QUARTERS, (8, 8), **params)
    masks = np.full((2, 8, 8), -20.0, np.float32)
    masks[0, :, :5], masks[1, :, 3:] = 20, 20
    decoder.mask_logits = lambda _raw, proposals: masks[: len(proposals.cell)]
    return decoder(raw, BOX)


def test_a_segment_that_lost_too_much_of_its_mask_is_rejected_and_its_pixels_are_void():
    kept = overlapping(overlap_threshold=0.58)
    assert [(s.class_index, s.area_px) for s in kept.segments] == [(0, 40 * 64), (1, 24 * 64)]
    rejected = overlapping(overlap_threshold=0.62)
    assert [(s.class_index, s.area_px) for s in rejected.segments] == [(0, 40 * 64)]
    assert (rejected.id_map_hw_i32[:, 40:] == 0).all()


def test_pixels_of_a_rejected_segment_may_go_to_the_next_mask():
    result = overlapping(overlap_threshold=0.62, reassign_rejected=True)
    assert [(s.class_index, s.area_px) for s in result.segments] == [(0, 64 * 64)]
    result = overlapping(overlap_threshold=0.62, reassign_rejected=True, mask_threshold=0.5)
    assert [(s.class_index, s.area_px) for s in result.segments] == [(0, 40 * 64)]


def test_two_masks_that_reject_each_other_leave_the_better_one_when_pixels_are_reassigned():
    """Each sees half of the same mask: both are rejected; without the worse one the better one has all of it."""
    for reassign, expected in ((False, []), (True, [(0, 64 * 64)])):
        decoder, raw = ideal(
            [(1, 1, 0, 0.9), (6, 6, 1, 0.8)], QUARTERS, (8, 8), overlap_threshold=0.8, reassign_rejected=reassign
        )
        masks = np.full((2, 8, 8), 9.0, np.float32)
        masks[0, :, :4] = 0.1  # weak there, so that the second wins these columns
        decoder.mask_logits = lambda _raw, _proposals, masks=masks: masks
        assert [(s.class_index, s.area_px) for s in decoder(raw, BOX).segments] == expected


@pytest.mark.parametrize(("share", "kept"), [(0.24, 4), (0.25, 0)])
def test_the_smallest_area_is_a_share_of_the_picture(share, kept):
    centres = [(1, 1, 3, 0.6), (1, 6, 0, 0.9), (6, 1, 2, 0.7), (6, 6, 1, 0.8)]
    decoder, raw = ideal(centres, QUARTERS, (8, 8), min_area_share=share)
    for side in (64, 128, 32):
        assert len(decoder(raw, Letterbox(side, side, 64, 64)).segments) == kept


def test_a_low_exponent_lets_a_weak_centre_keep_what_its_mask_is_sure_of():
    """Score 0.9 at probability 0.6 against score 0.3 at probability 0.95: 0.54 > 0.285, but 0.58 < 0.66 at 0.3."""
    for exponent, winner in ((1.0, 0), (0.3, 1)):
        decoder, raw = ideal([(1, 1, 0, 0.9), (6, 6, 1, 0.3)], QUARTERS, (8, 8), score_exponent=exponent)
        masks = np.stack([np.full((8, 8), math.log(0.6 / 0.4)), np.full((8, 8), math.log(0.95 / 0.05))])
        masks = masks.astype(np.float32)
        decoder.mask_logits = lambda _raw, _proposals, masks=masks: masks
        assert [s.class_index for s in decoder(raw, BOX).segments] == [winner]


def test_given_centres_can_be_assembled_without_the_heat_map():
    decoder, raw = ideal([(1, 1, 0, 0.2), (6, 6, 1, 0.3)], QUARTERS % 2, (8, 8), score_threshold=0.9)
    assert decoder(raw, BOX).segments == ()
    truth = Proposals(np.array([9, 54]), np.array([0, 1]), np.ones(2, np.float32))
    assert [s.area_px for s in decoder.assemble(raw, truth, BOX).segments] == [2048, 2048]
