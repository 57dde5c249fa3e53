"""The contract: a round trip keeps everything, and every broken document is refused with its reason."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from edge_seg.contract import (
    ClassInfo,
    Contract,
    DecoderConstant,
    DecoderInfo,
    InputTensor,
    ModelInfo,
    OutputTensor,
    Preprocess,
    Quantization,
)
from edge_seg.errors import ArtifactError, InputError


def sample() -> Contract:
    return Contract(
        model=ModelInfo("net_64", "family", "panoptic", 64, 10, 20, 30, 40, "Apache-2.0", {"name": "edge_seg"}),
        input=InputTensor("image", (1, 64, 96, 3), "in", "t0", dtype="int8", quantization=Quantization(1.0, -128)),
        preprocess=Preprocess((128, 128, 128), (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
        outputs=(
            OutputTensor("heat", "heat_map", (1, 8, 12, 2), 8),
            OutputTensor("mask", "features", (1, 8, 12, 4), 8, "relu", quantization=Quantization(0.5, 3)),
        ),
        classes=(ClassInfo(7, "car", True, (1, 2, 3)), ClassInfo(9, "straße", False, (4, 5, 6))),
        decoder=DecoderInfo("maskconver", {"top_k": 5, "score": 0.1}, (DecoderConstant("w", (2, 3)),)),
    )


def document() -> dict[str, Any]:
    return json.loads(json.dumps(sample().to_json()))


def test_a_round_trip_through_a_file_keeps_everything(tmp_path):
    sample().save(tmp_path / "a" / "contract.json")
    assert Contract.load(tmp_path / "a" / "contract.json") == sample()


def test_a_round_trip_through_text_keeps_everything():
    text = json.dumps(sample().to_json())
    assert Contract.loads(text) == sample()
    assert Contract.loads(text.encode()) == sample()


def test_the_document_has_the_keys_of_the_specification():
    written = document()
    assert list(written) == [
        "format", "version", "model", "input", "preprocess", "outputs", "classes", "decoder",
    ]  # fmt: skip
    assert (written["format"], written["version"]) == ("edge_seg.contract", 1)
    assert {"signature_key", "tensor_name", "layout", "dtype", "quantization", "color", "range"} < set(written["input"])
    assert {"fit", "resize", "fill_rgb", "mean", "std", "in_graph"} == set(written["preprocess"])
    assert {"role", "stride_px", "activation", "level"} < set(written["outputs"][0])
    assert written["classes"][1] == {"id": 9, "name": "straße", "isthing": False, "color_rgb": [4, 5, 6]}
    assert written["outputs"][1]["quantization"] == {"scale": 0.5, "zero_point": 3}
    assert written["outputs"][0]["quantization"] is None


def test_unknown_keys_are_kept():
    other = {**document(), "future": {"a": [1, 2]}}
    assert Contract.from_json(other).to_json() == other


def test_unknown_keys_inside_a_section_are_kept():
    other = document()
    quantized = other["outputs"][1]
    parts = [other["model"], other["input"], other["preprocess"], quantized, quantized["quantization"]]
    for place, part in enumerate([*parts, other["classes"][0], other["decoder"], other["decoder"]["constants"][0]]):
        part["future"] = {"place": place}
        part["extra"] = "a name of our own"
    read = Contract.from_json(other)
    assert read == sample()
    assert read.to_json() == other


@pytest.mark.parametrize("value", [[], 3, "text", {}, {"format": "other"}, None])
def test_what_is_no_contract_is_refused(value):
    with pytest.raises(ArtifactError, match="is not an edge_seg contract"):
        Contract.from_json(value, source="file.tflite")


@pytest.mark.parametrize("version", [2, "1", None])
def test_an_unknown_version_is_refused_and_says_what_to_do(version):
    with pytest.raises(ArtifactError, match="unknown version") as caught:
        Contract.from_json({**document(), "version": version})
    assert caught.value.expected == "1"
    assert caught.value.todo


@pytest.mark.parametrize("key", ["model", "input", "preprocess", "outputs", "classes", "decoder"])
def test_a_missing_section_is_refused_by_name(key):
    broken = document()
    del broken[key]
    with pytest.raises(ArtifactError, match=key):
        Contract.from_json(broken)


def every_inner_key() -> list[tuple[str, str]]:
    rows = document()
    rows = {**rows, "outputs": rows["outputs"][0], "classes": rows["classes"][0]}
    return [(s, k) for s in ("model", "input", "preprocess", "outputs", "classes", "decoder") for k in rows[s]]


@pytest.mark.parametrize(("section", "key"), every_inner_key())
def test_a_missing_key_of_a_section_is_refused_by_name(section, key):
    broken = document()
    place = broken[section]
    del (place[0] if isinstance(place, list) else place)[key]
    with pytest.raises(ArtifactError, match=key):
        Contract.from_json(broken)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("model",), 3),
        (("model", "params"), "many"),
        (("input", "shape"), "1,64,64,3"),
        (("input", "shape"), [1, 64, 64]),
        (("input", "shape"), [1, 64.5, 64, 3]),
        (("input", "quantization"), 3),
        (("input", "quantization"), {"scale": 1.0}),
        (("input", "quantization"), {"scale": "x", "zero_point": 0}),
        (("preprocess", "fill_rgb"), [1, 2]),
        (("preprocess", "mean"), None),
        (("outputs",), 3),
        (("outputs", 0), "heat"),
        (("outputs", 0, "shape"), {"h": 8}),
        (("outputs", 0, "stride_px"), "eight"),
        (("classes", 0, "isthing"), "yes"),
        (("classes", 0, "color_rgb"), "red"),
        (("classes",), None),
        (("decoder", "params"), [1]),
        (("decoder", "name"), 5),
        (("decoder", "constants"), [{"name": "w"}]),
    ],
)
def test_a_value_of_another_type_is_refused(path, value):
    broken = document()
    place: Any = broken
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ArtifactError, match="is not complete"):
        Contract.from_json(broken)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_text_that_is_not_json_is_refused(text):
    with pytest.raises(ArtifactError, match="is not JSON"):
        Contract.loads(text)


def test_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        Contract.load(tmp_path / "contract.json")


def test_outputs_are_found_by_name_and_a_miss_lists_the_names():
    assert sample().output("mask").stride_px == 8
    with pytest.raises(InputError, match="no output 'masks'") as caught:
        sample().output("masks")
    assert caught.value.expected == "heat, mask"


def test_width_comes_before_height():
    assert sample().input_wh_px == (96, 64)


def test_decoder_parameters_are_replaced_in_a_copy_and_an_unknown_one_is_refused():
    before = sample()
    changed = before.with_decoder_params(top_k=9)
    assert (changed.decoder.params, before.decoder.params) == (
        {"top_k": 9, "score": 0.1},
        {"top_k": 5, "score": 0.1},
    )
    with pytest.raises(InputError, match="no parameter 'topk'") as caught:
        before.with_decoder_params(topk=9)
    assert "top_k" in caught.value.todo


def test_the_document_does_not_share_memory_with_the_contract():
    contract = sample()
    written = contract.to_json()
    kept = copy.deepcopy(written)
    written["decoder"]["params"]["top_k"] = 0
    assert contract.to_json() == kept
