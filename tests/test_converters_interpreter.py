"""Running a converted file on the host."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from test_converters_tinynet import SIDE, converted_files, exported_folder, smooth_pictures

from edge_seg.converters import interpreter, metadata
from edge_seg.converters.exported import open_exported, read_reference
from edge_seg.converters.interpreter import PlainRunner, TfliteRunner
from edge_seg.errors import ArtifactError, InputError, MissingHere


@pytest.fixture(scope="module")
def reference():
    return read_reference(open_exported(exported_folder()))


@pytest.mark.parametrize("kernels", ["xnnpack", "reference"])
def test_fp32_equals_pytorch_with_both_kernel_sets(reference, kernels):
    runner = TfliteRunner(converted_files()["fp32"].file, kernels=kernels)
    for i, picture in enumerate(reference.inputs_nhwc_u8):
        found = runner(picture)
        assert set(found) == {"semantic", "features"}
        for name, wanted in reference.outputs.items():
            assert found[name].dtype == np.float32
            np.testing.assert_allclose(found[name], wanted[i : i + 1], atol=1e-5)


def test_a_file_run_without_its_contract_gives_the_same_integers():
    file = converted_files()["w8a8"].file
    plain = PlainRunner(file)
    (noise,) = plain.inputs.values()
    assert noise.dtype == np.int8
    assert (noise.min(), noise.max()) != (0, 0)
    found = plain.run()
    runner = TfliteRunner(file)
    runner.invoke((noise[0].astype(np.int16) + 128).astype(np.uint8))
    wanted = {v.tobytes() for v in runner.raw_outputs().values()}
    assert {v.tobytes() for v in found} == wanted
    assert {v.tobytes() for v in plain.run()} == wanted


def test_int8_input_is_the_byte_minus_128():
    runner = TfliteRunner(converted_files()["w8a8"].file)
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[0, 0] = (0, 127, 255)
    runner.invoke(picture)
    written = runner._interpreter.get_tensor(runner._input)
    assert written.dtype == np.int8
    assert written[0, 0, 0].tolist() == [-128, -1, 127]


def test_raw_outputs_are_integers_and_dequantise_to_the_real_ones(reference):
    runner = TfliteRunner(converted_files()["w8a8"].file)
    real = runner(reference.inputs_nhwc_u8[0])
    raw = runner.raw_outputs()
    for output in runner.contract.outputs:
        grid = output.quantization
        assert raw[output.name].dtype == np.int8
        by_hand = (raw[output.name].astype(np.float64) - grid.zero_point) * grid.scale
        np.testing.assert_allclose(real[output.name], by_hand, rtol=1e-6)


def test_running_twice_gives_the_same_and_earlier_results_stay(reference):
    runner = TfliteRunner(converted_files()["w8_dynamic"].file)
    first = runner(reference.inputs_nhwc_u8[0])
    kept = {k: v.copy() for k, v in first.items()}
    runner(reference.inputs_nhwc_u8[1])
    again = runner(reference.inputs_nhwc_u8[0])
    for name in kept:
        assert np.array_equal(first[name], kept[name])
        assert np.array_equal(again[name], kept[name])


def test_one_and_two_threads_agree(reference):
    one = TfliteRunner(converted_files()["w8a8"].file, threads=1)(reference.inputs_nhwc_u8[0])
    two = TfliteRunner(converted_files()["w8a8"].file, threads=2)(reference.inputs_nhwc_u8[0])
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_the_constants_of_the_decoder_come_with_the_runner():
    assert TfliteRunner(converted_files()["fp16"].file).constants["embedding"].shape == (5, 8)


@pytest.mark.parametrize(
    ("scheme", "partitions", "outside"),
    [("fp32", 1, []), ("fp16", 1, []), ("w8a8", 1, []), ("w8_dynamic", 2, ["DEPTHWISE_CONV_2D"] * 2)],
)
def test_partitions_are_told_by_the_runtime(scheme, partitions, outside):
    told = TfliteRunner(converted_files()[scheme].file).xnnpack_partitions()
    assert told.partitions == partitions
    assert [op.name for op in told.outside] == outside
    assert told.nodes_delegated == told.nodes_total - len(outside)


def test_reference_kernels_have_no_partition():
    told = TfliteRunner(converted_files()["fp32"].file, kernels="reference").xnnpack_partitions()
    assert (told.partitions, told.nodes_delegated, told.nodes_total) == (0, 0, 9)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((SIDE, SIDE + 1, 3), np.uint8),
        np.zeros((SIDE, SIDE), np.uint8),
        np.zeros((SIDE, SIDE, 3), np.float32),
        np.zeros((0, 0, 3), np.uint8),
    ],
)
def test_a_picture_that_does_not_fit_is_refused(picture):
    with pytest.raises(InputError, match="does not fit"):
        TfliteRunner(converted_files()["fp32"].file)(picture)


def test_unknown_kernels_and_no_threads_are_refused():
    with pytest.raises(InputError, match="xnnpak"):
        TfliteRunner(converted_files()["fp32"].file, kernels="xnnpak")
    with pytest.raises(InputError, match="thread"):
        TfliteRunner(converted_files()["fp32"].file, threads=0)


def test_truncated_files_are_refused_before_the_runtime_sees_them(tmp_path):
    data = converted_files()["fp32"].file.read_bytes()
    cut = tmp_path / "cut.tflite"
    for share in (0.05, 0.4, 0.8):
        cut.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ArtifactError):
            TfliteRunner(cut)


def test_a_contract_that_names_another_shape_is_refused(tmp_path):
    from dataclasses import replace

    made = converted_files()["fp32"]
    contract = metadata.read_contract(made.file)
    wrong = replace(contract, outputs=(replace(contract.outputs[0], shape=(1, 2, 2, 5)), contract.outputs[1]))
    path = tmp_path / "wrong.tflite"
    path.write_bytes(metadata.embed(made.file.read_bytes(), wrong, constants=b"", outputs=["semantic", "features"]))
    with pytest.raises(ArtifactError, match="does not fit its contract at 'semantic'"):
        TfliteRunner(path)


def test_without_a_runtime_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(interpreter, "_RUNTIMES", (("no_such_runtime", "none"),))
    interpreter._runtime.cache_clear()
    try:
        with pytest.raises(MissingHere, match="pip install") as caught:
            TfliteRunner(converted_files()["fp32"].file)
        assert caught.value.exit_code == 3
    finally:
        interpreter._runtime.cache_clear()


def test_importing_the_package_imports_neither_torch_nor_a_runtime():
    code = (
        "import sys, edge_seg.converters.convert, edge_seg.converters.verify, edge_seg.converters.delegates;"
        "names = ('torch', 'litert_torch', 'ai_edge_litert', 'ai_edge_quantizer', 'flatbuffers');"
        "heavy = [m for m in names if m in sys.modules];"
        "sys.exit(','.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_pictures_of_the_tests_differ():
    assert not np.array_equal(smooth_pictures(1, seed=0), smooth_pictures(1, seed=1))
