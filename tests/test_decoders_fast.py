"""The fast merge and peaks against the straightforward ones: every pixel, every segment."""

import numpy as np
import pytest
from decoders_scenes import class_coded
from decoders_slow import constants, contract, named

from edge_seg.data.source import open_dataset
from edge_seg.data.synthetic import SyntheticScenes
from edge_seg.decoders.base import DECODERS
from edge_seg.decoders.heat_peaks import peaks
from edge_seg.decoders.maskconver import MaskConverDecoder, Proposals
from edge_seg.decoders.square_grid import PairPixels, axis_runs, square_grid
from edge_seg.decoders.square_merge import MAX_MASKS, MergeRules, merge
from edge_seg.decoders.square_rivals import Corners, unbeaten
from edge_seg.decoders.straightforward import StraightforwardDecoder, enlarge, peaks_everywhere
from edge_seg.errors import InputError
from edge_seg.letterbox import Letterbox

TIE = 1e-6  # relative difference of the best two weighted probabilities that counts as a tie
RULES = MergeRules(mask_threshold=0.0, overlap_threshold=0.0, min_area_share=0.0, reassign_rejected=False)


def differing_px(fast, slow, raw, box):
    """Compares both decoders; returns the number of pixels that differ, all of which must be ties."""
    got, truth = fast(raw, box), slow(raw, box)
    assert got.id_map_hw_i32.dtype == np.int32
    differs = got.id_map_hw_i32 != truth.id_map_hw_i32
    if not differs.any():
        assert got.segments == truth.segments
        return 0
    proposals = fast.propose(raw)
    logits = enlarge(fast.mask_logits(raw, proposals), box, fast.params["stride_px"])[:, differs].astype(float)
    value = np.sort(slow.weights(proposals)[:, None] / (1 + np.exp(-logits)), axis=0)
    assert ((value[-1] - value[-2]) < TIE * value[-1]).all()
    return int(differs.sum())


def both(made, k):
    return MaskConverDecoder(made, k), StraightforwardDecoder(made, k)


@pytest.mark.parametrize("count", [0, 1, 50, 100])
@pytest.mark.parametrize(("size_px", "level"), [(256, "hard"), (256, "easy"), (640, "hard")])
def test_scenes_decode_as_without_a_shortcut(size_px, level, count):
    scenes = SyntheticScenes(level, split="val", size_px=size_px, length=8)
    differing = 0
    for index in range(2 if size_px == 256 else 1):
        made, k, raw = class_coded(scenes[index], scenes.classes, count, cells=size_px // 8, seed=index)
        fast, slow = both(made, k)
        assert len(fast.propose(raw).cell) == count
        differing += differing_px(fast, slow, raw, Letterbox(size_px, size_px, size_px, size_px))
        if count >= 50:
            assert len(fast(raw, Letterbox(size_px, size_px, size_px, size_px)).segments) >= 3
    assert differing <= 2


OPTIONS = {
    "score_exponent": (0.0, 0.3, 1.0, 10.0),
    "overlap_threshold": (0.0, 0.5, 0.8, 1.0),
    "min_area_share": (0.0, 0.002, 0.05),
    "mask_threshold": (0.0, 1e-30, 0.3, 0.5, 0.999, 1.0),
    "one_peak_per_stuff_class": (False, True),
    "reassign_rejected": (False, True),
    "top_k": (1, 7, 60),
    "score_threshold": (0.0, 0.1, 0.5),
}
IMAGES_WH = [(64, 64), (128, 128), (37, 90), (91, 40), (20, 13), (5, 8), (1, 1), (200, 3), (150, 149)]


def smooth(rng, cells, channels):
    """A map without jumps, as a network's are: coarse noise, enlarged."""
    coarse = rng.normal(0, 1.5, (channels, 3, 3)).astype(np.float32)
    return np.moveaxis(enlarge(coarse, Letterbox(cells, cells, 3, 3), 1), 0, -1)


@pytest.mark.parametrize("seed", range(60))
def test_random_outputs_and_options_decode_as_without_a_shortcut(seed):
    rng = np.random.default_rng([11, seed])
    params = {name: values[rng.integers(len(values))] for name, values in OPTIONS.items()}
    image_wh = IMAGES_WH[seed % len(IMAGES_WH)]
    scale = (0.3, 1.0, 30.0)[seed % 3]
    k = constants(6, 4, rng)
    features = scale * (smooth(rng, 8, 6) + rng.normal(0, 0.3, (8, 8, 6)))
    raw = named(rng.normal(-1, 2, (8, 8, 4)), rng.normal(0, 1, (8, 8, 6)), features)
    if seed % 4 == 0:  # an int8 grid: equal scores and equal mask values are common
        raw = {name: np.round(v * 4) / 4 for name, v in raw.items()}
    fast, slow = both(contract(**params), k)
    assert differing_px(fast, slow, raw, Letterbox(*image_wh, 64, 64)) <= 1


@pytest.mark.parametrize("seed", range(30))
def test_comparing_rivals_in_every_square_changes_nothing(seed, monkeypatch):
    """Usually only crowded squares of large pictures are worth it."""
    monkeypatch.setattr("edge_seg.decoders.square_merge._FEW", 1)
    monkeypatch.setattr("edge_seg.decoders.square_merge._WORTHWHILE", -1)
    rng = np.random.default_rng([12, seed])
    params = {name: values[rng.integers(len(values))] for name, values in OPTIONS.items()}
    k, box = constants(6, 4, rng), Letterbox(*IMAGES_WH[seed % len(IMAGES_WH)], 64, 64)
    one = rng.normal(0, 1, 6)
    embedding = one + rng.normal(0, 0.05, (8, 8, 6))  # masks that are nearly equal
    raw = named(rng.normal(-1, 2, (8, 8, 4)), embedding, (1.0, 30.0)[seed % 2] * smooth(rng, 8, 6))
    assert differing_px(*both(contract(**params), k), raw, box) <= 1


@pytest.mark.parametrize("seed", range(20))
def test_a_beaten_rival_wins_no_pixel_and_most_copies_are_beaten(seed):
    rng = np.random.default_rng(seed)
    masks, places = 6, 40
    weight = rng.uniform(0.5, 1, masks).astype(np.float32)
    if seed % 3 == 0:
        weight[:] = 0.7
    logit = (rng.normal(0, 4, (4, places, 1)) + rng.normal(0, 0.4, (1, places, masks))).astype(np.float32)
    value = weight / (1 + np.exp(-logit))
    place = np.arange(places).repeat(masks)
    pairs = Corners(logit.reshape(4, -1), value.reshape(4, -1), np.tile(weight, places))
    left = unbeaten(place, pairs, np.float32(1e-4))
    y, x = np.meshgrid(np.linspace(0, 1, 33), np.linspace(0, 1, 33))
    shares = np.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x]).reshape(4, -1)
    pixels = weight[:, None] / (1 + np.exp(-np.einsum("cpk,ci->pki", logit, shares)))
    winners = {(p, int(k)) for p in range(places) for k in np.unique(pixels[p].argmax(axis=0))}
    assert winners <= {(int(i) // masks, int(i) % masks) for i in left}
    assert len(left) < 0.5 * len(place)


def test_the_random_cases_reject_reassign_and_leave_void():
    """Otherwise the comparison above would not look at these rules."""
    kept = proposed = void = changed = 0
    for seed in range(60):
        rng = np.random.default_rng([11, seed])
        params = {name: values[rng.integers(len(values))] for name, values in OPTIONS.items()}
        k = constants(6, 4, rng)
        raw = named(rng.normal(-1, 2, (8, 8, 4)), rng.normal(0, 1, (8, 8, 6)), smooth(rng, 8, 6))
        results = []
        for reassign in (False, True):
            decoder = MaskConverDecoder(contract(**{**params, "reassign_rejected": reassign}), k)
            results.append(decoder(raw, Letterbox(64, 64, 64, 64)))
        proposed += len(decoder.propose(raw).cell)
        kept += len(results[0].segments)
        void += int((results[0].id_map_hw_i32 == 0).sum())
        changed += results[0].segments != results[1].segments
    assert 60 < kept < proposed
    assert 0 < void < 60 * 64 * 64
    assert changed >= 5


@pytest.mark.parametrize("reassign", [False, True])
def test_equal_masks_of_equal_weight_go_to_the_first(reassign):
    logits = np.repeat(np.random.default_rng(0).normal(0, 3, (1, 8, 8)).astype(np.float32), 3, axis=0)
    grid = square_grid(Letterbox(50, 61, 64, 64), (8, 8), 8)
    rules = MergeRules(0.0, 0.0, 0.0, reassign)
    merged = merge(logits, np.full(3, 0.5, np.float32), grid, rules)
    assert merged.visible_px.tolist() == [50 * 61, 0, 0]


def test_rounding_that_lifts_a_pixel_over_its_corners_is_allowed_for():
    """Masks a unit in the last place apart at every cell: interpolated, the lower one is no lower here and there."""
    grid = square_grid(Letterbox(90, 77, 64, 64), (8, 8), 8)
    squares, weight, turned = np.arange(grid.count), np.ones(2, np.float32), 0
    for constant in np.linspace(-19.7, -9.3, 40, dtype=np.float32):
        masks = np.full((2, 8, 8), constant)
        masks[1] += np.random.default_rng(0).integers(1, 3, (8, 8)) * np.spacing(-constant)
        merged = merge(masks, weight, grid, RULES)
        pixels = [PairPixels.of(grid.corners(maps, squares, 0 * squares), grid, squares) for maps in masks[..., None]]
        first, second = (1 / (1 + np.exp(-x.rows(slice(None)))) for x in pixels)  # a repeated pixel is no number
        assert merged.visible_px.tolist() == [
            int((first >= second).sum()),
            int((first < second).sum()),
        ]
        turned += int((first >= second).sum())
    assert turned > 0


def test_a_probability_of_exactly_the_threshold_is_void():
    grid = square_grid(Letterbox(30, 30, 64, 64), (8, 8), 8)
    rules = MergeRules(0.5, 0.0, 0.0, reassign_rejected=False)
    for logit, visible in ((0.0, 0), (1e-6, 900), (-1e-6, 0)):
        merged = merge(np.full((1, 8, 8), logit, np.float32), np.ones(1, np.float32), grid, rules)
        assert merged.visible_px.tolist() == [visible]


@pytest.mark.parametrize("weight", [0.0, 1e-44, 1e-38])
def test_a_value_that_underflows_to_nothing_wins_no_pixel(weight):
    grid = square_grid(Letterbox(30, 30, 64, 64), (8, 8), 8)
    merged = merge(np.full((2, 8, 8), -30, np.float32), np.full(2, weight, np.float32), grid, RULES)
    assert merged.visible_px.tolist() == [0, 0]


def test_masks_that_all_reject_each_other_leave_an_empty_picture_when_pixels_are_reassigned():
    logits = np.random.default_rng(0).normal(-4, 1, (3, 8, 8)).astype(np.float32)  # no mask owns a pixel
    grid = square_grid(Letterbox(64, 64, 64, 64), (8, 8), 8)
    merged = merge(logits, np.array([0.9, 0.5, 0.4], np.float32), grid, MergeRules(0.0, 0.5, 0.0, True))
    assert not merged.keep.any()
    assert merged.visible_px.tolist() == [0, 0, 0]


def test_the_best_of_several_peaks_of_one_stuff_class_counts_before_the_cut():
    scenes = SyntheticScenes("hard", split="val", size_px=256, length=2)
    made, k, raw = class_coded(
        scenes[0], scenes.classes, 80, cells=32, one_peak_per_stuff_class=True, reassign_rejected=True
    )
    fast, slow = both(made, k)
    stuff = fast.propose(raw).class_index[~fast.isthing[fast.propose(raw).class_index]]
    assert 1 < len(stuff) == len(set(stuff.tolist()))
    assert differing_px(fast, slow, raw, Letterbox(300, 211, 256, 256)) == 0


def test_a_picture_much_larger_than_the_network_is_decoded_as_without_a_shortcut():
    scenes = SyntheticScenes("hard", split="val", size_px=256, length=2)
    made, k, raw = class_coded(scenes[1], scenes.classes, 20, cells=32)
    assert differing_px(*both(made, k), raw, Letterbox(1403, 933, 256, 256)) <= 3


@pytest.mark.shared
def test_real_pictures_decode_as_without_a_shortcut(shared_dir):
    dataset = open_dataset(str(shared_dir / "data" / "facade"), split="val")
    differing = total = 0
    for index in range(0, len(dataset), len(dataset) // 6):
        sample = dataset[index]
        height, width = sample.id_map_hw_i32.shape
        for side_px, image_wh in ((256, (256, 256)), (640, (640, 640)), (256, (width, height))):
            made, k, raw = class_coded(sample, dataset.classes, 50, cells=side_px // 8, seed=index)
            differing += differing_px(*both(made, k), raw, Letterbox(*image_wh, side_px, side_px))
            total += image_wh[0] * image_wh[1]
    assert total > 4_000_000
    assert differing <= 1e-6 * total


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 2), (13, 1, 3), (16, 17, 5)])
def test_peaks_above_the_floor_are_those_of_the_whole_map(shape, quantised, single):
    rng = np.random.default_rng(3)
    heat = rng.normal(0, 2, shape).astype(np.float32)
    heat = np.round(heat * 2) / 2 if quantised else heat
    everywhere = peaks_everywhere(heat)
    for floor in (-np.inf, 0.0, 2.0, 99.0):
        y, x, c = np.nonzero(everywhere & (heat > floor))
        order = np.argsort(-heat[y, x, c], kind="stable")
        expected = list(zip((y * shape[1] + x)[order].tolist(), c[order].tolist(), strict=True))
        if single:
            expected = [p for n, p in enumerate(expected) if p[1] not in [q[1] for q in expected[:n]]]
        cell, class_index, score = peaks(heat, np.float32(floor), np.full(shape[2], single))
        assert list(zip(cell.tolist(), class_index.tolist(), strict=True)) == expected
        assert (score == heat.reshape(-1, shape[2])[cell, class_index]).all()


@pytest.mark.parametrize(("pixels", "cells", "cells_per_px"), [(64, 8, 0.125), (5, 8, 1.6), (1, 1, 0.1), (90, 8, 0.07)])
def test_runs_cover_every_pixel_once_and_hold_it_between_their_cells(pixels, cells, cells_per_px):
    axis = axis_runs(pixels, cells, cells_per_px)
    there = ~np.isnan(axis.share)
    assert axis.pixel.T[there.T].tolist() == list(range(pixels))
    assert (there.sum(axis=0) == axis.length_px).all()
    assert there[-1].all()  # repetitions come first: what is written last stays
    assert axis.length_px.sum() == pixels
    place = np.clip((np.arange(pixels) + 0.5) * cells_per_px - 0.5, 0, cells - 1)
    assert np.allclose((axis.low + axis.share)[there], place[axis.pixel][there], atol=1e-6)
    assert ((axis.high - axis.low) <= 1).all()
    assert (axis.high < cells).all()


@pytest.mark.parametrize("image_wh", IMAGES_WH)
def test_no_pixel_leaves_the_range_of_its_squares_corners(image_wh):
    maps = np.random.default_rng(5).normal(size=(2, 8, 8)).astype(np.float32)
    box = Letterbox(*image_wh, 64, 64)
    grid = square_grid(box, (8, 8), 8)
    least, greatest = (
        grid.at_corners(op, np.moveaxis(maps, 0, -1))
        .T.reshape(2, len(grid.rows.pair), -1)
        .repeat(grid.rows.length_px, 1)
        .repeat(grid.columns.length_px, 2)
        for op in (np.minimum, np.maximum)
    )
    pixels = enlarge(maps, box, 8)
    assert (pixels >= least - 1e-6).all()
    assert (pixels <= greatest + 1e-6).all()
    assert grid.areas_px.sum() == image_wh[0] * image_wh[1]


def test_more_masks_than_labels_are_refused():
    grid = square_grid(Letterbox(8, 8, 8, 8), (1, 1), 8)
    with pytest.raises(InputError, match="Too many"):
        merge(np.zeros((MAX_MASKS + 1, 1, 1), np.float32), np.ones(MAX_MASKS + 1, np.float32), grid, RULES)


def test_as_many_masks_as_labels_keep_their_numbers():
    logits = np.full((MAX_MASKS, 1, 2), -9.0, np.float32)
    logits[-1, 0, 0], logits[-2, 0, 1] = 9.0, 9.0
    grid = square_grid(Letterbox(16, 8, 16, 16), (1, 2), 8)
    merged = merge(logits, np.ones(MAX_MASKS, np.float32), grid, RULES)
    assert np.flatnonzero(merged.keep).tolist() == [MAX_MASKS - 2, MAX_MASKS - 1]
    assert merged.visible_px[-2:].tolist() == [64, 64]


def test_the_registry_gives_the_fast_decoder():
    assert DECODERS["maskconver"] is MaskConverDecoder


def test_masks_of_true_centres_are_merged_alike():
    scenes = SyntheticScenes("easy", split="val", size_px=256, length=2)
    made, k, raw = class_coded(scenes[0], scenes.classes, 20, cells=32)
    fast, slow = both(made, k)
    found = fast.propose(raw)
    truth = Proposals(found.cell[::2], found.class_index[::2], np.ones(len(found.cell[::2]), np.float32))
    box = Letterbox(256, 192, 256, 256)
    got, expected = fast.assemble(raw, truth, box), slow.assemble(raw, truth, box)
    assert got.segments == expected.segments
    assert (got.id_map_hw_i32 == expected.id_map_hw_i32).all()
