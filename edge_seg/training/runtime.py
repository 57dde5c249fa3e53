"""What surrounds the steps of a training: switches of PyTorch, threads, and where the time goes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import torch

from edge_seg.data.loader import BatchLoader
from edge_seg.training.distributed import World


@contextlib.contextmanager
def torch_settings(threads: int) -> Iterator[None]:
    """Deterministic algorithms and the number of threads while a run lasts; what was set before comes back."""
    debug = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        debug.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_num_threads(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    # filling fresh memory serves debugging only and costs 13 % of a step
    debug.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        debug.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]
        torch.set_num_threads(before[3])


def threads_of_process(wanted: int, world: World) -> int:
    """Returns the number of PyTorch threads of this process.

    Args:
        wanted: 0 shares the machine's cores between its processes; one that is alone keeps PyTorch's own choice.
        world: The processes.
    """
    if wanted or world.size == 1:
        return wanted or torch.get_num_threads()
    return max(1, len(os.sched_getaffinity(0)) // world.local_size)


class StepClock:
    """Where the time of some steps goes.

    Args:
        loader: Whose waiting is measured.
        world: Whose communication is measured.

    Attributes:
        images: Pictures of the steps so far, over all processes.
    """

    def __init__(self, loader: BatchLoader[Any], world: World) -> None:
        self._loader, self._world = loader, world
        self._began_s = time.perf_counter()
        self.restart()

    def figures(self) -> dict[str, float]:
        """Returns pictures per second and shares of the elapsed time, 0..1; the rest is this process' computation.

        Of communication (several processes on CPUs only): `allreduce_share` sums gradients and losses,
        `batchnorm_sync_share` BatchNorm, `peers_wait_share` waits for processes whose batch was not ready. All
        include waiting for slower processes.
        """
        elapsed_s = time.perf_counter() - self._began_s
        shares = {"loader_wait_share": self._loader.waited_s}
        if self._world.size > 1 and self._world.device.type == "cpu":
            spent_s = {k: v - self._spent_s[k] for k, v in self._world.spent_s.items()}
            shares["allreduce_share"] = spent_s["losses"] + spent_s["gradients"]
            shares["batchnorm_sync_share"] = spent_s["batchnorm"]
            shares["peers_wait_share"] = spent_s["agreement"]
        rate = {"images_per_s": round(self.images / elapsed_s, 2)}
        return {**rate, **{k: round(v / elapsed_s, 4) for k, v in shares.items()}}

    def restart(self) -> float:
        """Begins anew; returns the seconds since the last beginning."""
        before_s, self._began_s = self._began_s, time.perf_counter()
        self.images = 0
        self._loader.waited_s = 0.0
        self._spent_s = dict(self._world.spent_s)
        return self._began_s - before_s
