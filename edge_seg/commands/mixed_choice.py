"""What mixed networks cost, measured side by side, and which of them is the cheapest."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.benchmarks.harness import Plan, measure
from edge_seg.benchmarks.profile import load_profile
from edge_seg.benchmarks.runners.host import HostRunner
from edge_seg.errors import InputError

PROFILE = "host_cpu_1t"
# A few seconds for each file: enough to tell candidates apart, too little to quote.
PLAN = Plan(min_runs=24, min_time_s=1.0, max_time_s=4.0, target_ci_pct=3.0, max_warmup_s=2.0)
LATENCY_NOTE = "medians on this machine's CPU, XNNPACK, one thread, interleaved for a few seconds; no phone's"


@dataclass(frozen=True)
class Candidate:
    """A network that was scored, and what it costs.

    Attributes:
        name: "fp32", "int8", or how many layers are float.
        floats: Modules in float.
        value: The metric.
        holds: Whether it meets the budget.
        size_bytes: Size of the file.
        partitions: XNNPACK's pieces, as the runtime reports them; None where it does not tell.
        median_ms: Median latency, or None where it was not measured.
        ci95_median_ms: Its 95 % interval, or None.
    """

    name: str
    floats: tuple[str, ...]
    value: float
    holds: bool
    size_bytes: int
    partitions: int | None
    median_ms: float | None = None
    ci95_median_ms: tuple[float, float] | None = None

    def text(self) -> str:
        """Returns one line for people."""
        ms = "not measured"
        if self.median_ms is not None and self.ci95_median_ms is not None:
            ms = f"{self.median_ms:.2f} ms [{self.ci95_median_ms[0]:.2f}, {self.ci95_median_ms[1]:.2f}]"
        pieces = "?" if self.partitions is None else str(self.partitions)
        word = "meets" if self.holds else "fails"
        return f"{self.name:20} {self.value:7.2f} {word}  {self.size_bytes / 1e6:6.2f} MB  partitions {pieces:>2}  {ms}"


def latency_ms(files: Sequence[Path], images: Sequence[NDArray[np.uint8]], plan: Plan = PLAN) -> dict[Path, Any]:
    """Measures files in turns on this machine's CPU.

    Args:
        files: Converted files.
        images: Pictures, each [H, W, 3] uint8.
        plan: When to stop.

    Returns:
        `median_ms` and `ci95_median_ms` by file.
    """
    profile = load_profile(PROFILE)
    runner = HostRunner()
    with runner.session(profile):
        executors = [runner.open(file, profile, profile.delegates[0]) for file in files]
        series = measure(executors, images, plan)
    rows = [s.interval for s in series]
    return {
        file: {"median_ms": round(i.value, 3), "ci95_median_ms": (round(i.low, 3), round(i.high, 3))}
        for file, i in zip(files, rows, strict=True)
    }


def cheapest(candidates: Sequence[Candidate]) -> Candidate:
    """Returns the fastest; of those whose interval reaches into the fastest one's, the smallest file.

    Args:
        candidates: Those that meet the budget; the ones without a measured latency are left out.
    """
    timed = [c for c in candidates if c.ci95_median_ms is not None]
    if not timed:
        raise InputError("No candidate was measured.", expected="at least one that meets the budget", got="none")
    fastest = min(timed, key=_median)
    _, high = fastest.ci95_median_ms or (0.0, 0.0)
    tied = [c for c in timed if c.ci95_median_ms is not None and c.ci95_median_ms[0] <= high]
    return min(tied, key=lambda c: (c.size_bytes, len(c.floats)))


def advice_on(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    """Says where fp32 or all int8 is no slower than every mixed network that meets the budget."""
    mixed = [c for c in candidates if c.floats and c.holds and c.median_ms is not None]
    if not mixed:
        return ("All layers in int8 meet the budget: no layer needs float.",)
    best = min(mixed, key=_median)
    said = []
    for rival in candidates:
        if not rival.floats and _median(rival) < _median(best):
            clear = rival.ci95_median_ms and best.ci95_median_ms and rival.ci95_median_ms[1] < best.ci95_median_ms[0]
            word = "beats" if clear else "is as fast, within the noise, as"
            end = "It meets the budget: take it unless size matters." if rival.holds else "It misses the budget."
            times = f"{_median(rival):.2f} ms, {_median(best):.2f} ms"
            said.append(f"{rival.name} {word} every mixed network: {times}. {end}")
    return tuple(said)


def _median(candidate: Candidate) -> float:
    return math.inf if candidate.median_ms is None else candidate.median_ms
