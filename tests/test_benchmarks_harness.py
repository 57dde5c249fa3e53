"""The measuring loop with made-up executors and a made-up clock: no sleeping, the same result every time."""

from dataclasses import replace

import numpy as np
import pytest

from edge_seg.benchmarks.harness import Plan, measure
from edge_seg.benchmarks.runner import Opened, StageTimes
from edge_seg.benchmarks.stats_paired import compare_turns
from edge_seg.errors import InputError, MissingHere

IMAGES = [np.full((4, 6, 3), value, np.uint8) for value in range(3)]
PLAN = Plan(min_runs=16, min_time_s=0.1, max_time_s=4.0, target_ci_pct=2.0)


class FakeClock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


class FakeExecutor:
    """Takes the times that a function of the run's number gives, and writes down who ran when."""

    def __init__(self, run_ms, *, clock, name="a", log=None):
        self.facts = Opened("net", "fp32", 5.0, {"name": "fake", "version": "1"})
        self.run_ms, self.clock, self.name = run_ms, clock, name
        self.log = [] if log is None else log
        self.seen = []

    def step(self, image_hwc_u8):
        times = StageTimes(1.0, float(self.run_ms(len(self.seen))), 2.0)
        self.seen.append(int(image_hwc_u8[0, 0, 0]))
        self.log.append(self.name)
        self.clock.now_s += times.total_ms / 1e3
        return times

    def close(self):
        self.log.append(f"close {self.name}")


def _measure(run_ms, plan=PLAN):
    clock = FakeClock()
    (series,) = measure([FakeExecutor(run_ms, clock=clock)], IMAGES, plan, clock=clock)
    return series


def test_a_steady_file_warms_up_in_two_windows_and_stops_at_the_target():
    series = _measure(lambda i: 10.0)
    assert series.warm
    assert series.warmup_n == 2 * PLAN.window_runs
    assert series.stopped_by == "target"
    assert series.target_met
    assert series.samples.run_ms.size == PLAN.min_runs
    assert series.interval.width_pct == 0.0


def test_the_first_run_is_apart_and_warm_up_lasts_until_the_median_is_flat():
    series = _measure(lambda i: 500.0 if i == 0 else max(10.0, 40.0 - 2.0 * i))
    assert series.first_ms == 500.0
    assert series.warm
    assert series.warmup_n >= 20
    assert series.samples.run_ms.max() == 10.0


def test_a_file_that_never_settles_is_measured_but_said_to_be_cold():
    series = _measure(lambda i: 10.0 * 1.1**i if i < 60 else 10.0)
    assert not series.warm
    assert series.warmup_n <= PLAN.max_warmup_runs


def test_least_runs_and_least_time_both_hold():
    by_runs = _measure(lambda i: 100.0)
    by_time = _measure(lambda i: 0.5, Plan(4, 1.0, 4.0, 2.0))
    assert by_runs.samples.run_ms.size == 16
    total_s = 3.5e-3 * by_time.samples.run_ms.size
    assert 1.0 <= total_s < 1.5


def test_a_noisy_file_takes_more_runs_than_a_quiet_one_until_its_interval_is_narrow():
    noise = np.random.default_rng(0).normal(0, 1, 10_000)
    quiet = _measure(lambda i: 10.0 + 0.01 * noise[i])
    noisy = _measure(lambda i: 10.0 + 0.5 * noise[i])
    assert noisy.samples.run_ms.size > quiet.samples.run_ms.size
    assert noisy.target_met
    assert noisy.interval.width_pct <= PLAN.target_ci_pct


def test_the_time_limit_ends_a_hopeless_file_and_says_so():
    noise = np.random.default_rng(0).uniform(1, 100, 10_000)
    series = _measure(lambda i: noise[i])
    assert series.stopped_by == "max_time"
    assert not series.target_met
    stages = series.samples
    measured_s = float((stages.pre_ms + stages.run_ms + stages.post_ms).sum()) / 1e3
    assert PLAN.max_time_s <= measured_s < PLAN.max_time_s + 1.0


def test_two_files_take_turns_in_the_order_a_b_b_a():
    clock, log = FakeClock(), []
    pair = [FakeExecutor(lambda i: 10.0, clock=clock, name=name, log=log) for name in "ab"]
    measure(pair, IMAGES, Plan(32, 0.0, 10.0, 2.0, block_runs=8), clock=clock)
    counted = log[2 * 10 :]
    changes = [name for i, name in enumerate(counted) if i == 0 or counted[i - 1] != name]
    assert changes == ["a", "b", "a", "b", "a"]
    # each change of file costs one settling run; b after b and a after a none: 1+8, then 1+8+8, ..., 1+8
    turns = "".join(counted).replace("ab", "a b").replace("ba", "b a").split()
    assert [len(turn) for turn in turns] == [9, 17, 17, 17, 9]


def test_each_file_sees_the_same_pictures_in_turn():
    clock = FakeClock()
    pair = [FakeExecutor(lambda i: 10.0, clock=clock, name=name) for name in "ab"]
    first, second = measure(pair, IMAGES, PLAN, clock=clock)
    assert first.samples.image_index.tolist() == [i % 3 for i in range(16)]
    assert second.samples.image_index.tolist() == first.samples.image_index.tolist()


def test_times_of_samples_come_from_the_clock_and_start_at_zero():
    series = _measure(lambda i: 7.0)
    assert series.samples.t_s[0] == 0.0
    assert np.diff(series.samples.t_s) == pytest.approx(0.010, abs=1e-5)


def test_a_finished_file_is_reported_at_once_while_the_other_goes_on():
    clock, events = FakeClock(), []
    noise = np.random.default_rng(0).uniform(1, 100, 10_000)
    files = [FakeExecutor(lambda i: 10.0, clock=clock), FakeExecutor(lambda i: noise[i], clock=clock)]
    measure(
        files,
        IMAGES,
        PLAN,
        clock=clock,
        on_done=lambda series: events.append(("done", series.index)),
        on_block=lambda index, fraction, n: events.append(("block", index, fraction)),
    )
    assert events.index(("done", 0)) < len(events) - 3
    assert events[-1] == ("done", 1)
    fractions = [event[2] for event in events if event[0] == "block" and event[1] == 1]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


@pytest.mark.parametrize(("executors", "images"), [(0, 1), (1, 0)])
def test_nothing_to_measure_is_an_error(executors, images):
    clock = FakeClock()
    with pytest.raises(InputError, match="nothing to measure"):
        measure([FakeExecutor(lambda i: 1.0, clock=clock)] * executors, IMAGES[:images], PLAN, clock=clock)


@pytest.mark.parametrize(
    ("times_ms", "block_runs"),
    [((1.0, 1.0), 8), ((10.0, 5.0), 8), ((2.0, 20.0), 4), ((200.0, 1.0), 2), ((0.0, 0.0), 8)],
)
def test_files_that_take_turns_share_blocks_as_short_as_the_slowest_of_them_allows(times_ms, block_runs):
    clock, log = FakeClock(), []
    files = [
        FakeExecutor(lambda i, ms=ms: ms, clock=clock, name=name, log=log)
        for name, ms in zip("ab", times_ms, strict=True)
    ]
    series = measure(files, IMAGES, PLAN, clock=clock)
    assert [one.block_runs for one in series] == [block_runs] * 2
    assert all(one.samples.run_ms.size % block_runs == 0 for one in series)
    warm_up = 2 * 2 * PLAN.window_runs  # of both files; then one run brings the caches back, and a block
    assert "".join(log[warm_up:]).startswith("a" * (1 + block_runs) + "b" * (1 + 2 * block_runs) + "a")


def test_a_file_alone_has_no_turns_to_shorten():
    assert _measure(lambda i: 100.0).block_runs == PLAN.block_runs


def restless(seed=0):
    """Three files on a machine whose speed wanders for all of them, each run with a little noise of its own."""
    rng, clock, log, speed = np.random.default_rng(seed), FakeClock(), [], [1.0]

    def times_of(level_ms):
        def run_ms(_):
            speed[0] *= float(np.exp(0.05 * rng.normal() - 0.05 * np.log(speed[0])))
            return level_ms * speed[0] * float(np.exp(0.01 * rng.normal()))

        return run_ms

    levels = {"a": 10.0, "b": 11.0, "c": 9.0}
    return [FakeExecutor(times_of(ms), clock=clock, name=name, log=log) for name, ms in levels.items()], clock


RATIOS = Plan(16, 0.1, 200.0, 2.0, block_runs=2, ratio_ci_pct=4.0)


def test_files_whose_ratios_are_asked_for_stop_together_when_these_are_known():
    files, clock = restless()
    done = []
    found = measure(files, IMAGES, RATIOS, clock=clock, on_done=done.append)
    assert [one.stopped_by for one in found] == ["ratio"] * 3
    assert {one.samples.run_ms.size for one in found} == {found[0].samples.run_ms.size}
    assert not any(one.target_met for one in found)
    assert done == found
    ratios = [compare_turns([one.samples.run_ms], [found[0].samples.run_ms], block_runs=2).ratio for one in found[1:]]
    assert max(ratio.width_pct for ratio in ratios) <= 4.0
    assert [ratio.low < truth < ratio.high for ratio, truth in zip(ratios, (1.1, 0.9), strict=True)] == [True, True]
    alone = measure(restless()[0], IMAGES, replace(RATIOS, ratio_ci_pct=None), clock=clock)
    assert max(one.samples.run_ms.size for one in alone) > 2 * found[0].samples.run_ms.size


def test_ratios_that_do_not_get_known_stop_together_at_the_time_limit():
    files, clock = restless()
    found = measure(files, IMAGES, replace(RATIOS, max_time_s=3.0, ratio_ci_pct=0.01), clock=clock)
    assert [one.stopped_by for one in found] == ["max_time"] * 3
    assert max(float(one.samples.run_ms.sum()) for one in found) >= 2.0e3
    assert len({one.samples.run_ms.size for one in found}) == 1


def test_a_median_that_is_known_as_well_as_asked_counts_as_such_among_ratios():
    clock = FakeClock()
    pair = [FakeExecutor(lambda i, ms=ms: ms, clock=clock) for ms in (10.0, 12.0)]
    found = measure(pair, IMAGES, RATIOS, clock=clock)
    assert [one.stopped_by for one in found] == ["target"] * 2
    assert [one.samples.run_ms.size for one in found] == [16, 16]


def test_a_lost_device_is_lost_also_where_the_median_was_known():
    files, clock, done = [FakeExecutor(lambda i: 10.0, clock=FakeClock()) for _ in range(2)], FakeClock(), []
    step = files[1].step

    def lost_in_the_end(image):
        if len(files[1].seen) > 30:
            raise MissingHere("The device went away.")
        return step(image)

    files[1].step = lost_in_the_end
    with pytest.raises(MissingHere):
        measure(files, IMAGES, replace(RATIOS, min_runs=1000), clock=clock, on_done=done.append)
    assert [one.stopped_by for one in done] == ["lost"] * 2
    assert all(one.interval.width_pct == 0.0 for one in done)


def test_one_file_has_no_ratio_and_is_measured_until_its_median_is_known():
    assert _measure(lambda i: 10.0, RATIOS).stopped_by == "target"


def test_the_rule_of_ratios_is_written_where_it_held():
    assert RATIOS.rule()["ratio_ci_pct"] == 4.0
    assert "ratio_ci_pct" not in PLAN.rule()
