"""Runs an int8 network in NumPy with the arithmetic of XNNPACK's kernels.

A deep int8 file cannot lie within one step of the float program it was trained as: a float32 sum that falls on the
other side of a rounding changes one integer, and sixty layers make many of one. Held against its own integers it must
be equal everywhere. So the trained program, run here in integers, is what a file is compared with bit for bit;
against the float program only the signal-to-noise ratio counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.converters.flatbuffer import Graph
from edge_seg.converters.integers import kernels
from edge_seg.converters.integers.file import network_of_file
from edge_seg.converters.integers.kernels import Ints
from edge_seg.converters.integers.network import IntegerNetwork, IntegerOp
from edge_seg.converters.integers.program import network_of_program
from edge_seg.converters.interpreter import check_picture
from edge_seg.errors import ArtifactError, InputError
from edge_seg.schemes import Grid

_Grids = Sequence[Grid]
_Run = Callable[[IntegerOp, Sequence[Ints], _Grids, Grid], Ints]


class IntegerMirror:
    """An int8 network, ready to run: bytes in, int8 maps out.

    Args:
        network: Its integer operations.
        contract: Says which pictures it takes.

    Raises:
        InputError: An operation has no rule here.
    """

    def __init__(self, network: IntegerNetwork, contract: Contract) -> None:
        self.network, self.contract = network, contract
        for op in network.ops:
            if op.kind not in _RULES:
                raise InputError(
                    f"The mirror has no rule for {op.kind!r} at {op.module!r}.", expected=", ".join(_RULES)
                )

    @classmethod
    def of_program(cls, program: Path, contract: Contract) -> IntegerMirror:
        """Mirrors `model.pt2`, trained quantisation-aware; raises as `network_of_program`."""
        return cls(network_of_program(program, contract), contract)

    @classmethod
    def of_file(cls, graph: Graph, contract: Contract) -> IntegerMirror:
        """Mirrors an int8 .tflite; raises as `network_of_file`."""
        return cls(network_of_file(graph, contract), contract)

    @classmethod
    def of_any_file(cls, graph: Graph, contract: Contract) -> tuple[IntegerMirror | None, str]:
        """Mirrors a quantised .tflite that anybody may have made; without a mirror, says why.

        Raises:
            ArtifactError: The file is broken.
        """
        try:
            return cls.of_file(graph, contract), ""
        except ArtifactError:
            raise
        except InputError as error:
            return None, str(error).splitlines()[0]

    def run(self, image_hwc_u8: NDArray[np.uint8]) -> dict[str, Ints]:
        """Runs the network once.

        Args:
            image_hwc_u8: Letterboxed picture, uint8 [H, W, 3].

        Returns:
            int8 [1, h, w, c] by output name.

        Raises:
            InputError: The picture has another shape or dtype than the contract's input.
        """
        last_use = {place: i for i, op in enumerate(self.network.ops) for place in op.inputs}
        kept = set(self.network.outputs.values())
        values = self._start(image_hwc_u8)
        for i, op in enumerate(self.network.ops):
            values[op.output] = self._result(op, values)
            for place in set(op.inputs) - kept:
                if last_use[place] == i:
                    del values[place]  # a network at 640 px would otherwise hold gigabytes
        return {name: values[place] for name, place in self.network.outputs.items()}

    def run_layers(self, image_hwc_u8: NDArray[np.uint8]) -> dict[str, Ints]:
        """Runs the network once and keeps every result, in order.

        Args:
            image_hwc_u8: As `run`.

        Returns:
            int8 maps by module path (see `IntegerNetwork.names`).
        """
        values = self._start(image_hwc_u8)
        for op in self.network.ops:
            values[op.output] = self._result(op, values)
        return {name: values[op.output] for name, op in zip(self.network.names(), self.network.ops, strict=True)}

    def step(self, op: IntegerOp, inputs: Sequence[Ints]) -> Ints:
        """Runs one of the network's operations on given maps, int8 [1, h, w, c], whoever computed them."""
        return self._result(op, dict(zip(op.inputs, inputs, strict=True)))

    def _start(self, image_hwc_u8: NDArray[np.uint8]) -> dict[int, Ints]:
        check_picture(image_hwc_u8, self.contract)
        return {self.network.input: kernels.byte_input(image_hwc_u8)}

    def _result(self, op: IntegerOp, values: Mapping[int, Ints]) -> Ints:
        grids = self.network.grids
        out = replace(grids[op.output], low=op.low, high=op.high)
        return _RULES[op.kind](op, [values[i] for i in op.inputs], [grids[i] for i in op.inputs], out)


def _convolution(op: IntegerOp, x: Sequence[Ints], grids: _Grids, out: Grid) -> Ints:
    return kernels.convolution(x[0], grids[0], _given(op.weights), _given(op.window), out)


def _add(op: IntegerOp, x: Sequence[Ints], grids: _Grids, out: Grid) -> Ints:
    return kernels.add(x[0], x[1], (grids[0], grids[1]), out)


def _concat(op: IntegerOp, x: Sequence[Ints], grids: _Grids, out: Grid) -> Ints:
    return kernels.concat(x)


def _resize(op: IntegerOp, x: Sequence[Ints], grids: _Grids, out: Grid) -> Ints:
    return kernels.resize_bilinear(x[0], _given(op.size_hw))


def _mean(op: IntegerOp, x: Sequence[Ints], grids: _Grids, out: Grid) -> Ints:
    return kernels.mean_hw(x[0], grids[0], out)


def _pad(op: IntegerOp, x: Sequence[Ints], grids: _Grids, out: Grid) -> Ints:
    return kernels.pad(x[0], grids[0].zero_point, _given(op.window).padding_tblr)


def _requantize(op: IntegerOp, x: Sequence[Ints], grids: _Grids, out: Grid) -> Ints:
    return kernels.requantize(x[0], grids[0], out)


def _constant(op: IntegerOp, x: Sequence[Ints], grids: _Grids, out: Grid) -> Ints:
    values: Ints = _given(op.values_nhwc)
    return values


def _given(detail: Any) -> Any:
    if detail is None:
        raise InputError(
            "An integer operation lacks its weights, window, size or values.", todo="report this: a reader is wrong"
        )
    return detail


_RULES: Mapping[str, _Run] = {
    "convolution": _convolution,
    "add": _add,
    "concat": _concat,
    "resize_bilinear": _resize,
    "mean_hw": _mean,
    "pad": _pad,
    "requantize": _requantize,
    "constant": _constant,
}
