"""Suppression against plain loops over pairs, and against values of the published code."""

import numpy as np
import pytest
import torch
from decoders_instances import plain_iou

from edge_seg.decoders.nms import PackedMasks, best, box_nms, mask_ious, matrix_decay, overlapping, points_peaks

RECTANGLES = [(0, 0, 8, 8), (0, 0, 8, 6), (2, 2, 10, 10), (8, 8, 16, 16), (0, 0, 8, 7)]  # y0, x0, y1, x1
LABELS = np.array([1, 1, 1, 1, 2])
SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)


def rectangles():
    masks = np.zeros((len(RECTANGLES), 16, 16), bool)
    for mask, (top, left, bottom, right) in zip(masks, RECTANGLES, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def random_boxes(rng, count, side=60):
    corner = rng.integers(0, side, (count, 2))
    return np.concatenate([corner, corner + rng.integers(0, side // 2, (count, 2))], axis=1).astype(np.float32)


def plain_nms(boxes, labels, threshold, limit):
    kept = []
    for i, box in enumerate(boxes.tolist()):
        rivals = [j for j in kept if labels[i] == labels[j]]
        if len(kept) < limit and all(plain_iou(boxes[j].tolist(), box) <= threshold for j in rivals):
            kept.append(i)
    return kept


@pytest.mark.parametrize("count", [0, 1, 2, 127, 128, 129, 400])
@pytest.mark.parametrize("classes", [1, 4])
@pytest.mark.parametrize("limit", [0, 1, 20, 1000])
def test_box_nms_keeps_what_a_loop_over_all_pairs_keeps(count, classes, limit):
    rng = np.random.default_rng([count, classes, limit])
    boxes, labels = random_boxes(rng, count), rng.integers(classes, size=count)
    kept = box_nms(boxes, labels, 0.37, limit)
    assert kept.tolist() == plain_nms(boxes, labels, 0.37, limit)


def test_boxes_at_the_threshold_and_boxes_without_area_stay():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 4, 3]], np.float32)
    assert overlapping(boxes[:1], boxes, 0.5).tolist() == [[True, False, False, False, True]]
    assert box_nms(boxes, np.zeros(5, int), 0.5, 10).tolist() == [0, 1, 2, 3]


def test_boxes_of_two_classes_do_not_suppress_each_other():
    boxes = np.array([[0, 0, 4, 4]] * 3, np.float32)
    assert box_nms(boxes, np.array([0, 1, 0]), 0.5, 10).tolist() == [0, 1]
    assert box_nms(boxes, np.zeros(3, int), 0.5, 10).tolist() == [0]


def test_a_chain_of_overlaps_is_resolved_greedily_over_block_borders():
    left = np.arange(300, dtype=np.float32)[:, None]
    boxes = np.concatenate([left, 0 * left, left + 3, 0 * left + 1], axis=1)  # each overlaps the next by one half
    assert box_nms(boxes, np.zeros(300, int), 0.4, 300).tolist() == list(range(0, 300, 2))


def test_the_best_are_first_and_ties_keep_their_order():
    scores = np.array([1, 3, 2, 3, 0, 3, 2], np.float32)
    assert best(scores, 10).tolist() == [1, 3, 5, 2, 6, 0, 4]
    for count in range(8):
        assert best(scores, count).tolist() == [1, 3, 5, 2, 6, 0, 4][:count]


def test_points_nms_gives_the_published_values():
    heat = np.array([[0.1, 0.5, 0.2], [0.4, 0.3, 0.6], [0.7, 0.6, 0.6]], np.float32)
    kept = np.zeros(9, np.float32)
    place = points_peaks(heat[..., None], np.float32(0))
    kept[place] = heat.ravel()[place]
    expected = np.array([[0.1, 0.5, 0], [0.4, 0, 0.6], [0.7, 0, 0.6]], np.float32)
    assert np.array_equal(kept.reshape(3, 3), expected)


@pytest.mark.parametrize("seed", range(4))
def test_points_nms_is_the_two_by_two_maximum_of_each_class(seed):
    rng = np.random.default_rng(seed)
    heat = rng.integers(-3, 3, (7, 5, 3)).astype(np.float32)  # ties
    maps = torch.from_numpy(heat).permute(2, 0, 1)[None]
    pooled = torch.nn.functional.max_pool2d(maps, 2, stride=1, padding=1)[:, :, :-1, :-1]
    keep = ((pooled == maps) & (maps > 0))[0].permute(1, 2, 0).numpy()
    assert np.array_equal(points_peaks(heat, np.float32(0)), np.flatnonzero(keep))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("gaussian", [0.9, 0.259722, 0.515348, 0.6, 0.5]), ("linear", [0.9, 0.2, 0.426087, 0.6, 0.5])],
)
def test_matrix_nms_gives_the_published_values(kind, expected):
    ious = mask_ious(PackedMasks.of(rectangles()), LABELS)
    assert np.allclose(SCORES * matrix_decay(ious, kind, 2.0), expected, rtol=0, atol=5e-7)


def plain_decay(masks, labels, kind, sigma):
    count = len(masks)
    iou = np.zeros((count, count))
    for i in range(count):
        for j in range(i + 1, count):
            union = (masks[i] | masks[j]).sum()
            if labels[i] == labels[j] and union:
                iou[i, j] = (masks[i] & masks[j]).sum() / union
    decay = np.ones(count)
    for j in range(count):
        for i in range(j):
            rivalled = max([iou[k, i] for k in range(i)], default=0)
            if kind == "gaussian":
                decay[j] = min(decay[j], np.exp(-sigma * iou[i, j] ** 2) / np.exp(-sigma * rivalled**2))
            elif rivalled < 1:
                decay[j] = min(decay[j], (1 - iou[i, j]) / (1 - rivalled))
    return decay


@pytest.mark.parametrize("kind", ["gaussian", "linear"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 3), (9, 16), (20, 65)])
@pytest.mark.parametrize("labels", [1, 3])
def test_matrix_nms_is_what_loops_over_pairs_of_masks_give(kind, height, width, labels):
    rng = np.random.default_rng([height, width, labels])
    masks = rng.random((30, height, width)) < rng.random((30, 1, 1))
    masks[3] = masks[1]
    masks[7] = False
    label = rng.integers(labels, size=30)
    packed = PackedMasks.of(masks)
    assert packed.areas.tolist() == masks.sum((1, 2)).tolist()
    decay = matrix_decay(mask_ious(packed, label), kind, 1.5)
    assert np.allclose(decay, plain_decay(masks, label, kind, 1.5), rtol=0, atol=1e-5)


def test_the_spans_of_packed_masks_are_their_tight_boxes():
    packed = PackedMasks.of(rectangles())
    assert packed.spans.tolist() == [[y0, x0, y1 - 1, x1 - 1] for y0, x0, y1, x1 in RECTANGLES]


@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 31])
@pytest.mark.parametrize("width", [1, 7, 8, 13, 24])
def test_areas_and_spans_of_maps_of_any_size_are_those_of_their_pixels(height, width):
    masks = np.random.default_rng([height, width]).random((40, height, width)) < 0.08
    packed = PackedMasks.of(masks)
    assert packed.areas.tolist() == masks.sum((1, 2)).tolist()
    for mask, span in zip(masks, packed.spans.tolist(), strict=True):
        y, x = np.nonzero(mask) if mask.any() else np.nonzero(~mask)
        assert span == [y.min(), x.min(), y.max(), x.max()]


def test_many_pairs_are_counted_in_parts_and_come_out_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    packed = PackedMasks.of(rng.random((40, 10, 11)) < 0.4)
    whole = mask_ious(packed, np.zeros(40, int))
    monkeypatch.setattr("edge_seg.decoders.nms._PAIRS", 7)
    assert np.array_equal(mask_ious(packed, np.zeros(40, int)), whole)
    assert (whole[np.triu_indices(40, 1)] > 0).all()


def test_the_sharpest_gaussian_keeps_only_masks_that_meet_no_better_one():
    decay = matrix_decay(mask_ious(PackedMasks.of(rectangles()), LABELS), "gaussian", 1000.0)
    assert decay.tolist() == pytest.approx([1, 0, 0, 1, 1], abs=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "linear"])
def test_no_mask_is_no_work(kind):
    packed = PackedMasks.of(np.zeros((0, 8, 8), bool))
    assert matrix_decay(mask_ious(packed, np.zeros(0, int)), kind, 2.0).shape == (0,)
