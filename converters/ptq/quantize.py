"""Float TFLite file -> fp16, dynamic int8, or integers on given grids. The only file with ai-edge-quantizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from edge_seg.contract import Contract
from edge_seg.converters.graph import Graph
from edge_seg.converters.ptq.ranges import tool_ranges
from edge_seg.converters.ptq.recipe import Recipe
from edge_seg.converters.quiet import quiet_tools
from edge_seg.errors import InputError, MissingHere
from edge_seg.schemes import Grid


def on_grids(data: bytes, graph: Graph, contract: Contract, recipe: Recipe, grids: Mapping[int, Grid]) -> bytes:
    """Quantises layers to the precisions of a recipe, on grids that are chosen already.

    The input is int8 wherever a layer that reads it is an integer one, so that an app writes `byte - 128` also into
    an int16 network. Outputs have the precision of the layers that write them, float where those differ.

    Args:
        data: The float file.
        graph: What it contains.
        contract: Name of the network, for messages.
        recipe: Precision of every layer.
        grids: Of the input and of every activation, by tensor index.

    Returns:
        The quantised file, its constants still outside the flatbuffer.

    Raises:
        ConfigError: A rule names no layer.
        InputError: The tool refuses the network.
        MissingHere: ai-edge-quantizer is not installed.
    """
    precisions = recipe.precisions(graph)

    def run(tool: Any) -> bytes:
        quantizer = tool.quantizer.Quantizer(data)
        _configure(tool, quantizer, graph, recipe, precisions)
        return _finished(quantizer, tool_ranges(graph, grids))

    return _guarded(run, "integers", contract)


def cast(data: bytes, contract: Contract, *, scheme: str) -> bytes:
    """Makes fp16 or w8_dynamic of a float file; raises as `on_grids`."""
    return _guarded(lambda tool: _CASTS[scheme](tool, data), scheme, contract)


def _guarded(run: Callable[[Any], bytes], what: str, contract: Contract) -> bytes:
    tool = _tool()
    try:
        with quiet_tools("ai-edge-quantizer"):
            return run(tool)
    except (RuntimeError, ValueError, KeyError, NotImplementedError) as error:
        raise InputError(
            f"ai-edge-quantizer cannot make {what} of {contract.model.name!r}.",
            got=f"{type(error).__name__}: {str(error)[:300]}",
            todo="choose another scheme, or rewrite the operator it names",
        ) from error


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


def _configure(tool: Any, quantizer: Any, graph: Graph, recipe: Recipe, precisions: tuple[str, ...]) -> None:
    """Writes a recipe in the tool's terms: its scopes are patterns of output tensor names, and the last one wins."""
    every = tool.qtyping.TFLOperationName
    _ADDERS[recipe.default](quantizer, ".*", every.ALL_SUPPORTED)
    for op, precision in zip(graph.ops, precisions, strict=True):
        if precision != recipe.default:
            scope = re.escape(graph.tensors[op.outputs[0]].name)
            # what the new precision does not know must not keep the default's
            _ADDERS["float"](quantizer, f"^{scope}", every.ALL_SUPPORTED)
            _ADDERS[precision](quantizer, f"^(?:{scope})", every.ALL_SUPPORTED)
    for boundary, precision in zip((every.INPUT, every.OUTPUT), _boundaries(graph, precisions), strict=True):
        _ADDERS[precision](quantizer, "^.*", boundary)


def _boundaries(graph: Graph, precisions: tuple[str, ...]) -> tuple[str, str]:
    """Returns the precisions of the file's input and of its outputs."""
    integer = {"int8", "int16"}
    reads = {p for op, p in zip(graph.ops, precisions, strict=True) if set(op.inputs) & set(graph.inputs)}
    writes = {p for op, p in zip(graph.ops, precisions, strict=True) if set(op.outputs) & set(graph.outputs)}
    one = writes.pop() if len(writes) == 1 else "float"
    return ("int8" if reads & integer else "float"), (one if one in integer else "float")


def _float(quantizer: Any, regex: str, operation: Any) -> None:
    quantizer.update_quantization_recipe(regex, operation, algorithm_key="no_quantize")


def _int8(quantizer: Any, regex: str, operation: Any) -> None:
    quantizer.add_static_config(regex, operation, activation_num_bits=8, weight_num_bits=8)


def _int16(quantizer: Any, regex: str, operation: Any) -> None:
    quantizer.add_static_config(regex, operation, activation_num_bits=16, weight_num_bits=8)


def _dynamic(quantizer: Any, regex: str, operation: Any) -> None:
    quantizer.add_dynamic_config(regex, operation, num_bits=8)


_ADDERS: dict[str, Callable[[Any, str, Any], None]] = {
    "float": _float,
    "int8": _int8,
    "int16": _int16,
    "dynamic": _dynamic,
}


def _fp16(tool: Any, data: bytes) -> bytes:
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


def _w8_dynamic(tool: Any, data: bytes) -> bytes:
    return _finished(tool.quantizer.Quantizer(data, tool.recipe.dynamic_wi8_afp32()))


_CASTS: dict[str, Callable[[Any, bytes], bytes]] = {"fp16": _fp16, "w8_dynamic": _w8_dynamic}
