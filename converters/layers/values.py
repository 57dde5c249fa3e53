"""Every tensor that a converted file computes, read while its own kernels run.

Intermediate tensors are read from an interpreter that keeps them. XNNPACK still runs every operator it would run, each
as a piece of its own instead of one for the whole graph; that this changes no bit was tested against the same file
cut so that intermediate tensors become outputs of one piece, and is checked on the outputs of every run. There is one
exception: a mean of squares, as a GroupNorm has it, XNNPACK computes in one step where it need not keep the squares,
and rounds otherwise. So float outputs may differ by rounding, and by how much is said.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.converters.flatbuffer import read_bytes, read_graph
from edge_seg.converters.graph import Graph
from edge_seg.converters.interpreter import Kernels, TfliteRunner, encode, places, plain_interpreter
from edge_seg.converters.metadata import read_contract
from edge_seg.errors import ArtifactError

Arrays = Mapping[int, NDArray[Any]]

_ROUNDING_SHARE = 1e-4  # of an output's range: above what float32 loses in a deep network, below any fault of a layer


class FileValues:
    """A converted file whose tensors can be read after a run.

    Args:
        path: A .tflite that carries its contract.
        kernels: Kernels of the runtime.

    Attributes:
        graph: What the file contains.
        contract: Its contract.
        outputs: Output tensors by contract name.
        kept_share: Largest difference of an output that keeping all tensors made so far, as a share of its range.

    Raises:
        InputError: No such file.
        ArtifactError: It is broken or does not fit its contract.
    """

    def __init__(self, path: Path, kernels: Kernels) -> None:
        self.kernels = kernels
        self.graph: Graph = read_graph(path)
        self.contract: Contract = read_contract(path)
        self._input, self.outputs = places(self.graph, self.contract)
        self._path, self.kept_share = path, 0.0

    # prepared at the first run: what a runtime refuses to run can still be read
    @functools.cached_property
    def _plain(self) -> TfliteRunner:
        return TfliteRunner(self._path, kernels=self.kernels)

    @functools.cached_property
    def _interpreter(self) -> Any:
        return plain_interpreter(read_bytes(self._path), keep_all=True, kernels=self.kernels)

    def run(self, image_hwc_u8: NDArray[np.uint8]) -> Arrays:
        """Runs the file once.

        Args:
            image_hwc_u8: Letterboxed picture, uint8 [H, W, 3].

        Returns:
            The input and what each operator writes, by tensor index, in the file's own dtypes.

        Raises:
            InputError: The picture does not fit.
            ArtifactError: The runtime cannot run the file, or keeping the tensors changed its outputs: at all, or in a
                file with a mean of squares by more than floats are rounded.
            MissingHere: No TFLite runtime is installed.
        """
        self._plain.invoke(image_hwc_u8)
        self._interpreter.set_tensor(self._input, encode(image_hwc_u8, self.contract.input.dtype))
        self._interpreter.invoke()
        wanted = [self._input, *(t for op in self.graph.ops for t in op.outputs)]
        found = {t: self._interpreter.get_tensor(t) for t in wanted}
        for name, plain in self._plain.raw_outputs().items():
            share = _changed(plain, found[self.outputs[name]])
            self.kept_share = max(self.kept_share, share)
            if share > (_ROUNDING_SHARE if _has_mean_of_squares(self.graph) else 0.0):
                raise ArtifactError(
                    f"The runtime computes {name!r} of {self.graph.path} otherwise when it keeps every tensor.",
                    expected="the same bits, or behind a mean of squares floats that differ by rounding",
                    got=f"differences of {share:.1e} of its range with {self.kernels} kernels",
                    todo="verify without --layers, or with another version of ai-edge-litert",
                )
        return found

    def real(self, values: Arrays, tensor: int) -> NDArray[np.float32]:
        """Returns a tensor as real numbers: integers with a grid are put back on it."""
        grid, raw = self.graph.tensors[tensor], values[tensor]
        if not grid.scale:
            return raw.astype(np.float32)
        return np.float32(grid.scale[0]) * (raw.astype(np.float32) - np.float32(grid.zero_point[0]))


def _has_mean_of_squares(graph: Graph) -> bool:
    squares = {op.outputs[0] for op in graph.ops if op.name == "MUL" and op.inputs[0] == op.inputs[1]}
    return any(op.name == "MEAN" and op.inputs[0] in squares for op in graph.ops)


def _changed(plain: NDArray[Any], kept: NDArray[Any]) -> float:
    """Returns the largest difference as a share of the range; infinite of integers, and where one is not a number."""
    if np.array_equal(plain, kept, equal_nan=plain.dtype.kind == "f"):
        return 0.0
    if plain.dtype.kind != "f" or not np.isfinite(plain).all() or not np.isfinite(kept).all():
        return math.inf
    return float(np.abs(plain - kept).max()) / (float(np.ptp(plain)) or 1.0)
