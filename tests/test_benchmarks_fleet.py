"""One plan on many devices, with recordings in the place of devices and interruptions at planted points."""

import io
import json
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from click.testing import CliRunner

from edge_seg.benchmarks import fleet as fleet_module
from edge_seg.benchmarks.bench import Clocks
from edge_seg.benchmarks.fleet import load_plan, run_fleet
from edge_seg.benchmarks.result import Samples, load_records, samples_path
from edge_seg.benchmarks.runners.replay import ReplayExecutor
from edge_seg.commands.fleet import fleet
from edge_seg.errors import CheckFailed, ConfigError, InputError, MissingHere

IMAGES = [np.zeros((4, 4, 3), np.uint8)] * 2
PROFILE = """
name = "{name}"
title = "A recording"
soc = "none"
runner = "replay"
delegates = ["xnnpack", "gpu"]
threads = 1
cpu_mask = ""
precision = "file"
sessions = 2
min_runs = 8
min_time_s = 0.0
max_time_s = 10.0
target_ci_pct = 50.0
cool_down_s = 30.0
"""
RECORDING = {"kind": "measured", "model": "net", "scheme": "fp32"}


@pytest.fixture
def place(tmp_path):
    """A folder with two files, a profile, a recording for each device, and the plan."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.tflite").write_bytes(name.encode())
    (tmp_path / "board.toml").write_text(PROFILE.format(name="board"))
    write_plan(tmp_path, {"attic": 10.0, "cellar": 20.0})
    return tmp_path


def write_plan(folder, devices, **more):
    lines = ['files = ["a.tflite", "b.tflite"]', *(f"{key} = {json.dumps(value)}" for key, value in more.items())]
    for name, run_ms in devices.items():
        recording = folder / f"{name}.json"
        recording.write_text(json.dumps({**RECORDING, "run_ms": [run_ms] * 16, "device": {"name": name}}))
        lines += [
            "[[device]]",
            f'name = "{name}"',
            'profiles = ["board.toml"]',
            f"address = {json.dumps(str(recording))}",
        ]
    (folder / "plan.toml").write_text("\n".join(lines))


def run(folder, **more):
    clocks = more.pop("clocks", Clocks(sleep_s=lambda s: None))
    return run_fleet(folder / "plan.toml", images=IMAGES, out=folder / "out", clocks=clocks, **more)


def keys(records):
    return sorted((r.device["label"], r.delegate_requested, r.session, r.sha256[:4]) for r in records)


def test_every_file_delegate_and_session_is_measured_on_every_device(place):
    done = run(place)
    assert not done.failures
    assert (done.measured, done.skipped, len(done.records)) == (16, 0, 16)
    assert len(set(keys(done.records))) == 16
    saved = load_records(place / "out" / "results.json")
    assert keys(saved) == keys(done.records)
    by_device = {r.device["label"]: r.median_ms for r in saved}
    assert by_device == {"attic": pytest.approx(10.0), "cellar": pytest.approx(20.0)}
    for record in saved:  # every result has its own raw samples
        assert Samples.load(samples_path(place / "out" / "results.json", record)).run_ms.size == record.n
    assert len({record.samples_file for record in saved}) == 16


def test_a_second_call_measures_nothing_and_gives_the_same_results(place, monkeypatch):
    first = run(place)
    monkeypatch.setattr(fleet_module, "benchmark", lambda *files, **more: pytest.fail("measured again"))
    again = run(place)
    assert (again.measured, again.skipped) == (0, 16)
    assert [r.to_json() for r in again.records] == [r.to_json() for r in first.records]


def test_a_changed_file_is_measured_again_and_the_other_is_not(place):
    run(place)
    (place / "b.tflite").write_bytes(b"another network")
    again = run(place)
    assert (again.measured, again.skipped) == (8, 16)
    assert len(again.records) == 24


def test_a_new_device_session_or_delegate_is_all_that_a_longer_plan_measures(place):
    run(place)
    write_plan(place, {"attic": 10.0, "cellar": 20.0, "garden": 30.0})
    assert run(place).measured == 8
    text = (place / "board.toml").read_text().replace("sessions = 2", "sessions = 3")
    (place / "board.toml").write_text(text)
    assert run(place).measured == 3 * 2 * 2


@pytest.mark.parametrize("after", [1, 2, 5, 9, 13, 16])
def test_stopped_anywhere_and_called_again_it_ends_with_the_same_results(place, after):
    count, lock = [], threading.Lock()

    def now_s():
        with lock:
            count.append(1)
            if len(count) == after:
                raise KeyboardInterrupt
        return time.perf_counter()

    with pytest.raises(KeyboardInterrupt):
        run(place, clocks=Clocks(now_s=now_s, sleep_s=lambda s: None))
    kept = len(load_records(place / "out" / "results.json")) if (place / "out" / "results.json").exists() else 0
    again = run(place)
    assert again.skipped == kept
    assert again.measured == 16 - kept
    assert len(set(keys(again.records))) == 16


@pytest.mark.slow
def test_killed_outright_it_goes_on_with_what_was_written(place):
    code = (
        "import sys, time, numpy as np\nfrom pathlib import Path\n"
        "from edge_seg.benchmarks.bench import Clocks\nfrom edge_seg.benchmarks.fleet import run_fleet\n"
        "slow = Clocks(now_s=lambda: time.sleep(0.2) or time.perf_counter(), sleep_s=lambda s: None)\n"
        "f = Path(sys.argv[1])\n"
        "run_fleet(f / 'plan.toml', images=[np.zeros((4, 4, 3), np.uint8)], out=f / 'out', clocks=slow)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(place)]) as process:
        for _ in range(600):
            if len(list((place / "out").glob("*/*/results.json"))) >= 3:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    again = run(place)
    assert 0 < again.skipped < 16
    assert again.measured == 16 - again.skipped
    assert len(set(keys(again.records))) == 16


def test_two_jobs_never_meet_on_one_device_and_devices_do_meet(place, monkeypatch):
    busy, most, together = {}, {}, threading.Barrier(2)
    real = fleet_module.benchmark

    def watched(files, profiles, **more):
        where = profiles[0].address
        busy[where] = busy.get(where, 0) + 1
        most[where] = max(most.get(where, 0), busy[where])
        together.wait(10)  # passes only if both devices are at work at once
        try:
            return real(files, profiles, **more)
        finally:
            busy[where] -= 1

    monkeypatch.setattr(fleet_module, "benchmark", watched)
    assert not run(place).failures
    assert set(most.values()) == {1}


def test_a_device_that_is_gone_stops_its_own_jobs_and_no_others(place):
    (place / "cellar.json").unlink()
    done = run(place)
    assert {failure.job.split(":")[0] for failure in done.failures} == {"cellar"}
    assert keys(done.records) == [k for k in keys(done.records) if k[0] == "attic"]
    assert len(done.records) == 8
    write_plan(place, {"attic": 10.0, "cellar": 20.0})
    assert (run(place).measured, len(load_records(place / "out" / "results.json"))) == (8, 16)


def test_a_device_lost_in_the_middle_keeps_its_runs_and_is_measured_again_next_time(place, monkeypatch):
    real = ReplayExecutor.block

    def block(self, images):
        if self.recording.device["name"] == "cellar" and self.played > 20:
            raise MissingHere("The cable was pulled.")
        return real(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(ReplayExecutor, "block", block)
        # needs more runs than the device lives for
        text = (place / "board.toml").read_text()
        (place / "board.toml").write_text(text.replace("min_runs = 8", "min_runs = 64"))
        done = run(place)
        assert [failure.started for failure in done.failures] == [True, False, False, False]
        assert "cable" in done.failures[0].error
        assert len(done.records) == 8
        kept = list((place / "out" / "cellar").glob("*/results.json"))
        assert [r.protocol["stopped_by"] for path in kept for r in load_records(path)] == ["lost", "lost"]
    again = run(place)
    assert (again.measured, again.skipped, len(again.failures)) == (8, 8, 0)


def test_devices_rest_between_sessions_and_not_between_delegates(place):
    slept, lock = [], threading.Lock()

    def sleep_s(seconds):
        with lock:
            slept.append(seconds)

    run(place, clocks=Clocks(sleep_s=sleep_s))
    assert [seconds for seconds in slept if seconds] == [30.0, 30.0]


def test_the_bar_reaches_its_end_and_names_failures(place):
    stream = io.StringIO()
    run(place, progress=stream)
    assert "16/16" in stream.getvalue()
    (place / "a.tflite").write_bytes(b"new")
    (place / "cellar.json").write_text("{}")
    stream = io.StringIO()
    run(place, progress=stream)
    assert "jobs failed" in stream.getvalue()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('files = ["a.tflite", "b.tflite"]', "files = []", "at least one file"),
        ("profiles =", "profile =", "profile"),
        ('name = "cellar"', 'name = "attic"', "different names"),
        ("cellar.json", "attic.json", "each device once"),
        ('profiles = ["board.toml"]', "profiles = []", "profiles of"),
        ('profiles = ["board.toml"]', 'profiles = ["bord.toml"]', "bord"),
        ('name = "cellar"', 'name = "cellar"\nsessions = -1', "sessions"),
        ('["a.tflite", "b.tflite"]', '["a.tflite", "./a.tflite"]', "each file once"),
        ("[[device]]", "[device]", "device"),
    ],
)
def test_a_wrong_plan_is_refused_before_anything_is_measured(place, old, new, says):
    text = (place / "plan.toml").read_text()
    assert old in text
    (place / "plan.toml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=says):
        run(place)
    assert not (place / "out").exists()


def test_a_missing_file_or_plan_is_an_error(place):
    (place / "b.tflite").unlink()
    with pytest.raises(InputError, match=r"b\.tflite"):
        run(place)
    with pytest.raises(ConfigError, match="no plan"):
        load_plan(place / "none.toml")


def test_two_profiles_of_this_machine_are_one_device(place):
    (place / "plan.toml").write_text(
        'files = ["a.tflite"]\n[[device]]\nname = "x"\nprofiles = ["host_cpu_1t"]\n'
        '[[device]]\nname = "y"\nprofiles = ["host_gpu"]\n'
    )
    with pytest.raises(ConfigError, match="this machine"):
        run(place)


@pytest.mark.parametrize("address", ["", 'address = "all"', 'address = "A, B"'])
def test_an_address_that_may_mean_the_other_device_is_refused(place, address):
    (place / "plan.toml").write_text(
        f'files = ["a.tflite"]\n[[device]]\nname = "x"\nprofiles = ["pixel_8"]\n{address}\n'
        '[[device]]\nname = "y"\nprofiles = ["pixel_9"]\naddress = "B"\n'
    )
    with pytest.raises(ConfigError, match=r"an address for 'x'|each device once"):
        run(place)


def test_the_verb_prints_the_results_and_fails_when_a_job_failed(place):
    text = (place / "board.toml").read_text().replace("cool_down_s = 30.0", "cool_down_s = 0.0")
    (place / "board.toml").write_text(text)
    arguments = [str(place / "plan.toml"), "--out", str(place / "out"), "--images", "1", "--json"]
    good = CliRunner().invoke(fleet, arguments)
    assert good.exit_code == 0, good.output
    document = json.loads(good.stdout)
    assert (document["measured"], document["failures"]) == (16, [])
    (place / "a.tflite").write_bytes(b"new")
    (place / "cellar.json").unlink()
    bad = CliRunner().invoke(fleet, arguments)
    assert isinstance(bad.exception, CheckFailed)
    assert bad.exception.exit_code == 1
    document = json.loads(bad.stdout)
    assert document["measured"] == 4
    assert [failure["job"].split(":")[0] for failure in document["failures"]] == ["cellar"] * 4
