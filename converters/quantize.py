"""Float TFLite file -> fp16, dynamic int8 or static int8. The only file that uses ai-edge-quantizer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.converters.flatbuffer import Graph
from edge_seg.converters.quiet import quiet_tools
from edge_seg.errors import DataError, InputError, MissingHere, nearest

Images = Sequence[NDArray[np.uint8]]
INPUT_RANGE = (
    0.0,
    255.0,
)  # forced, so that the int8 input is scale 1, zero point -128: the app writes byte - 128


def quantized(data: bytes, graph: Graph, contract: Contract, *, scheme: str, calibration: Images | None) -> bytes:
    """Quantises a float32 .tflite.

    Args:
        data: The float file.
        graph: What `data` contains.
        contract: Names of input and outputs.
        scheme: "fp16", "w8_dynamic" or "w8a8".
        calibration: Letterboxed pictures, uint8 [H, W, 3], for "w8a8"; others ignore it.

    Returns:
        The quantised file, its constants still outside the flatbuffer.

    Raises:
        InputError: Unknown scheme, no calibration where it is needed, or a network the tool refuses.
        MissingHere: ai-edge-quantizer is not installed.
    """
    if scheme not in _RECIPES:
        raise InputError(f"There is no scheme {scheme!r}.", got=scheme, todo=nearest(scheme, list(_RECIPES)))
    try:
        with quiet_tools("ai-edge-quantizer"):
            return _RECIPES[scheme](data, graph, contract, calibration)
    except (RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        raise InputError(
            f"ai-edge-quantizer cannot make {scheme} of {contract.model.name!r}.",
            got=f"{type(error).__name__}: {str(error)[:300]}",
            todo="choose another scheme, or rewrite the operator it names",
        ) from error


def calibration_images(images: Iterable[NDArray[np.uint8]] | None, contract: Contract) -> Images | None:
    """Checks pictures for calibration.

    Args:
        images: Letterboxed pictures, uint8 [H, W, 3], or None.
        contract: Says which size they must have.

    Raises:
        DataError: There are none, or one has another shape or dtype.
    """
    if images is None:
        return None
    checked = list(images)
    wanted = tuple(contract.input.shape[1:])
    for place, image in enumerate(checked):
        if image.shape != wanted or image.dtype != np.uint8:
            raise DataError(
                f"Calibration picture {place} does not fit the network's input.",
                expected=f"uint8 {list(wanted)}",
                got=f"{image.dtype} {list(image.shape)}",
            )
    if not checked:
        raise DataError("There are no calibration pictures.", expected="at least one; 64 or more is usual")
    return checked


class _Samples(Sequence[dict[str, NDArray[np.float32]]]):
    """Samples, made one at a time. The tool walks them twice: a generator would come out empty."""

    def __init__(self, images: Images, name: str) -> None:
        self.images, self.name = images, name

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: Any) -> Any:
        return {self.name: self.images[place][None].astype(np.float32)}

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        return (self[i] for i in range(len(self)))


def _tool() -> Any:
    try:
        import ai_edge_quantizer
        from ai_edge_quantizer import qtyping, quantizer, recipe  # noqa: F401  (attributes of the package)
    except ImportError as error:
        raise MissingHere(
            "Quantising needs ai-edge-quantizer.", todo="pip install ai-edge-quantizer==0.10.0"
        ) from error
    return ai_edge_quantizer


def _finished(quantizer: Any, ranges: Any = None) -> bytes:
    result = quantizer.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return bytes(result.quantized_model)


def _fp16(data: bytes, graph: Graph, contract: Contract, calibration: Images | None) -> bytes:
    tool = _tool()
    types = tool.qtyping
    quantizer = tool.quantizer.Quantizer(data)
    weights = types.TensorQuantizationConfig(num_bits=16, dtype=types.TensorDataType.FLOAT)
    quantizer.update_quantization_recipe(
        regex=".*",
        operation_name=types.TFLOperationName.ALL_SUPPORTED,
        op_config=types.OpQuantizationConfig(
            weight_tensor_config=weights,
            compute_precision=types.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
        algorithm_key="float_casting",
    )
    return _finished(quantizer)


def _w8_dynamic(data: bytes, graph: Graph, contract: Contract, calibration: Images | None) -> bytes:
    tool = _tool()
    return _finished(tool.quantizer.Quantizer(data, tool.recipe.dynamic_wi8_afp32()))


def _w8a8(data: bytes, graph: Graph, contract: Contract, calibration: Images | None) -> bytes:
    if not calibration:
        raise InputError(
            "The scheme w8a8 needs calibration pictures.",
            expected="--calibration DATA",
            got="none",
            todo="give a data set, or choose w8_dynamic, which needs none",
        )
    tool = _tool()
    quantizer = tool.quantizer.Quantizer(data, tool.recipe.static_wi8_ai8())
    samples = {graph.signatures[0].key: _Samples(calibration, contract.input.name)}
    ranges = quantizer.calibrate(samples, num_threads=os.cpu_count() or 1)
    ranges[graph.tensors[graph.inputs[0]].name] = {
        "min": np.full((1, 1, 1, 1), INPUT_RANGE[0], np.float32),
        "max": np.full((1, 1, 1, 1), INPUT_RANGE[1], np.float32),
    }
    return _finished(quantizer, ranges)


_Recipe = Callable[[bytes, Graph, Contract, Images | None], bytes]
_RECIPES: dict[str, _Recipe] = {"fp16": _fp16, "w8_dynamic": _w8_dynamic, "w8a8": _w8a8}
NEEDS_CALIBRATION = frozenset({"w8a8"})
