"""Sustained runs of files on profiles: each file alone on its device, for minutes; what `edge-seg sustain` calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import sha256_of
from edge_seg.benchmarks.bench import Clocks, load_accuracy
from edge_seg.benchmarks.profile import Profile, load_profile
from edge_seg.benchmarks.result import Record, samples_name, save_records
from edge_seg.benchmarks.runner import RUNNERS, Runner, ToolRunner
from edge_seg.benchmarks.summary import Subject, summarise
from edge_seg.benchmarks.sustain import Sustain, images_sha256, sustain
from edge_seg.errors import InputError

Told = Callable[[str, float, int], None]


@dataclass(frozen=True)
class _Job:
    """What all runs of one call have in common."""

    images: Sequence[NDArray[np.uint8]]
    out: Path
    plan: Sustain
    accuracy: dict[str, dict[str, Any]]
    clocks: Clocks
    told: Told


def sustain_files(
    files: Sequence[Path],
    profiles: Sequence[str | Path],
    plan: Sustain,
    *,
    images: Sequence[NDArray[np.uint8]],
    out: Path,
    accuracy: Sequence[Path] = (),
    clocks: Clocks | None = None,
    told: Told = lambda file, fraction, n: None,
) -> list[Record]:
    """Runs every file for minutes on every profile and delegate, one after the other, and writes `out` after each.

    Args:
        files: `.tflite` files with an embedded contract.
        profiles: Names of profiles, or paths of `.toml` files; their `cool_down_s` is waited for between runs.
        plan: How long, and at how many frames per second.
        images: Real pictures, each [H, W, 3] uint8 RGB.
        out: The results file (JSON); raw samples go to `samples/` beside it.
        accuracy: Documents of `evaluate --json`, matched to files by hash.
        clocks: Where time comes from.
        told: Called after each minute with the file's name, the share that is done and the frames so far.

    Returns:
        The records: by profile, delegate and file.

    Raises:
        InputError: No file, profile or image, a missing file, or a runner that cannot pace frames.
        MissingHere: The device or runtime of a profile is not here.
    """
    loaded = [load_profile(name) for name in profiles]
    if not files or not loaded or not images:
        raise InputError("There is nothing to measure.", expected="at least one file, one profile and one image")
    job = _Job(images, out, plan, load_accuracy(accuracy), clocks or Clocks(), told)
    records: list[Record] = []
    for profile, delegate, path in [(p, d, f) for p in loaded for d in p.delegates for f in files]:
        if records:
            job.clocks.sleep_s(profile.cool_down_s)
        records.append(_run(job, path, profile, delegate))
        save_records(out, records)
    return records


def _run(job: _Job, path: Path, profile: Profile, delegate: str) -> Record:
    runner, sha256 = _paced(RUNNERS[profile.runner](), profile), sha256_of(path)
    started_utc = job.clocks.utc().isoformat(timespec="seconds")
    with runner.session(profile):
        executor = runner.open(path, profile, delegate)
        try:
            finish_watch = runner.watch()
            series = sustain(
                executor,
                job.images,
                job.plan,
                clock=job.clocks.now_s,
                sleep=job.clocks.sleep_s,
                on_minute=lambda fraction, n: job.told(path.name, fraction, n),
            )
            environment, facts = finish_watch(), executor.facts
        finally:
            executor.close()
    subject = Subject(
        path=path,
        sha256=sha256,
        profile=profile,
        delegate=delegate,
        kind=runner.kind,
        device=runner.device(),
        session=1,
        started_utc=started_utc,
        images_n=len(job.images),
        accuracy=job.accuracy.get(sha256),
        images_sha256=images_sha256(job.images),
    )
    name = "samples/" + samples_name((path.stem, sha256[:8], profile.name, delegate, "sustained"))
    series.samples.save(job.out.parent / name)
    return summarise(subject, facts, series, job.plan, environment=environment, samples_file=name)


def _paced(runner: Runner | ToolRunner, profile: Profile) -> Runner:
    """Returns the runner if frames can be sent to it one by one."""
    if isinstance(runner, ToolRunner):
        raise InputError(
            f"The runner {profile.runner!r} cannot pace frames.",
            expected="a runner that runs one picture at a time, such as host",
            got=f"profile {profile.name}",
            todo="there another program measures, which has no frame rate",
        )
    return runner
