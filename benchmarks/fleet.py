"""Measures one plan on many devices at once, and goes on where it was stopped.

A plan names files and devices; each device has profiles. One thread serves one device, so that two jobs never meet on
it. A job is one session of one profile and delegate with all files in turn. Its results are on disk as soon as they are
made: `OUT/DEVICE/PROFILE_DELEGATE_sN_try1/results.json`, the raw samples beside it, and `OUT/results.json` with all of
them. A second call measures only what is missing, by device, profile, delegate, session and hash of the file.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import sha256_of, write_json
from edge_seg.benchmarks.bench import Clocks, benchmark
from edge_seg.benchmarks.profile import Profile, load_profile, with_address
from edge_seg.benchmarks.result import Record, load_records, samples_name, save_records
from edge_seg.benchmarks.runner import RUNNERS
from edge_seg.config import from_mapping, load_toml
from edge_seg.errors import ConfigError, EdgeSegError, MissingHere

_TODO = "a plan is: files = [...]; [[device]] name, profiles = [...], and address, delegates, sessions where needed"
_NAMES = ("results.json", "failures.json")


@dataclass(frozen=True)
class PlannedDevice:
    """One device of a plan.

    Attributes:
        name: What its owner calls it; names its folder.
        profiles: Names of profiles, or paths of `.toml` files relative to the plan.
        address: Where it is, for runners that need it; replaces the profiles'.
        delegates: Instead of the profiles'.
        sessions: Instead of the profiles'; 0 for theirs.
    """

    name: str
    profiles: tuple[str, ...]
    address: str = ""
    delegates: tuple[str, ...] = ()
    sessions: int = 0


@dataclass(frozen=True)
class FleetPlan:
    """What to measure where.

    Attributes:
        files: `.tflite` files, relative to the plan.
        device: Devices.
        accuracy: Documents of `evaluate --json`, relative to the plan.
        max_time_s: Instead of the profiles'; 0 for theirs.
    """

    files: tuple[str, ...]
    device: tuple[PlannedDevice, ...]
    accuracy: tuple[str, ...] = ()
    max_time_s: float = 0.0


@dataclass(frozen=True)
class Job:
    """One session of one profile and delegate on one device, with the files still to measure."""

    device: PlannedDevice
    profile: Profile
    delegate: str
    session: int
    files: tuple[Path, ...]

    @property
    def label(self) -> str:
        """Names the job for people."""
        return f"{self.device.name}: {self.profile.name}, {self.delegate}, session {self.session}"


@dataclass(frozen=True)
class Failed:
    """A job that did not get to its end.

    Attributes:
        job: Its label.
        error: Why, as the user sees it.
        exit_code: The error's.
        started: Whether it was begun; what follows on a device that is gone is not.
    """

    job: str
    error: str
    exit_code: int
    started: bool = True


@dataclass
class Fleet:
    """What a call has done.

    Attributes:
        results: The results file.
        records: Every finished record, of this call and those before.
        measured: Records that this call added.
        skipped: Records that were there already.
        failures: Jobs that did not get to their end.
    """

    results: Path
    records: list[Record] = field(default_factory=list)
    measured: int = 0
    skipped: int = 0
    failures: list[Failed] = field(default_factory=list)


def load_plan(path: Path) -> FleetPlan:
    """Reads a plan.

    Raises:
        ConfigError: Missing, not TOML, an unknown key, a wrong type, nothing to do, or two entries for one device.
    """
    plan = from_mapping(FleetPlan, load_toml(path, "plan", _TODO))
    _require(bool(plan.files), "at least one file", "none")
    _require(bool(plan.device), "at least one [[device]]", "none")
    _require(plan.max_time_s >= 0, "max_time_s >= 0", plan.max_time_s)
    names = [_folder(device) for device in plan.device]
    _require(len(set(names)) == len(names), "devices with different names", ", ".join(names))
    for device in plan.device:
        _require(bool(device.profiles), f"profiles of {device.name!r}", "none")
        _require(device.sessions >= 0, f"sessions of {device.name!r} >= 0", device.sessions)
    return plan


def _require(holds: bool, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError("The plan cannot be carried out.", expected=expected, got=str(got), todo=_TODO)


def _folder(device: PlannedDevice) -> str:
    return samples_name((device.name,)).removesuffix(".npz")


def run_fleet(
    plan_file: Path,
    *,
    images: Sequence[NDArray[np.uint8]],
    out: Path,
    progress: TextIO | None = None,
    clocks: Clocks | None = None,
) -> Fleet:
    """Measures what is missing of a plan, on all its devices at once.

    Args:
        plan_file: The plan.
        images: Real pictures, each [H, W, 3] uint8 RGB.
        out: Folder of the results.
        progress: Where the progress bar goes (stderr), or None for none.
        clocks: Where time comes from.

    Returns:
        All records and what went wrong; a failed device does not stop the others.

    Raises:
        ConfigError: The plan or a profile is wrong.
        InputError: A file of the plan is missing.
    """
    plan, folder = load_plan(plan_file), plan_file.parent
    queues = _queues(plan, folder)
    fleet = _Running(plan, folder, images, out, clocks or Clocks())
    for device in plan.device:
        fleet.collect(device)
    missing = [[job for job in map(fleet.still_missing, jobs) if job.files] for jobs in queues]
    total = sum(len(job.files) for jobs in queues for job in jobs)
    with _bar(progress, total, fleet.state) as tick, ThreadPoolExecutor(max_workers=len(queues)) as pool:
        running = [pool.submit(fleet.serve, jobs, tick) for jobs in missing]
        try:
            for future in as_completed(running):
                future.result()
        except BaseException:
            fleet.stop.set()  # threads end at their next run; what they have measured is on disk
            raise
    fleet.write()
    return fleet.state


def _queues(plan: FleetPlan, folder: Path) -> list[list[Job]]:
    """Returns the jobs of each device, and refuses two entries that are the same device."""
    files = tuple(folder / name for name in plan.files)
    hashes = [sha256_of(path) for path in files]
    _require(len(set(hashes)) == len(hashes), "each file once", ", ".join(plan.files))
    queues, owners = [], dict[str, str]()
    for device in plan.device:
        profiles = [_profile(device, name, folder, plan.max_time_s) for name in device.profiles]
        for profile in profiles:
            for where in _where(profile):
                owner = owners.setdefault(where, device.name)
                _require(owner == device.name, "each device once", f"{owner!r} and {device.name!r} are both {where}")
        queues.append(
            [
                Job(device, profile, delegate, session, files)
                for profile in profiles
                for session in range(1, profile.sessions + 1)
                for delegate in profile.delegates
            ]
        )
    _check_vague(queues)
    return queues


def _check_vague(queues: Sequence[Sequence[Job]]) -> None:
    """Refuses an address that means any device beside another one of the same runner: they could be one."""
    found = {(job.profile.runner, job.profile.address, job.device.name) for jobs in queues for job in jobs}
    for runner, address, name in sorted(found):
        vague = address in ("", "all") and not getattr(RUNNERS[runner], "local", False)
        others = sorted({other for r, _, other in found if r == runner and other != name})
        _require(not (vague and others), f"an address for {name!r}, beside {', '.join(others)}", address or "none")


def _profile(device: PlannedDevice, name: str, folder: Path, max_time_s: float) -> Profile:
    profile = load_profile(folder / name if name.endswith(".toml") else name)
    if device.address:
        profile = with_address(profile, device.address)
    longest_s = max_time_s or profile.max_time_s
    return replace(
        profile,
        delegates=device.delegates or profile.delegates,
        sessions=device.sessions or profile.sessions,
        max_time_s=longest_s,
        min_time_s=min(profile.min_time_s, longest_s),
    )


def _where(profile: Profile) -> list[str]:
    """Names the machines a profile is measured on: two jobs must not meet there."""
    runner: Any = RUNNERS[profile.runner]
    if getattr(runner, "local", False):
        return ["this machine"]
    return [f"{profile.runner} {address.strip()}".strip() for address in profile.address.split(",")]


_Tick = Callable[[str, int], None]


class _Running:
    """The state of one call that all threads share."""

    def __init__(
        self, plan: FleetPlan, folder: Path, images: Sequence[NDArray[np.uint8]], out: Path, clocks: Clocks
    ) -> None:
        self.images, self.out, self.clocks = images, out, clocks
        self.accuracy = [folder / name for name in plan.accuracy]
        self.state = Fleet(out / _NAMES[0])
        self.stop = threading.Event()
        self._lock = threading.Lock()
        self._done: dict[tuple[Any, ...], Record] = {}

    def collect(self, device: PlannedDevice) -> None:
        """Reads what earlier calls have finished on a device."""
        for path in sorted((self.out / _folder(device)).glob(f"*/{_NAMES[0]}")):
            self.state.skipped += self._take(device, path)

    def _take(self, device: PlannedDevice, path: Path) -> int:
        """Takes finished records over; one that was cut short counts as missing, and stays in its own file."""
        new, folder = 0, path.parent.relative_to(self.out).as_posix()
        for record in load_records(path):
            key = (device.name, record.profile, record.delegate_requested, record.session, record.sha256)
            if record.protocol.get("stopped_by") != "lost" and key not in self._done:
                self._done[key] = replace(
                    record,
                    device={**record.device, "label": device.name},
                    samples_file=f"{folder}/{record.samples_file}" if record.samples_file else record.samples_file,
                )
                new += 1
        return new

    def still_missing(self, job: Job) -> Job:
        """Returns the job with those of its files that have no finished record."""
        key = (job.device.name, job.profile.name, job.delegate, job.session)
        return replace(job, files=tuple(f for f in job.files if (*key, sha256_of(f)) not in self._done))

    def serve(self, jobs: Sequence[Job], tick: _Tick) -> None:
        """Carries out the jobs of one device, one after the other."""
        for k, job in enumerate(jobs):
            if self.stop.is_set():
                return
            if k and job.session != jobs[k - 1].session:
                self._clocks().sleep_s(job.profile.cool_down_s)
            error = self._carry_out(job, tick)
            if isinstance(error, MissingHere):
                self._fail(jobs[k + 1 :], error, started=False)  # the device is gone: do not wait for it each time
                return

    def _carry_out(self, job: Job, tick: _Tick) -> EdgeSegError | None:
        path = self._free_path(job)
        error = None
        try:
            benchmark(
                job.files,
                [replace(job.profile, delegates=(job.delegate,), cool_down_s=0.0)],  # the rest is `serve`'s
                images=self.images,
                out=path,
                accuracy=self.accuracy,
                sessions=(job.session,),
                clocks=self._clocks(),
            )
        except EdgeSegError as raised:
            error = raised
            self._fail([job], raised, started=True)
        finally:
            with self._lock:
                self.state.measured += self._take(job.device, path) if path.is_file() else 0
                self._write()
            tick(job.label, len(job.files))
        return error

    def _clocks(self) -> Clocks:
        """Returns clocks that end the thread when the call is to stop."""

        def now_s() -> float:
            self._check_stop()
            return self.clocks.now_s()

        def sleep_s(seconds: float) -> None:
            self._check_stop()
            if self.clocks.sleep_s is time.sleep:
                self.stop.wait(seconds)
                self._check_stop()
            else:
                self.clocks.sleep_s(seconds)

        return Clocks(now_s=now_s, sleep_s=sleep_s, utc=self.clocks.utc)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise KeyboardInterrupt

    def _free_path(self, job: Job) -> Path:
        """Returns a results file in a new folder: what an earlier try has left is never written over."""
        stem = samples_name((job.profile.name, job.delegate, f"s{job.session}")).removesuffix(".npz")
        folder = self.out / _folder(job.device)
        tries = (folder / f"{stem}_try{k}" for k in itertools.count(1))
        return next(path for path in tries if not path.exists()) / _NAMES[0]

    def _fail(self, jobs: Sequence[Job], error: EdgeSegError, *, started: bool) -> None:
        with self._lock:
            self.state.failures += [Failed(job.label, str(error), error.exit_code, started) for job in jobs]

    def write(self) -> None:
        """Writes all results and failures."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        self.state.records = [self._done[key] for key in sorted(self._done)]
        save_records(self.state.results, self.state.records)
        write_json(self.out / _NAMES[1], [vars(failure) for failure in self.state.failures])


@contextlib.contextmanager
def _bar(stream: TextIO | None, total: int, state: Fleet) -> Iterator[_Tick]:
    """Yields a function that moves a progress bar by the files of a job; threads may call it."""
    if stream is None:
        yield lambda label, files: None
        return
    from tqdm import tqdm

    lock = threading.Lock()
    layout = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}"
    with tqdm(total=total, file=stream, desc="fleet", bar_format=layout) as bar:

        def tick(label: str, files: int) -> None:
            with lock:
                failed = f", {len(state.failures)} jobs failed" if state.failures else ""
                bar.set_postfix_str(label + failed, refresh=False)
                bar.update(files)

        yield tick
