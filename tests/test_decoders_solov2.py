"""SOLOv2's decoder against one written step by step with torch, and its parameters and edges one by one."""

import tracemalloc

import numpy as np
import pytest
import torch
from decoders_instances import GRIDS, contract_of, near_threshold, raw_of, slow_solov2, solov2_outputs

from edge_seg.decoders.base import DECODERS
from edge_seg.decoders.solov2 import SOLOv2Decoder
from edge_seg.errors import InputError
from edge_seg.letterbox import Letterbox

SIDE, CLASSES, WIDTH = 96, 4, 7


def busy_outputs(seed, width=WIDTH):
    """Raw outputs with some fifty cells above the threshold and smooth masks that overlap a lot."""
    rng = np.random.default_rng(seed)
    outputs = solov2_outputs(SIDE, CLASSES, width=width, features=WIDTH)
    for name, (_, _, _, array) in outputs.items():
        if name.startswith("category"):
            array[:] = rng.normal(-5, 1.6, array.shape)
        elif name.startswith("kernel"):
            array[:] = rng.normal(0, 2, array.shape)
    y, x = (np.mgrid[:24, :24] + 0.5) / 24
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0, 9, (WIDTH, 3))]
    outputs["mask_features"][3][0] = np.stack(waves, axis=-1)
    return outputs


def made(outputs, constants=None, **params):
    return SOLOv2Decoder(contract_of("solov2", outputs, CLASSES, SIDE, **params), constants or {})


def one_object(rows=(4, 12), columns=(6, 18), level=1, cell=(3, 4)):
    """Outputs with a rectangle of cells of stride 4 as the only object."""
    outputs = solov2_outputs(SIDE, CLASSES, width=WIDTH, features=WIDTH)
    outputs["mask_features"][3][..., 0] = 1
    outputs["mask_features"][3][0, rows[0] : rows[1], columns[0] : columns[1], 1] = 1
    outputs[f"category_{level}"][3][0, cell[0], cell[1], 2] = 3
    outputs[f"kernel_{level}"][3][0, cell[0], cell[1], :2] = (-6, 12)
    return outputs


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"nms": "linear"},
        {"class_aware": False},
        {"nms_sigma": 0.5, "update_threshold": 0.2},
        {"max_instances": 5, "mask_threshold": 0.7, "score_threshold": 0.2},
    ],
)
@pytest.mark.parametrize("image_wh_px", [(96, 96), (150, 101), (40, 96)])
def test_everything_is_what_the_slow_decoder_gives(params, image_wh_px):
    outputs, box = busy_outputs(1), Letterbox(*image_wh_px, SIDE, SIDE)
    decoder, raw = made(outputs, pre_nms_top_k=500, **params), raw_of(outputs)
    truth = slow_solov2(raw, decoder.params, [raw[f"kernel_{level}"][0] for level in range(5)], box)
    threshold = decoder.params["mask_threshold"]
    seen = [row for row in truth if (row[2] > threshold).any()]
    result = decoder(raw, box)
    assert len(result.instances) == len(seen) >= 5
    for instance, (score, class_index, probability) in zip(result.instances, seen, strict=True):
        assert instance.class_index == class_index
        assert instance.score == pytest.approx(score, abs=1e-5)
        mask = instance.mask.mask()
        assert near_threshold(mask, probability, threshold)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert instance.box_xyxy_px == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@pytest.mark.parametrize("size", [1, 3])
def test_kernels_made_at_kept_cells_are_the_dense_convolutions(size):
    rng = np.random.default_rng(size)
    constants = {
        "kernel.weight": rng.normal(size=(WIDTH, 5, size, size)).astype(np.float32),
        "kernel.bias": rng.normal(size=WIDTH).astype(np.float32),
    }
    lazy = busy_outputs(2, width=5)
    lazy["category_3"][3][0, 0, 0, 0] = lazy["category_3"][3][0, 5, 5, 1] = 4  # corners
    dense = dict(lazy)
    for level in range(len(GRIDS)):
        role, _, stride, array = lazy[f"kernel_{level}"]
        weight, bias = (torch.from_numpy(constants[f"kernel.{n}"]) for n in ("weight", "bias"))
        grid = torch.from_numpy(array).permute(0, 3, 1, 2)
        values = torch.nn.functional.conv2d(grid, weight, bias, padding=size // 2).permute(0, 2, 3, 1).numpy()
        dense[f"kernel_{level}"] = (role, level, stride, values)
    one, other = made(lazy, constants), made(dense)
    found = other.propose(raw_of(dense))
    assert len(found.cell) > 20
    logits = one.mask_logits(raw_of(lazy), found), other.mask_logits(raw_of(dense), found)
    assert np.allclose(*logits, rtol=0, atol=1e-4)


def test_nothing_above_the_threshold_is_an_empty_result():
    outputs = solov2_outputs(SIDE, CLASSES, width=WIDTH, features=WIDTH)
    result = made(outputs)(raw_of(outputs), Letterbox(70, 50, SIDE, SIDE))
    assert result.instances == ()
    assert result.size_hw == (50, 70)


def test_one_object_has_its_class_score_and_tight_box():
    outputs = one_object()
    result = made(outputs, overlap_threshold=0.25, show_threshold=0.125)(
        raw_of(outputs), Letterbox(192, 192, SIDE, SIDE)
    )
    (instance,) = result.instances
    sure = 1 / (1 + np.exp(-3)) / (1 + np.exp(-6))  # class times mean of the mask
    assert instance.class_index == 2
    assert instance.score == pytest.approx(sure, abs=1e-6)
    assert instance.box_xyxy_px == (48, 32, 144, 96)
    assert (result.overlap_threshold, result.score_threshold) == (0.25, 0.125)


@pytest.mark.parametrize(("level", "cells", "found"), [(0, 8, 0), (0, 9, 1), (2, 16, 0), (2, 17, 1), (4, 32, 0)])
def test_a_mask_must_have_more_cells_than_its_level_has_stride(level, cells, found):
    outputs = one_object(rows=(0, 0), level=level, cell=(1, 2))
    outputs["mask_features"][3][0].reshape(-1, WIDTH)[24 * 5 : 24 * 5 + cells, 1] = 1
    assert len(made(outputs)(raw_of(outputs), Letterbox(SIDE, SIDE, SIDE, SIDE)).instances) == found


def test_a_second_cell_of_an_object_decays():
    outputs = one_object()
    outputs["category_2"][3][0, 2, 2, 2] = 2
    outputs["kernel_2"][3][0, 2, 2, :2] = (-6, 12)
    box = Letterbox(SIDE, SIDE, SIDE, SIDE)
    second = 1 / (1 + np.exp(-2)) / (1 + np.exp(-6))
    scores = [i.score for i in made(outputs)(raw_of(outputs), box).instances]
    assert scores[1] == pytest.approx(second * np.exp(-2), abs=1e-6)  # equal masks: IoU 1, sigma 2
    assert len(made(outputs, update_threshold=0.2)(raw_of(outputs), box).instances) == 1
    assert len(made(outputs, nms="linear")(raw_of(outputs), box).instances) == 1


def test_classes_compete_only_where_they_should():
    outputs = one_object()
    outputs["category_2"][3][0, 2, 2, 1] = 2
    outputs["kernel_2"][3][0, 2, 2, :2] = (-6, 12)
    box = Letterbox(SIDE, SIDE, SIDE, SIDE)
    plain = made(outputs, nms="linear")(raw_of(outputs), box).instances
    assert [i.class_index for i in plain] == [2, 1]
    alone = made(outputs, nms="linear", class_aware=False)(raw_of(outputs), box).instances
    assert [i.class_index for i in alone] == [2]


def test_a_hundred_objects_come_back_best_first():
    outputs = solov2_outputs(SIDE, CLASSES, width=101, features=101)
    features = outputs["mask_features"][3]
    features[..., 100] = 1
    cells = [(y, x) for y in range(10) for x in range(10)]
    for rank, (y, x) in enumerate(cells):
        features[0, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3, rank] = 1  # nine cells, one more than the stride
        outputs["category_0"][3][0, y, x, rank % CLASSES] = 4 - rank / 50
        outputs["kernel_0"][3][0, y, x, [rank, 100]] = (20, -10)
    box = Letterbox(SIDE, SIDE, SIDE, SIDE)
    result = made(outputs)(raw_of(outputs), box)
    assert len(result.instances) == 100
    scores = [i.score for i in result.instances]
    assert scores == sorted(scores, reverse=True)
    assert result.instances[0].mask.bbox_xywh_px == (0, 0, 12, 12)
    assert len(made(outputs, max_instances=99)(raw_of(outputs), box).instances) == 99
    assert len(made(outputs, pre_nms_top_k=98)(raw_of(outputs), box).instances) == 98


def test_an_object_in_the_padding_only_is_left_out():
    outputs = one_object(rows=(16, 22))
    assert made(outputs)(raw_of(outputs), Letterbox(SIDE, SIDE // 2, SIDE, SIDE)).instances == ()


def test_absurd_raw_values_end_in_bounded_time_and_memory():
    outputs = busy_outputs(0)
    for _, _, _, array in outputs.values():
        array[:] = 3e18
    tracemalloc.start()
    try:
        result = made(outputs)(raw_of(outputs), Letterbox(300, 200, SIDE, SIDE))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < len(result.instances) <= 100
    assert peak < 20e6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("score_threshold", -0.1),
        ("update_threshold", float("nan")),
        ("nms", "hard"),
        ("nms_sigma", -1.0),
        ("pre_nms_top_k", 10**7),
        ("max_instances", True),
        ("class_aware", "yes"),
        ("mask_threshold", None),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=name):
        made(busy_outputs(0), **{name: value})


@pytest.mark.parametrize(
    ("gone", "width", "constants", "message"),
    [
        ("mask_features", WIDTH, {}, "mask_features"),
        ("kernel_2", WIDTH, {}, "same levels"),
        ("", 5, {}, "kernel_0"),
        ("", 5, {"kernel.weight": np.zeros((WIDTH, 6, 1, 1)), "kernel.bias": np.zeros(WIDTH)}, "kernel.weight"),
        ("", 5, {"kernel.bias": np.zeros(WIDTH)}, "kernel.weight"),
    ],
)
def test_outputs_and_constants_that_do_not_fit_are_refused(gone, width, constants, message):
    outputs = {name: value for name, value in busy_outputs(0, width).items() if name != gone}
    with pytest.raises(InputError, match=message):
        made(outputs, constants)


def test_the_decoder_is_found_by_its_name():
    assert DECODERS["solov2"] is SOLOv2Decoder
