"""What a .tflite contains, as plain frozen records; `flatbuffer` reads them from a file."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.tensor_names import ROOT, module_of
from edge_seg.errors import InputError

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype("<f4"),
    "float16": np.dtype("<f2"),
    "float64": np.dtype("<f8"),
    "int8": np.dtype("i1"),
    "uint8": np.dtype("u1"),
    "bool": np.dtype("?"),
    "int16": np.dtype("<i2"),
    "uint16": np.dtype("<u2"),
    "int32": np.dtype("<i4"),
    "uint32": np.dtype("<u4"),
    "int64": np.dtype("<i8"),
    "uint64": np.dtype("<u8"),
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the graph.

    Attributes:
        index: Its place in the subgraph's tensor list.
        name: Name; `module_of` maps it to the PyTorch module.
        shape: Extents; () is a scalar.
        dtype: "float32", "int8", ...
        scale: Quantisation scales: none, one, or one per channel along `axis`.
        zero_point: As many zero points.
        axis: Quantised dimension; 0 where there is one scale.
        constant: Whether the file holds its values.
        size_bytes: Bytes of those values, else 0.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    axis: int = 0
    constant: bool = False
    size_bytes: int = 0


@dataclass(frozen=True)
class OpInfo:
    """One operator. Absent optional inputs are -1.

    Attributes:
        index: Its place in the execution order.
        name: Builtin name ("CONV_2D"), or "CUSTOM:" with the custom code.
        version: Operator version.
        inputs: Tensor indices.
        outputs: Tensor indices.
        options: Builtin options, names in snake case; padding and activation as words ("SAME", "RELU6").
    """

    index: int
    name: str
    version: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Signature:
    """A named entry point: argument and result names to tensor indices."""

    key: str
    inputs: Mapping[str, int]
    outputs: Mapping[str, int]


@dataclass(frozen=True)
class Graph:
    """What a .tflite contains (its main subgraph).

    Attributes:
        path: The file.
        size_bytes: Size of the whole file, with what is appended to it.
        ops: Operators in execution order.
        tensors: All tensors of the main subgraph.
        inputs: Tensor indices of the graph's inputs.
        outputs: Tensor indices of the graph's outputs.
        signatures: Named entry points.
        metadata: Metadata buffers by name.
        subgraphs: How many subgraphs there are; only the first is read.
    """

    path: Path
    size_bytes: int
    ops: tuple[OpInfo, ...]
    tensors: tuple[TensorInfo, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    signatures: tuple[Signature, ...]
    metadata: Mapping[str, bytes] = field(repr=False, default_factory=dict)
    subgraphs: int = 1
    _values: Mapping[int, bytes] = field(repr=False, default_factory=dict, compare=False)

    @functools.cached_property
    def op_histogram(self) -> dict[str, int]:
        """Number of operators by name, most frequent first."""
        return dict(Counter(op.name for op in self.ops).most_common())

    @property
    def transposes(self) -> int:
        """Number of TRANSPOSE operators; a clean channels-last graph has none."""
        return self.op_histogram.get("TRANSPOSE", 0)

    def constant(self, index: int) -> NDArray[Any]:
        """Returns the values of a constant tensor in its own dtype and shape, read-only.

        Raises:
            InputError: The tensor is not a constant or has a dtype without a NumPy counterpart.
        """
        tensor = self.tensors[index]
        if not tensor.constant or tensor.dtype not in NUMPY_DTYPES:
            raise InputError(f"Tensor {tensor.name!r} has no readable values.", expected="a constant", got=tensor.dtype)
        return np.frombuffer(self._values[index], NUMPY_DTYPES[tensor.dtype]).reshape(tensor.shape)

    def producer(self, tensor_index: int) -> OpInfo | None:
        """Returns the operator that writes a tensor, or None for inputs and constants."""
        return self._producers.get(tensor_index)

    @functools.cached_property
    def _producers(self) -> dict[int, OpInfo]:
        return {t: op for op in self.ops for t in op.outputs}

    def source(self, op: OpInfo) -> str:
        """Returns the PyTorch module path an operator came from, or "" where no name tells it.

        The outputs' names are asked first, then those of its constants; `body` stands for the network's own
        forward, and for nothing more precise being known.
        """
        constants = [t for t in op.inputs if t >= 0 and self.tensors[t].constant]
        modules = [module_of(self.tensors[t].name) for t in (*op.outputs, *constants)]
        named = [m for m in modules if m]
        return next((m for m in named if m != ROOT), named[0] if named else "")
