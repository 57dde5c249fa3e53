"""Measures files on profiles and writes the records: what the command line's `benchmark` calls."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import read_json, sha256_of, write_bytes
from edge_seg.benchmarks.harness import Plan, Series, measure
from edge_seg.benchmarks.memory import peak_memory
from edge_seg.benchmarks.profile import Profile, load_profile
from edge_seg.benchmarks.result import Kind, Record, samples_name, save_records
from edge_seg.benchmarks.runner import RUNNERS, Executor, Failure, Runner, ToolRun, ToolRunner
from edge_seg.benchmarks.summary import Subject, summarise
from edge_seg.benchmarks.sustain import images_sha256
from edge_seg.benchmarks.tool_summary import summarise_tool
from edge_seg.errors import InputError, MissingHere

_ACCURACY_METRICS = ("pq", "ap")


@dataclass(frozen=True)
class Clocks:
    """Where time comes from; a test gives its own.

    Attributes:
        now_s: Seconds from any origin.
        sleep_s: Waits that many seconds.
        utc: Date and time.
    """

    now_s: Callable[[], float] = time.perf_counter
    sleep_s: Callable[[float], None] = time.sleep
    utc: Callable[[], datetime] = lambda: datetime.now(UTC)


def benchmark(
    files: Sequence[Path],
    profiles: Sequence[str | Path | Profile],
    *,
    images: Sequence[NDArray[np.uint8]],
    out: Path,
    accuracy: Sequence[Path] = (),
    max_time_s: float | None = None,
    ratio_ci_pct: float | None = None,
    sessions: Sequence[int] = (),
    memory: bool = False,
    progress: TextIO | None = None,
    clocks: Clocks | None = None,
) -> list[Record]:
    """Measures every file on every profile, delegate and session, and writes `out` after each finished file.

    Args:
        files: `.tflite` files with an embedded contract.
        profiles: Names of profiles, paths of `.toml` files, or profiles.
        images: Real pictures, each [H, W, 3] uint8 RGB; they matter, since decoding depends on what is found.
        out: The results file (JSON); raw samples go to `samples/` beside it.
        accuracy: Documents of `evaluate --json`, matched to files by hash.
        max_time_s: Replaces the profiles' `max_time_s`: less for a quick look (`valid` then says what it cost), more on
            a restless machine.
        ratio_ci_pct: Replaces the profiles': files in turns stop together when the 95 % interval of each one's ratio to
            the first is so narrow, in percent; on a restless machine that is long before each median is known.
        sessions: Numbers of the sessions to measure, from 1; none for as many as the profile says.
        memory: Whether peak memory is read as well, before the times, on profiles of this machine that were given by
            name or path: each file is opened in a process of its own.
        progress: Where the progress bar goes (stderr), or None for none.
        clocks: Where time comes from.

    Returns:
        The records: by profile, delegate and session, then in the order of the files.

    Raises:
        InputError: No file, no profile, no image, a missing file, a file given twice, or the ratio of one file.
        ConfigError: An unknown or wrong profile.
        MissingHere: The device or runtime of a profile is not here, or went away; what was measured is in `out`.
    """
    known = [item if isinstance(item, Profile) else load_profile(item) for item in profiles]
    loaded = [_with_ratio(_with_max_time(profile, max_time_s), ratio_ci_pct, len(files)) for profile in known]
    hashes = _hashes(files)
    if not loaded or not images:
        raise InputError("There is nothing to measure.", expected="at least one file, one profile and one image")
    job = _Job(list(files), hashes, images, out, load_accuracy(accuracy), clocks or Clocks())
    if memory:
        job.peaks_mb = _peaks_mb(files, profiles)
    rounds = [(p, d, s) for p in loaded for d in p.delegates for s in sessions or range(1, p.sessions + 1)]
    with _bar(progress, len(rounds) * len(files)) as show:
        for turn, (profile, delegate, session) in enumerate(rounds):
            if session > 1:
                job.clocks.sleep_s(profile.cool_down_s)
            job.run(_Round(turn, profile, delegate, session, job.utc()), show)
    job.raise_failures()
    return job.records


@dataclass(frozen=True)
class _Round:
    """One session of one profile and delegate."""

    turn: int
    profile: Profile
    delegate: str
    session: int
    started_utc: str


class _Job:
    """The files of one call, and the records so far."""

    def __init__(
        self,
        files: list[Path],
        hashes: list[str],
        images: Sequence[NDArray[np.uint8]],
        out: Path,
        accuracy: Mapping[str, Mapping[str, Any]],
        clocks: Clocks,
    ) -> None:
        self.files, self.hashes, self.images, self.out = files, hashes, images, out
        self.accuracy, self.clocks = accuracy, clocks
        self.images_sha256 = images_sha256(images)
        self.peaks_mb: dict[tuple[str, str, Path], float] = {}
        self._found: dict[tuple[int, int, str], Record] = {}
        self._failures: list[Failure] = []
        self._lock = threading.Lock()  # phones are measured at the same time

    @property
    def records(self) -> list[Record]:
        """The records so far: by round, then in the order of the files, not in the order they finished."""
        return [self._found[key] for key in sorted(self._found)]

    def utc(self) -> str:
        """Returns the time now, ISO 8601."""
        return self.clocks.utc().isoformat(timespec="seconds")

    def run(self, at: _Round, show: _Show) -> None:
        """Measures all files in one session of one profile."""
        runner = RUNNERS[at.profile.runner]()
        if isinstance(runner, ToolRunner):
            self._run_tool(runner, at, show)
            return
        plan = Plan.of(at.profile)
        with runner.session(at.profile), _opened(runner, self.files, at) as executors:
            finish_watch = runner.watch()
            subjects = [self._subject(i, at, runner.kind, runner.device()) for i in range(len(self.files))]

            def done(series: Series) -> None:
                opened = executors[series.index].facts
                name = _write_samples(self.out, subjects[series.index], series)
                self._found[at.turn, series.index, ""] = summarise(
                    subjects[series.index],
                    opened,
                    series,
                    plan,
                    environment=finish_watch(),
                    samples_file=name,
                )
                save_records(self.out, self.records)

            def block(index: int, fraction: float, n: int) -> None:
                show(self.files[index].name, at.profile.name, fraction, n)

            measure(executors, self.images, plan, clock=self.clocks.now_s, on_done=done, on_block=block)

    def _run_tool(self, runner: ToolRunner, at: _Round, show: _Show) -> None:
        """Has another program measure all files on one device or several; a record is written when it is there."""
        n = len(self.files)

        def done(run: ToolRun) -> None:
            device = str(run.device.get("id", ""))
            subject = replace(self._subject(run.index, at, run.kind, run.device), images_n=0, images_sha256=None)
            log_file = f"logs/{samples_name((*_key(subject), device)).removesuffix('.npz')}.txt"
            write_bytes(self.out.parent / log_file, run.log)
            with self._lock:
                self._found[at.turn, run.index, device] = summarise_tool(subject, run, log_file)
                save_records(self.out, self.records)
                show(self.files[run.index].name, at.profile.name, 1.0, run.told.n or 0)

        order = range(n) if at.session % 2 else range(n - 1, -1, -1)
        failures = runner.measure_files(self.files, order, at.profile, at.delegate, done)
        for k, failure in enumerate(failures):
            parts = (at.profile.name, at.delegate, f"s{at.session}", failure.device, k)
            name = samples_name(parts).removesuffix(".npz")
            write_bytes(self.out.parent / f"logs/{name}.failed.txt", failure.output or str(failure.error).encode())
        self._failures += failures
        if any(failure.fatal for failure in failures):
            self.raise_failures()

    def raise_failures(self) -> None:
        """Raises what went wrong on devices, if anything, with how much is kept."""
        if not self._failures:
            return
        kept = f"{len(self._found)} records are kept in {self.out}" if self._found else "nothing was measured"
        fatal = [failure for failure in self._failures if failure.fatal]
        first = (fatal or self._failures)[0].error
        more = f" (and {len(self._failures) - 1} more, see logs/ beside it)" if len(self._failures) > 1 else ""
        kind = MissingHere if isinstance(first, MissingHere) else InputError
        todo = "; ".join(part for part in (first.todo, kept) if part)
        raise kind(first.what + more, expected=first.expected, got=first.got, todo=todo) from first

    def _subject(self, index: int, at: _Round, kind: Kind, device: Mapping[str, Any]) -> Subject:
        return Subject(
            path=self.files[index],
            sha256=self.hashes[index],
            profile=at.profile,
            delegate=at.delegate,
            kind=kind,
            device=device,
            session=at.session,
            started_utc=at.started_utc,
            images_n=len(self.images),
            images_sha256=self.images_sha256,
            accuracy=self.accuracy.get(self.hashes[index]),
            peak_memory_mb=self.peaks_mb.get((at.profile.name, at.delegate, self.files[index])),
        )


def _peaks_mb(files: Sequence[Path], profiles: Sequence[str | Path | Profile]) -> dict[tuple[str, str, Path], float]:
    """Returns the peak memory of every file by profile and delegate, where the profile is one of this machine."""
    found = {}
    for source in profiles:
        profile = source if isinstance(source, Profile) else load_profile(source)
        if isinstance(source, Profile) or not getattr(RUNNERS[profile.runner], "local", False):
            continue
        for delegate, file in [(d, f) for d in profile.delegates for f in files]:
            found[profile.name, delegate, file] = peak_memory(file, source, delegate).peak_mb
    return found


def _key(subject: Subject) -> tuple[str, ...]:
    """Returns what tells a record's files from those of others."""
    return (
        subject.path.stem,
        subject.sha256[:8],
        subject.profile.name,
        subject.delegate,
        f"s{subject.session}",
    )


def _write_samples(out: Path, subject: Subject, series: Series) -> str:
    name = f"samples/{samples_name(_key(subject))}"
    series.samples.save(out.parent / name)
    return name


@contextlib.contextmanager
def _opened(runner: Runner, files: Sequence[Path], at: _Round) -> Iterator[list[Executor]]:
    """Opens all files, in even sessions the last one first, and closes those that were opened, whatever happens.

    Of two interpreters of one file the one that was opened second is up to 1 % faster (results/README.md, `same_file`).
    """
    opened: dict[Path, Executor] = {}
    with contextlib.ExitStack() as stack:
        for path in files if at.session % 2 else reversed(files):
            opened[path] = runner.open(path, at.profile, at.delegate)
            stack.callback(opened[path].close)
        yield [opened[path] for path in files]


def _hashes(files: Sequence[Path]) -> list[str]:
    if not files:
        raise InputError("There is nothing to measure.", expected="at least one .tflite file")
    hashes = [sha256_of(path) for path in files]
    twice = {h for h in hashes if hashes.count(h) > 1}
    if twice:
        same = [str(p) for p, h in zip(files, hashes, strict=True) if h in twice]
        raise InputError("The same file was given twice.", got=", ".join(same), todo="name each file once")
    return hashes


def _with_max_time(profile: Profile, max_time_s: float | None) -> Profile:
    if max_time_s is None:
        return profile
    if not 0.0 < max_time_s < math.inf:
        raise InputError("The time limit must be positive.", expected="seconds > 0", got=str(max_time_s))
    return replace(profile, max_time_s=max_time_s, min_time_s=min(profile.min_time_s, max_time_s))


def _with_ratio(profile: Profile, ratio_ci_pct: float | None, files_n: int) -> Profile:
    if ratio_ci_pct is None:
        return profile
    if isinstance(RUNNERS[profile.runner](), ToolRunner):
        raise InputError(
            f"The profile {profile.name} knows no ratios: there another program measures one file after the other.",
            expected="a profile whose runner takes turns, such as host_cpu_1t",
            todo="leave --ratio-ci-pct out",
        )
    if not 0.0 < ratio_ci_pct < math.inf or files_n < 2:
        raise InputError(
            "There is no ratio to know so well.",
            expected="a positive percentage, and at least two files, of which the first is what the others are held to",
            got=f"{ratio_ci_pct:g} % and {files_n} file" + "s" * (files_n != 1),
        )
    return replace(profile, ratio_ci_pct=ratio_ci_pct)


def load_accuracy(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Reads evaluation documents and returns `{file sha256: {metric, value, fp32_value, data_sha256}}`.

    `fp32_value` is the value of the fp32 file of the same network on the same data among them, or None; an unknown data
    hash is None.

    Args:
        paths: JSON documents of `evaluate`; those without `file_sha256` are of no file and are left out.

    Raises:
        InputError: Missing or not JSON, or without a metric.
    """
    documents = [(path, read_json(path, "evaluation document")) for path in paths]
    values = {path: _metric(path, document) for path, document in documents}
    fp32 = {_subject(d, values[p][0]): values[p][1] for p, d in documents if "fp32" in (d.get("name"), d.get("scheme"))}
    return {
        str(document["file_sha256"]): {
            "metric": values[path][0],
            "value": values[path][1],
            "fp32_value": fp32.get(_subject(document, values[path][0])),
            "data_sha256": document.get("data_sha256"),
        }
        for path, document in documents
        if document.get("file_sha256")
    }


def _subject(document: Mapping[str, Any], metric: str) -> tuple[str, str, str]:
    """What documents of a file and of its fp32 file have in common: metric, data and network."""
    network = str(document.get("model", "")).removesuffix(".tflite").removesuffix(f"_{document.get('scheme')}")
    return metric, str(document.get("data_sha256")), network


def _metric(path: Path, document: Any) -> tuple[str, float]:
    for name in _ACCURACY_METRICS:
        if isinstance(document, dict) and isinstance(document.get(name), int | float):
            return name, float(document[name])
    raise InputError(f"{path} is not an evaluation document.", expected=" or ".join(_ACCURACY_METRICS))


_Show = Callable[[str, str, float, int], None]


@contextlib.contextmanager
def _bar(stream: TextIO | None, total: int) -> Iterator[_Show]:
    """Yields a function that moves a progress bar; each file counts as one, in fractions."""
    if stream is None:
        yield lambda file, profile, fraction, n: None
        return
    from tqdm import tqdm

    done: dict[tuple[str, str], float] = {}
    finished = 0
    layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
    with tqdm(total=float(total), file=stream, desc="benchmark", bar_format=layout) as bar:

        def show(file: str, profile: str, fraction: float, n: int) -> None:
            nonlocal finished
            done[file, profile] = fraction
            if fraction >= 1.0:
                finished += 1
                del done[file, profile]
            bar.set_postfix_str(f"{profile} {file}, {n} runs", refresh=False)
            bar.update(max(0.0, finished + sum(done.values()) - bar.n))

        yield show
