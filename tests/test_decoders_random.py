"""MaskConver's decoder against a slow one, its geometry, and a perfect network on known scenes."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from decoders_slow import CLASSES, constants, contract, named, slow_decode, slow_enlarge

from edge_seg.data.synthetic import SyntheticScenes
from edge_seg.decoders.maskconver import MaskConverDecoder
from edge_seg.decoders.square_grid import PairPixels, square_grid
from edge_seg.evaluation.panoptic_quality import PanopticQuality
from edge_seg.letterbox import Letterbox

CASES = [
    ({}, (40, 40)),
    ({"score_exponent": 0.3, "mask_threshold": 0.5}, (37, 30)),
    ({"one_peak_per_stuff_class": True, "overlap_threshold": 0.7, "class_embedding": "add"}, (70, 17)),
    ({"top_k": 5, "min_area_share": 0.05, "mask_threshold": 0.3}, (20, 24)),
    ({"reassign_rejected": True, "overlap_threshold": 0.6, "min_area_share": 0.04, "top_k": 9}, (30, 30)),
    ({"reassign_rejected": True, "one_peak_per_stuff_class": True, "mask_threshold": 0.5, "top_k": 12}, (30, 64)),
    ({"score_threshold": 0.9, "top_k": 3}, (64, 16)),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("params", "image_wh"), CASES, ids=[str(i) for i in range(len(CASES))])
def test_random_outputs_decode_as_the_slow_decoder_says(params, image_wh, seed):
    rng = np.random.default_rng(seed)
    cells, width = 8, 6
    coarse = rng.normal(0, 1.5, (3, 3, width))
    smooth = F.interpolate(torch.from_numpy(coarse).permute(2, 0, 1)[None], size=(8, 8), mode="bicubic")
    features = smooth[0].permute(1, 2, 0).numpy()
    raw = named(rng.normal(-1, 2, (cells, cells, 4)), rng.normal(0, 1, (cells, cells, width)), features)
    k, c = constants(width, 4, rng), contract(**params)
    box = Letterbox(*image_wh, 64, 64)
    expected_ids, expected = slow_decode(raw, k, c.decoder.params, [i.isthing for i in CLASSES], box)
    result = MaskConverDecoder(c, k)(raw, box)
    assert result.id_map_hw_i32.shape == (image_wh[1], image_wh[0])
    assert result.id_map_hw_i32.dtype == np.int32
    assert [(s.id, s.class_index, s.isthing) for s in result.segments] == [s[:3] for s in expected]
    assert [s.score for s in result.segments] == pytest.approx([s[3] for s in expected], rel=1e-5)
    assert (result.id_map_hw_i32 != expected_ids).mean() < 1e-3
    for segment in result.segments:
        ys, xs = np.nonzero(result.id_map_hw_i32 == segment.id)
        x, y, w, h = segment.bbox_xywh_px
        assert segment.area_px == len(ys)
        assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x, y, x + w, y + h)


def test_the_random_cases_are_not_all_trivial():
    """Between them they keep several segments, merge stuff, reject some and leave void."""
    counts = []
    for params, image_wh in CASES:
        rng = np.random.default_rng(0)
        coarse = rng.normal(0, 1.5, (3, 3, 6))
        smooth = F.interpolate(torch.from_numpy(coarse).permute(2, 0, 1)[None], size=(8, 8), mode="bicubic")
        features = smooth[0].permute(1, 2, 0).numpy()
        raw = named(rng.normal(-1, 2, (8, 8, 4)), rng.normal(0, 1, (8, 8, 6)), features)
        decoder = MaskConverDecoder(contract(**params), constants(6, 4, rng))
        result = decoder(raw, Letterbox(*image_wh, 64, 64))
        counts.append((len(decoder.propose(raw).cell), len(result.segments), (result.id_map_hw_i32 == 0).mean()))
    proposed, kept, void = zip(*counts, strict=True)
    assert max(kept) >= 2
    assert any(p > k for p, k in zip(proposed, kept, strict=True))
    assert max(void) > 0.05
    assert min(void) < 0.9


def enlarge(logits, box, stride_px):
    """All pixels of all squares, put where they belong."""
    grid = square_grid(box, logits.shape[1:], stride_px)
    squares, image = np.arange(grid.count), np.full((len(logits), box.image_h_px, box.image_w_px), np.nan)
    row, column = grid.runs
    for k in range(len(logits)):
        corners = grid.corners(np.moveaxis(logits, 0, -1), squares, np.full(grid.count, k))
        pixels = PairPixels.of(corners, grid, squares).rows(slice(None))
        there = ~np.isnan(pixels)
        y, x = (
            np.broadcast_to(place, pixels.shape)[there]
            for place in (grid.rows.pixel[:, None, row], grid.columns.pixel[None, :, column])
        )
        image[k, y, x] = pixels[there]
    return image


@pytest.mark.parametrize("factor", [1, 2, 4, 16])
def test_enlarging_by_a_whole_factor_equals_torch(factor):
    logits = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    side = 8 * factor
    got = enlarge(logits, Letterbox(side, side, 64, 64), 8)
    truth = F.interpolate(torch.from_numpy(logits)[None], scale_factor=float(factor), mode="bilinear")[0]
    assert np.abs(got - truth.numpy()).max() < 1e-5


def test_the_padding_is_left_out():
    """A picture of half the height: enlarged as the whole square is, then cropped."""
    logits = np.random.default_rng(0).normal(size=(2, 8, 8)).astype(np.float32)
    whole = F.interpolate(torch.from_numpy(logits)[None], scale_factor=16.0, mode="bilinear")[0].numpy()
    assert np.abs(enlarge(logits, Letterbox(128, 64, 64, 64), 8) - whole[:, :64]).max() < 1e-5
    assert np.abs(enlarge(logits, Letterbox(64, 128, 64, 64), 8) - whole[:, :, :64]).max() < 1e-5


@pytest.mark.parametrize("image_wh", [(1, 1), (3, 200), (65, 63), (7, 5), (129, 40), (100, 1)])
def test_enlarging_equals_a_pixel_by_pixel_interpolation(image_wh):
    logits = np.random.default_rng(1).normal(size=(1, 8, 8)).astype(np.float32)
    box = Letterbox(*image_wh, 64, 64)
    assert np.abs(enlarge(logits, box, 8)[0] - slow_enlarge(logits[0], box, 8)).max() < 1e-5


def test_a_map_of_one_cell_is_constant():
    logits = np.array([[[3.0]]], np.float32)
    assert (enlarge(logits, Letterbox(5, 4, 8, 8), 8) == 3.0).all()


def oracle(sample, classes, stride_px):
    """Raw outputs of a network that knows the truth: one peak and one feature channel for every segment."""
    ids, side = sample.id_map_hw_i32, sample.id_map_hw_i32.shape[0]
    cells = side // stride_px
    shares = np.stack(
        [(ids == s.id).reshape(cells, stride_px, cells, stride_px).mean((1, 3)) for s in sample.segments]
        + [np.zeros((cells, cells))],
        -1,
    )
    heat, embedding = np.full((cells, cells, len(classes)), -9.0), np.zeros((cells, cells, shares.shape[-1]))
    for n, segment in enumerate(sample.segments):
        free = shares[:, :, n] * (embedding.max(-1) == 0)
        y, x = np.unravel_index(np.argmax(free), free.shape)
        heat[y, x, segment.class_index] = 5 - 0.01 * n
        embedding[y, x, n] = 1
    return named(heat, embedding, shares)


@pytest.mark.parametrize(("level", "stride_px", "least"), [("easy", 1, 99.99), ("easy", 2, 95), ("hard", 1, 99.99)])
def test_perfect_outputs_score_a_perfect_panoptic_quality(level, stride_px, least):
    scenes = SyntheticScenes(level, split="val", size_px=128, length=4)
    quality = PanopticQuality(scenes.classes)
    for index in range(len(scenes)):
        sample = scenes[index]
        raw = oracle(sample, scenes.classes, stride_px)
        width = raw["out_embedding"].shape[-1]
        ones, g = np.ones(width, np.float32), 20.0
        k = {
            "class_embedding.weight": np.ones((len(scenes.classes), width), np.float32),
            "fc1.weight": np.eye(width, dtype=np.float32),
            "fc1.bias": 0 * ones,
            "norm.weight": ones,
            "norm.bias": 0 * ones,
            "fc2.weight": np.eye(width, dtype=np.float32) * np.float32(2 * g / math.sqrt(width - 1)),
            "fc2.bias": -g * ones,
        }
        params = {"mask_threshold": 0.5, "stride_px": stride_px, "score_exponent": 0.0}
        decoder = MaskConverDecoder(contract(128, scenes.classes, **params), k)
        result = decoder(raw, Letterbox(128, 128, 128, 128))
        quality.update(result.id_map_hw_i32, result.segments, sample.id_map_hw_i32, sample.segments)
    assert quality.compute().pq > least
