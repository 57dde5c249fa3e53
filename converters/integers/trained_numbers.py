"""Whether a converted file holds the very numbers that training found: grids, weights, biases.

The first half of the proof that a file is the trained network; the second is that its arithmetic equals the integer
mirror's (`verify_integers`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.integers.kernels import Weights
from edge_seg.converters.integers.network import IntegerNetwork, IntegerOp

KINDS = ("operation", "activation_scale", "activation_zero_point", "weight_scale", "weight", "bias")


@dataclass(frozen=True)
class NumberDifference:
    """A tensor of the file that differs from the trained program.

    Attributes:
        kind: One of KINDS; "operation" means that kind, geometry or activation range differ.
        module: PyTorch module path.
        wanted: What the program holds: the first value that differs, or the operation's form.
        found: What the file holds there.
        place: Index of that value, output channel first, height, width, input channel; () where there is one.
        differing: How many values of the tensor differ.
        size: How many it has.
    """

    kind: str
    module: str
    wanted: str
    found: str
    place: tuple[int, ...]
    differing: int
    size: int

    def text(self) -> str:
        """Returns one line for people."""
        where = f" at {list(self.place)}" if self.place else ""
        many = f" ({self.differing} of {self.size} differ)" if self.size > 1 else ""
        return f"{self.module}: {self.kind}{where} is {self.found}, trained {self.wanted}{many}"


@dataclass(frozen=True)
class TrainedNumbers:
    """Numbers of a file against the trained program, counted in tensors.

    Attributes:
        equal: Equal tensors by kind.
        total: Tensors by kind.
        differences: Those that differ, nearest to the picture first.
        passed: Whether there is none.
    """

    equal: Mapping[str, int]
    total: Mapping[str, int]
    differences: tuple[NumberDifference, ...]
    passed: bool

    def text(self) -> str:
        """Returns counts, and the first differences, one a line."""
        counts = ", ".join(f"{kind} {self.equal[kind]}/{self.total[kind]}" for kind in KINDS)
        lines = [f"  {'ok  ' if self.passed else 'FAIL'} trained numbers: {counts}"]
        return "\n".join(lines + [f"       {d.text()}" for d in self.differences[:5]])


def compare_numbers(wanted: IntegerNetwork, found: IntegerNetwork) -> TrainedNumbers:
    """Compares every number of two integer networks.

    Operations are matched by walking both graphs from the outputs to the picture, not by name, so that a renamed or
    missing tensor cannot hide a difference.

    Args:
        wanted: The trained program.
        found: The converted file.

    Returns:
        Counts and differences.
    """
    equal, total = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    wanted, found = (network.without_pads().without_zero_taps() for network in (wanted, found))
    differences = []
    for kind, module, wanted_value, found_value in _pairs(wanted, found):
        total[kind] += 1
        difference = _difference(kind, module, wanted_value, found_value)
        if difference is None:
            equal[kind] += 1
        else:
            differences.append(difference)
    return TrainedNumbers(equal, total, tuple(differences), not differences)


def _pairs(wanted: IntegerNetwork, found: IntegerNetwork) -> Iterator[tuple[str, str, Any, Any]]:
    """Yields kind, module and both sides of everything there is to compare, in the order of the program."""
    yield from _grids(wanted, found, wanted.input, found.input, "the picture")
    for op, other in _matched(wanted, found):
        module = op.module if op is not None else other.module if other is not None else ""
        yield "operation", module, op and op.form(), other and other.form()
        if op is None or other is None:
            continue
        yield from _grids(wanted, found, op.output, other.output, module)
        if op.weights is not None and other.weights is not None:
            yield from _weights(op.weights, other.weights, module)
        if op.values_nhwc is not None and other.values_nhwc is not None:
            yield "weight", module, op.values_nhwc, other.values_nhwc


def _grids(
    wanted: IntegerNetwork, found: IntegerNetwork, here: int, there: int, module: str
) -> Iterator[tuple[str, str, Any, Any]]:
    one, other = wanted.grids[here], found.grids[there]
    yield "activation_scale", module, np.float32(one.scale), np.float32(other.scale)
    yield "activation_zero_point", module, np.int64(one.zero_point), np.int64(other.zero_point)


def _weights(one: Weights, other: Weights, module: str) -> Iterator[tuple[str, str, Any, Any]]:
    yield "weight_scale", module, one.scales_o, other.scales_o
    yield "weight", module, one.integers_ohwi, other.integers_ohwi
    yield "bias", module, one.bias_o, other.bias_o


def _matched(wanted: IntegerNetwork, found: IntegerNetwork) -> list[tuple[IntegerOp | None, IntegerOp | None]]:
    """Returns operations in pairs, in the program's order; None where one side has no counterpart."""
    writers = {op.output: op for op in wanted.ops}, {op.output: op for op in found.ops}
    open_values = [(wanted.outputs[n], found.outputs[n]) for n in wanted.outputs if n in found.outputs]
    pairs: dict[tuple[int, int], tuple[IntegerOp | None, IntegerOp | None]] = {}
    while open_values:
        here, there = open_values.pop()
        pair = writers[0].get(here), writers[1].get(there)
        if pair == (None, None) or (here, there) in pairs:
            continue
        pairs[here, there] = pair
        op, other = pair
        if op and other and op.kind == other.kind and len(op.inputs) == len(other.inputs):
            open_values += zip(op.inputs, other.inputs, strict=True)
    order = {op.output: i for i, op in enumerate(wanted.ops)}
    return [pairs[key] for key in sorted(pairs, key=lambda key: order.get(key[0], -1))]


def _difference(kind: str, module: str, wanted: Any, found: Any) -> NumberDifference | None:
    if kind == "operation":
        return None if wanted == found else NumberDifference(kind, module, str(wanted), str(found), (), 1, 1)
    one, other = np.asarray(wanted), np.asarray(found)
    if one.shape != other.shape:
        shapes = str(list(one.shape)), str(list(other.shape))
        return NumberDifference(kind, module, *shapes, (), one.size, one.size)
    wrong: NDArray[np.bool_] = one != other
    if not wrong.any():
        return None
    place = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(wrong)))[: one.ndim]
    return NumberDifference(kind, module, str(one[place]), str(other[place]), place, int(wrong.sum()), one.size)
