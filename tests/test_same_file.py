"""The study that measures one file against itself, with executors that are made up here."""

import contextlib
import json
import math
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from edge_seg.benchmarks.harness import Plan
from edge_seg.benchmarks.runner import RUNNERS, Opened, StageTimes
from edge_seg.errors import InputError
from edge_seg.studies import same_file

IMAGES = [np.zeros((4, 4, 3), np.uint8)]
PLAN = Plan(min_runs=64, min_time_s=0.1, max_time_s=4.0, target_ci_pct=0.1)
PROFILE = """
name = "made_up"
title = "A device that is not there"
soc = "none"
runner = "same_file_stand_in"
delegates = ["xnnpack"]
threads = 2
cpu_mask = ""
precision = "file"
sessions = 1
min_runs = 64
min_time_s = 0.1
max_time_s = 2.0
target_ci_pct = 0.1
cool_down_s = 0.0
"""


class Host:
    """A machine that gets slower and faster for whoever runs on it; the second file it opens may be slower."""

    def __init__(self, slower=1.0):
        self.slower, self.rng, self.speed, self.opened, self.closed = slower, np.random.default_rng(1), 1.0, 0, 0

    def times(self, level_ms):
        self.speed = 0.98 * self.speed + 0.02 * self.rng.uniform(0.7, 1.6)
        return StageTimes(1.0, level_ms * self.speed * float(np.exp(0.02 * self.rng.normal())), 1.0)


class StandIn:
    def __init__(self, host):
        self.host, self.level_ms = host, 10.0 * (host.slower if host.opened % 2 else 1.0)
        self.facts = Opened("net", "fp32", 1.0, {"name": "made up"})
        host.opened += 1

    def step(self, image_hwc_u8):
        return self.host.times(self.level_ms)

    def close(self):
        self.host.closed += 1


HOST = Host()


@RUNNERS.register("same_file_stand_in")
class StandInRunner:
    name, kind = "same_file_stand_in", "measured"

    def session(self, profile):
        return contextlib.nullcontext()

    def open(self, path, profile, delegate):
        return StandIn(HOST)

    def device(self):
        return {"name": "made up"}

    def watch(self):
        return lambda: {"steal_pct": 3.0}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "made_up.toml").write_text(PROFILE)
    (tmp_path / "net.tflite").write_bytes(b"net")
    return tmp_path / "net.tflite"


def test_equal_files_on_a_changing_machine_are_within_2_percent_and_a_slower_one_is_an_alarm():
    host = Host()
    equal = same_file.compared_once([StandIn(host), StandIn(host)], IMAGES, PLAN)
    assert equal["within"]
    assert equal["ci95"][1] - equal["ci95"][0] < 0.06
    runs, rest = divmod(equal["runs"][0], equal["blocks"])
    assert (2 <= runs <= PLAN.block_runs, rest) == (True, 0)
    host = Host(slower=1.1)
    slower = same_file.compared_once([StandIn(host), StandIn(host)], IMAGES, PLAN)
    assert slower["ratio"] == pytest.approx(1.1, rel=0.02)
    assert (slower["within"], slower["alarm"]) == (False, True)


def test_the_document_counts_and_every_file_is_opened_anew_and_closed(file, tmp_path):
    opened = HOST.opened
    profile = str(file.parent / "made_up.toml")
    options = ["--profile", profile, "--profile", profile, "--times", "3", "--images", "2"]
    result = CliRunner().invoke(same_file.main, [str(file), *options, "--json", str(tmp_path / "out.json")])
    assert result.exception is None
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["format"] == "edge_seg.same_file"
    assert len(found["profiles"]) == 2
    for one in found["profiles"]:
        assert (one["threads"], one["times_n"], len(one["times"]), one["within_n"]) == (2, 3, 3, 3)
        assert one["within_in_a_row"] == 3
        assert one["steal_pct"] == {"median": 3.0, "most": 3.0}
        assert one["alarms_n"] == sum(time["alarm"] for time in one["times"])
    assert HOST.opened - opened == 12
    assert HOST.closed == HOST.opened
    assert "3 of 3 within 2 %, 3 in a row" in result.stdout


def test_a_run_that_is_cut_off_leaves_what_it_measured(file, tmp_path, monkeypatch):
    whole, opened = same_file._once, []

    def once(*args):
        opened.append(args)
        if len(opened) == 5:
            raise KeyboardInterrupt
        return whole(*args)

    monkeypatch.setattr(same_file, "_once", once)
    profile, out = str(file.parent / "made_up.toml"), tmp_path / "out.json"
    options = ["--profile", profile, "--profile", profile, "--times", "3", "--images", "2", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["same_file", "net.tflite", "--times", "3"])
    assert CliRunner().invoke(same_file.main, [str(file), *options]).exit_code != 0
    found = json.loads(out.read_text())
    assert [(one["times_n"], len(one["times"])) for one in found["profiles"]] == [(3, 3), (1, 1)]
    assert found["command"] == "python -m edge_seg.studies.same_file net.tflite --times 3"


def test_what_the_order_of_opening_does_is_a_mean_with_its_interval():
    """By hand: logs -0.02, -0.01, 0, mean -0.01, deviation 0.01, Student's 4.303 at two degrees: +- 0.02484."""
    found = same_file._mean([math.exp(-0.02), math.exp(-0.01), 1.0])
    assert found == {"ratio": 0.99005, "ci95": [0.96576, 1.01495]}
    assert same_file._mean([1.0]) is None


def test_in_a_row_counts_the_longest_run():
    assert same_file._longest([True, True, False, True, True, True, False]) == 3
    assert same_file._longest([False]) == 0


def test_asked_for_the_ratio_both_stop_when_it_is_known(file, tmp_path):
    options = ["--profile", str(file.parent / "made_up.toml"), "--times", "2", "--images", "1", "--max-time-s", "600"]
    asked = tmp_path / "out.json"
    result = CliRunner().invoke(same_file.main, [str(file), *options, "--ratio-ci-pct", "3", "--json", str(asked)])
    assert result.exception is None
    profile = file.parent / "made_up.toml"
    profile.write_text(PROFILE + "ratio_ci_pct = 3.0\n")  # the profile may ask as well
    CliRunner().invoke(same_file.main, [str(file), *options, "--json", str(tmp_path / "own.json")])
    for document in (asked, tmp_path / "own.json"):
        (one,) = json.loads(document.read_text())["profiles"]
        assert one["plan"]["ratio_ci_pct"] == 3.0
        assert [time["stopped_by"] for time in one["times"]] == ["ratio"] * 2
        assert all(time["ci95"][1] - time["ci95"][0] <= 0.031 for time in one["times"])


def test_too_little_time_for_eight_turns_is_said_and_counts_as_not_within(file, tmp_path):
    options = ["--profile", str(file.parent / "made_up.toml"), "--max-time-s", "0.3", "--times", "2"]
    result = CliRunner().invoke(same_file.main, [str(file), *options, "--json", str(tmp_path / "out.json")])
    assert result.exception is None
    (one,) = json.loads((tmp_path / "out.json").read_text())["profiles"]
    assert (one["times_n"], one["within_n"], one["failed_n"], one["furthest_pct"]) == (2, 0, 2, None)
    assert "too few turns" in result.stdout
    with pytest.raises(InputError, match="too few turns"):
        same_file.compared_once([StandIn(Host()), StandIn(Host())], IMAGES, Plan(8, 0.0, 0.3, 2.0))


@pytest.mark.parametrize("option", [["--times", "0"], ["--max-time-s", "-1"], ["--ratio-ci-pct", "0"]])
def test_nothing_to_measure_is_refused(file, option):
    profile = ["--profile", str(file.parent / "made_up.toml")]
    assert isinstance(CliRunner().invoke(same_file.main, [str(file), *profile, *option]).exception, InputError)
