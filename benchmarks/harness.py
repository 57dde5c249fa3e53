"""The measuring loop: warm up until flat, then run until the median is known well enough.

A file stops when it has the least number of runs AND the least measured time AND an interval of its median that is
narrow enough, counting neighbouring runs that are alike as fewer; or when its measured time is used up, and then it
says so. Several files share a session in the order A-B-B-A, in short blocks, so that a machine that slows down slows
all of them; where their ratios are what is asked for, they stop together when these are known, which on a restless
machine is long before the medians are. The loop knows nothing of devices: it takes executors and a clock, and tests
give it both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_seg.benchmarks import stats
from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.result import Samples
from edge_seg.benchmarks.runner import Executor, StageTimes
from edge_seg.benchmarks.stats_dependence import serial_median_interval
from edge_seg.benchmarks.stats_paired import widest_ratio_pct
from edge_seg.errors import InputError, MissingHere

StoppedBy = Literal["target", "ratio", "max_time", "lost", "duration"]
_Block = Callable[[Sequence[NDArray[np.uint8]]], list[tuple[float, StageTimes]]]  # `BlockExecutor.block`
_STOP_CHECK_RESAMPLES = 1000
_LEAST_BLOCK_RUNS = 2  # after the one that brings the caches back


@dataclass(frozen=True)
class Plan:
    """When to stop, and how to take turns.

    Attributes:
        min_runs: Least number of counted runs of a file.
        min_time_s: Least measured time of a file (all stages), seconds.
        max_time_s: Measured time after which a file stops.
        target_ci_pct: Full width of the 95 % interval of the median to reach, percent of the median.
        block_runs: Most counted runs of a file before the next one has its turn.
        block_s: Length of a turn, seconds, of which runs that take longer make shorter blocks: neighbours in time share
            more of what the machine does (results/README.md, `same_file`).
        window_runs: Warm-up compares the medians of the last two windows of this many runs.
        flat_pct: Largest change between the two windows that counts as flat, percent.
        max_warmup_runs: Runs after which warm-up ends, flat or not.
        max_warmup_s: Measured time after which warm-up ends, flat or not.
        ratio_ci_pct: Full width of the 95 % interval of each file's ratio to the first one, percent: files in turns
            stop together when all are known so well, whatever their own intervals are. None: each by its own interval.
    """

    min_runs: int
    min_time_s: float
    max_time_s: float
    target_ci_pct: float
    block_runs: int = 8
    block_s: float = 0.08
    window_runs: int = 5
    flat_pct: float = 2.0
    max_warmup_runs: int = 60
    max_warmup_s: float = 10.0
    ratio_ci_pct: float | None = None

    @classmethod
    def of(cls, profile: Profile) -> Plan:
        """Returns the plan of a profile."""
        least_s, most_s = profile.min_time_s, profile.max_time_s
        return cls(profile.min_runs, least_s, most_s, profile.target_ci_pct, ratio_ci_pct=profile.ratio_ci_pct)

    def rule(self) -> dict[str, Any]:
        """Returns the rule as a record's `protocol` states it."""
        return {
            "mode": "until known",
            "target_ci_pct": self.target_ci_pct,
            **({} if self.ratio_ci_pct is None else {"ratio_ci_pct": self.ratio_ci_pct}),
            "min_runs": self.min_runs,
            "min_time_s": self.min_time_s,
            "max_time_s": self.max_time_s,
            "order": "A-B-B-A",
            "block_runs": self.block_runs,
        }


@dataclass(frozen=True)
class Pace:
    """How a run at a frame rate kept up.

    Attributes:
        slots_n: Frames that were due.
        missed_n: Frames that were not started, since an earlier one was still running when their time was over.
        late_n: Frames that were started, and not finished when the next one was due.
    """

    slots_n: int
    missed_n: int
    late_n: int


@dataclass(frozen=True)
class Series:
    """What the loop found out about one file.

    Attributes:
        index: Position among the executors.
        samples: Every counted run.
        first_ms: `run_ms` of the very first run.
        warmup_n: Uncounted runs: the warm-up, and one after each change from another file.
        warm: Whether the warm-up became flat.
        stopped_by: The rule that ended it: "ratio" where its ratio is known and its own median less well than asked,
            "lost" where the device went away in the middle.
        interval: 95 % interval of the median of `run_ms`.
        outside_us: Median time per run outside the three stages, microseconds: this loop, and what a runner does
            between its stages. It is reported and never subtracted.
        pace: How a sustained run kept up, or None.
        block_runs: Runs in a block, the same for all files of the session; 0 where there were no turns.
    """

    index: int
    samples: Samples
    first_ms: float
    warmup_n: int
    warm: bool
    stopped_by: StoppedBy
    interval: stats.Interval
    outside_us: float | None = None
    pace: Pace | None = None
    block_runs: int = 0

    @property
    def target_met(self) -> bool:
        """Whether the plan was carried out: the interval got as narrow as asked, or the time asked for has passed."""
        return self.stopped_by in ("target", "duration")


@dataclass
class _Track:
    """A file while it is measured."""

    index: int
    executor: Executor
    warmup_run_ms: list[float] = field(default_factory=list)
    warmup_s: float = 0.0
    settle_n: int = 0
    warm: bool = False
    starts_s: list[float] = field(default_factory=list)
    times: list[StageTimes] = field(default_factory=list)
    outside_s: list[float] = field(default_factory=list)
    measured_s: float = 0.0
    next_check_n: int = 0
    interval: stats.Interval | None = None
    stopped_by: StoppedBy | None = None

    def fraction(self, plan: Plan) -> float:
        """How far along it is at least, 0..1, for the progress bar."""
        if self.stopped_by:
            return 1.0
        least = min(len(self.times) / plan.min_runs, self.measured_s / plan.min_time_s if plan.min_time_s else 1.0)
        return min(0.95, max(0.9 * least, self.measured_s / plan.max_time_s if plan.max_time_s else 0.0))


Progress = Callable[[int, float, int], None]


def measure(
    executors: Sequence[Executor],
    images: Sequence[NDArray[np.uint8]],
    plan: Plan,
    *,
    clock: Callable[[], float] = time.perf_counter,
    on_done: Callable[[Series], None] = lambda series: None,
    on_block: Progress = lambda index, fraction, n: None,
) -> list[Series]:
    """Measures several files in one session.

    Args:
        executors: One per file, open.
        images: Real pictures, each [H, W, 3] uint8 RGB; run k of every file takes picture k modulo their
            number.
        plan: When to stop.
        clock: Seconds from any origin; dates the samples.
        on_done: Called as soon as a file is finished.
        on_block: Called after each block with the file's position, how far it is (0..1) and its counted runs.

    Returns:
        One series per executor, in their order.

    Raises:
        InputError: No executor or no image.
        MissingHere: The device went away; what was measured until then has gone to `on_done`.
    """
    if not executors or not images:
        raise InputError("There is nothing to measure.", expected="at least one file and one image")
    tracks = [_Track(i, executor) for i, executor in enumerate(executors)]
    for track in tracks:
        if hasattr(track.executor, "prepare"):
            track.executor.prepare(images)
        _warm_up(track, images, plan)
    plan = _in_short_blocks(plan if len(tracks) > 1 else replace(plan, ratio_ci_pct=None), tracks)
    finished: dict[int, Series] = {}

    def finish(track: _Track) -> None:
        series = replace(_series(track, len(images)), block_runs=plan.block_runs)
        together = plan.ratio_ci_pct is not None and series.stopped_by in ("ratio", "max_time")
        if together and series.interval.width_pct <= plan.target_ci_pct:
            series = replace(series, stopped_by="target")
        finished[track.index] = series
        on_done(finished[track.index])

    try:
        _take_turns(tracks, images, plan, clock=clock, finish=finish, on_block=on_block)
    except MissingHere:
        for track in tracks:
            if track.index not in finished and len(track.times) >= 2:
                track.stopped_by = "lost"
                finish(track)
        raise
    return [finished[i] for i in range(len(tracks))]


def _take_turns(
    tracks: Sequence[_Track],
    images: Sequence[NDArray[np.uint8]],
    plan: Plan,
    *,
    clock: Callable[[], float],
    finish: Callable[[_Track], None],
    on_block: Progress,
) -> None:
    """Runs blocks of all files in turn, forth and back, until each has met its rule, or all together theirs."""
    last, turn = tracks[-1], 0
    while any(track.stopped_by is None for track in tracks):
        waiting = [track for track in tracks if track.stopped_by is None]
        for track in waiting if turn % 2 == 0 else waiting[::-1]:
            _run_block(track, images, plan, clock=clock, settle=track is not last)
            last = track
            if plan.ratio_ci_pct is None:
                _decide(track, plan)
            on_block(track.index, track.fraction(plan), len(track.times))
            if track.stopped_by is not None:
                finish(track)
        turn += 1
        if plan.ratio_ci_pct is not None and (stopped_by := _stopped_together(tracks, plan, plan.ratio_ci_pct)):
            for track in tracks:
                track.stopped_by = stopped_by
                finish(track)


def _stopped_together(tracks: Sequence[_Track], plan: Plan, ratio_ci_pct: float) -> StoppedBy | None:
    """Returns the rule that ends a session of ratios after a turn of every file, or None."""
    n, spent_s = min(len(track.times) for track in tracks), [track.measured_s for track in tracks]
    out_of_time = max(spent_s) >= plan.max_time_s
    enough = n >= plan.min_runs and min(spent_s) >= plan.min_time_s
    if enough and (out_of_time or n >= tracks[0].next_check_n):
        tracks[0].next_check_n = n + max(2 * plan.block_runs, n // 4)
        run_ms = [[times.run_ms for times in track.times] for track in tracks]
        if widest_ratio_pct(run_ms, plan.block_runs) <= ratio_ci_pct:
            return "ratio"
    return "max_time" if out_of_time else None


def _in_short_blocks(plan: Plan, tracks: Sequence[_Track]) -> Plan:
    """Shortens the blocks to `block_s` of the slowest file, down to two runs; not where a block is one call."""
    if len(tracks) < 2 or any(hasattr(track.executor, "block") for track in tracks):
        return plan
    slowest_ms = max(stats.median(track.warmup_run_ms) for track in tracks)
    fitting = int(1e3 * plan.block_s / slowest_ms) if slowest_ms > 0.0 else plan.block_runs
    return replace(plan, block_runs=min(plan.block_runs, max(_LEAST_BLOCK_RUNS, fitting)))


def _warm_up(track: _Track, images: Sequence[NDArray[np.uint8]], plan: Plan) -> None:
    """Runs until two windows in a row have the same median within `flat_pct`, or a bound is reached.

    On a device that a call takes long to reach whole windows run at once: single runs would each find it idle.
    """
    block: _Block | None = getattr(track.executor, "block", None)
    at_once = 1 if block is None else plan.window_runs
    while len(track.warmup_run_ms) < plan.max_warmup_runs and track.warmup_s < plan.max_warmup_s:
        first = len(track.warmup_run_ms)
        shown = [images[(first + k) % len(images)] for k in range(at_once)]
        runs = [track.executor.step(shown[0])] if block is None else [times for _, times in block(shown)]
        track.warmup_run_ms += [times.run_ms for times in runs]
        track.warmup_s += sum(times.total_ms for times in runs) / 1e3
        if _is_flat(track.warmup_run_ms, plan):
            track.warm = True
            return


def _is_flat(run_ms: Sequence[float], plan: Plan) -> bool:
    window = plan.window_runs
    if len(run_ms) < 2 * window:
        return False
    before, now = stats.median(run_ms[-2 * window : -window]), stats.median(run_ms[-window:])
    return abs(now - before) <= before * plan.flat_pct / 100.0


def _run_block(
    track: _Track,
    images: Sequence[NDArray[np.uint8]],
    plan: Plan,
    *,
    clock: Callable[[], float],
    settle: bool,
) -> None:
    """Counts one block of runs; after another file one run first, uncounted, brings the caches back."""
    first = len(track.times)
    chosen = [(first + k) % len(images) for k in range(plan.block_runs)]
    block: _Block | None = getattr(track.executor, "block", None)
    if block is not None:
        clock()  # dates nothing here, but a caller's clock may end the measurement
        shown = [images[i] for i in [*chosen[:settle], *chosen]]
        _run_remote_block(track, block, shown, len(chosen))
        return
    if settle:
        track.executor.step(images[chosen[0]])
        track.settle_n += 1
    step, date, keep = track.executor.step, track.starts_s.append, track.times.append
    start_s = clock()
    for image in [images[i] for i in chosen]:
        date(clock())
        keep(step(image))
    wall_s = clock() - start_s
    own_s = _count(track, first)
    track.outside_s.append(max(0.0, wall_s - own_s) / plan.block_runs)


def _run_remote_block(track: _Track, block: _Block, images: Sequence[NDArray[np.uint8]], n: int) -> None:
    """Runs a block on a device that keeps time itself; of its runs the last `n` count."""
    runs = block(images)
    track.settle_n += len(runs) - n
    first = len(track.times)
    track.starts_s += [start_s for start_s, _ in runs[-n:]]
    track.times += [times for _, times in runs[-n:]]
    _count(track, first)


def _count(track: _Track, first: int) -> float:
    """Adds the runs from `first` on to the measured time; returns their seconds."""
    own_s = sum(times.total_ms for times in track.times[first:]) / 1e3
    track.measured_s += own_s
    return own_s


def _decide(track: _Track, plan: Plan) -> None:
    """Sets `stopped_by` where a rule applies; looks at the interval ever less often as runs pile up."""
    n = len(track.times)
    out_of_time = track.measured_s >= plan.max_time_s
    enough = n >= plan.min_runs and track.measured_s >= plan.min_time_s
    if not out_of_time and not (enough and n >= track.next_check_n):
        return
    run_ms = [times.run_ms for times in track.times]
    track.interval = serial_median_interval(run_ms, resamples=_STOP_CHECK_RESAMPLES)
    track.next_check_n = n + max(plan.block_runs, n // 4)
    if enough and track.interval.width_pct <= plan.target_ci_pct:
        track.stopped_by = "target"
    elif out_of_time:
        track.stopped_by = "max_time"


def _series(track: _Track, images_n: int) -> Series:
    samples = samples_of(track.starts_s, track.times, images_n)
    return Series(
        index=track.index,
        samples=samples,
        first_ms=track.warmup_run_ms[0],
        warmup_n=len(track.warmup_run_ms) + track.settle_n,
        warm=track.warm,
        stopped_by=track.stopped_by or "max_time",
        interval=serial_median_interval([times.run_ms for times in track.times]),
        outside_us=1e6 * stats.median(track.outside_s) if track.outside_s else None,
    )


def samples_of(starts_s: Sequence[float], times: Sequence[StageTimes], images_n: int) -> Samples:
    """Returns the columns of counted runs, of which run k took picture k modulo `images_n`."""
    return Samples(
        t_s=np.asarray(np.array(starts_s) - starts_s[0], np.float32),
        pre_ms=np.array([t.pre_ms for t in times], np.float32),
        run_ms=np.array([t.run_ms for t in times], np.float32),
        post_ms=np.array([t.post_ms for t in times], np.float32),
        image_index=(np.arange(len(times)) % images_n).astype(np.int32),
    )
