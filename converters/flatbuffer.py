"""Reads a .tflite file without running it: operators, tensors, scales, constants, signatures.

The only file that uses the TFLite schema to read. Every offset and length of a file from outside is checked
before it is used: a broken file ends in ArtifactError, never in a crash of a runtime behind it.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge_seg.converters.graph import NUMPY_DTYPES, Graph, OpInfo, Signature, TensorInfo
from edge_seg.converters.tensor_names import module_of
from edge_seg.errors import ArtifactError, InputError, MissingHere

__all__ = [
    "Graph",
    "OpInfo",
    "Signature",
    "TensorInfo",
    "broken",
    "graph_of",
    "module_of",
    "read_bytes",
    "read_graph",
]

MAX_FILE_BYTES = 1 << 30
MAX_ELEMENTS = 1 << 31
_BROKEN = (
    struct.error,
    IndexError,
    KeyError,
    ValueError,
    TypeError,
    OverflowError,
    AttributeError,
    MemoryError,
)
T = TypeVar("T")


def read_graph(path: Path) -> Graph:
    """Reads a .tflite file.

    Args:
        path: The file.

    Returns:
        Its operators, tensors and signatures.

    Raises:
        InputError: There is no such file.
        ArtifactError: It is not a TFLite file, is truncated, or points outside itself.
        MissingHere: The TFLite schema (ai-edge-litert) is not installed.

    Source:
        TFLite schema v3 (tensorflow/lite/schema/schema.fbs).
    """
    return graph_of(read_bytes(path), path)


def graph_of(data: bytes, path: Path) -> Graph:
    """Reads a .tflite held in memory; `path` is its name in messages. Raises as `read_graph`."""
    try:
        return _Reader(path, data).graph()
    except _BROKEN as error:
        raise broken(path, f"{len(data)} bytes that point to what is not there ({error})") from error


def read_bytes(path: Path) -> bytes:
    """Reads a .tflite file whole, after checking its size and its identifier.

    Raises:
        InputError: There is no such file.
        ArtifactError: It is too big, too small, or does not carry the identifier TFL3.
    """
    try:
        size_bytes = path.stat().st_size
        if not path.is_file() or not 16 <= size_bytes <= MAX_FILE_BYTES:
            raise broken(path, f"{size_bytes} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"Cannot read {path}.", expected="a .tflite file", got=error.strerror or str(error)) from error
    if data[4:8] != b"TFL3":
        raise broken(path, f"identifier {data[4:8]!r}, not b'TFL3'")
    return data


def broken(path: Path, detail: str) -> ArtifactError:
    """Returns the error for a .tflite that cannot be read, with the detail that gave it away."""
    return ArtifactError(
        f"{path} is not a whole TFLite file.",
        expected="a .tflite file (flatbuffer identifier TFL3)",
        got=detail,
        todo="copy or convert it again",
    )


class _Reader:
    """Walks the flatbuffer with every count and offset bounded by the size of the file."""

    def __init__(self, path: Path, data: bytes) -> None:
        try:
            from ai_edge_litert import schema_py_generated as schema
        except ImportError as error:
            raise MissingHere(
                "Reading a .tflite needs the TFLite schema.", todo="pip install ai-edge-litert==2.3.0"
            ) from error
        self.schema, self.path, self.data = schema, path, data
        root = int.from_bytes(data[:4], "little")
        self._inside(root, 4, "root table")
        self.model: Any = schema.Model.GetRootAs(data, 0)

    def graph(self) -> Graph:
        count = self._count(self.model.SubgraphsLength(), "subgraphs")
        if count < 1:
            raise ValueError("no subgraph")
        main = self.model.Subgraphs(0)
        self.spans = self._buffer_spans()
        tensors = tuple(self._tensor(i, t) for i, t in enumerate(self._each(main.TensorsLength, main.Tensors)))
        codes = [self._op_code(c) for c in self._each(self.model.OperatorCodesLength, self.model.OperatorCodes)]
        ops = tuple(
            self._op(i, o, codes, len(tensors)) for i, o in enumerate(self._each(main.OperatorsLength, main.Operators))
        )
        return Graph(
            path=self.path,
            size_bytes=len(self.data),
            ops=ops,
            tensors=tensors,
            inputs=self._indices(main.InputsAsNumpy(), len(tensors)),
            outputs=self._indices(main.OutputsAsNumpy(), len(tensors)),
            signatures=self._signatures(len(tensors)),
            metadata=self._metadata(),
            subgraphs=count,
            _values={t.index: self._bytes(main.Tensors(t.index).Buffer()) for t in tensors if t.constant},
        )

    def _inside(self, start: int, size: int, what: str) -> None:
        if start < 0 or size < 0 or start + size > len(self.data):
            raise ValueError(f"{what} lies outside the file ({start}+{size} of {len(self.data)} bytes)")

    def _count(self, count: int, what: str) -> int:
        if not 0 <= count * 4 <= len(self.data):
            raise ValueError(f"{what} cannot number {count} in {len(self.data)} bytes")
        return count

    def _each(self, length: Callable[[], int], item: Callable[[int], T]) -> Iterator[T]:
        for i in range(self._count(length(), "entries of a list")):
            yield item(i)

    def _buffer_spans(self) -> list[tuple[int, int]]:
        spans = []
        for buffer in self._each(self.model.BuffersLength, self.model.Buffers):
            start, size = int(buffer.Offset()), int(buffer.Size())
            if start <= 1:  # 0 and 1 mean: the values lie inside the flatbuffer
                place = buffer._tab.Offset(4)
                start, size = (buffer._tab.Vector(place), buffer.DataLength()) if place else (0, 0)
            self._inside(start, size, "a constant")
            spans.append((start, size))
        return spans

    def _bytes(self, buffer: int) -> bytes:
        start, size = self.spans[buffer]
        return self.data[start : start + size]

    def _tensor(self, index: int, tensor: Any) -> TensorInfo:
        buffer = tensor.Buffer()
        if buffer >= len(self.spans):
            raise ValueError(f"tensor {index} names buffer {buffer} of {len(self.spans)}")
        name = (tensor.Name() or b"").decode("utf-8", "replace")
        shape = self._shape(tensor)
        dtype = _word(self.schema.TensorType, tensor.Type()).lower()
        size_bytes = self.spans[buffer][1]
        if size_bytes and dtype in NUMPY_DTYPES and tensor.Sparsity() is None:
            wanted = int(np.prod(shape, dtype=np.int64)) * NUMPY_DTYPES[dtype].itemsize
            if wanted != size_bytes:
                raise ValueError(f"constant {name!r} has {size_bytes} bytes, its shape needs {wanted}")
        scale, zero_point, axis = self._quantization(tensor.Quantization(), shape)
        return TensorInfo(index, name, shape, dtype, scale, zero_point, axis, size_bytes > 0, size_bytes)

    def _shape(self, tensor: Any) -> tuple[int, ...]:
        self._count(tensor.ShapeLength(), "dimensions")
        shape = tuple(int(v) for v in tensor.ShapeAsNumpy()) if tensor.ShapeLength() else ()
        if any(v < 0 for v in shape) or int(np.prod(shape, dtype=object)) > MAX_ELEMENTS:
            raise ValueError(f"a tensor has the shape {shape}")
        return shape

    def _quantization(self, q: Any, shape: tuple[int, ...]) -> tuple[tuple[float, ...], tuple[int, ...], int]:
        if q is None or q.ScaleLength() == 0:
            return (), (), 0
        self._count(q.ScaleLength(), "scales")
        scale = tuple(float(v) for v in q.ScaleAsNumpy())
        zeros = tuple(int(v) for v in q.ZeroPointAsNumpy()) if q.ZeroPointLength() else (0,) * len(scale)
        axis = int(q.QuantizedDimension())
        if len(scale) > 1 and (not 0 <= axis < len(shape) or len(scale) != shape[axis]):
            raise ValueError(f"{len(scale)} scales along axis {axis} of shape {shape}")
        return scale, zeros, axis

    def _op_code(self, code: Any) -> tuple[str, int]:
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        name = _word(self.schema.BuiltinOperator, number)
        if name == "CUSTOM":
            name = f"CUSTOM:{(code.CustomCode() or b'').decode('utf-8', 'replace')}"
        return name, int(code.Version())

    def _op(self, index: int, op: Any, codes: list[tuple[str, int]], tensors: int) -> OpInfo:
        name, version = codes[op.OpcodeIndex()]
        inputs = self._indices(op.InputsAsNumpy() if op.InputsLength() else (), tensors, optional=True)
        outputs = self._indices(op.OutputsAsNumpy() if op.OutputsLength() else (), tensors)
        return OpInfo(index, name, version, inputs, outputs, self._options(op))

    def _indices(self, values: Any, tensors: int, *, optional: bool = False) -> tuple[int, ...]:
        found = tuple(int(v) for v in values) if not isinstance(values, int) else ()
        if any(not (-1 if optional else 0) <= v < tensors for v in found):
            raise ValueError(f"an operator names a tensor outside 0..{tensors - 1}: {found}")
        return found

    def _options(self, op: Any) -> dict[str, Any]:
        schema = self.schema
        table = op.BuiltinOptions()
        made = schema.BuiltinOptionsCreator(op.BuiltinOptionsType(), table) if table is not None else None
        if made is None and (table := op.BuiltinOptions2()) is not None:
            made = schema.BuiltinOptions2Creator(op.BuiltinOptions2Type(), table)
        return {_snake(k): self._option(k, v) for k, v in vars(made).items()} if made is not None else {}

    def _option(self, key: str, value: Any) -> Any:
        if key == "padding" and not isinstance(value, np.ndarray):  # an array in StableHLO operators
            return _word(self.schema.Padding, value)
        if key == "fusedActivationFunction":
            return _word(self.schema.ActivationFunctionType, value)
        if key in ("inDataType", "outDataType"):
            return _word(self.schema.TensorType, value).lower()
        return value.tolist() if isinstance(value, np.ndarray) else value

    def _signatures(self, tensors: int) -> tuple[Signature, ...]:
        found = []
        for signature in self._each(self.model.SignatureDefsLength, self.model.SignatureDefs):
            if signature.SubgraphIndex() == 0:
                key = (signature.SignatureKey() or b"").decode("utf-8", "replace")
                inputs = self._named(signature.InputsLength, signature.Inputs, tensors)
                outputs = self._named(signature.OutputsLength, signature.Outputs, tensors)
                found.append(Signature(key, inputs, outputs))
        return tuple(found)

    def _named(self, length: Callable[[], int], item: Callable[[int], Any], tensors: int) -> dict[str, int]:
        entries = self._each(length, item)
        pairs = {(e.Name() or b"").decode("utf-8", "replace"): e.TensorIndex() for e in entries}
        self._indices(tuple(pairs.values()), tensors)
        return pairs

    def _metadata(self) -> dict[str, bytes]:
        entries = self._each(self.model.MetadataLength, self.model.Metadata)
        return {(e.Name() or b"").decode("utf-8", "replace"): self._bytes(e.Buffer()) for e in entries}


@functools.cache
def _words(enumeration: type) -> dict[int, str]:
    return {v: k for k, v in vars(enumeration).items() if isinstance(v, int)}


def _word(enumeration: type, number: int) -> str:
    if number not in _words(enumeration):
        raise ValueError(f"{enumeration.__name__} has no value {number}")
    return _words(enumeration)[number]


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
