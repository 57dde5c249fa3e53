"""Parity of a converted file with PyTorch."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_converters_tinynet import converted_files, exported_folder, smooth_pictures, write_exported

from edge_seg.artifact import write_manifest
from edge_seg.contract import OutputTensor, Quantization
from edge_seg.converters import metadata
from edge_seg.converters.exported import open_exported, read_reference
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.output_parity import OutputTally
from edge_seg.converters.verify import TOLERANCES, verify
from edge_seg.errors import ArtifactError, InputError


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8_dynamic", "w8a8"])
def test_every_scheme_of_the_tiny_network_passes(scheme):
    report = verify(converted_files()[scheme].file, exported_folder())
    assert report.passed
    assert report.reference_images == 2
    assert {o.name for o in report.outputs} == {"semantic", "features"}
    for output in report.outputs:
        assert (output.exact is None) == (scheme != "w8a8")


def test_the_figures_of_a_report_equal_those_computed_by_hand():
    report = verify(converted_files()["w8a8"].file, exported_folder())
    runner = TfliteRunner(converted_files()["w8a8"].file)
    reference = read_reference(open_exported(exported_folder()))
    found, raw = [], []
    for picture in reference.inputs_nhwc_u8:
        found.append(runner(picture)["semantic"])
        raw.append(runner.raw_outputs()["semantic"])
    a, b = reference.outputs["semantic"].ravel(), np.concatenate(found).ravel()
    output = next(o for o in report.outputs if o.name == "semantic")
    assert output.max_abs == pytest.approx(np.abs(a - b).max())
    assert output.output_range == pytest.approx(np.ptp(a))
    assert output.snr_db == pytest.approx(10 * np.log10(np.sum(a**2) / np.sum((a - b) ** 2)), abs=1e-3)
    assert output.cosine == pytest.approx(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    grid = runner.contract.output("semantic").quantization
    steps = np.clip(np.rint(a / np.float64(grid.scale)) + grid.zero_point, -128, 127)
    distance = np.abs(steps - np.concatenate(raw).ravel())
    assert output.exact == pytest.approx(np.mean(distance == 0))
    assert output.within_1_lsb == pytest.approx(np.mean(distance <= 1))
    assert output.max_lsb == distance.max()


def test_given_pictures_are_compared_with_pytorch_running_the_exported_program():
    pictures = list(smooth_pictures(3, seed=9))
    report = verify(converted_files()["fp32"].file, exported_folder(), pictures)
    assert (report.reference_images, report.given_images) == (2, 3)
    assert report.passed


def test_the_report_is_json_and_says_what_ran():
    document = json.loads(json.dumps(verify(converted_files()["fp32"].file, exported_folder()).to_json()))
    assert document["passed"] is True
    assert document["runtime"]["name"] in ("ai-edge-litert", "tflite-runtime")
    assert document["kernels"] == "xnnpack"
    assert document["sha256"] == converted_files()["fp32"].sha256


def test_the_report_for_people_has_one_line_per_output():
    lines = verify(converted_files()["w8a8"].file, exported_folder()).text().splitlines()
    assert lines[0].startswith("passed: w8a8, 2 pictures")
    assert [line.split()[1] for line in lines[1:3]] == ["semantic:", "features:"]
    assert [line.split()[1:3] for line in lines[3:]] == [["integer", "mirror"]]
    assert "within 1 step" in lines[1]


def _tampered(tmp_path, change):
    """A copy of the exported folder whose reference outputs are changed."""
    folder = Path(shutil.copytree(exported_folder(), tmp_path / "exported"))
    with np.load(folder / "reference.npz") as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(folder / "reference.npz", **arrays)
    write_manifest(folder / "reference.npz", kind="exported", step="export", config={})
    return folder


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8_dynamic", "w8a8"])
@pytest.mark.parametrize("fault", ["scaled", "channels swapped", "shifted one cell", "one NaN"])
def test_a_wrong_output_fails_in_every_scheme(tmp_path, scheme, fault):
    def change(arrays):
        a = arrays["semantic"]
        faults = {
            "scaled": a * 2,
            "channels swapped": a[..., ::-1].copy(),
            "shifted one cell": np.roll(a, 1, axis=1),
            "one NaN": np.where(np.arange(a.size).reshape(a.shape) == 7, np.float32("nan"), a),
        }
        arrays["semantic"] = faults[fault].astype(np.float32)

    report = verify(converted_files()[scheme].file, _tampered(tmp_path, change))
    assert not report.passed
    assert [o.name for o in report.outputs if not o.passed] == ["semantic"]


def test_an_error_of_a_ten_thousandth_of_the_range_fails_in_fp32(tmp_path):
    def change(arrays):
        a = arrays["semantic"]
        a[0, 0, 0, 0] += np.ptp(a) * 1e-4

    assert not verify(converted_files()["fp32"].file, _tampered(tmp_path, change)).passed


def test_a_file_of_another_export_is_refused(tmp_path):
    other = write_exported(tmp_path / "other")
    (other / "model.pt2").write_bytes((other / "model.pt2").read_bytes() + b"\0")
    write_manifest(other / "model.pt2", kind="exported", step="export", config={})
    with pytest.raises(ArtifactError, match="was not made from"):
        verify(converted_files()["fp32"].file, other)


def test_a_scheme_without_a_tolerance_is_refused(tmp_path):
    made = converted_files()["fp32"]
    contract = metadata.read_contract(made.file)
    odd = replace(contract, model=replace(contract.model, scheme="w3a5"))
    file = tmp_path / "odd.tflite"
    names = [o.name for o in contract.outputs]
    file.write_bytes(metadata.embed(made.file.read_bytes(), odd, constants=b"", outputs=names))
    with pytest.raises(ArtifactError, match="without a tolerance"):
        verify(file, exported_folder())


@pytest.mark.parametrize("change", ["drop", "shape", "dtype", "object"])
def test_a_reference_that_does_not_fit_is_refused(tmp_path, change):
    def edit(arrays):
        if change == "drop":
            del arrays["features"]
        elif change == "shape":
            arrays["features"] = arrays["features"][:, 1:]
        elif change == "dtype":
            arrays["features"] = arrays["features"].astype(np.float64)
        else:
            arrays["features"] = np.array([object()])

    with pytest.raises(ArtifactError):
        verify(converted_files()["fp32"].file, _tampered(tmp_path, edit))


def test_a_given_picture_of_another_size_is_refused():
    with pytest.raises(InputError):
        verify(converted_files()["fp32"].file, exported_folder(), [np.zeros((8, 8, 3), np.uint8)])


def test_steps_of_the_grid_are_counted_as_by_hand():
    output = OutputTensor("o", "o", (1, 1, 1, 4), 1, quantization=Quantization(0.5, 10))
    tally = OutputTally(output, 0.0)
    # on the grid: 0 -> 10, 1 -> 12, 0.74 -> 11 (1.48 rounds to 1), 1000 -> clipped to 127
    wanted = np.array([[[[0.0, 1.0, 0.74, 1000.0]]]])
    raw = np.array([[[[10, 13, 14, 127]]]], np.int8)
    tally.add(wanted, (raw.astype(np.float64) - 10) * 0.5, raw)
    result = tally.result(TOLERANCES["w8a8"])
    assert (result.exact, result.within_1_lsb, result.max_lsb) == (0.5, 0.75, 3)


def test_an_identical_output_has_infinite_ratio_and_passes():
    tally = OutputTally(OutputTensor("o", "o", (1, 1, 1, 2), 1), 0.0)
    same = np.array([[[[1.0, -2.0]]]])
    tally.add(same, same, same)
    result = tally.result(TOLERANCES["fp32"])
    assert result.passed
    assert (result.max_abs, result.cosine, result.snr_db) == (0.0, 1.0, float("inf"))


@pytest.mark.parametrize(("floor", "passed"), [(0.0, False), (1e-6, False), (1e-5, True)])
def test_a_float_file_may_be_eight_times_as_far_as_float32_is_from_float64(floor, passed):
    """4e-5 of the range: beyond 1e-5, but within eight times a floor of 1e-5 only."""
    tally = OutputTally(OutputTensor("o", "o", (1, 1, 1, 2), 1), floor)
    wanted = np.array([[[[0.0, 1.0]]]])
    tally.add(wanted, wanted + np.array([0.0, 4e-5]), wanted)
    result = tally.result(TOLERANCES["fp32"])
    assert result.max_of_range == pytest.approx(4e-5)
    assert result.passed is passed
