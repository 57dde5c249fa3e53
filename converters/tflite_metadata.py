"""The standard TFLite metadata buffer: other people's tools find labels, names and the input's meaning in it.

Written field by field from the public schema; no package that owns it is needed.

Source:
    tflite-support, metadata_schema.fbs 1.1.0 (file identifier M001).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge_seg.contract import Contract, InputTensor, OutputTensor
from edge_seg.errors import MissingHere

NAME = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_MIN_PARSER_VERSION = "1.0.0"
# Values of enumerations and unions in the schema.
_DESCRIPTIONS, _AXIS_LABELS, _RGB, _IMAGE_PROPERTIES, _FEATURE_PROPERTIES, _NORMALIZATION = 1, 2, 1, 2, 1, 1

Slot = tuple[str, Any] | None


def build(contract: Contract, outputs: Sequence[str], files: Sequence[str]) -> bytes:
    """Builds the metadata buffer.

    Args:
        contract: What the file is.
        outputs: Names of the contract's outputs in the order of the graph's outputs.
        files: Names of the associated files; "labels.txt" is marked as the class names of the outputs'
            last axis, the others as descriptions.

    Returns:
        A finished flatbuffer for the metadata entry `TFLITE_METADATA`.
    """
    writer = _Writer()
    subgraph = writer.table(
        writer.text(contract.model.name),
        None,
        writer.vector([_input(writer, contract.input)]),
        writer.vector([_output(writer, contract.output(name), contract) for name in outputs]),
    )
    model = writer.table(
        writer.text(contract.model.name),
        writer.text(f"{contract.model.family}, {contract.model.task} segmentation"),
        writer.text(contract.model.scheme),
        writer.vector([subgraph]),
        writer.text(contract.model.producer.get("name", "edge_seg")),
        writer.text(contract.model.licence),
        writer.vector([_file(writer, name) for name in files]),
        writer.text(_MIN_PARSER_VERSION),
    )
    return writer.finish(model)


def _input(writer: _Writer, tensor: InputTensor) -> int:
    height, width = tensor.shape[1], tensor.shape[2]
    size = writer.table(("uint32", width), ("uint32", height))
    image = writer.table(("int8", _RGB), ("offset", size))
    content = writer.table(("uint8", _IMAGE_PROPERTIES), ("offset", image))
    # The graph normalises by itself: readers must feed bytes as they are.
    options = writer.table(writer.floats([0.0]), writer.floats([1.0]))
    unit = writer.table(("uint8", _NORMALIZATION), ("offset", options))
    stats = writer.table(writer.floats([tensor.range[1]]), writer.floats([tensor.range[0]]))
    return writer.table(
        writer.text(tensor.name),
        writer.text("RGB picture as bytes 0..255, letterboxed; the graph normalises it"),
        None,
        ("offset", content),
        writer.vector([unit]),
        ("offset", stats),
    )


def _output(writer: _Writer, tensor: OutputTensor, contract: Contract) -> int:
    feature = writer.table()
    content = writer.table(("uint8", _FEATURE_PROPERTIES), ("offset", feature))
    per_class = tensor.shape[-1] == len(contract.classes)
    return writer.table(
        writer.text(tensor.name),
        writer.text(f"{tensor.role}, stride {tensor.stride_px} px, activation {tensor.activation}"),
        None,
        ("offset", content),
        None,
        None,
        writer.vector([_file(writer, "labels.txt")]) if per_class else None,
    )


def _file(writer: _Writer, name: str) -> int:
    kind = _AXIS_LABELS if name == "labels.txt" else _DESCRIPTIONS
    return writer.table(writer.text(name), writer.text(_WHAT.get(name, "")), ("int8", kind))


_WHAT = {
    "labels.txt": "class names, one a line, in the order of the class axis",
    "contract.json": "edge_seg contract: input, outputs, classes, decoder",
    "decoder.safetensors": "constants of the decoder that runs outside the graph",
    "colors.json": "one RGB colour per class",
}


class _Writer:
    """Just enough of a flatbuffer writer: a table is a row of slots, in the order of the schema."""

    def __init__(self) -> None:
        try:
            import flatbuffers
        except ImportError as error:
            raise MissingHere("Writing metadata needs flatbuffers.", todo="pip install flatbuffers") from error
        self.builder: Any = flatbuffers.Builder(1024)

    def text(self, value: str) -> Slot:
        return ("offset", self.builder.CreateString(value)) if value else None

    def floats(self, values: Sequence[float]) -> Slot:
        self.builder.StartVector(4, len(values), 4)
        for value in reversed(values):
            self.builder.PrependFloat32(value)
        return ("offset", self.builder.EndVector())

    def vector(self, tables: Sequence[int]) -> Slot:
        self.builder.StartVector(4, len(tables), 4)
        for table in reversed(tables):
            self.builder.PrependUOffsetTRelative(table)
        return ("offset", self.builder.EndVector())

    def table(self, *slots: Slot) -> int:
        put = {
            "offset": self.builder.PrependUOffsetTRelativeSlot,
            "int8": self.builder.PrependInt8Slot,
            "uint8": self.builder.PrependUint8Slot,
            "uint32": self.builder.PrependUint32Slot,
        }
        self.builder.StartObject(len(slots))
        for place, slot in enumerate(slots):
            if slot is not None:
                put[slot[0]](place, slot[1], 0)
        return int(self.builder.EndObject())

    def finish(self, root: int) -> bytes:
        self.builder.Finish(root, file_identifier=_IDENTIFIER)
        return bytes(self.builder.Output())
