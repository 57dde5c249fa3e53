"""What a runner is: a way to open a file on a device and to run it picture by picture.

A runner is one file in `runners/`; its class is registered under the name that profiles use. Time is taken by
the runner, next to the work, because only it knows where a stage begins on its device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.result import Kind
from edge_seg.registry import Registry


@dataclass(frozen=True)
class StageTimes:
    """One run, in milliseconds: picture to input; write, invoke and read; raw outputs to masks."""

    pre_ms: float
    run_ms: float
    post_ms: float

    @property
    def total_ms(self) -> float:
        """All three stages."""
        return self.pre_ms + self.run_ms + self.post_ms


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
        unknown: Why one of these is None, by name.
    """

    model: str
    scheme: str
    init_ms: float | None
    runtime: Mapping[str, Any]
    delegate_actual: str | None = None
    nodes_delegated: int | None = None
    nodes_total: int | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)


class Executor(Protocol):
    """One open file."""

    facts: Opened

    def step(self, image_hwc_u8: NDArray[np.uint8]) -> StageTimes:
        """Runs one picture, [H, W, 3] RGB, through all stages and returns their times."""

    def close(self) -> None:
        """Releases what the file holds."""


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


RUNNERS: Registry[Callable[[], Runner]] = Registry("runner", "edge_seg.benchmarks.runners")
