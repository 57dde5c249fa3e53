"""Plays recorded samples again, always the same: whatever lies above a runner can be tried without a device.

The profile's `address` is the recording: a results file of `benchmark` (its samples beside it), or one JSON object

    {"kind": "measured", "model": "M", "scheme": "fp32", "delegate": "xnnpack", "run_ms": [10.0, 10.1]}

with, as far as they are known, `sha256 pre_ms post_ms t_s init_ms runtime device environment`. What it plays stays what
the recording says it is. Where the harness wants more runs than were recorded they come round again, and the
environment says so.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import read_json, sha256_of
from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.result import Kind, Record, Samples, samples_path
from edge_seg.benchmarks.runner import RUNNERS, Opened, StageTimes
from edge_seg.config import from_mapping
from edge_seg.errors import ArtifactError, ConfigError, InputError, MissingHere

_KINDS = ("measured", "emulated", "estimated")


@dataclass(frozen=True)
class Recording:
    """Samples of one file under one delegate.

    Attributes:
        kind: What they are: measured, emulated or estimated.
        model: Name from the contract.
        scheme: Scheme from the contract.
        run_ms: Write, invoke and read, one per run.
        delegate: Delegate that was asked for; "" fits every one.
        sha256: Hash of the file; "" fits every one.
        pre_ms: Picture to input, one per run, or empty where unknown.
        post_ms: Raw outputs to masks, likewise.
        t_s: Starts in seconds, or empty for one run after the other.
        init_ms: Opening the file.
        delegate_actual: What the runtime said it used.
        nodes_delegated: Nodes the delegate took.
        nodes_total: Nodes of the graph.
        runtime: `name version`.
        device: `name soc os cpu`.
        environment: What was read about the device.
        unknown: Why something is None.
    """

    kind: str
    model: str
    scheme: str
    run_ms: tuple[float, ...]
    delegate: str = ""
    sha256: str = ""
    pre_ms: tuple[float, ...] = ()
    post_ms: tuple[float, ...] = ()
    t_s: tuple[float, ...] = ()
    init_ms: float | None = None
    delegate_actual: str | None = None
    nodes_delegated: int | None = None
    nodes_total: int | None = None
    runtime: dict[str, Any] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    unknown: dict[str, Any] = field(default_factory=dict)

    def times(self, run: int) -> tuple[float, StageTimes]:
        """Returns start in seconds and times of a run; after the last one they come round again.

        Args:
            run: Number from 0.
        """
        turn, i = divmod(run, len(self.run_ms))
        pre_ms, post_ms = (stage[i] if stage else None for stage in (self.pre_ms, self.post_ms))
        start_s = float(self._starts_s[i] + turn * self._starts_s[-1])
        return start_s, StageTimes(pre_ms, self.run_ms[i], post_ms)

    @property
    def _starts_s(self) -> NDArray[np.float64]:
        """Starts of the runs, and the end of the last one."""
        if self.t_s:
            return np.array([*self.t_s, self.t_s[-1] + self.run_ms[-1] / 1e3])
        total_ms = sum(np.array(stage) for stage in (self.pre_ms, self.run_ms, self.post_ms) if stage)
        return np.concatenate([[0.0], np.cumsum(total_ms) / 1e3])


def load_recordings(path: Path) -> list[Recording]:
    """Reads a results file with its samples, or one recording.

    Raises:
        InputError: Missing or not JSON.
        ArtifactError: Neither of the two, or with samples that are none.
    """
    document = read_json(path, "recording")
    if isinstance(document, list):
        return [
            _of_record(path, Record.from_json(item, source=f"{path} record {i}")) for i, item in enumerate(document)
        ]
    return [_recording(path, document)]


def _recording(path: Path, document: Any) -> Recording:
    try:
        recording = from_mapping(Recording, document)
    except ConfigError as error:
        todo = error.todo or "see edge_seg.benchmarks.runners.replay"
        raise ArtifactError(f"{path}: {error.what}", expected=error.expected, got=error.got, todo=todo) from error
    _check(path, recording)
    return recording


def _of_record(path: Path, record: Record) -> Recording:
    samples = Samples.load(samples_path(path, record))
    known = {name: getattr(samples, name) for name in ("t_s", "pre_ms", "run_ms", "post_ms")}
    columns = {name: () if np.isnan(column).any() else tuple(map(float, column)) for name, column in known.items()}
    facts = {name: getattr(record, name) for name in ("kind", "model", "scheme", "sha256", "init_ms")}
    residency = {name: getattr(record, name) for name in ("delegate_actual", "nodes_delegated", "nodes_total")}
    described = {name: dict(getattr(record, name)) for name in ("runtime", "device", "environment", "unknown")}
    return _recording(path, {"delegate": record.delegate_requested, **facts, **columns, **residency, **described})


def _check(path: Path, recording: Recording) -> None:
    count = len(recording.run_ms)
    columns = [recording.run_ms, *(c for c in (recording.pre_ms, recording.post_ms, recording.t_s) if c)]
    fits = count > 0 and all(len(column) == count for column in columns)
    if recording.kind not in _KINDS or not fits:
        raise ArtifactError(
            f"{path} is not a recording.",
            expected=f"kind {', '.join(_KINDS)}; samples, and columns of one length",
            got=f"{recording.kind}; lengths {[len(column) for column in columns]}",
        )
    if not all(math.isfinite(value) and value >= 0 for column in columns for value in column):
        raise ArtifactError(f"{path} holds a time that is none.", expected="finite numbers, zero or more")


class ReplayExecutor:
    """A recording that is played from its start."""

    def __init__(self, recording: Recording) -> None:
        self.recording, self.played = recording, 0
        self.facts = Opened(
            model=recording.model,
            scheme=recording.scheme,
            init_ms=recording.init_ms,
            runtime=recording.runtime,
            delegate_actual=recording.delegate_actual,
            nodes_delegated=recording.nodes_delegated,
            nodes_total=recording.nodes_total,
            unknown={**_silences(recording), **recording.unknown},
        )

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Needs no pictures, [H, W, 3] RGB."""

    def block(self, images: Sequence[NDArray[np.uint8]]) -> list[tuple[float, StageTimes]]:
        """Returns the next runs, one per picture, with the starts that were recorded."""
        runs = [self.recording.times(self.played + k) for k in range(len(images))]
        self.played += len(images)
        return runs

    def step(self, image_hwc_u8: NDArray[np.uint8]) -> StageTimes:
        """Returns the times of the next run."""
        return self.block([image_hwc_u8])[0][1]

    def close(self) -> None:
        """Holds nothing."""


def _silences(recording: Recording) -> dict[str, str]:
    names = ("init_ms", "delegate_actual", "nodes_delegated", "nodes_total")
    found = [name for name in names if getattr(recording, name) is None]
    found += [f"stages.{name}" for name in ("pre_ms", "post_ms") if not getattr(recording, name)]
    return {name: "the recording does not tell" for name in found}


@RUNNERS.register("replay")
class ReplayRunner:
    """The recording at the profile's address. Its kind is the recording's."""

    name = "replay"
    local = False

    def __init__(self) -> None:
        self.kind: Kind = "estimated"
        self._recordings: list[Recording] = []
        self._opened: list[ReplayExecutor] = []

    @contextlib.contextmanager
    def session(self, profile: Profile) -> Iterator[None]:
        """Reads the recording; raises MissingHere where the profile names none."""
        if not profile.address:
            raise MissingHere(
                f"The profile {profile.name!r} names no recording.",
                expected="the path of one",
                got="none",
                todo=f"--profile {profile.name}@results.json",
            )
        self._recordings, self._opened = load_recordings(Path(profile.address)), []
        yield

    def open(self, path: Path, profile: Profile, delegate: str) -> ReplayExecutor:
        """Finds the recording of a file, by its hash, and delegate.

        Raises:
            InputError: There is none, or its kind differs from another open one's.
        """
        sha256 = sha256_of(path)
        fitting = [r for r in self._recordings if r.sha256 in ("", sha256) and r.delegate in ("", delegate)]
        if not fitting:
            raise InputError(
                f"{profile.address} holds no recording of {path.name} on {delegate!r}.",
                expected=f"sha256 {sha256[:12]}",
                got=", ".join(sorted({f"{r.sha256[:12]} on {r.delegate!r}" for r in self._recordings})) or "none",
            )
        kinds = {fitting[0].kind, *(executor.recording.kind for executor in self._opened)}
        if len(kinds) > 1:
            raise InputError(
                "Recordings of several kinds cannot be played in one session.", got=", ".join(sorted(kinds))
            )
        self.kind = "measured" if kinds == {"measured"} else "emulated" if kinds == {"emulated"} else "estimated"
        self._opened.append(ReplayExecutor(fitting[0]))
        return self._opened[-1]

    def device(self) -> dict[str, Any]:
        """Returns the recorded device."""
        told: Mapping[str, Any] = self._opened[0].recording.device if self._opened else {}
        return {"name": "replay", "soc": None, "os": None, "cpu": None, **told}

    def watch(self) -> Callable[[], dict[str, Any]]:
        """Returns the recorded environment, with `replayed` and `runs_recorded`, `runs_played` of the open files."""

        def finish() -> dict[str, Any]:
            told = dict(self._opened[0].recording.environment) if self._opened else {}
            return {
                **told,
                "replayed": True,
                "runs_recorded": [len(executor.recording.run_ms) for executor in self._opened],
                "runs_played": [executor.played for executor in self._opened],
            }

        return finish
