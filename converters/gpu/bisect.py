"""Finds the operator at which the GPU accelerator and the CPU part.

The accelerator shows outputs only, so the graph is cut (see `cuts`). A cut gives every tensor that the rest of the
graph still needs; if one is off, an operator before the cut made it so, and what follows inherits it: the first cut
that is off can be searched by halving. Errors do not only grow, though, and rounding alone can cross a limit. The
operator found is therefore run on the CPU's own inputs: alone, then together with those before it, since some faults
arise only where the accelerator joins two operators. If it is right there, rounding has added up, and the search
goes on behind it for something larger.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.gpu.cuts import Cuts, Part
from edge_seg.converters.graph import TensorInfo

Arrays = Sequence[NDArray[Any]]
Run = Callable[[bytes, Sequence[Arrays]], list[list[NDArray[Any]]]]
How = Literal["alone", "together", "accumulated"]
Values = Sequence[Mapping[int, NDArray[Any]]]

# A single operator may be off by this many times what a change of the last bit of its inputs does: a sum of K
# products that is added up in another order is off by up to sqrt(K) times that, and K reaches some thousands.
LAST_BIT_FACTOR = 64.0
_TOGETHER = 3  # operators before a suspect that are tried with it
_GROWTH = 8.0  # how much larger than a place where rounding added up the next one must be
_STEPS, _STEPS_ALONE = 3, 1  # integers: measured on whole networks and on single operators


@dataclass(frozen=True)
class Difference:
    """How far one tensor is from the CPU's.

    Attributes:
        range_share: Largest difference as a share of the range of the CPU's values; of 1 where that has none.
        snr_db: Power of the CPU's values to that of the difference; None where they are equal.
        steps: Largest difference in steps of the tensor's grid; None without one.
    """

    range_share: float
    snr_db: float | None
    steps: int | None = None

    def exceeds(self, limit: float, steps: int) -> bool:
        """Whether it is larger than a share of the range and, with a grid, than so many steps."""
        return self.range_share > limit and (self.steps is None or self.steps > steps)


@dataclass(frozen=True)
class Parting:
    """Where two devices part.

    Attributes:
        op: Index of the operator.
        tensor: Its result that is off.
        how: "alone": it is wrong on the CPU's own inputs; "together": only joined with operators before it;
            "accumulated": it is right, and rounding has added up to the limit.
        with_ops: Operators that were run with it where that made it wrong.
        before: Largest difference among its inputs in the cut before it; None where they are the graph's own.
        after: Difference of `tensor` in the cut behind it.
        alone: Difference on the CPU's own inputs, of the operator or of it and `with_ops`.
        last_bit_share: What a change of those inputs in their last bit does to that result on the CPU.
        allowed_share: What `alone` was held to.
    """

    op: int
    tensor: int
    how: How
    with_ops: tuple[int, ...]
    before: Difference | None
    after: Difference
    alone: Difference
    last_bit_share: float
    allowed_share: float


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        outputs: Difference of each output of the whole graph, by tensor.
        partings: Places that were looked at, in the order of the graph; the last one is the answer. Empty where no
            output is off by more than the limit.
        tried: Largest difference of each cut that was run, by operator.
    """

    outputs: Mapping[int, Difference]
    partings: tuple[Parting, ...]
    tried: Mapping[int, float]


@dataclass
class Search:
    """A search for the operator at which two devices part.

    Attributes:
        cuts: The graph.
        values: The CPU's values of every computed tensor and input, one mapping by tensor for each picture.
        gpu: Runs a file on the accelerator, once for each picture's inputs.
        cpu: Runs a file on the CPU in the same way.
        limit: Share of a tensor's range up to which devices agree.
        ulp: Relative distance of neighbouring numbers in the accelerator's arithmetic.
    """

    cuts: Cuts
    values: Values
    gpu: Run
    cpu: Run
    limit: float
    ulp: float = 2.0**-23
    _seen: dict[int, dict[int, Difference]] = field(default_factory=dict)

    def run(self) -> Found:
        """Searches; every step is one file on the accelerator.

        Raises:
            ArtifactError: The accelerator does not take a part.
            Crashed: Its process died or did not answer.
        """
        last = len(self.cuts.positions) - 1
        outputs, partings = dict(self._at(last)), list[Parting]()
        low, limit = -1, self.limit
        while self._worst(last) > limit and low < last and (not partings or partings[-1].how == "accumulated"):
            low = self._first_above(low, last, limit)
            partings.append(self._examined(low))
            limit = max(limit, _GROWTH * self._worst(low))
        if partings and partings[-1].how == "accumulated":
            partings = partings[:1]
        return Found(outputs, tuple(partings), {self.cuts.positions[p]: self._worst(p) for p in sorted(self._seen)})

    def _first_above(self, low: int, high: int, limit: float) -> int:
        """Halves between a place that is within the limit and one that is not; places count `cuts.positions`."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._worst(middle) > limit else (middle, high)
        return high

    def _worst(self, place: int) -> float:
        """Returns the largest share among the tensors of a cut that are off by more than a few steps."""
        found = self._at(place).values()
        return max((d.range_share for d in found if d.exceeds(0.0, _STEPS)), default=0.0)

    def _at(self, place: int) -> dict[int, Difference]:
        if place not in self._seen:
            part = self.cuts.head(self.cuts.positions[place])
            self._seen[place] = dict(zip(part.outputs, self._compared(part), strict=True))
        return self._seen[place]

    def _compared(self, part: Part) -> list[Difference]:
        """Runs a part on the accelerator, on the CPU's values, and compares its results with the CPU's."""
        found = self.gpu(self.cuts.file(part), self._inputs(part))
        tensors = self.cuts.graph.tensors
        return [
            difference(tensors[t], [v[t] for v in self.values], [row[k] for row in found])
            for k, t in enumerate(part.outputs)
        ]

    def _inputs(self, part: Part) -> list[list[NDArray[Any]]]:
        return [[v[t] for t in part.inputs] for v in self.values]

    def _examined(self, place: int) -> Parting:
        """Says of the operator behind a cut whether it is wrong by itself."""
        index = self.cuts.positions[place]
        op, differences = self.cuts.graph.ops[index], self._at(place)
        own = [t for t in op.outputs if t in differences] or list(differences)
        tensor = max(own, key=lambda t: differences[t].range_share)
        window, alone, last_bit = self._blamed(index)
        allowed = max(self.limit, LAST_BIT_FACTOR * last_bit)
        wrong = alone.exceeds(allowed, _STEPS_ALONE)
        how: How = "accumulated" if not wrong else "alone" if len(window) == 1 else "together"
        before = (
            [self._at(place - 1)[t] for t in self.cuts.runtime_inputs(op) if t in self._at(place - 1)] if place else []
        )
        return Parting(
            op=index,
            tensor=tensor,
            how=how,
            with_ops=tuple(window[1:]) if wrong else (),
            before=max(before, key=lambda d: d.range_share, default=None),
            after=differences[tensor],
            alone=alone,
            last_bit_share=last_bit,
            allowed_share=allowed,
        )

    def _blamed(self, index: int) -> tuple[list[int], Difference, float]:
        """Runs an operator on the CPU's inputs, then with those before it, until the result is wrong.

        Returns:
            The operators, the difference, and what a change in the last bit does. Of the operator alone where nothing
            is wrong.
        """
        window, tried = [index], []
        while True:
            part = self.cuts.window(window)
            worst, last_bit = max(self._compared(part), key=lambda d: d.range_share), self._last_bit(part)
            tried.append((list(window), worst, last_bit))
            if worst.exceeds(max(self.limit, LAST_BIT_FACTOR * last_bit), _STEPS_ALONE):
                return tried[-1]
            before = [self.cuts.graph.producer(t) for t in part.inputs]
            nearest = max((op.index for op in before if op is not None), default=None)
            if nearest is None or len(window) > _TOGETHER:
                return tried[0]
            window.append(nearest)

    def _last_bit(self, part: Part) -> float:
        """Returns by what share of its range a part's result moves on the CPU if its inputs change in the last bit."""
        rng, plain = np.random.default_rng(0), self._inputs(part)
        moved = [[_moved(array, rng, self.ulp) for array in row] for row in plain]
        file = self.cuts.file(part)
        before, after = self.cpu(file, plain), self.cpu(file, moved)
        tensors = self.cuts.graph.tensors
        pairs = ((tensors[t], [r[k] for r in before], [r[k] for r in after]) for k, t in enumerate(part.outputs))
        return max((difference(*pair).range_share for pair in pairs), default=0.0)


def _moved(array: NDArray[Any], rng: np.random.Generator, ulp: float) -> NDArray[Any]:
    """Returns floats changed by up to one unit in the last place, integers as they are."""
    if array.dtype.kind != "f":
        return array
    return (array * (1.0 + ulp * rng.uniform(-1.0, 1.0, array.shape))).astype(array.dtype)


def difference(tensor: TensorInfo, wanted: Arrays, found: Arrays) -> Difference:
    """Compares one tensor over several pictures.

    Args:
        tensor: What it is; integers with a grid are compared as real numbers.
        wanted: The CPU's values, one array for each picture.
        found: The accelerator's.

    Returns:
        The largest share over the pictures and the SNR over all of them. Values that are not finite on one side only
        give an infinite share.
    """
    scale = tensor.scale[0] if tensor.scale else 1.0
    share, signal, noise, steps = 0.0, 0.0, 0.0, 0
    for one, other in zip(wanted, found, strict=True):
        a, b = one.astype(np.float64) * scale, np.reshape(other, one.shape).astype(np.float64) * scale
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return Difference(float("inf"), None, None)
        finite = np.isfinite(a)
        gap, kept = np.abs(a[finite] - b[finite]), a[finite]
        if kept.size:
            share = max(share, float(gap.max()) / (float(np.ptp(kept)) or 1.0))
            steps = max(steps, round(float(gap.max()) / scale))
        signal, noise = signal + float((kept**2).sum()), noise + float((gap**2).sum())
    snr_db = 10.0 * float(np.log10(max(signal, 1e-300) / noise)) if noise else None
    return Difference(share, snr_db, steps if tensor.scale else None)
