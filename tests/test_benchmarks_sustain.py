"""Sustained runs on a made-up clock, and what the measuring loop itself costs on the real one."""

import contextlib
import time
import types
from datetime import UTC, datetime

import numpy as np
import pytest
from click.testing import CliRunner

from edge_seg.benchmarks.bench import Clocks
from edge_seg.benchmarks.bench_sustain import sustain_files
from edge_seg.benchmarks.harness import Plan, measure
from edge_seg.benchmarks.profile import load_profile
from edge_seg.benchmarks.result import Samples, load_records, samples_path
from edge_seg.benchmarks.runner import RUNNERS, Opened, StageTimes
from edge_seg.benchmarks.summary import Subject, summarise
from edge_seg.benchmarks.sustain import Sustain, images_sha256, sustain
from edge_seg.commands.sustain import sustain as sustain_command
from edge_seg.errors import InputError

IMAGES = [np.full((4, 6, 3), value, np.uint8) for value in range(3)]
FACTS = Opened("net", "fp32", 5.0, {"name": "fake", "version": "1"})


class FakePhone:
    """A clock and an executor whose latency is a function of the time; sleeping moves the clock."""

    facts = FACTS

    def __init__(self, run_ms):
        self.run_ms, self.now_s, self.steps = run_ms, 100.0, 0

    def clock(self):
        return self.now_s

    def sleep(self, seconds):
        assert seconds > 0
        self.now_s += seconds

    def step(self, image_hwc_u8):
        times = StageTimes(1.0, float(self.run_ms(self.now_s - 100.0)), 2.0)
        self.now_s += times.total_ms / 1e3
        self.steps += 1
        return times

    def close(self):
        pass


def _sustain(run_ms, plan):
    phone = FakePhone(run_ms)
    return sustain(phone, IMAGES, plan, clock=phone.clock, sleep=phone.sleep), phone


def _summary(series, plan):
    subject = Subject(
        path=types.SimpleNamespace(name="net.tflite", stat=lambda: types.SimpleNamespace(st_size=1)),
        sha256="a" * 64,
        profile=load_profile("host_cpu_1t"),
        delegate="xnnpack",
        kind="measured",
        device={"name": "fake"},
        session=1,
        started_utc="2026-01-02T00:00:00+00:00",
        images_n=3,
        accuracy=None,
        images_sha256=images_sha256(IMAGES),
    )
    return summarise(subject, FACTS, series, plan, environment={}, samples_file="s.npz")


def test_frames_start_when_they_are_due_and_none_is_missed_by_a_fast_device():
    series, phone = _sustain(lambda t: 20.0, Sustain(2, 10))
    assert series.samples.run_ms.size == 1200
    assert np.diff(series.samples.t_s) == pytest.approx(0.1, abs=1e-3)
    assert (series.pace.slots_n, series.pace.missed_n, series.pace.late_n) == (1200, 0, 0)
    assert series.stopped_by == "duration"
    assert phone.steps == 1200 + series.warmup_n


def test_a_device_that_needs_two_and_a_half_periods_makes_every_third_frame():
    # 247 + 3 ms at 10 frames a second: a frame is due every 100 ms, so two are gone when the next can start late
    series, _ = _sustain(lambda t: 247.0, Sustain(2, 10))
    pace = series.pace
    assert pace.slots_n == 1200
    assert pace.missed_n + series.samples.run_ms.size == pace.slots_n
    assert series.samples.run_ms.size == 480
    assert pace.late_n == 480


def test_without_a_rate_frames_follow_each_other_until_the_time_is_over():
    series, phone = _sustain(lambda t: 97.0, Sustain(2, 0))
    assert series.samples.run_ms.size == pytest.approx(1200, abs=1)
    assert series.pace.missed_n == 0
    assert phone.now_s - 100.0 == pytest.approx(120.0, abs=0.5)


def test_a_device_that_throttles_after_three_minutes_is_found_out():
    noise = np.random.default_rng(0).normal(size=20_000)
    counter = iter(range(20_000))
    plan = Sustain(6, 5)
    series, _ = _sustain(lambda t: (20.0 if t < 180 else 27.0) * np.exp(0.05 * noise[next(counter)]), plan)
    record = _summary(series, plan)
    assert record.drift["throttled"] is True
    assert record.drift["throttled_at_s"] == pytest.approx(180, abs=10)
    assert record.drift["first_window_ms"] == pytest.approx(20, rel=0.02)
    assert record.drift["last_window_ms"] == pytest.approx(27, rel=0.02)
    assert record.drift["window_s"] == 60.0
    assert record.valid
    assert record.protocol["mode"] == "sustained"
    assert (record.protocol["target_fps"], record.protocol["missed"]) == (5, 0)
    assert any("throttled" in warning for warning in record.warnings)


def test_a_steady_device_is_not_said_to_throttle_and_missed_frames_are_a_warning():
    plan = Sustain(2, 30)
    record = _summary(_sustain(lambda t: 40.0, plan)[0], plan)
    assert record.drift["throttled"] is False
    assert record.drift["throttled_at_s"] is None
    assert any("frames were missed" in warning for warning in record.warnings)


def test_each_minute_is_told():
    phone, told = FakePhone(lambda t: 20.0), []
    plan = Sustain(3, 10)
    sustain(phone, IMAGES, plan, clock=phone.clock, sleep=phone.sleep, on_minute=lambda f, n: told.append(round(f, 2)))
    assert told == [0.33, 0.67]


@pytest.mark.parametrize(("minutes", "fps", "warmup"), [(1.0, 5, 3), (float("nan"), 5, 3), (2, -1, 3), (2, 5, 0)])
def test_a_run_too_short_or_without_sense_is_refused(minutes, fps, warmup):
    with pytest.raises(InputError):
        Sustain(minutes, fps, warmup)


def test_no_picture_is_an_error():
    with pytest.raises(InputError, match="nothing to measure"):
        sustain(FakePhone(lambda t: 1.0), [], Sustain(2, 5))


def test_the_hash_of_pictures_knows_their_content_shape_and_order():
    hashes = {images_sha256(IMAGES), images_sha256(IMAGES[::-1]), images_sha256([i.reshape(6, 4, 3) for i in IMAGES])}
    assert len(hashes) == 3
    assert images_sha256([image.copy() for image in IMAGES]) in hashes


class NullExecutor:
    """Does nothing, in no time: what is left is the loop."""

    facts = FACTS
    times = StageTimes(0.0, 1e-6, 0.0)

    def step(self, image_hwc_u8):
        return self.times

    def close(self):
        pass


class BusyExecutor(NullExecutor):
    """Keeps the core busy for a fifth of a millisecond and says how long it really was."""

    def step(self, image_hwc_u8):
        start_s = time.perf_counter()
        while time.perf_counter() - start_s < 2e-4:
            pass
        return StageTimes(0.0, 1e3 * (time.perf_counter() - start_s), 0.0)


def test_the_loop_costs_less_than_5_microseconds_a_sample_and_says_what_it_costs():
    plan = Plan(min_runs=2000, min_time_s=0.0, max_time_s=10.0, target_ci_pct=50.0, block_runs=100)
    found_us = [measure([NullExecutor()], IMAGES, plan)[0].outside_us for _ in range(5)]
    assert min(found_us) > 0.0, "it measures itself"
    # the least of several repeats, since other work on this machine can only add
    assert min(found_us) < 5.0


def test_measuring_takes_no_more_than_twice_the_samples_own_time():
    plan = Plan(min_runs=400, min_time_s=0.0, max_time_s=10.0, target_ci_pct=50.0)
    ratios = []
    for _ in range(3):
        start_s = time.perf_counter()
        first, second = measure([BusyExecutor(), BusyExecutor()], IMAGES, plan)
        own_s = (first.samples.run_ms.sum() + second.samples.run_ms.sum()) / 1e3
        ratios.append((time.perf_counter() - start_s) / own_s)
    assert min(ratios) <= 2.0


PROFILE = """
name = "paced"
title = "A device that is not there"
soc = "none"
runner = "paced"
delegates = ["xnnpack"]
threads = 1
cpu_mask = ""
precision = "file"
sessions = 1
min_runs = 64
min_time_s = 0.1
max_time_s = 2.0
target_ci_pct = 2.0
cool_down_s = 30.0
"""
PHONE = FakePhone(lambda t: 20.0)


class PacedRunner:
    name = "paced"
    kind = "measured"

    def session(self, profile):
        return contextlib.nullcontext()

    def open(self, path, profile, delegate):
        return PHONE

    def device(self):
        return {"name": "fake", "soc": None, "os": None, "cpu": None}

    def watch(self):
        return lambda: {"governor": None}


if "paced" not in RUNNERS.names():
    RUNNERS.register("paced")(PacedRunner)


def test_files_are_run_one_after_the_other_with_a_pause_and_written_with_their_samples(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.tflite").write_text(name)
    (tmp_path / "paced.toml").write_text(PROFILE)
    files, out = sorted(tmp_path.glob("*.tflite")), tmp_path / "s.json"
    clocks = Clocks(now_s=PHONE.clock, sleep_s=PHONE.sleep, utc=lambda: datetime(2026, 1, 2, tzinfo=UTC))
    start_s, told = PHONE.now_s, []
    sustain_files(
        files,
        [tmp_path / "paced.toml"],
        Sustain(2, 10),
        images=IMAGES,
        out=out,
        clocks=clocks,
        told=lambda file, fraction, n: told.append((file, round(fraction, 2))),
    )
    assert PHONE.now_s - start_s == pytest.approx(2 * 120 + 30, abs=1.0)
    assert told == [("a.tflite", 0.5), ("b.tflite", 0.5)]
    first, second = load_records(out)
    assert first.sha256 != second.sha256
    assert Samples.load(samples_path(out, second)).run_ms.size == 1200
    assert first.protocol["missed"] == 0
    assert first.drift["throttled"] is False


def test_the_command_refuses_what_makes_no_sense(tmp_path):
    arguments = [str(tmp_path / "missing.tflite"), "--out", str(tmp_path / "s.json"), "--images", "1"]
    assert CliRunner().invoke(sustain_command, [*arguments, "--minutes", "1"]).exception.exit_code == 2
    assert CliRunner().invoke(sustain_command, arguments).exception.exit_code == 2
