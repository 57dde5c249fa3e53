"""The sustained run: minutes at a frame rate, as a camera makes it, to see what heat does to a device.

Frame k is due k / rate seconds after the start. A frame whose whole time passed while an earlier one was running is
missed, as a camera's would be: nothing queues up. The first minute counts, so there is hardly any warm-up.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.benchmarks.harness import Pace, Series, samples_of
from edge_seg.benchmarks.runner import Executor, StageTimes
from edge_seg.benchmarks.stats_dependence import serial_median_interval
from edge_seg.errors import InputError

_CLOCK_S = 1e-6
_LEAST_MINUTES = 2.0  # the first and the last minute must not be the same one


@dataclass(frozen=True)
class Sustain:
    """How long, and how fast.

    Attributes:
        minutes: Wall time of the run, at least 2.
        target_fps: Frames per second that are due, or 0 for one frame after the other without a pause.
        warmup_runs: Uncounted runs before; few, since they heat the device.
    """

    minutes: float
    target_fps: float
    warmup_runs: int = 3

    def __post_init__(self) -> None:
        if not (math.isfinite(self.minutes) and self.minutes >= _LEAST_MINUTES):
            raise InputError(
                "A sustained run is too short.", expected=f">= {_LEAST_MINUTES:g} minutes", got=str(self.minutes)
            )
        if not (math.isfinite(self.target_fps) and self.target_fps >= 0):
            raise InputError("The frame rate is wrong.", expected="frames per second, or 0", got=str(self.target_fps))
        if self.warmup_runs < 1:
            raise InputError("The first run is apart.", expected="at least 1 warm-up run", got=str(self.warmup_runs))

    def rule(self) -> dict[str, Any]:
        """Returns the rule as a record's `protocol` states it."""
        return {"mode": "sustained", "minutes": self.minutes, "target_fps": self.target_fps}


@dataclass
class _Run:
    """Frames so far."""

    executor: Executor
    images: Sequence[NDArray[np.uint8]]
    starts_s: list[float] = field(default_factory=list)
    times: list[StageTimes] = field(default_factory=list)
    missed_n: int = 0
    late_n: int = 0

    def frame(self, now_s: float) -> None:
        """Runs the next picture."""
        self.starts_s.append(now_s)
        self.times.append(self.executor.step(self.images[len(self.times) % len(self.images)]))


def sustain(
    executor: Executor,
    images: Sequence[NDArray[np.uint8]],
    plan: Sustain,
    *,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
    on_minute: Callable[[float, int], None] = lambda fraction, n: None,
) -> Series:
    """Runs one file for minutes.

    Args:
        executor: The open file, alone on its device.
        images: Real pictures, each [H, W, 3] uint8 RGB, in turn.
        plan: How long, and how fast.
        clock: Seconds from any origin; dates the samples.
        sleep: Waits that many seconds.
        on_minute: Called after each minute with the share that is done (0..1) and the frames so far.

    Returns:
        A series whose `samples` are dated and whose `pace` says what was missed; `summary.summarise` compares its
        first minute with its last and says when it throttled.

    Raises:
        InputError: No image.
    """
    if not images:
        raise InputError("There is nothing to measure.", expected="at least one image")
    warmup = [executor.step(images[k % len(images)]) for k in range(plan.warmup_runs)]
    run = _Run(executor, images)
    slots_n = _frames(run, plan, clock=clock, sleep=sleep, on_minute=on_minute)
    return Series(
        index=0,
        samples=samples_of(run.starts_s, run.times, len(images)),
        first_ms=warmup[0].run_ms,
        warmup_n=plan.warmup_runs,
        warm=True,
        stopped_by="duration",
        interval=serial_median_interval([times.run_ms for times in run.times]),
        pace=Pace(slots_n, run.missed_n, run.late_n),
    )


def _frames(
    run: _Run,
    plan: Sustain,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    on_minute: Callable[[float, int], None],
) -> int:
    """Runs frames until the time is over; returns how many were due."""
    start_s, end_s, minute, slot = clock(), 60.0 * plan.minutes, 1, 0
    slots_n = math.ceil(end_s * plan.target_fps - 1e-6) if plan.target_fps else 0
    while True:
        now_s = _wait(slot / plan.target_fps if slots_n else 0.0, start_s, clock, sleep)
        if slots_n:
            gone = min(slots_n - slot, int(now_s * plan.target_fps - slot))
            run.missed_n, slot = run.missed_n + gone, slot + gone
        if slot >= slots_n > 0 or now_s >= end_s:
            return slots_n or slot
        run.frame(now_s)
        slot += 1
        if slots_n and (clock() - start_s) * plan.target_fps > slot:
            run.late_n += 1
        if now_s >= 60.0 * minute:
            on_minute(min(1.0, now_s / end_s), len(run.times))
            minute += 1


def _wait(due_s: float, start_s: float, clock: Callable[[], float], sleep: Callable[[float], None]) -> float:
    """Sleeps until a frame is due, to the microsecond; returns the time since the start, which is not before it."""
    now_s = clock() - start_s
    while due_s - now_s > _CLOCK_S:
        sleep(due_s - now_s)
        now_s = clock() - start_s
    return max(now_s, due_s)


def images_sha256(images: Sequence[NDArray[np.uint8]]) -> str:
    """Returns one hash of all pictures, their sizes and their order; two runs on other pictures are not comparable."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(image.shape).encode())
        digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()
