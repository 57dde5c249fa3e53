"""Runs a file on LiteRT's GPU accelerator on this machine, over a real GPU or a Vulkan driver in software.

A software driver gives right numbers and no latency of any GPU: what it takes is recorded as "emulated". The
accelerator is offered the whole file first; only if it refuses an operator is the file opened again with the CPU for
the rest, and the record then says how many nodes ran on the GPU, as the runtime counted them, and what it refused.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_seg.benchmarks import machine
from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.residency import read_residency
from edge_seg.benchmarks.result import Kind
from edge_seg.benchmarks.runner import RUNNERS, Opened, StageTimes
from edge_seg.errors import InputError

if TYPE_CHECKING:
    from edge_seg.converters.gpu.accelerator import Adapter
    from edge_seg.converters.gpu.runner import GpuRunner

DELEGATE = "gpu"
_SEVERITY = re.compile(r"^(?:INFO|WARNING|ERROR): ")


class HostGpuExecutor:
    """One open file on the accelerator.

    `run_ms` is taken in the accelerator's own process: write, run, and the reading of every output, because running
    returns before the device is done. `pre_ms` is the letterbox, `post_ms` the decoder.
    """

    def __init__(self, path: Path, precision: Literal["fp32", "fp16"]) -> None:
        from edge_seg.converters.gpu.accelerator import OpsRefused
        from edge_seg.converters.gpu.runner import GpuRunner
        from edge_seg.evaluation.predictor import Predictor

        start_s = time.perf_counter()
        try:
            self._runner = GpuRunner(path, precision=precision)
        except OpsRefused:
            start_s = time.perf_counter()
            self._runner = GpuRunner(path, precision=precision, with_cpu=True)
        init_ms = (time.perf_counter() - start_s) * 1e3
        try:
            self._predictor = Predictor(self._runner)
        except BaseException:
            self._runner.close()
            raise
        self.adapter = self._runner.adapter
        self.facts = _facts(self._runner, init_ms)

    def step(self, image_hwc_u8: NDArray[np.uint8]) -> StageTimes:
        """Runs one picture, [H, W, 3] RGB, through all stages."""
        prediction = self._predictor.predict(image_hwc_u8)
        return StageTimes(prediction.pre_ms, self._runner.times.total_ms, prediction.post_ms)

    def close(self) -> None:
        """Ends the accelerator's process."""
        self._runner.close()


def _facts(runner: GpuRunner, init_ms: float) -> Opened:
    """Collects what the runtime told. A file that opened for the GPU and nothing else runs there whole."""
    told = read_residency(_SEVERITY.sub("", line) for line in runner.told.splitlines())
    share, total = told.of(DELEGATE), len(runner.graph.ops)
    taken: int | None = total
    if runner.with_cpu:
        taken, total = (share.nodes_delegated, share.nodes_total or total) if share else (None, total)
    silent = {"nodes_delegated": taken, "protocol.partitions": None}
    return Opened(
        model=runner.contract.model.name,
        scheme=runner.contract.model.scheme,
        init_ms=init_ms,
        runtime=runner.runtime,
        delegate_actual=DELEGATE,
        nodes_delegated=taken,
        nodes_total=total,
        refused=told.refused,
        unknown={key: "LiteRT does not log it" for key, value in silent.items() if value is None},
    )


@RUNNERS.register("host_gpu")
class HostGpuRunner:
    """This machine's Vulkan device. Before a file is open it is not known whether that is a GPU: "emulated"."""

    name = "host_gpu"
    local = True

    def __init__(self) -> None:
        self.kind: Kind = "emulated"
        self._adapter: Adapter | None = None

    @contextlib.contextmanager
    def session(self, profile: Profile) -> Iterator[None]:
        """Checks that the profile asks for nothing that a GPU cannot give; raises InputError otherwise."""
        if profile.cpus:
            raise InputError("The GPU runner pins no CPUs.", expected='cpu_mask = ""', got=profile.cpu_mask)
        yield

    def open(self, path: Path, profile: Profile, delegate: str) -> HostGpuExecutor:
        """Opens a file.

        Raises:
            InputError: Another delegate than "gpu", or a profile that leaves the precision open.
            ArtifactError: The accelerator takes no operator of the file.
            MissingHere: There is no Vulkan implementation that computes in the profile's precision.
        """
        if delegate != DELEGATE:
            raise InputError(f"The GPU runner has no delegate {delegate!r}.", expected=DELEGATE, got=delegate)
        if profile.precision == "file":
            raise InputError(
                "A GPU computes in its own precision, whatever the file stores.",
                expected='precision = "fp32" or "fp16" in the profile',
                got=profile.precision,
            )
        executor = HostGpuExecutor(path, profile.precision)
        self._adapter = executor.adapter
        self.kind = "emulated" if executor.adapter.is_software else "measured"
        return executor

    def device(self) -> dict[str, Any]:
        """Returns what can be read about this machine, with `gpu gpu_kind gpu_backend` as the runtime named them."""
        known = self._adapter
        gpu = {"gpu": known.name, "gpu_kind": known.kind, "gpu_backend": known.backend} if known else {"gpu": None}
        return {**machine.host_device(), **gpu}

    def watch(self) -> Callable[[], dict[str, Any]]:
        """Starts to watch load, temperature and foreign processes; see `machine.watch`."""
        return machine.watch()
