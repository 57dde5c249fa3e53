"""One file against itself: `python -m edge_seg.studies.same_file FILE --profile host_cpu_1t --times 10 --json OUT`.

The file is opened twice and measured in turns (A-B-B-A) as two files would be. The true ratio is 1, so what the
comparison finds is its own error: how many times in a row the ratio is within 2 %, and how many times a difference is
called that is not there. Each time both are opened anew, since where memory lies changes the time of a file, too.
"""

from __future__ import annotations

import itertools
import math
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edge_seg.artifact import sha256_of, write_json
from edge_seg.benchmarks.harness import Plan, measure
from edge_seg.benchmarks.profile import Profile, load_profile
from edge_seg.benchmarks.runner import RUNNERS, Executor, Runner, ToolRunner
from edge_seg.benchmarks.stats import Interval, median
from edge_seg.benchmarks.stats_compare import ALPHA, compare_medians, student_quantile
from edge_seg.benchmarks.stats_paired import compare_turns
from edge_seg.errors import InputError
from edge_seg.steps import pictures
from edge_seg.studies.start import start

WITHIN_PCT = 2.0
Show = Callable[[float], None]
Keep = Callable[[dict[str, Any]], None]


def compared_once(
    executors: Sequence[Executor], images: Sequence[NDArray[np.uint8]], plan: Plan, show: Show = lambda fraction: None
) -> dict[str, Any]:
    """Measures two executors in turns and compares them, turn by turn and, beside it, by their medians.

    Args:
        executors: Two, open.
        images: Pictures, each [H, W, 3] uint8 RGB.
        plan: When to stop.
        show: Called with how far it is, 0..1.

    Raises:
        InputError: There were too few turns; the plan needs more time.
    """
    far = dict.fromkeys(range(len(executors)), 0.0)

    def block(index: int, fraction: float, n: int) -> None:
        far[index] = fraction
        show(statistics.mean(far.values()))

    series = measure(executors, images, plan, on_block=block)
    first, second = (one.samples.run_ms for one in series)
    turns, apart = compare_turns([second], [first], block_runs=series[0].block_runs), compare_medians([second], [first])
    return {
        **_told(turns.ratio),
        "within": abs(turns.ratio.value - 1.0) <= WITHIN_PCT / 100.0,
        "alarm": turns.verdict != "no difference seen",
        "mde_pct": round(turns.mde_pct, 3),
        "blocks": turns.blocks[0],
        "block_runs": series[0].block_runs,
        "of_medians": {
            **_told(apart.ratio),
            "within": abs(apart.ratio.value - 1.0) <= WITHIN_PCT / 100.0,
            "alarm": apart.verdict != "no difference seen",
        },
        "medians_ms": [round(median(first), 4), round(median(second), 4)],
        "runs": [int(first.size), int(second.size)],
        "intervals_met": [one.target_met for one in series],
        "stopped_by": series[0].stopped_by,
    }


def _told(ratio: Interval) -> dict[str, Any]:
    return {"ratio": round(ratio.value, 5), "ci95": [round(ratio.low, 5), round(ratio.high, 5)]}


def of_profile(
    file: Path, profile: Profile, plan: Plan, images: Sequence[NDArray[np.uint8]], *, times: int, show: Show, keep: Keep
) -> dict[str, Any]:
    """Compares a file with itself several times on one profile, on its first delegate.

    Args:
        file: A `.tflite`.
        profile: Where to run it.
        plan: When to stop.
        images: Pictures, each [H, W, 3] uint8 RGB.
        times: How often.
        show: Called with how many times are done, a fraction of the present one included.
        keep: Called after each time with what would be returned if it were the last.

    Raises:
        InputError: The profile's runner gives no runs one by one.
    """
    runner = RUNNERS[profile.runner]()
    if isinstance(runner, ToolRunner):
        raise InputError(f"The profile {profile.name} cannot take turns.", expected="a profile of single runs")
    found: list[dict[str, Any]] = []
    for turn in range(times):

        def shown(part: float, done: int = turn) -> None:
            show(done + part)

        found.append(_once(runner, file, profile, plan, images, shown))
        told = {
            "profile": profile.name,
            "threads": profile.threads,
            "delegate": profile.delegates[0],
            "device": runner.device(),
            "plan": {key: value for key, value in plan.rule().items() if key != "block_runs"},  # each time has its own
            **_summary(found),
            "times": list(found),
        }
        keep(told)
    return told


def _once(
    runner: Runner, file: Path, profile: Profile, plan: Plan, images: Sequence[NDArray[np.uint8]], show: Show
) -> dict[str, Any]:
    with runner.session(profile), ExitStack() as stack:
        executors = []
        for _ in range(2):
            executors.append(runner.open(file, profile, profile.delegates[0]))
            stack.callback(executors[-1].close)
        watched = runner.watch()
        try:
            found = compared_once(executors, images, plan, show)
        except InputError as error:  # a machine that was taken away meanwhile: the other times still count
            found = {"ratio": None, "within": False, "alarm": False, "failed": f"{error.what} {error.got} of each."}
        return {**found, "runtime": dict(executors[0].facts.runtime), "environment": dict(watched())}


def _summary(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns counts over all times, of the ratio by turns and of that of the medians."""
    told = [one for one in found if one["ratio"] is not None]
    steal_pct = [one["environment"].get("steal_pct") for one in found]
    known = [value for value in steal_pct if value is not None]
    return {
        "times_n": len(found),
        "within_pct": WITHIN_PCT,
        "within_n": sum(one["within"] for one in found),
        "within_in_a_row": _longest([one["within"] for one in found]),
        "alarms_n": sum(one["alarm"] for one in found),
        "alarms_stated": round(ALPHA * len(told), 2),
        "failed_n": len(found) - len(told),
        "opened_second": _mean([one["ratio"] for one in told]),
        "furthest_pct": round(max(100.0 * abs(one["ratio"] - 1.0) for one in told), 3) if told else None,
        "of_medians_within_n": sum(one["of_medians"]["within"] for one in told),
        "of_medians_alarms_n": sum(one["of_medians"]["alarm"] for one in told),
        "steal_pct": {"median": round(statistics.median(known), 1), "most": max(known)} if known else None,
    }


def _mean(ratios: Sequence[float]) -> dict[str, Any] | None:
    """Geometric mean of independent ratios with its 95 % interval: what the order of opening does by itself."""
    if len(ratios) < 2:
        return None
    logs = [math.log(ratio) for ratio in ratios]
    centre, error = statistics.mean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    reach = student_quantile(1.0 - ALPHA / 2.0, len(logs) - 1) * error
    return _told(Interval(math.exp(centre - reach), math.exp(centre), math.exp(centre + reach)))


def _longest(flags: Sequence[bool]) -> int:
    return max((len(list(run)) for flag, run in itertools.groupby(flags) if flag), default=0)


def document(
    file: Path,
    profiles: Sequence[Profile],
    images: Sequence[NDArray[np.uint8]],
    *,
    times: int = 10,
    max_time_s: float | None = None,
    ratio_ci_pct: float | None = None,
    show: Show = lambda done: None,
    keep: Keep = lambda so_far: None,
) -> dict[str, Any]:
    """Compares a file with itself on several profiles.

    Args:
        file: A `.tflite`.
        profiles: Where to run it; each says when to stop.
        images: Pictures, each [H, W, 3] uint8 RGB.
        times: How often on each profile.
        max_time_s: Replaces the profiles' measured seconds after which one of the two stops.
        ratio_ci_pct: Replaces the profiles': both stop when the 95 % interval of their ratio is so narrow, in percent.
        show: Called with how many times are done of all.
        keep: Called after each time with the document so far: hours of measuring may be cut off.

    Raises:
        InputError: No file, no time at all, or no width to reach.
    """
    if times < 1 or not all(value is None or value > 0 for value in (max_time_s, ratio_ci_pct)):
        raise InputError("There is nothing to measure.", expected="at least one time, time for it, and a width above 0")
    head = {
        "format": "edge_seg.same_file",
        "file": file.name,
        "sha256": sha256_of(file),
        "images_n": len(images),
        "ratio_of": "neighbouring blocks of one file opened twice, in turns (paired: benchmarks.stats_paired)",
    }
    found: list[dict[str, Any]] = []
    for k, profile in enumerate(profiles):
        plan = Plan.of(profile if ratio_ci_pct is None else replace(profile, ratio_ci_pct=ratio_ci_pct))
        if max_time_s is not None:
            plan = replace(plan, max_time_s=max_time_s, min_time_s=min(plan.min_time_s, max_time_s))

        def shown(done: float, before: int = k * times) -> None:
            show(before + done)

        def kept(one: dict[str, Any]) -> None:
            keep({**head, "profiles": [*found, one]})

        found.append(of_profile(file, profile, plan, images, times=times, show=shown, keep=kept))
    return {**head, "profiles": found}


def text(found: Mapping[str, Any]) -> str:
    """Returns the document for people."""
    lines = [f"{found['file']} against itself, in turns"]
    for one in found["profiles"]:
        stolen = one["steal_pct"]
        told = f"stolen {stolen['median']:.1f} %, at most {stolen['most']:.1f} %" if stolen else "stolen time not known"
        furthest = "" if one["furthest_pct"] is None else f", furthest {one['furthest_pct']:.2f} %"
        lines += [
            f"{one['profile']} (threads: {one['threads']}): {one['within_n']} of {one['times_n']} within"
            f" {one['within_pct']:g} %, {one['within_in_a_row']} in a row{furthest};"
            f" {one['alarms_n']} alarms ({one['alarms_stated']:g} stated); {told}",
            f"  by medians alone: {one['of_medians_within_n']} within, {one['of_medians_alarms_n']} alarms",
            *map(_line, one["times"]),
        ]
    return "\n".join(lines)


def _line(one: Mapping[str, Any]) -> str:
    if one["ratio"] is None:
        return f"  {one['failed']}"
    (low, high), apart = one["ci95"], one["of_medians"]
    return (
        f"  {one['ratio']:.4f} [{low:.4f}, {high:.4f}] of {one['blocks']} blocks; medians {apart['ratio']:.4f}"
        f" [{apart['ci95'][0]:.4f}, {apart['ci95'][1]:.4f}]"
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--profile", "profiles", multiple=True, default=("host_cpu_1t",), show_default=True)
@click.option("--times", default=10, show_default=True, help="How often on each profile.")
@click.option("--max-time-s", type=float, help="Measured seconds of each of the two; default: the profile's.")
@click.option("--ratio-ci-pct", type=float, help="Stop when the 95 % interval of the ratio is so narrow, percent.")
@click.option("--data", default="synthetic:easy", show_default=True, help="Pictures to run on.")
@click.option("--images", "count", default=8, show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the document here.")
def main(
    file: Path,
    profiles: tuple[str, ...],
    times: int,
    max_time_s: float | None,
    ratio_ci_pct: float | None,
    data: str,
    count: int,
    json_file: Path | None,
) -> None:
    """Measures FILE against itself and says how often the ratio is within 2 % and how often a difference is called."""
    loaded, images = [load_profile(name) for name in profiles], pictures(data, count, "val")
    command = shlex.join(["python", "-m", "edge_seg.studies.same_file", *sys.argv[1:]])
    layout = "{l_bar}{bar}| {elapsed}<{remaining}"
    with tqdm(total=float(times * len(loaded)), desc="same file", bar_format=layout) as bar:

        def show(done: float) -> None:
            bar.update(max(0.0, done - bar.n))

        def keep(so_far: dict[str, Any]) -> None:
            if json_file is not None:
                write_json(json_file, {**so_far, "command": command})

        limits = {"max_time_s": max_time_s, "ratio_ci_pct": ratio_ci_pct}
        found = document(file, loaded, images, times=times, show=show, keep=keep, **limits)
    click.echo(text(found))


if __name__ == "__main__":
    start(main)
