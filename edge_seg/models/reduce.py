"""How a loss is normalised when several processes share a batch.

Every process has some of the pictures. Divided by counts of the whole batch, the losses of the processes add up to
the loss that one process would compute, and so do their gradients.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Reduce(Protocol):
    """Sums over processes, as a criterion needs them."""

    @property
    def size(self) -> int:
        """Number of processes. A term that every process computes whole, from totals, is divided by it."""

    def total(self, value: Tensor) -> Tensor:
        """Returns the sum of `value` over all processes; gradients flow through it to every process.

        Every process must call it equally often, in the same order, with equal shapes.
        """


class OneProcess:
    """The sums of a process that is alone."""

    size = 1

    def total(self, value: Tensor) -> Tensor:
        """Returns `value`."""
        return value


ONE_PROCESS = OneProcess()
