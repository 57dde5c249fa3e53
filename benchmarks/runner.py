"""What a runner is: a way to open a file on a device and to run it picture by picture.

A runner is one file in `runners/`; its class is registered under the name that profiles use. Time is taken by
the runner, next to the work, because only it knows where a stage begins on its device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge_seg.benchmarks.parser import ToolResult
from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.result import Kind
from edge_seg.errors import EdgeSegError
from edge_seg.registry import Registry


@dataclass(frozen=True)
class StageTimes:
    """One run, in milliseconds: picture to input; write, invoke and read; raw outputs to masks.

    A stage that a runner cannot measure is None; `Opened.unknown` then says why under "stages.pre_ms" and so on.
    """

    pre_ms: float | None
    run_ms: float
    post_ms: float | None

    @property
    def total_ms(self) -> float:
        """All stages that were measured."""
        return (self.pre_ms or 0.0) + self.run_ms + (self.post_ms or 0.0)


@dataclass(frozen=True)
class Opened:
    """What is known about an open file.

    Attributes:
        model: Name from the contract.
        scheme: Scheme from the contract.
        init_ms: Opening until it can run, or None.
        runtime: `name version`.
        delegate_actual: What the runtime says it used, or None.
        nodes_delegated: Nodes the delegate took, or None.
        nodes_total: Nodes of the graph, or None.
        partitions: Pieces of the graph that the delegate runs, or None.
        refused: Operators it left, each with the runtime's reason where it gives one.
        unknown: Why one of these is None, by name.
        no_latency: Why no time of this file may stand in a record as a latency, or "" where it may.
    """

    model: str
    scheme: str
    init_ms: float | None
    runtime: Mapping[str, Any]
    delegate_actual: str | None = None
    nodes_delegated: int | None = None
    nodes_total: int | None = None
    partitions: int | None = None
    refused: tuple[str, ...] = ()
    unknown: Mapping[str, str] = field(default_factory=dict)
    no_latency: str = ""


class Executor(Protocol):
    """One open file."""

    facts: Opened

    def step(self, image_hwc_u8: NDArray[np.uint8]) -> StageTimes:
        """Runs one picture, [H, W, 3] RGB, through all stages and returns their times."""

    def close(self) -> None:
        """Releases what the file holds."""


class BlockExecutor(Executor, Protocol):
    """An open file on a device that a call takes long to reach: runs come in blocks, timed by the device's clock."""

    def prepare(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Sends all pictures, [H, W, 3] RGB, before anything is measured."""

    def block(self, images: Sequence[NDArray[np.uint8]]) -> list[tuple[float, StageTimes]]:
        """Runs pictures back to back; returns for each its start, seconds on the device's clock, and its times."""


class Runner(Protocol):
    """A way to reach a device. `kind` says what its figures are."""

    name: str
    kind: Kind

    def session(self, profile: Profile) -> AbstractContextManager[None]:
        """Returns a context that puts the device into the profile's state (pinning) and back."""

    def open(self, path: Path, profile: Profile, delegate: str) -> Executor:
        """Opens a file; raises MissingHere where the device or delegate is not there."""

    def device(self) -> dict[str, Any]:
        """Returns `name soc os cpu`; what cannot be read is None."""

    def watch(self) -> Callable[[], dict[str, Any]]:
        """Starts to watch the device; the returned function gives the environment since, unknown as None."""


@dataclass(frozen=True)
class ToolRun:
    """One file measured by a program on the device, which gives figures and no raw samples.

    Attributes:
        index: Position among the files.
        device: `name soc os cpu id`; `id` tells devices of one kind apart.
        kind: What the figures are.
        opened: What is known about the file and who ran it.
        told: The figures.
        environment: The device before and after.
        log: Everything the program printed.
        command: The command as it was run there.
    """

    index: int
    device: Mapping[str, Any]
    kind: Kind
    opened: Opened
    told: ToolResult
    environment: Mapping[str, Any]
    log: bytes
    command: str


@dataclass(frozen=True)
class Failure:
    """What went wrong on one device.

    Attributes:
        device: Which one, for file names: no serial number.
        error: Why.
        fatal: Whether the device is gone; else one file failed and the others were measured.
        output: What it had printed until then.
    """

    device: str
    error: EdgeSegError
    fatal: bool
    output: bytes


@runtime_checkable
class ToolRunner(Protocol):
    """A way to reach devices on which another program measures whole files."""

    name: str

    def measure_files(
        self,
        files: Sequence[Path],
        order: Sequence[int],
        profile: Profile,
        delegate: str,
        on_run: Callable[[ToolRun], None],
    ) -> list[Failure]:
        """Measures every file on every device the profile means, devices at the same time.

        Args:
            files: `.tflite` files.
            order: Positions of the files in the order to run them.
            profile: How.
            delegate: On what.
            on_run: Called with each finished run, possibly from several threads at once.

        Returns:
            What went wrong; every other run has gone to `on_run`.

        Raises:
            MissingHere: No device, no client or no program to begin with.
            InputError: The wish itself is wrong.
        """


RUNNERS: Registry[Callable[[], Runner | ToolRunner]] = Registry("runner", "edge_seg.benchmarks.runners")
