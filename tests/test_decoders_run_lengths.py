"""Run lengths against pycocotools, and how overlapping objects are laid over each other."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from edge_seg.decoders.base import Instance, InstanceResult
from edge_seg.decoders.run_lengths import RunLengths
from edge_seg.errors import InputError


def random_crop(rng):
    height, width = rng.integers(1, 12, 2)
    top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
    crop = rng.random((rng.integers(1, height - top + 1), rng.integers(1, width - left + 1))) < rng.random()
    whole = np.zeros((height, width), bool)
    whole[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return crop, (top, left), whole


def tight_box(mask):
    ys, xs = np.nonzero(mask)
    return (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1) if len(ys) else (0, 0, 0, 0)


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_are_cocos(seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        crop, corner, whole = random_crop(rng)
        runs = RunLengths.from_crop(crop, corner, whole.shape)
        coco = coco_mask.encode(np.asfortranarray(whole.astype(np.uint8)))
        assert runs.to_coco() == {"size": list(whole.shape), "counts": coco["counts"].decode()}
        assert runs.bbox_xywh_px == tight_box(whole)
        assert runs.area_px == int(coco_mask.area(coco)) == whole.sum()
        assert np.array_equal(runs.mask(), whole)
        assert np.array_equal(RunLengths.from_mask(whole).counts, runs.counts)


def test_run_lengths_of_another_picture_are_refused():
    with pytest.raises(InputError, match="do not fit"):
        RunLengths((2, 2), np.array([3])).mask()


def instance(class_index, score, mask):
    return Instance(class_index, score, (0.0, 0.0, 0.0, 0.0), RunLengths.from_mask(mask))


def test_the_better_object_lies_on_top_and_a_covered_one_is_left_out():
    big, small, rest = np.zeros((3, 6, 8), bool)
    big[:, :4] = True
    small[1:3, 2:5] = True  # two of six pixels stay
    rest[4:, 3:7] = True  # six of eight stay
    result = InstanceResult((6, 8), (instance(0, 0.9, big), instance(1, 0.8, small), instance(2, 0.7, rest)))
    panoptic = result.panoptic()
    expected = np.where(big, 1, 0)
    expected[4:, 4:7] = 2
    assert np.array_equal(panoptic.id_map_hw_i32, expected)
    assert [(s.class_index, s.area_px, s.bbox_xywh_px) for s in panoptic.segments] == [
        (0, 24, (0, 0, 4, 6)),
        (2, 6, (4, 4, 3, 2)),
    ]


def test_weak_and_empty_objects_are_not_shown():
    mask = np.ones((3, 3), bool)
    result = InstanceResult((3, 3), (instance(0, 0.9, ~mask), instance(1, 0.1, mask)))
    assert result.panoptic().segments == ()
