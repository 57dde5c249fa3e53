"""Reading a .tflite without running it."""

from __future__ import annotations

import numpy as np
import pytest
from test_converters_tinynet import CLASSES, SIDE, converted_files

from edge_seg.converters.flatbuffer import module_of, read_graph
from edge_seg.errors import ArtifactError, InputError


@pytest.fixture(scope="module")
def fp32():
    return read_graph(converted_files()["fp32"].file)


@pytest.fixture(scope="module")
def w8a8():
    return read_graph(converted_files()["w8a8"].file)


def test_operators_are_counted_and_no_transpose_is_left(fp32):
    # by hand from TinyNet: normalise and one stage are depthwise; stem, stage, lateral, two heads are not
    assert fp32.op_histogram == {"CONV_2D": 5, "DEPTHWISE_CONV_2D": 2, "RESIZE_BILINEAR": 1, "ADD": 1}
    assert fp32.transposes == 0


def test_options_of_the_stem_are_read(fp32):
    stem = next(op for op in fp32.ops if fp32.source(op) == "stem.0")
    assert stem.name == "CONV_2D"
    assert (stem.options["stride_h"], stem.options["stride_w"]) == (2, 2)
    assert stem.options["fused_activation_function"] == "RELU6"
    assert stem.options["dilation_h_factor"] == 1
    weights = fp32.tensors[stem.inputs[1]]
    assert weights.shape == (16, 4, 4, 3)
    assert weights.constant
    assert weights.size_bytes == 16 * 4 * 4 * 3 * 4


def test_the_normalisation_is_the_first_operator_and_its_constants_are_read(fp32):
    first = fp32.ops[0]
    assert fp32.source(first) == "normalise.conv"
    assert first.inputs[0] == fp32.inputs[0]
    np.testing.assert_allclose(fp32.constant(first.inputs[1]), np.full((1, 1, 1, 3), 1 / 127.5), rtol=1e-6)
    np.testing.assert_array_equal(fp32.constant(first.inputs[2]), [-1.0, -1.0, -1.0])


def test_module_paths_survive_including_names_of_module_lists(fp32):
    sources = {fp32.source(op) for op in fp32.ops}
    assert {"normalise.conv", "stem.0", "stages.0.0", "stages.1.0", "lateral", "heads.0", "heads.1"} <= sources


def test_module_paths_survive_quantisation(w8a8):
    assert {w8a8.source(op) for op in w8a8.ops} >= {"stem.0", "stages.0.0", "stages.1.0", "lateral", "heads.0"}


def test_the_signature_speaks_the_names_of_the_contract(fp32):
    (signature,) = fp32.signatures
    assert list(signature.inputs) == ["image"]
    assert set(signature.outputs) == {"semantic", "features"}
    shape = (1, SIDE // 2, SIDE // 2, CLASSES)
    assert fp32.tensors[signature.outputs["semantic"]].shape == shape


def test_static_int8_weights_have_one_scale_per_output_channel(w8a8):
    stem = next(op for op in w8a8.ops if w8a8.source(op) == "stem.0")
    weights = w8a8.tensors[stem.inputs[1]]
    assert weights.dtype == "int8"
    assert weights.axis == 0
    assert len(weights.scale) == 16
    assert set(weights.zero_point) == {0}


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("stem.2;;stem.1;;stem.0;", "stem.0"),
        ("blocks.1.act;;blocks.0.act;;blocks.1.bn;;blocks.1.conv;1", "blocks.1.conv"),
        ("lateral;2", "lateral"),
        ("body;;heads.1;", "heads.1"),
        ("heads.0;_semantic", "heads.0"),
        ("stages.1.0;1_dequant", "stages.1.0"),
        ("__main__.Net/__main__.Block_stem/torch.nn.modules.conv.Conv2d_0;", "stem.0"),
        ("a.Net/a.Sub_body/torch.nn.modules.conv.Conv2d_conv_a;1", "body.conv_a"),
        ("arith.constant", ""),
        ("serving_default_args_0", ""),
        ("", ""),
    ],
)
def test_a_tensor_name_maps_to_its_module(name, module):
    assert module_of(name) == module


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.2, 0.5, 0.9])
def test_a_truncated_file_is_refused(tmp_path, share):
    # the quantiser's own output: no archive at its end, so that cutting always cuts the graph
    data = _bare("w8a8")
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtifactError, match="not a whole TFLite file"):
        read_graph(broken)


def test_garbage_is_refused(tmp_path):
    broken = tmp_path / "garbage.tflite"
    for seed in range(20):
        noise = bytearray(np.random.default_rng(seed).bytes(4096))
        noise[4:8] = b"TFL3"
        broken.write_bytes(noise)
        with pytest.raises(ArtifactError):
            read_graph(broken)


def test_a_damaged_file_is_read_or_refused_but_never_crashes(tmp_path):
    data, broken = _bare("w8a8"), tmp_path / "damaged.tflite"
    refused = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        damaged = bytearray(data)
        for place in rng.integers(8, len(data), 20):
            damaged[place] = rng.integers(0, 256)
        broken.write_bytes(damaged)
        try:
            read_graph(broken)
        except ArtifactError:
            refused += 1
    assert refused > 0


def test_another_kind_of_file_and_no_file_are_refused(tmp_path):
    text = tmp_path / "text.tflite"
    text.write_text("this is not a flatbuffer at all, honestly")
    with pytest.raises(ArtifactError, match="TFL3"):
        read_graph(text)
    with pytest.raises(InputError):
        read_graph(tmp_path / "absent.tflite")
    with pytest.raises(InputError):
        read_graph(tmp_path)


def _bare(scheme):
    """The flatbuffer alone, without the archive that is appended to it."""
    data = converted_files()[scheme].file.read_bytes()
    return data[: data.index(b"PK\x03\x04")]
