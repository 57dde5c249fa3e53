"""Recorded samples, played through the whole harness: the same figures every time, and known ones."""

import json

import numpy as np
import pytest

from edge_seg.artifact import sha256_of
from edge_seg.benchmarks.bench import benchmark
from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.result import load_records
from edge_seg.benchmarks.runner import RUNNERS
from edge_seg.benchmarks.runners.replay import load_recordings
from edge_seg.errors import ArtifactError, InputError, MissingHere

IMAGES = [np.zeros((4, 4, 3), np.uint8)] * 3


def profile(address, **changes):
    plain = {
        "name": "played",
        "title": "A recording",
        "soc": "none",
        "runner": "replay",
        "delegates": ("xnnpack",),
        "threads": 1,
        "cpu_mask": "",
        "precision": "file",
        "sessions": 1,
        "min_runs": 64,
        "min_time_s": 0.0,
        "max_time_s": 10.0,
        "target_ci_pct": 5.0,
        "cool_down_s": 0.0,
        "address": str(address),
    }
    return Profile(**{**plain, **changes})


def recording(path, **changes):
    run_ms = [10.0 + 0.01 * (k % 7) for k in range(200)]
    document = {"kind": "measured", "model": "net", "scheme": "w8a8", "delegate": "xnnpack", "run_ms": run_ms}
    path.write_text(json.dumps({**document, **changes}))
    return path


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.tflite"
    path.write_bytes(b"network a")
    return path


def test_a_recording_gives_its_own_median_and_nothing_else_does(file, tmp_path):
    known = recording(tmp_path / "rec.json", pre_ms=[1.0] * 200, post_ms=[2.0] * 200, init_ms=33.0)
    record = benchmark([file], [profile(known)], images=IMAGES, out=tmp_path / "r.json")[0]
    assert record.median_ms == pytest.approx(10.03)
    assert record.min_ms == pytest.approx(10.0)
    assert record.stages == {"pre_ms": 1.0, "run_ms": pytest.approx(10.03), "post_ms": 2.0}
    assert (record.init_ms, record.model, record.scheme, record.runner) == (33.0, "net", "w8a8", "replay")
    assert record.environment["replayed"] is True


def test_two_plays_are_equal_byte_for_byte_but_for_the_date(file, tmp_path):
    known = recording(tmp_path / "rec.json")
    documents = []
    for name in ("one", "two"):
        record = benchmark([file], [profile(known)], images=IMAGES, out=tmp_path / name / "r.json")[0]
        samples = (tmp_path / name / record.samples_file).read_bytes()
        documents.append(({**record.to_json(), "started_utc": ""}, samples))
    assert documents[0] == documents[1]


@pytest.mark.parametrize("kind", ["measured", "emulated", "estimated"])
def test_a_recording_stays_what_it_says_it_is_and_only_a_measurement_is_valid(file, tmp_path, kind):
    known = recording(tmp_path / "rec.json", kind=kind)
    record = benchmark([file], [profile(known)], images=IMAGES, out=tmp_path / "r.json")[0]
    assert record.kind == kind
    assert record.valid == (kind == "measured")
    assert any("do not quote" in warning for warning in record.warnings) == (kind != "measured")


def test_stages_that_were_not_recorded_are_null_with_a_reason(file, tmp_path):
    record = benchmark([file], [profile(recording(tmp_path / "rec.json"))], images=IMAGES, out=tmp_path / "r.json")[0]
    assert record.stages["pre_ms"] is None
    assert record.stages["post_ms"] is None
    assert {"stages.pre_ms", "stages.post_ms", "init_ms", "nodes_total"} <= set(record.unknown)
    assert load_records(tmp_path / "r.json") == [record]


def test_what_was_measured_can_be_played_again_from_its_results_file(file, tmp_path):
    first = recording(tmp_path / "rec.json", pre_ms=[1.0] * 200, device={"name": "a phone", "soc": "X"})
    measured = benchmark([file], [profile(first)], images=IMAGES, out=tmp_path / "one" / "r.json")[0]
    again = benchmark([file], [profile(tmp_path / "one" / "r.json")], images=IMAGES, out=tmp_path / "two" / "r.json")[0]
    assert again.median_ms == measured.median_ms
    assert again.device["name"] == "a phone"
    assert load_recordings(tmp_path / "one" / "r.json")[0].sha256 == sha256_of(file)


def test_runs_beyond_the_recording_come_round_again_and_time_goes_on(file, tmp_path):
    known = recording(tmp_path / "rec.json", run_ms=[10.0, 11.0, 12.0])
    runner = RUNNERS["replay"]()
    with runner.session(profile(known)):
        executor = runner.open(file, profile(known), "xnnpack")
        runs = executor.block(IMAGES + IMAGES)
        assert [times.run_ms for _, times in runs] == [10.0, 11.0, 12.0] * 2
        assert [start_s for start_s, _ in runs] == pytest.approx([0.0, 0.010, 0.021, 0.033, 0.043, 0.054])
        assert runner.watch()()["runs_played"] == [6]


def test_a_file_or_delegate_that_was_not_recorded_is_refused(file, tmp_path):
    other = recording(tmp_path / "rec.json", sha256="0" * 64)
    with pytest.raises(InputError, match="no recording"):
        benchmark([file], [profile(other)], images=IMAGES, out=tmp_path / "r.json")
    with pytest.raises(InputError, match="'gpu'"):
        benchmark(
            [file],
            [profile(recording(tmp_path / "b.json"), delegates=("gpu",))],
            images=IMAGES,
            out=tmp_path / "r.json",
        )
    with pytest.raises(MissingHere, match="no recording"):
        benchmark([file], [profile("")], images=IMAGES, out=tmp_path / "r.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "guessed"},
        {"run_ms": []},
        {"run_ms": ["fast"]},
        {"pre_ms": [1.0]},
        {"run_ms": [-1.0] * 3},
        {"speed": 3},
        {"run_ms": [float("nan")] * 3},
    ],
)
def test_a_recording_that_is_none_is_refused_and_says_where(file, tmp_path, changes):
    path = recording(tmp_path / "rec.json", **changes)
    with pytest.raises(ArtifactError, match=r"rec\.json"):
        benchmark([file], [profile(path)], images=IMAGES, out=tmp_path / "r.json")
