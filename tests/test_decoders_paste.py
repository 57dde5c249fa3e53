"""Pasting against torch's grid_sample and interpolate, in double precision; strips, borders, memory."""

import tracemalloc

import numpy as np
import pytest
import torch
from decoders_instances import near_threshold, slow_map, slow_paste

from edge_seg.decoders.paste import axes_to_image, paste_boxes, paste_map
from edge_seg.letterbox import Letterbox

GEOMETRIES = [(320, 320, 320), (500, 333, 320), (333, 500, 320), (97, 61, 256), (1, 40, 64), (1281, 719, 320)]


def whole(crop, box):
    mask = np.zeros((box.image_h_px, box.image_w_px), bool)
    height, width = crop.mask_hw.shape
    top, left = crop.top_left_px
    mask[top : top + height, left : left + width] = crop.mask_hw
    return mask


def letterbox(geometry):
    width, height, side = geometry
    return Letterbox(width, height, side, side)


def some_boxes(rng, side, count=20):
    """Boxes inside, over the border, around the whole input, and of a pixel."""
    corner = rng.uniform(-0.3 * side, side, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, side, (count, 2))], axis=1)
    boxes[0] = (-side, -side, 2 * side, 2 * side)
    boxes[1, 2:] = boxes[1, :2] + 0.7
    return boxes.astype(np.float32)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("texels", "threshold"), [(28, 0.5), (7, 0.5), (1, 0.5), (28, 0.8), (28, 0.2)])
def test_a_mask_is_laid_into_its_box_as_grid_sample_does(geometry, texels, threshold):
    box, rng = letterbox(geometry), np.random.default_rng(texels)
    boxes = some_boxes(rng, geometry[2])
    probability = rng.random((len(boxes), texels, texels)).astype(np.float32)
    crops = list(paste_boxes(probability, boxes, box, threshold))
    assert len(crops) == len(boxes)
    for crop, mask, xyxy in zip(crops, probability, boxes, strict=True):
        assert near_threshold(whole(crop, box), slow_paste(mask, xyxy, box), threshold, 5e-4)
    assert sum(whole(crop, box).sum() for crop in crops) > 0


def test_boxes_outside_the_picture_or_without_area_have_no_pixel():
    box = Letterbox(100, 50, 64, 64)  # content is 64 x 32
    boxes = np.array([[0, 33, 64, 60], [-9, 0, -1, 9], [5, 5, 5, 9], [9, 9, 5, 5], [3.9, 3.9, 4, 4]], np.float32)
    crops = list(paste_boxes(np.ones((5, 4, 4), np.float32), boxes, box, 0.5))
    assert [int(crop.mask_hw.sum()) for crop in crops] == [0] * 5
    assert all(crop.run_lengths((50, 100)).area_px == 0 for crop in crops)


def test_a_full_mask_fills_the_pixels_whose_middle_is_in_the_box():
    box = Letterbox(40, 40, 40, 40)
    crop = next(paste_boxes(np.ones((1, 4, 4), np.float32), np.array([[2.4, 3.6, 10.6, 7.5]], np.float32), box, 0.5))
    assert crop.top_left_px == (4, 2)  # the middles 4.5 and 2.5 are inside, 3.5 is not
    assert crop.mask_hw.shape == (3, 9)
    assert crop.mask_hw.all()


def test_the_number_of_boxes_and_the_strips_change_nothing(monkeypatch):
    box, rng = letterbox(GEOMETRIES[1]), np.random.default_rng(3)
    boxes, probability = some_boxes(rng, 320, 40), rng.random((40, 14, 14)).astype(np.float32)
    together = [whole(crop, box) for crop in paste_boxes(probability, boxes, box, 0.5)]
    monkeypatch.setattr("edge_seg.decoders.paste._STRIP_PX", 1000)
    alone = [
        whole(next(paste_boxes(probability[i : i + 1], boxes[i : i + 1], box, 0.5)), box) for i in range(len(boxes))
    ]
    assert np.array_equal(together, alone)


def blobs(rng, side):
    """Logits of a few soft discs on a map."""
    y, x = np.mgrid[:side, :side] + 0.5
    logits = np.full((side, side), -6.0)
    for cy, cx, r in zip(rng.uniform(0, side, 4), rng.uniform(0, side, 4), rng.uniform(1, side / 3, 4), strict=True):
        logits = np.maximum(logits, 4 - 8 * np.hypot(y - cy, x - cx) / r)
    return (logits + rng.normal(0, 1, logits.shape)).astype(np.float32)


def span_of(above):
    rows, columns = np.flatnonzero(above.any(1)), np.flatnonzero(above.any(0))
    return rows[0], columns[0], rows[-1], columns[-1]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_a_map_is_enlarged_cut_and_resized_in_the_published_order(geometry, threshold):
    box, rng = letterbox(geometry), np.random.default_rng(8)
    for _ in range(4):
        logits = blobs(rng, geometry[2] // 4)
        probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
        crop = paste_map(logits, span_of(probability > threshold), box, threshold)
        assert near_threshold(whole(crop, box), slow_map(probability, box), threshold, 1e-5)


def test_enlarging_logits_or_in_one_step_is_something_else():
    """What the docstring of `paste_map` says is not equal; if it were, there would be a faster way."""
    box, rng = letterbox(GEOMETRIES[1]), np.random.default_rng(8)
    logits = blobs(rng, 80)
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    truth = slow_map(probability, box) > 0.5
    assert (truth != (slow_map(logits, box) > 0)).sum() > 20
    content = torch.from_numpy(probability)[None, None, : 213 // 4]  # 213 rows of content are no whole number of cells
    once = torch.nn.functional.interpolate(content, size=(333, 500), mode="bilinear")[0, 0].numpy() > 0.5
    assert (truth != once).sum() > 20


def test_a_map_outside_the_picture_has_no_pixel():
    box = Letterbox(100, 50, 64, 64)  # content is 64 x 32, 8 rows of cells
    logits = np.full((16, 16), -5, np.float32)
    logits[11:14, 3:9] = 5
    crop = paste_map(logits, (11, 3, 13, 8), box, 0.5)
    assert crop.mask_hw.size == 0
    assert crop.run_lengths((50, 100)).area_px == 0


def test_the_way_to_the_image_is_kept_for_the_next_picture_of_that_size():
    box = Letterbox(123, 77, 64, 64)
    assert axes_to_image(box, (16, 16)) is axes_to_image(Letterbox(123, 77, 64, 64), (16, 16))


def test_a_mask_of_a_large_picture_takes_no_float_image():
    box = Letterbox(3000, 2000, 320, 320)
    mask, where = np.ones((1, 28, 28), np.float32), np.array([[0, 0, 320, 213]], np.float32)
    tracemalloc.start()
    try:
        crop = next(paste_boxes(mask, where, box, 0.5))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert crop.mask_hw.all()
    assert peak < 1.0 * 3000 * 2000 + 12e6  # the mask itself, a strip of 4 MB, the weights
