"""Outputs that are far because rounding adds up, and outputs that are far because a layer is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from layer_faults import bias_moved, file_of, folder_of, planted, whole
from test_converters_tinynet import exported_folder, smooth_pictures

from edge_seg.contract import OutputTensor
from edge_seg.converters import verify as verify_module
from edge_seg.converters.exported import open_exported, read_reference
from edge_seg.converters.integers.trained_numbers import TrainedNumbers
from edge_seg.converters.layers.explained import explained, may_be_rounding, verify_explained
from edge_seg.converters.output_parity import OutputTally, Tolerance
from edge_seg.converters.program import program_runner
from edge_seg.converters.verify import TOLERANCES, verify


@pytest.fixture
def strict(monkeypatch):
    """Tolerances that no int8 file of this network is within, though nothing is wrong with it."""
    monkeypatch.setattr(verify_module, "TOLERANCES", {**TOLERANCES, "w8a8": Tolerance(None, 200.0)})


def test_a_file_within_its_tolerance_is_not_looked_at_layer_by_layer():
    report = verify_explained(file_of("w8a8"), folder_of("w8a8"))
    assert (report.verdict, report.layers_right_n) == ("passed", None)


def test_far_outputs_of_right_layers_are_rounding_that_adds_up(strict):
    assert verify(file_of("w8a8"), folder_of("w8a8")).verdict == "failed"
    report = verify_explained(file_of("w8a8"), folder_of("w8a8"))
    assert report.passed
    assert (report.verdict, report.layers_right_n) == ("accumulated", len(whole("w8a8").layers))
    lines = report.text().splitlines()
    assert lines[0].startswith("passed, BUT FAR: w8a8")
    assert lines[1].startswith("  FAR ")
    assert f"all {len(whole('w8a8').layers)} are right by themselves" in report.text()
    assert report.to_json()["verdict"] == "accumulated"


def test_far_outputs_of_a_wrong_layer_stay_a_failure(strict, tmp_path):
    wrong = planted("w8a8", bias_moved("lateral", 3), tmp_path)
    report = verify_explained(wrong, folder_of("w8a8"))
    assert (report.passed, report.verdict, report.layers_right_n) == (False, "failed", None)


def test_only_a_complete_comparison_of_the_same_file_explains_anything(strict):
    far = verify(file_of("w8a8"), folder_of("w8a8"))
    assert explained(far, whole("w8a8")).passed
    assert not explained(far, replace(whole("w8a8"), complete=False)).passed
    assert not explained(far, replace(whole("w8a8"), passed=False)).passed
    assert not explained(far, replace(whole("w8a8"), sha256="0" * 64)).passed


@pytest.mark.parametrize("change", [{"displaced": True}, {"max_of_range": float("nan")}])
def test_a_map_that_is_moved_or_not_finite_is_never_rounding(strict, change):
    far = verify(file_of("w8a8"), folder_of("w8a8"))
    assert may_be_rounding(far)
    outputs = (replace(far.outputs[0], **change), *far.outputs[1:])
    assert not may_be_rounding(replace(far, outputs=outputs))


def test_a_trained_file_must_hold_the_trained_numbers_all_the_same(strict):
    far = verify(file_of("w8a8"), folder_of("w8a8"))
    assert far.integer_mirror.exact
    wrong = TrainedNumbers(equal={}, total={}, differences=(), passed=False)
    assert not may_be_rounding(replace(far, trained_numbers=wrong))


def test_the_rounding_of_float32_is_measured_on_the_pictures_that_are_given():
    pictures = list(smooth_pictures(2, seed=9))
    exported = open_exported(exported_folder())
    runs = [program_runner(exported.program, exported.contract, double=d) for d in (False, True)]
    report = verify(file_of("fp32"), exported_folder(), pictures)
    for output in report.outputs:
        known = [read_reference(exported).float32_error_of_range[output.name]]
        for picture in pictures:
            single, double = (run(picture)[output.name] for run in runs)
            assert (single.dtype, double.dtype) == (np.float32, np.float64)
            known.append(np.abs(single - double).max() / np.ptp(double))
        assert output.torch_float32_of_range == pytest.approx(max(known), rel=1e-6)


def test_a_float_file_may_be_further_off_on_the_pictures_where_float32_is():
    """1e-5 away on a given picture, 3e-5 on a seeded one: eight times float32's own distance on the given one alone."""
    output = OutputTensor("o", "o", (1, 1, 1, 2), 1)
    wanted = np.array([[[[0.0, 1.0]]]])

    def judged(seeded, given):
        tally = OutputTally(output, 1e-9)
        tally.add_float32(wanted.astype(np.float32), wanted + np.array([0.0, 1e-5]))
        for error, of_given in ((seeded, False), (given, True)):
            found = wanted + np.array([0.0, error])
            tally.add(wanted, found, found, given=of_given)
        return tally.result(TOLERANCES["fp32"])

    assert judged(0.9e-5, 7.9e-5).passed
    assert not judged(0.9e-5, 8.1e-5).passed
    planted = judged(3e-5, 7.9e-5)
    assert not planted.passed, "rounding on the given pictures excuses no error on the seeded ones"
    assert planted.max_of_range == pytest.approx(7.9e-5)
    assert planted.torch_float32_of_range == pytest.approx(1e-5, rel=1e-3)


def test_verify_tells_seeded_pictures_from_given_ones(monkeypatch):
    taken, honest = [], OutputTally.add
    monkeypatch.setattr(
        OutputTally, "add", lambda tally, *of, given: taken.append(given) or honest(tally, *of, given=given)
    )
    verify(file_of("fp32"), folder_of("fp32"), list(smooth_pictures(1, seed=9)))
    outputs_n = len(open_exported(exported_folder()).contract.outputs)
    assert taken == [False] * 2 * outputs_n + [True] * outputs_n
