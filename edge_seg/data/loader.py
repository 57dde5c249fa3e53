"""Batches in an order that depends on the seed and the step alone, prepared by background threads.

Nothing is carried from one batch to the next: a run that starts at step 500 sees what a run that started at 0
saw from step 500 on, with any number of workers.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

import numpy as np

from edge_seg.data.sample import Dataset, Sample
from edge_seg.errors import ConfigError, DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")


class BatchLoader(Generic[T]):
    """Endless iterator over batches. Use it as a context manager, or call `close`.

    Slot `k` of step `t` is picture number `t * batch_size + k` of the endless row of shuffled epochs; its
    random generator is `default_rng([seed, t, k])`. A batch may therefore hold the end of one epoch and the
    start of the next. With `world` ranks, rank r builds slots r, r + world, ... of the same global batch.

    Args:
        dataset: The samples.
        build: Turns a sample and its generator into what the batch holds; called in worker threads.
        batch_size: Pictures per step over all ranks; a multiple of `world`.
        seed: Seed of order and augmentation, 0 or more.
        workers: Threads; 0 builds in the caller's thread.
        prefetch: Batches prepared ahead, at most.
        start_step: First step to yield.
        rank: This rank, 0..world-1.
        world: Number of ranks.

    Attributes:
        step: The step that the next batch belongs to.
        waited_s: Seconds the consumer has waited for batches so far.

    Raises:
        DataError: The data set is empty.
        ConfigError: A number is out of range.
    """

    def __init__(
        self,
        dataset: Dataset,
        build: Callable[[Sample, np.random.Generator], T],
        *,
        batch_size: int,
        seed: int,
        workers: int = 1,
        prefetch: int = 4,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(dataset) == 0:
            raise DataError("The data set is empty.", expected="at least one sample", got="0 samples")
        _require("workers, seed, start_step", workers >= 0 and seed >= 0 and start_step >= 0, "0 or more")
        _require("prefetch", prefetch >= 1, "1 or more")
        _require("rank, world", 0 <= rank < world, "0 <= rank < world")
        _require("batch_size", batch_size >= 1 and batch_size % world == 0, f"a positive multiple of {world}")
        self._dataset, self._build, self._seed = dataset, build, seed
        self._batch_size, self._slots = batch_size, range(rank, batch_size, world)
        self._prefetch = prefetch
        self._stop = threading.Event()
        self._ahead: deque[Future[list[T]]] = deque()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="batch") if workers else None
        self.step = start_step
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[list[T]]:
        return self

    def __next__(self) -> list[T]:
        """Returns the batch of `step`; re-raises what the worker raised; stops after `close`."""
        if self._stop.is_set():
            raise StopIteration
        started_s = time.perf_counter()
        batch = self._next_ahead() if self._pool else self._batch(self.step)
        self.waited_s += time.perf_counter() - started_s
        self.step += 1
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drops what is prepared, ends the threads and waits for them; may be called twice."""
        self._stop.set()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        self._ahead.clear()

    def indices(self, step: int) -> list[int]:
        """Returns the positions in the data set that this rank's batch of `step` is made of."""
        count = len(self._dataset)
        numbers = [step * self._batch_size + slot for slot in self._slots]
        return [int(_epoch_order(self._seed, n // count, count)[n % count]) for n in numbers]

    def _next_ahead(self) -> list[T]:
        """The oldest batch under way; `close` from another thread ends the wait."""
        if self._pool is None:
            raise StopIteration
        try:
            while len(self._ahead) <= self._prefetch:
                self._ahead.append(self._pool.submit(self._batch, self.step + len(self._ahead)))
            batch = self._ahead[0].result()
        except (CancelledError, RuntimeError):
            if self._stop.is_set():
                raise StopIteration from None
            raise
        if self._stop.is_set():
            raise StopIteration
        self._ahead.popleft()
        return batch

    def _batch(self, step: int) -> list[T]:
        batch: list[T] = []
        for slot, index in zip(self._slots, self.indices(step), strict=True):
            if self._stop.is_set():
                return []
            rng = np.random.default_rng([self._seed, step, slot])
            batch.append(self._build(self._dataset[index], rng))
        return batch


@functools.lru_cache(maxsize=8)
def _epoch_order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    order = np.random.default_rng([seed, epoch]).permutation(count)
    order.flags.writeable = False
    return order


def _require(names: str, valid: bool, expected: str) -> None:
    if not valid:
        raise ConfigError(f"The loader's {names} are out of range.", expected=expected)
