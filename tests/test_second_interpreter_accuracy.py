"""The accuracy of a file in the second interpreter, with a stand-in for its environment and with the real one.

The stand-in runs the same script on the same job with this environment's runtime, so that the answer is known: what
LiteRT computes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_seg.converters import second_interpreter
from edge_seg.converters.environments import find_environment
from edge_seg.converters.workers import tflite_worker
from edge_seg.errors import EdgeSegError
from edge_seg.studies.second_interpreter import measured, told

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def file(tiny_exported, tmp_path_factory):
    """A w8a8 file of the tiny network."""
    from edge_seg.steps import convert_source

    out = tmp_path_factory.mktemp("second")
    (done,) = convert_source(tiny_exported, ["w8a8"], out, calibration="synthetic:easy", calibration_images=2)
    return done.file


class FakeEnvironment:
    """Stands in for the side environment: runs each job here, and counts the pictures."""

    def __init__(self, monkeypatch):
        self.jobs = []
        monkeypatch.setattr(second_interpreter, "find_environment", lambda name: Path(name))
        monkeypatch.setattr(second_interpreter, "run_in_environment", self)

    def __call__(self, name, script, arguments, **_about):
        path = Path(arguments[0])
        job = json.loads(path.read_text())
        assert Path(script) == Path(tflite_worker.__file__)
        assert job["runtime"] == "tflite_runtime.interpreter"
        path.write_text(json.dumps(job | {"runtime": "ai_edge_litert.interpreter"}))
        tflite_worker.main(str(path))
        self.jobs.append((name, job["threads"]))


@pytest.fixture
def fake(monkeypatch):
    return FakeEnvironment(monkeypatch)


def test_evaluate_scores_a_file_in_the_second_interpreter(edge_seg, file, fake):
    arguments = ("evaluate", file, "--data", "synthetic:easy", "--limit", 3, "--threads", 1, "--json")
    first, second = edge_seg(*arguments).json(), edge_seg(*arguments, "--second-interpreter").json()
    assert fake.jobs == [("tflite_runtime", 1)] * 3
    assert (first.pop("runtime")["name"], second.pop("runtime")) == (
        "ai-edge-litert",
        {"name": "tflite-runtime", "version": "2.14.0"},
    )
    assert first == second


def test_a_checkpoint_has_no_second_interpreter(edge_seg, tiny_checkpoint):
    done = edge_seg("evaluate", tiny_checkpoint, "--data", "synthetic:easy", "--second-interpreter")
    assert done.code == 2
    assert "Only a .tflite runs in the second interpreter" in done.err
    assert "next:     convert it first" in done.err


def test_without_the_environment_evaluate_says_how_to_get_it(edge_seg, file, tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_SEG_ENVS", str(tmp_path))
    done = edge_seg("evaluate", file, "--data", "synthetic:easy", "--second-interpreter")
    assert done.code == 3
    assert "next:     edge-seg doctor --setup tflite_runtime" in done.err
    assert not list(tmp_path.iterdir())


def test_one_runtime_against_itself_differs_in_nothing(file, fake):
    found = measured(file, "synthetic:easy", compared=2, limit=3)
    assert [(o["exact"], o["within_1_lsb"], o["max_lsb"]) for o in found["outputs"]] == [(1.0, 1.0, 0)] * 3
    assert (found["difference"], found["difference_ci95"]) == (0.0, [0.0, 0.0])
    assert found["value_first"] == found["value_second"]
    assert (found["pictures_compared"], found["images"]) == (2, 3)
    assert found["second"]["delegate_kernels"] == found["first"]["delegate_kernels"] >= 1
    assert str(file.parent) not in json.dumps(found)
    assert "+0.00 [+0.00, +0.00] on 3 pictures" in told(found)


def test_the_stand_in_would_show_a_runtime_that_computes_something_else(file, fake, monkeypatch):
    whole = tflite_worker._outputs
    monkeypatch.setattr(tflite_worker, "_outputs", lambda *a: {k: v ^ 8 for k, v in whole(*a).items()})
    found = measured(file, "synthetic:easy", compared=2, limit=1)
    assert [o["max_lsb"] for o in found["outputs"]] == [8, 8, 8]
    assert [o["exact"] for o in found["outputs"]] == [0.0, 0.0, 0.0]


@pytest.mark.tflite_runtime
def test_the_own_kernels_of_tflite_runtime_stay_near_those_of_xnnpack(file):
    try:
        find_environment("tflite_runtime")
    except EdgeSegError as error:
        pytest.skip(str(error).replace("\n", ";"))
    found = measured(file, "synthetic:easy", compared=2, limit=2)
    assert found["second"] == {"name": "tflite-runtime", "version": "2.14.0", "delegate_kernels": 0}
    # 9.5 dB on this network of random weights, 20 to 36 dB on a trained one; unrelated outputs have 0 dB or less
    assert min(o["snr_db"] for o in found["outputs"]) > 6
    assert max(o["max_lsb"] for o in found["outputs"]) > 0  # other kernels, so other roundings
