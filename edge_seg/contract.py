"""The contract: what an exported or converted network says about itself, as one JSON document.

Written once, at export; completed at conversion (tensor names, dtypes, scales); read by every later step in every
language. Unknown `version` or missing keys are errors; unknown extra keys are kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from edge_seg.artifact import read_json, write_json
from edge_seg.config import from_mapping
from edge_seg.errors import ArtifactError, ConfigError, InputError

FORMAT = "edge_seg.contract"
VERSION = 1


def _extra() -> Any:
    """A field for the keys of an object that this version does not know; they are written back as they were."""
    return field(default_factory=dict, compare=False, kw_only=True)


@dataclass(frozen=True)
class ClassInfo:
    """One class; its contiguous index is its position in the list. Void is never a class.

    Attributes:
        id: Category id in the data set's own numbering.
        name: Name.
        isthing: Whether its objects are counted (thing) or not (stuff).
        color_rgb: Colour in pictures, 0..255.
    """

    id: int
    name: str
    isthing: bool
    color_rgb: tuple[int, int, int]
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Quantization:
    """Affine grid of a tensor: real = scale * (integer - zero_point)."""

    scale: float
    zero_point: int
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class InputTensor:
    """The network's input. `range` is that of the real values in every scheme: bytes, 0..255."""

    name: str
    shape: tuple[int, int, int, int]
    signature_key: str = ""
    tensor_name: str = ""
    layout: str = "NHWC"
    dtype: str = "float32"
    quantization: Quantization | None = None
    color: str = "RGB"
    range: tuple[float, float] = (0.0, 255.0)
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the input; the normalisation itself is the graph's first operation."""

    fill_rgb: tuple[int, int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: str = "letterbox"
    resize: str = "pillow_bilinear"
    in_graph: bool = True
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class OutputTensor:
    """A raw output. `role` is what the decoder asks for; `name` is unique; shapes are NHWC."""

    name: str
    role: str
    shape: tuple[int, ...]
    stride_px: int
    activation: str = "logit"
    level: int = 0
    signature_key: str = ""
    tensor_name: str = ""
    layout: str = "NHWC"
    dtype: str = "float32"
    quantization: Quantization | None = None
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class DecoderConstant:
    """A constant the decoder needs, stored in the associated file `decoder.safetensors`."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class DecoderInfo:
    """The decoder's registered name, its parameters, and the constants that travel with the file."""

    name: str
    params: Mapping[str, Any]
    constants: tuple[DecoderConstant, ...] = ()
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class ModelInfo:
    """What the network is and where it came from. `macs` as published, `macs_graph` of the exported graph."""

    name: str
    family: str
    task: str
    input_px: int
    params: int
    macs: int
    macs_graph: int
    macs_decoder: int
    licence: str
    producer: Mapping[str, str] = field(default_factory=dict)
    parents: Mapping[str, str] = field(default_factory=dict)
    scheme: str = "torch"
    route: str = ""
    extra: Mapping[str, Any] = _extra()


@dataclass(frozen=True)
class Contract:
    """Everything a reader must know to feed a file and to understand what comes out.

    Attributes:
        model: Identity, size and provenance.
        input: The input tensor.
        preprocess: From image to input.
        outputs: The raw outputs, found by `signature_key` or `tensor_name`, never by order.
        classes: The class list.
        decoder: From raw outputs to masks.
        extra: Unknown keys of the document, kept as they were.
    """

    model: ModelInfo
    input: InputTensor
    preprocess: Preprocess
    outputs: tuple[OutputTensor, ...]
    classes: tuple[ClassInfo, ...]
    decoder: DecoderInfo
    extra: Mapping[str, Any] = field(default_factory=dict)

    def output(self, name: str) -> OutputTensor:
        """Returns the output called `name`; raises InputError with the names there are."""
        for output in self.outputs:
            if output.name == name:
                return output
        raise InputError(
            f"The contract has no output {name!r}.",
            expected=", ".join(o.name for o in self.outputs),
            got=name,
        )

    @property
    def input_wh_px(self) -> tuple[int, int]:
        """Width and height of the input in pixels."""
        return self.input.shape[2], self.input.shape[1]

    def with_decoder_params(self, **params: Any) -> Self:
        """Returns a copy whose decoder uses other parameters; raises InputError for an unknown one or a wrong type."""
        unknown = sorted(set(params) - set(self.decoder.params))
        if unknown:
            from edge_seg.errors import nearest

            raise InputError(
                f"The decoder {self.decoder.name!r} has no parameter {unknown[0]!r}.",
                todo=nearest(unknown[0], sorted(self.decoder.params)),
            )
        changed = {k: _same_type(k, v, self.decoder.params[k]) for k, v in params.items()}
        return replace(self, decoder=replace(self.decoder, params={**self.decoder.params, **changed}))

    def to_json(self) -> dict[str, Any]:
        """Returns the document as plain JSON types."""
        return {"format": FORMAT, "version": VERSION, **_plain(self)}

    @classmethod
    def from_json(cls, document: Any, *, source: str = "contract") -> Self:
        """Reads a document.

        Args:
            document: Parsed JSON.
            source: Where it came from, for messages.

        Raises:
            ArtifactError: Wrong format or version, a missing key or a wrong type.
        """
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ArtifactError(f"{source} is not an edge_seg contract.", expected=f'"format": "{FORMAT}"')
        if document.get("version") != VERSION:
            raise ArtifactError(
                f"{source} has an unknown version.",
                expected=str(VERSION),
                got=str(document.get("version")),
                todo="use the edge_seg version that wrote it, or export again",
            )
        try:
            return cls(
                model=_build(ModelInfo, document["model"]),
                input=_build(InputTensor, document["input"]),
                preprocess=_build(Preprocess, document["preprocess"]),
                outputs=tuple(_build(OutputTensor, o) for o in document["outputs"]),
                classes=tuple(_build(ClassInfo, c) for c in document["classes"]),
                decoder=_decoder(document["decoder"]),
                extra={k: v for k, v in document.items() if k not in _KEYS},
            )
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise ArtifactError(f"{source} is not complete.", got=f"{type(error).__name__}: {error}") from error

    def save(self, path: Path) -> None:
        """Writes the document atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads a contract file; raises InputError or ArtifactError."""
        return cls.from_json(read_json(path, "contract"), source=str(path))

    @classmethod
    def loads(cls, text: str | bytes, *, source: str = "contract") -> Self:
        """Reads a contract from text, for example the copy inside a .tflite."""
        try:
            document = json.loads(text)
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ArtifactError(f"{source} is not JSON.", got=str(error)) from error
        return cls.from_json(document, source=source)


_KEYS = {"format", "version", "model", "input", "preprocess", "outputs", "classes", "decoder"}


def _same_type(name: str, value: Any, default: Any) -> Any:
    """Returns a decoder parameter; raises InputError unless it is of the default's type."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if default is not None and type(value) is not type(default):
        raise InputError(
            f"The decoder parameter {name!r} has a wrong value.", expected=type(default).__name__, got=repr(value)
        )
    return value


def _plain(value: Any) -> Any:
    if hasattr(value, "__dataclass_fields__"):
        known = {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name != "extra"}
        return {**known, **value.extra}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _build(kind: type, document: Mapping[str, Any], **parts: Any) -> Any:
    """Builds a dataclass from JSON, every value of its declared type; unknown keys are kept in `extra`.

    Args:
        kind: The dataclass.
        document: Its JSON object.
        **parts: Fields that are built already.
    """
    if not isinstance(document, Mapping):
        raise TypeError(f"{kind.__name__} is not an object")
    names = [f.name for f in fields(kind) if f.name != "extra"]
    for name in names:
        if name not in document:
            raise KeyError(f"{kind.__name__}.{name}")
    if document.get("quantization") is not None:
        parts["quantization"] = _build(Quantization, document["quantization"])
    plain: Any = from_mapping(kind, {n: document[n] for n in names if n not in parts}, where=kind.__name__)
    return replace(plain, **parts, extra={k: v for k, v in document.items() if k not in names})


def _decoder(document: Mapping[str, Any]) -> DecoderInfo:
    constants = tuple(_build(DecoderConstant, c) for c in document["constants"])
    info: DecoderInfo = _build(DecoderInfo, document, constants=constants)
    return info
