"""Changes names and metadata of a .tflite without losing a constant.

ai-edge-quantizer keeps constants outside the flatbuffer (Buffer.offset and size); tools that re-pack only the
flatbuffer drop them silently. Here they are moved inside first, aligned to the 16 bytes the schema asks for.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from edge_seg.errors import InputError, MissingHere

_ALIGNMENT_BYTES = 16


def rename_signature(
    data: bytes, *, inputs: Mapping[int, str], outputs: Mapping[int, str], tensors: Mapping[int, str]
) -> bytes:
    """Gives the arguments and results of the only signature other names, and tensors too.

    Args:
        data: A whole .tflite.
        inputs: New argument name by tensor index.
        outputs: New result name by tensor index.
        tensors: New tensor name by tensor index; others keep theirs.

    Returns:
        The changed file; tensors and their order stay as they were.

    Raises:
        InputError: There is not exactly one signature, or a tensor of it has no new name.
    """
    model = _unpack(data)
    if len(model.signatureDefs or []) != 1:
        raise InputError("Expected exactly one signature.", got=str(len(model.signatureDefs or [])))
    signature = model.signatureDefs[0]
    for entries, names in ((signature.inputs, inputs), (signature.outputs, outputs)):
        for entry in entries:
            if entry.tensorIndex not in names:
                raise InputError(f"Tensor {entry.tensorIndex} of the signature has no new name.")
            entry.name = names[entry.tensorIndex].encode()
    for index, name in tensors.items():
        model.subgraphs[signature.subgraphIndex].tensors[index].name = name.encode()
    return _pack(model)


def with_metadata(data: bytes, buffers: Mapping[str, bytes]) -> bytes:
    """Adds metadata buffers, replacing those of the same name; anything appended to the file is dropped.

    Args:
        data: A whole .tflite.
        buffers: Content by metadata name.
    """
    utils = _tool()
    model = _unpack(data)
    model.metadata = list(model.metadata or [])
    known = {_text(entry.name): entry.buffer for entry in model.metadata}
    for name, content in buffers.items():
        buffer = utils.BufferT()
        buffer.data = content
        if name in known:
            model.buffers[known[name]] = buffer
            continue
        entry = utils.schema_fb.MetadataT()
        entry.name, entry.buffer = name.encode(), len(model.buffers)
        model.buffers.append(buffer)
        model.metadata.append(entry)
    return _pack(model)


class Editor:
    """A .tflite opened for changes of constants and for cutting off its end; the file itself stays as it is.

    Args:
        data: A whole .tflite.
    """

    def __init__(self, data: bytes) -> None:
        self._model = _unpack(data)
        self._main: Any = self._model.subgraphs[0]

    def set_operand(self, op: int, place: int, values: NDArray[Any]) -> None:
        """Gives one operator another constant; operators that share it keep the old one.

        Args:
            op: Index of the operator.
            place: Place of the constant among its inputs.
            values: New values, of the dtype of the old ones; the tensor takes their shape.
        """
        operator = self._main.operators[op]
        index = int(operator.inputs[place])
        tensor = self._main.tensors[index]
        readers = sum(list(o.inputs).count(index) for o in self._main.operators)
        owners = sum(t.buffer == tensor.buffer for t in self._main.tensors)
        if readers > 1 or owners > 1:
            tensor = copy.copy(tensor)
            tensor.name = f"{_text(tensor.name)};arith.copy_{op}".encode()
            tensor.buffer = len(self._model.buffers)
            self._model.buffers.append(_tool().BufferT())
            operator.inputs[place] = len(self._main.tensors)
            self._main.tensors.append(tensor)
        tensor.shape, tensor.shapeSignature = list(values.shape), None
        buffer = self._model.buffers[tensor.buffer]
        buffer.data, buffer.offset, buffer.size = values.tobytes(), 0, 0

    def packed(self) -> bytes:
        """Returns the changed file."""
        buffers = self._model.buffers
        data = _pack(self._model)
        self._model.buffers = buffers
        return data

    def head(self, ops: int, outputs: Sequence[int]) -> bytes:
        """Returns a file with the first `ops` operators only, which gives the tensors `outputs`; no signature."""
        main, signatures = self._main, self._model.signatureDefs
        kept = main.operators, main.outputs
        main.operators, main.outputs, self._model.signatureDefs = kept[0][:ops], list(outputs), []
        try:
            return self.packed()
        finally:
            main.operators, main.outputs = kept
            self._model.signatureDefs = signatures

    def alone(self, op: int) -> bytes:
        """Returns a file of one operator with the constants it reads; its other inputs are the graph's."""
        main, model = self._main, self._model
        operator, buffers = main.operators[op], model.buffers
        kept = main.operators, main.inputs, main.outputs, model.signatureDefs
        read = [int(t) for t in operator.inputs if t >= 0]
        held = {main.tensors[t].buffer for t in read if _content(buffers[main.tensors[t].buffer])}
        main.operators, main.outputs, model.signatureDefs = [operator], list(operator.outputs), []
        main.inputs = [t for t in dict.fromkeys(read) if main.tensors[t].buffer not in held]
        model.buffers = [b if i in held else _tool().BufferT() for i, b in enumerate(buffers)]
        try:
            return _pack(model)
        finally:
            main.operators, main.inputs, main.outputs, model.signatureDefs = kept
            model.buffers = buffers

    def part(self, ops: Sequence[int], inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """Returns a file of some operators and the constants they read, with a signature of its own.

        Args:
            ops: Operators in execution order.
            inputs: Tensors that become its arguments, called input_000, input_001 ...
            outputs: Tensors that become its results, called output_000, output_001 ...
        """
        model, main, schema = self._model, self._main, _tool().schema_fb
        kept = main.operators, main.inputs, main.outputs, model.signatureDefs, model.buffers, model.metadata
        main.operators = [kept[0][op] for op in ops]
        held = {main.tensors[t].buffer for o in main.operators for t in map(int, o.inputs) if t >= 0}
        main.inputs, main.outputs, model.metadata = list(inputs), list(outputs), []
        model.buffers = [b if i in held else _tool().BufferT() for i, b in enumerate(kept[4])]
        model.signatureDefs = [_signature(schema, inputs, outputs)]
        try:
            return _pack(model)
        finally:
            main.operators, main.inputs, main.outputs, model.signatureDefs, model.buffers, model.metadata = kept


def _signature(schema: Any, inputs: Sequence[int], outputs: Sequence[int]) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    for key, tensors in (("input", inputs), ("output", outputs)):
        entries = []
        for number, index in enumerate(tensors):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = f"{key}_{number:03}".encode(), int(index)
            entries.append(entry)
        setattr(signature, f"{key}s", entries)
    return signature


def _content(buffer: Any) -> bool:
    return buffer.data is not None and len(buffer.data) > 0


def _text(name: bytes | str | None) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name or ""


def _tool() -> Any:
    try:
        from ai_edge_litert.tools import flatbuffer_utils
    except ImportError as error:
        raise MissingHere(
            "Editing a .tflite needs the TFLite schema.", todo="pip install ai-edge-litert==2.3.0"
        ) from error
    return flatbuffer_utils


def _unpack(data: bytes) -> Any:
    return _tool().read_model_from_bytearray(data)


def _pack(model: Any) -> bytes:
    utils = _tool()
    base: Any = utils.BufferT

    class Aligned(base):  # type: ignore[misc]
        """A buffer whose bytes start at a multiple of 16, which the stock packer does not see to."""

        def Pack(self, builder: Any) -> Any:
            vector = _aligned_vector(builder, self.data) if self.data is not None else None
            utils.schema_fb.BufferStart(builder)
            if vector is not None:
                utils.schema_fb.BufferAddData(builder, vector)
            return utils.schema_fb.BufferEnd(builder)

    buffers, model.buffers = model.buffers, []
    for buffer in buffers:
        aligned = Aligned()
        aligned.data = bytes(buffer.data) if buffer.data is not None else None
        model.buffers.append(aligned)
    return bytes(utils.convert_object_to_bytearray(model))


def _aligned_vector(builder: Any, content: bytes) -> Any:
    builder.StartVector(1, len(content), _ALIGNMENT_BYTES)
    builder.head = builder.head - len(content)
    builder.Bytes[builder.head : builder.head + len(content)] = content
    return builder.EndVector()
