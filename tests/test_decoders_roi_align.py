"""ROIAlign and the merges against values of the published code, torch's own resize, and plain loops."""

import numpy as np
import pytest
import torch

from edge_seg.decoders.roi_align import MERGES, blend, roi_align
from edge_seg.errors import InputError


def test_roi_align_gives_detectron2s_values_of_its_own_test():
    image = np.arange(25, dtype=np.float32).reshape(1, 5, 5)
    crop = roi_align(image, np.array([[1, 1, 3, 3]], np.float32), 1, 4)[0, 0]
    rows = [[4.5, 5, 5.5, 6], [7, 7.5, 8, 8.5], [9.5, 10, 10.5, 11], [12, 12.5, 13, 13.5]]
    assert np.allclose(crop, rows, rtol=0, atol=1e-6)


def test_roi_align_at_stride_four_gives_the_published_values():
    x = np.broadcast_to(np.arange(64, dtype=np.float32), (64, 64))
    bases = np.stack([0.1 * x + k for k in range(4)]).astype(np.float32)
    crop = roi_align(bases, np.array([[40, 24, 200, 120]], np.float32), 4, 56)[0]
    assert np.allclose(crop[0, 0, [0, 1, 55]], [0.985714, 1.057143, 4.914286], rtol=0, atol=6e-7)
    assert crop[3, 0, 55] == pytest.approx(7.914286, abs=1e-6)


def plain_sample(image, y, x):
    height, width = image.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = (0.0 if top == bottom else y - top), (0.0 if left == right else x - left)
    upper = image[top, left] * (1 - dx) + image[top, right] * dx
    lower = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
    return upper * (1 - dy) + lower * dy


@pytest.mark.parametrize("seed", range(6))
def test_roi_align_is_a_loop_over_bins_also_outside_the_map(seed):
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(2, 9, 7)).astype(np.float32)
    corner = rng.uniform(-30, 40, (12, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 60, (12, 2))], axis=1).astype(np.float32)
    crops = roi_align(maps, boxes, 4, 5)
    for n, (x0, y0, x1, y1) in enumerate(boxes.astype(float) / 4):
        for i in range(5):
            for j in range(5):
                at = y0 - 0.5 + (i + 0.5) * (y1 - y0) / 5, x0 - 0.5 + (j + 0.5) * (x1 - x0) / 5
                truth = [plain_sample(one.astype(float), *at) for one in maps]
                assert crops[n, :, i, j] == pytest.approx(truth, abs=2e-5)


def test_the_blender_gives_the_published_values():
    place = np.arange(4 * 14 * 14, dtype=np.float32), np.arange(4 * 56 * 56, dtype=np.float32)
    attention = 2 * np.sin(np.float32(0.37) * place[0]).reshape(1, 4, 14, 14)
    crops = 3 * np.cos(np.float32(0.011) * place[1]).reshape(1, 4, 56, 56)
    mask = blend(crops, attention)[0]
    got = [mask[0, 0], mask[28, 28], mask[55, 55], mask[10, 40], mask.mean(), mask.std(ddof=1)]
    assert np.allclose(got, [1.892463, 0.604595, 1.415720, 2.731583, 0.004177, 1.608756], rtol=0, atol=1e-6)
    assert int((mask > 0).sum()) == 1584


@pytest.mark.parametrize(("attention_size", "size"), [(1, 8), (3, 8), (7, 28), (14, 7)])
def test_the_blender_is_torchs_resize_then_softmax(attention_size, size):
    rng = np.random.default_rng(attention_size)
    crops = rng.normal(size=(3, 4, size, size)).astype(np.float32)
    attention = 30 * rng.normal(size=(3, 4, attention_size, attention_size)).astype(np.float32)
    grown = torch.nn.functional.interpolate(
        torch.from_numpy(attention), size=(size, size), mode="bilinear", align_corners=False
    )
    truth = (grown.softmax(dim=1) * torch.from_numpy(crops)).sum(dim=1).numpy()
    assert np.allclose(blend(crops, attention), truth, rtol=0, atol=2e-5)


def test_yolact_weighs_each_basis_with_one_number():
    crops = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
    merged = MERGES["yolact"](crops, np.array([2.0, -1.0], np.float32).reshape(1, 2, 1, 1))
    assert merged.tolist() == [[[-4, -3], [-2, -1]]]
    with pytest.raises(InputError, match="one coefficient"):
        MERGES["yolact"](crops, np.zeros((1, 2, 7, 7), np.float32))


def test_fcis_shows_each_part_of_a_box_from_its_own_basis():
    crops = np.broadcast_to(np.arange(4, dtype=np.float32)[None, :, None, None], (1, 4, 4, 4))
    merged = MERGES["fcis"](crops, np.zeros((1, 4, 1, 1), np.float32))[0]
    assert merged.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]
    with pytest.raises(InputError, match="square number"):
        MERGES["fcis"](crops[:, :3], np.zeros((1, 3, 1, 1), np.float32))


def test_no_box_is_no_work():
    crops = roi_align(np.zeros((4, 8, 8), np.float32), np.zeros((0, 4), np.float32), 4, 6)
    assert crops.shape == (0, 4, 6, 6)
    for name, size in (("blend", 7), ("yolact", 1), ("fcis", 7)):
        assert MERGES[name](crops, np.zeros((0, 4, size, size), np.float32)).shape == (0, 6, 6)
