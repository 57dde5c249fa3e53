"""BlendMask's decoder against one written step by step with torch, and its parameters and edges one by one."""

import tracemalloc

import numpy as np
import pytest
import torch
from decoders_instances import (
    BLEND_LEVELS,
    blendmask_outputs,
    contract_of,
    near_threshold,
    plain_iou,
    raw_of,
    slow_blendmask,
)

from edge_seg.decoders.base import DECODERS
from edge_seg.decoders.blendmask import BlendMaskDecoder
from edge_seg.errors import InputError
from edge_seg.letterbox import Letterbox

SIDE, CLASSES = 96, 5
SMALL = {"attention_size": 3, "bases": 2, "mask_size": 8}


def busy_outputs(seed, *, width=18, bases=2):
    """Raw outputs with candidates in a twelfth of all cells, and boxes that often overlap."""
    rng = np.random.default_rng(seed)
    outputs = blendmask_outputs(SIDE, CLASSES, width=width, bases=bases)
    for name, (_, _, _, array) in outputs.items():
        if name.startswith("class"):
            array[:] = rng.normal(-4, 1.5, array.shape)
        elif name.startswith("box"):
            array[:] = rng.uniform(0, 5, array.shape)
        else:
            array[:] = rng.normal(0, 2, array.shape)
    return outputs


def made(outputs, constants=None, **params):
    contract = contract_of("blendmask", outputs, CLASSES, SIDE, **{**SMALL, **params})
    return BlendMaskDecoder(contract, constants or {})


def one_object(cell=(4, 5), ltrb=(2, 1, 3, 2), score=4.0, level=3):
    """Outputs of a single box on one level with a full mask."""
    outputs = blendmask_outputs(SIDE, CLASSES, width=18, bases=2)
    outputs[f"class_p{level}"][3][0, cell[0], cell[1], 2] = score
    outputs[f"box_p{level}"][3][0, cell[0], cell[1]] = ltrb
    outputs["bases"][3][:] = 5
    return outputs


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"class_aware": False},
        {"threshold_with_centerness": False, "score": "product"},
        {"pre_nms_top_k": 10, "nms_iou": 0.2},
        {"max_instances": 14, "mask_threshold": 0.7},
    ],
)
@pytest.mark.parametrize("image_wh_px", [(96, 96), (150, 101), (40, 96)])
def test_everything_is_what_the_slow_decoder_gives(params, image_wh_px):
    outputs, box = busy_outputs(3), Letterbox(*image_wh_px, SIDE, SIDE)
    decoder, raw = made(outputs, **params), raw_of(outputs)
    attention = {level: raw[f"attention_p{level}"][0] for level in BLEND_LEVELS}
    truth = slow_blendmask(raw, decoder.params, attention, box, plain_iou)
    result = decoder(raw, box)
    grow = np.array([image_wh_px[0] / box.content_wh_px[0], image_wh_px[1] / box.content_wh_px[1]] * 2)
    clipped = [np.clip(np.array(row[2]) * grow, 0, image_wh_px * 2) for row in truth]
    seen = [i for i, xyxy in enumerate(clipped) if (xyxy[2:] > xyxy[:2]).all()]
    assert len(result.instances) == len(seen) >= 5
    for instance, i in zip(result.instances, seen, strict=True):
        score, class_index, _, probability = truth[i]
        assert instance.class_index == class_index
        assert instance.score == pytest.approx(score, abs=1e-5)
        assert instance.box_xyxy_px == pytest.approx(clipped[i], abs=1e-3)
        assert near_threshold(instance.mask.mask(), probability, decoder.params["mask_threshold"])


@pytest.mark.parametrize("size", [1, 3])
def test_attention_made_at_kept_cells_is_the_dense_convolutions(size):
    rng = np.random.default_rng(size)
    constants = {
        "attention.weight": rng.normal(size=(18, 6, size, size)).astype(np.float32),
        "attention.bias": rng.normal(size=18).astype(np.float32),
    }
    lazy = busy_outputs(4, width=6)
    lazy["class_p4"][3][0, 0, 0, 0] = lazy["class_p4"][3][0, 5, 5, 1] = 9.0  # corners, where the zeros outside matter
    dense = dict(lazy)
    for level in BLEND_LEVELS:
        role, _, stride, array = lazy[f"attention_p{level}"]
        weight, bias = (torch.from_numpy(constants[f"attention.{n}"]) for n in ("weight", "bias"))
        features = torch.from_numpy(array).permute(0, 3, 1, 2)
        values = torch.nn.functional.conv2d(features, weight, bias, padding=size // 2).permute(0, 2, 3, 1).numpy()
        dense[f"attention_p{level}"] = (role, level, stride, values)
    one, other = made(lazy, constants), made(dense)
    raws, found = (raw_of(lazy), raw_of(dense)), other.propose(raw_of(dense))
    assert len(found.cell) > 20
    assert np.allclose(one.mask_logits(raws[0], found), other.mask_logits(raws[1], found), rtol=0, atol=1e-4)


def test_nothing_above_the_threshold_is_an_empty_result():
    outputs = blendmask_outputs(SIDE, CLASSES, width=18, bases=2)
    result = made(outputs)(raw_of(outputs), Letterbox(70, 50, SIDE, SIDE))
    assert result.instances == ()
    assert result.size_hw == (50, 70)


def test_one_object_has_its_class_score_and_box_in_pixels_of_the_image():
    outputs = one_object()
    result = made(outputs, overlap_threshold=0.25, show_threshold=0.125)(
        raw_of(outputs), Letterbox(192, 160, SIDE, SIDE)
    )
    (instance,) = result.instances
    # the middle of cell (4, 5) is (44, 36); the picture is twice as large as the content
    assert instance.box_xyxy_px == (2 * (44 - 16), 2 * (36 - 8), 2 * (44 + 24), 2 * (36 + 16))
    assert instance.class_index == 2
    assert instance.score == pytest.approx(np.sqrt(1 / (1 + np.exp(-4)) * 0.5), abs=1e-6)
    assert instance.mask.bbox_xywh_px == (56, 56, 80, 48)
    assert (result.overlap_threshold, result.score_threshold) == (0.25, 0.125)


def test_a_hundred_objects_come_back_best_first():
    outputs = blendmask_outputs(SIDE, CLASSES, width=18, bases=2)
    cells = [(y, x) for y in range(1, 11) for x in range(1, 11)]
    for rank, (y, x) in enumerate(cells):
        outputs["class_p3"][3][0, y, x, rank % CLASSES] = 4 - rank / 50
        outputs["box_p3"][3][0, y, x] = 0.5
    outputs["bases"][3][:] = 5
    result = made(outputs)(raw_of(outputs), Letterbox(SIDE, SIDE, SIDE, SIDE))
    assert [i.mask.bbox_xywh_px for i in result.instances] == [(8 * x, 8 * y, 8, 8) for y, x in cells]
    scores = [i.score for i in result.instances]
    assert scores == sorted(scores, reverse=True)
    fewer = made(outputs, max_instances=99)(raw_of(outputs), Letterbox(SIDE, SIDE, SIDE, SIDE))
    assert len(fewer.instances) == 99


def test_classes_compete_only_where_they_should():
    outputs = one_object()
    outputs["class_p3"][3][0, 4, 5, 3] = 3.0
    box = Letterbox(SIDE, SIDE, SIDE, SIDE)
    assert [i.class_index for i in made(outputs)(raw_of(outputs), box).instances] == [2, 3]
    alone = made(outputs, class_aware=False)(raw_of(outputs), box).instances
    assert [i.class_index for i in alone] == [2]


@pytest.mark.parametrize(("centerness", "joined", "found"), [(-3.5, True, 0), (-3.5, False, 1), (-2.5, True, 1)])
def test_the_threshold_looks_at_centerness_where_it_is_asked_to(centerness, joined, found):
    outputs = one_object(score=4.0)
    outputs["center_p3"][3][:] = centerness  # times 0.98 around the threshold of 0.05
    decoder = made(outputs, threshold_with_centerness=joined)
    assert len(decoder(raw_of(outputs), Letterbox(SIDE, SIDE, SIDE, SIDE)).instances) == found


def test_a_box_outside_the_picture_is_left_out_and_one_over_its_border_is_clipped():
    below, over = one_object(cell=(10, 5), ltrb=(1, 1, 1, 1)), one_object(cell=(5, 5), ltrb=(1, 1, 1, 1))
    box = Letterbox(SIDE, SIDE // 2, SIDE, SIDE)  # content ends at row 48
    assert made(below)(raw_of(below), box).instances == ()
    (instance,) = made(over)(raw_of(over), box).instances
    assert instance.box_xyxy_px == (36, 36, 52, 48)


def test_absurd_raw_values_end_in_bounded_time_and_memory():
    outputs = busy_outputs(0)
    for name, (_, _, _, array) in outputs.items():
        array[:] = 3e38 if name.startswith("box") else 80
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
        ("score_threshold", 1.5),
        ("score_threshold", float("nan")),
        ("nms_iou", -0.1),
        ("max_instances", 2.5),
        ("max_instances", 10**9),
        ("pre_nms_top_k", -1),
        ("class_aware", 1.5),
        ("merge", "blender"),
        ("mask_size", 0),
        ("box_quality", None),
        ("score", "max"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=name):
        made(busy_outputs(0), **{name: value})


def test_a_missing_parameter_is_refused_by_name():
    contract = contract_of("blendmask", busy_outputs(0), CLASSES, SIDE, **SMALL)
    params = {k: v for k, v in contract.decoder.params.items() if k != "nms_iou"}
    decoder = type(contract.decoder)("blendmask", params)
    with pytest.raises(InputError, match="'nms_iou' is missing"):
        BlendMaskDecoder(type(contract)(**{**vars(contract), "decoder": decoder}), {})


def without(outputs, name):
    return {n: o for n, o in outputs.items() if n != name}


@pytest.mark.parametrize(
    ("outputs", "params", "constants", "message"),
    [
        (without(busy_outputs(0), "bases"), {}, {}, "'bases'"),
        (without(busy_outputs(0), "center_p4"), {}, {}, "same levels"),
        (busy_outputs(0), {"bases": 4}, {}, "bases"),
        (busy_outputs(0), {"attention_size": 7}, {}, "attention_p3"),
        (busy_outputs(0), {}, {"attention.weight": np.zeros((18, 18, 1, 1), np.float32)}, "attention.bias"),
        (
            busy_outputs(0),
            {},
            {"attention.weight": np.zeros((9, 18, 1, 1), np.float32), "attention.bias": np.zeros(9, np.float32)},
            "attention.weight",
        ),
        (
            busy_outputs(0),
            {},
            {"attention.weight": np.zeros((18, 18, 2, 2), np.float32), "attention.bias": np.zeros(18, np.float32)},
            "odd",
        ),
    ],
)
def test_outputs_and_constants_that_do_not_fit_are_refused(outputs, params, constants, message):
    with pytest.raises(InputError, match=message):
        made(outputs, constants, **params)


@pytest.mark.parametrize(("merge", "size", "bases"), [("yolact", 1, 2), ("fcis", 1, 4)])
def test_the_other_merges_are_decoded_too(merge, size, bases):
    outputs = blendmask_outputs(SIDE, CLASSES, width=bases * size * size, bases=bases)
    outputs["class_p3"][3][0, 4, 5, 2] = 4
    outputs["box_p3"][3][0, 4, 5] = 2
    if merge == "yolact":
        outputs["attention_p3"][3][0, 4, 5] = (1, -1)
        outputs["bases"][3][:] = (2, 5)  # 2 - 5 is outside
        outputs["bases"][3][0, :, :11] = (5, 2)  # left of column 44 inside
        expected = (28, 20, 16, 32)
    else:
        outputs["bases"][3][:] = (5, -5, -5, -5)  # inside in the upper left part only
        expected = (28, 20, 16, 16)
    decoder = made(outputs, merge=merge, attention_size=size, bases=bases, mask_size=32)
    (instance,) = decoder(raw_of(outputs), Letterbox(SIDE, SIDE, SIDE, SIDE)).instances
    assert np.abs(np.subtract(instance.mask.bbox_xywh_px, expected)).max() <= 1


def test_the_decoder_is_found_by_its_name():
    assert DECODERS["blendmask"] is BlendMaskDecoder
