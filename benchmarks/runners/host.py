"""Runs a file on this machine's CPU through the TFLite runtime, with the decoder its contract names."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_seg.benchmarks import machine
from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.result import Kind
from edge_seg.benchmarks.runner import RUNNERS, Opened, StageTimes
from edge_seg.errors import InputError, MissingHere, nearest

if TYPE_CHECKING:
    from edge_seg.converters.interpreter import TfliteRunner

_KERNELS: dict[str, Literal["xnnpack", "reference"]] = {"xnnpack": "xnnpack", "none": "reference"}


class HostExecutor:
    """One open file on this machine.

    `pre_ms` is the letterbox, `run_ms` writes the input, invokes and reads every output, `post_ms` is the
    decoder.
    """

    def __init__(self, path: Path, profile: Profile, delegate: str) -> None:
        from edge_seg.converters.interpreter import TfliteRunner
        from edge_seg.evaluation.predictor import Predictor

        start_s = time.perf_counter()
        runner = TfliteRunner(path, threads=profile.threads, kernels=_KERNELS[delegate])
        init_ms = (time.perf_counter() - start_s) * 1e3
        self._predictor: Predictor | None = Predictor(runner)
        self.facts = _facts(runner, init_ms)

    def step(self, image_hwc_u8: NDArray[np.uint8]) -> StageTimes:
        """Runs one picture, [H, W, 3] RGB, through all stages."""
        if self._predictor is None:
            raise InputError("The file is closed.", todo="open it again")
        prediction = self._predictor.predict(image_hwc_u8)
        return StageTimes(prediction.pre_ms, prediction.run_ms, prediction.post_ms)

    def close(self) -> None:
        """Lets the interpreter go."""
        self._predictor = None


def _facts(runner: TfliteRunner, init_ms: float) -> Opened:
    """Collects what the runtime tells; what it does not tell stays None with the reason."""
    told = runner.xnnpack_partitions()
    actual = None if told.partitions is None else "xnnpack" if told.partitions else "none"
    silent = {
        "delegate_actual": actual,
        "nodes_delegated": told.nodes_delegated,
        "protocol.partitions": told.partitions,
    }
    return Opened(
        model=runner.contract.model.name,
        scheme=runner.contract.model.scheme,
        init_ms=init_ms,
        runtime=dict(runner.runtime),
        delegate_actual=actual,
        nodes_delegated=told.nodes_delegated,
        nodes_total=told.nodes_total,
        partitions=told.partitions,
        refused=tuple(f"{op.name} #{op.index}" for op in told.outside) if told.partitions else (),
        unknown={key: told.reason for key, value in silent.items() if value is None},
    )


@RUNNERS.register("host")
class HostRunner:
    """This machine's CPU."""

    name = "host"
    local = True
    kind: Kind = "measured"

    @contextlib.contextmanager
    def session(self, profile: Profile) -> Iterator[None]:
        """Pins the process to the profile's CPUs, and undoes it; raises MissingHere if they are not there."""
        if not profile.cpus:
            yield
            return
        if not hasattr(os, "sched_setaffinity"):
            raise MissingHere("This system cannot pin a process to CPUs.", todo='use a profile with cpu_mask ""')
        allowed = os.sched_getaffinity(0)
        if not set(profile.cpus) <= allowed:
            raise MissingHere(
                f"The profile {profile.name!r} wants CPUs that are not here.",
                expected=", ".join(map(str, profile.cpus)),
                got=", ".join(map(str, sorted(allowed))),
            )
        os.sched_setaffinity(0, profile.cpus)
        try:
            yield
        finally:
            os.sched_setaffinity(0, allowed)

    def open(self, path: Path, profile: Profile, delegate: str) -> HostExecutor:
        """Opens a file.

        Raises:
            InputError: The delegate is not one of this runner's, or the precision cannot be forced here.
        """
        if delegate not in _KERNELS:
            raise InputError(
                f"The host runner has no delegate {delegate!r}.",
                got=delegate,
                todo=nearest(delegate, sorted(_KERNELS)),
            )
        if profile.precision != "file":
            raise InputError(
                "The host runner cannot force a precision.",
                expected='precision = "file"',
                got=profile.precision,
            )
        return HostExecutor(path, profile, delegate)

    def device(self) -> dict[str, Any]:
        """Returns what can be read about this machine."""
        return machine.host_device()

    def watch(self) -> Callable[[], dict[str, Any]]:
        """Starts to watch load, temperature and foreign processes; see `machine.watch`."""
        return machine.watch()
