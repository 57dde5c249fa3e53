"""Writes a .tflite of a few operators: a probe of an accelerator, and the graphs its rules are tested with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edge_seg.contract import Quantization
from edge_seg.converters.graph import NUMPY_DTYPES
from edge_seg.errors import InputError, MissingHere

SIGNATURE = "serving_default"
Options = tuple[str, Mapping[str, Any]]


class GraphWriter:
    """Collects tensors and operators of one subgraph with one signature.

    Tensors are numbered in the order they are added; every method that adds one returns its number.

    Raises:
        MissingHere: The TFLite schema (ai-edge-litert) is not installed.
    """

    def __init__(self) -> None:
        try:
            from ai_edge_litert import schema_py_generated
        except ImportError as error:
            raise MissingHere(
                "Writing a .tflite needs the TFLite schema.", todo="pip install ai-edge-litert"
            ) from error
        self._schema: Any = schema_py_generated
        self._model = self._schema.ModelT()
        self._model.version, self._model.description = 3, b"edge_seg small graph"
        self._model.operatorCodes, self._model.buffers = [], [self._schema.BufferT()]
        self._graph = self._schema.SubGraphT()
        self._graph.tensors, self._graph.operators, self._graph.inputs = [], [], []
        self._names: dict[int, str] = {}

    def input(
        self, name: str, shape: Sequence[int], dtype: str = "float32", *, grid: Quantization | None = None
    ) -> int:
        """Adds an argument of the graph; `grid` is its scale and zero point where it holds integers."""
        index = self._tensor(name, shape, dtype, grid)
        self._graph.inputs.append(index)
        return index

    def constant(self, values: Any, *, grid: Quantization | None = None) -> int:
        """Adds a tensor whose values the file holds, in their own dtype and shape."""
        array = np.asarray(values)
        buffer = self._schema.BufferT()
        buffer.data = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        index = self._tensor(f"constant_{len(self._graph.tensors)}", array.shape, str(array.dtype), grid)
        self._graph.tensors[index].buffer = len(self._model.buffers) - 1
        return index

    def op(
        self,
        name: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        dtype: str = "float32",
        *,
        grid: Quantization | None = None,
        options: Options | None = None,
    ) -> int:
        """Adds an operator with one output; `also` adds more.

        Args:
            name: Builtin name ("CONV_2D"); "CONV_2D:3" asks for version 3 of the operator, else it is 1.
            inputs: Tensor numbers; -1 for an optional one that is left out.
            shape: Shape of the output.
            dtype: Dtype of the output.
            grid: Scale and zero point of the output.
            options: Class of the schema without its T ("Conv2DOptions") and its fields in camel case.

        Raises:
            InputError: There is no operator of that name.
        """
        output = self._tensor(f"result_{len(self._graph.tensors)}", shape, dtype, grid)
        node = self._schema.OperatorT()
        node.opcodeIndex = self._op_code(name)
        node.inputs, node.outputs = list(inputs), [output]
        if options is not None:
            node.builtinOptionsType = getattr(self._schema.BuiltinOptions, options[0])
            node.builtinOptions = getattr(self._schema, options[0] + "T")()
            for key, value in options[1].items():
                setattr(node.builtinOptions, key, value)
        self._graph.operators.append(node)
        return output

    def also(self, shape: Sequence[int], dtype: str = "float32", *, grid: Quantization | None = None) -> int:
        """Adds one more output to the operator added last."""
        output = self._tensor(f"result_{len(self._graph.tensors)}", shape, dtype, grid)
        self._graph.operators[-1].outputs.append(output)
        return output

    def finish(self, *outputs: int) -> bytes:
        """Returns the file; results are called output_0, output_1 ... in the order given."""
        self._graph.outputs = list(outputs)
        self._model.subgraphs = [self._graph]
        self._model.signatureDefs = [self._signature()]
        import flatbuffers

        builder = flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())

    def _tensor(self, name: str, shape: Sequence[int], dtype: str, grid: Quantization | None) -> int:
        if dtype not in NUMPY_DTYPES:
            raise InputError(f"There is no tensor dtype {dtype!r}.", expected=", ".join(NUMPY_DTYPES))
        tensor = self._schema.TensorT()
        tensor.name, tensor.shape, tensor.buffer = name.encode(), list(shape), 0
        tensor.type = getattr(self._schema.TensorType, dtype.upper())
        tensor.hasRank = True
        if grid is not None:
            tensor.quantization = self._schema.QuantizationParametersT()
            tensor.quantization.scale = np.array([grid.scale], np.float32)
            tensor.quantization.zeroPoint = np.array([grid.zero_point], np.int64)
        self._graph.tensors.append(tensor)
        index = len(self._graph.tensors) - 1
        self._names[index] = name
        return index

    def _op_code(self, name: str) -> int:
        word, _, version = name.partition(":")
        number = getattr(self._schema.BuiltinOperator, word, None)
        if number is None:
            raise InputError(f"There is no operator {word!r}.")
        code = self._schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
        code.version = int(version or 1)
        self._model.operatorCodes.append(code)
        return len(self._model.operatorCodes) - 1

    def _signature(self) -> Any:
        signature = self._schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = SIGNATURE.encode(), 0
        signature.inputs = [self._entry(self._names[i], i) for i in self._graph.inputs]
        signature.outputs = [self._entry(f"output_{k}", i) for k, i in enumerate(self._graph.outputs)]
        return signature

    def _entry(self, name: str, index: int) -> Any:
        entry = self._schema.TensorMapT()
        entry.name, entry.tensorIndex = name.encode(), index
        return entry
