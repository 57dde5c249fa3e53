"""The default route: torch.export program -> litert-torch -> TFLite. The only file that uses litert-torch."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

from edge_seg.contract import Contract
from edge_seg.converters.flatbuffer import Graph, read_graph
from edge_seg.converters.flatbuffer_edit import rename_signature
from edge_seg.converters.program import load_program
from edge_seg.converters.quiet import quiet_tools
from edge_seg.converters.routes import ROUTES
from edge_seg.converters.tensor_names import ROOT
from edge_seg.errors import ArtifactError, EdgeSegError, InputError, MissingHere

_WRAPPER = ROOT  # the exported module is a channels-last wrapper that holds the network under this name


@ROUTES.register("litert")
def litert(program: Path, contract: Contract) -> bytes:
    """Converts an exported program: to float32, or to int8 where it was trained quantisation-aware.

    Args:
        program: `model.pt2`: takes float32 [1, H, W, 3], returns NHWC maps in the order of the contract.
        contract: Names and shapes of its input and outputs.

    Returns:
        The file. Tensor names are PyTorch module paths; the signature speaks the contract's names.

    Raises:
        MissingHere: torch or litert-torch is not installed.
        InputError: litert-torch cannot convert the network.
        ArtifactError: The program is broken, or the result does not fit the contract.
    """
    with tempfile.TemporaryDirectory(prefix="edge_seg_") as folder:
        file = Path(folder) / "float.tflite"
        with quiet_tools("litert-torch"):
            loaded = load_program(program)
            modules = _output_modules(loaded)
            _convert(loaded, contract, file)
        data, graph = file.read_bytes(), read_graph(file)
    return _named(data, graph, contract, modules)


def _convert(program: Any, contract: Contract, file: Path) -> None:
    try:
        import litert_torch
        import torch
    except ImportError as error:
        raise MissingHere("The litert route needs litert-torch.", todo="pip install litert-torch==0.10.0") from error
    _write_paths(program)
    try:
        module = program.module()
        module.training = False  # an exported program is fixed in evaluation mode but does not say so
        sample = (torch.zeros(contract.input.shape),)
        litert_torch.convert(module, sample, quant_config=_quant_config(program)).export(str(file))
    except EdgeSegError:
        raise
    except Exception as error:
        raise _cannot_convert(contract, error) from error


def _quant_config(program: Any) -> Any:
    """Returns what makes the converter fold quantize and dequantize operations into integers, where there are any.

    Scales, zero points and weights arrive as they were trained; without it the file would stay float.
    """
    if not any("quantized_decomposed" in str(node.target) for node in program.graph.nodes):
        return None
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
    return QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(config))


def _write_paths(program: Any) -> None:
    """Makes every node carry its whole module path as its only level.

    litert-torch names tensors after the levels of modules, each shortened to the last word of its path, which
    loses the name of a ModuleList. One level that holds the path comes out unchanged.
    """
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            key, (path, _) = list(stack.items())[-1]
            node.meta["nn_module_stack"] = {key: ("", _module_path(path))}


def _output_modules(program: Any) -> list[str]:
    """Returns, for each output, the path of the module that computes it; the wrapper's own permute is skipped."""
    modules = []
    for node in program.graph.output_node().args[0]:
        while node.op == "call_function" and re.search("permute|contiguous|clone", str(node.target)):
            node = node.args[0]
        stack = list(node.meta.get("nn_module_stack", {}).values())
        modules.append(_module_path(stack[-1][0]) if stack else _WRAPPER)
    return modules


def _module_path(path: str) -> str:
    """Returns a path inside the network: the wrapper's own level is cut."""
    return path.removeprefix(f"{_WRAPPER}.") or _WRAPPER


def _cannot_convert(contract: Contract, error: Exception) -> InputError:
    message = str(error)
    operator = re.search(r"aten[.\w]+|'(?:mhlo|stablehlo|tfl)\.[\w]+'", message)
    what = f" because of {operator.group(0)}" if operator else ""
    return InputError(
        f"litert-torch cannot convert {contract.model.name!r}{what}.",
        expected="operators with a TFLite counterpart and static shapes",
        got=f"{type(error).__name__}: {message[:300]}",
        todo="rewrite that operation in the body, or move it to the decoder",
    )


def _named(data: bytes, graph: Graph, contract: Contract, modules: list[str]) -> bytes:
    """Renames the signature `args_0 -> output_0, output_1, ...` to the contract's names.

    The converter names output tensors after the signature; they get back the module that computes them.
    """
    if len(graph.signatures) != 1 or len(graph.inputs) != 1:
        raise ArtifactError("litert-torch wrote an unexpected graph.", got=f"{graph.signatures}")
    outputs = graph.signatures[0].outputs
    names: dict[int, str] = {}
    tensors: dict[int, str] = {}
    for place, output in enumerate(contract.outputs):
        index = outputs.get(f"output_{place}", -1)
        shape = graph.tensors[index].shape if index >= 0 else None
        if shape != tuple(output.shape):
            raise ArtifactError(
                f"Output {output.name!r} of the converted network does not fit the contract.",
                expected=str(list(output.shape)),
                got=str(shape),
                todo="export again: model.pt2 and contract.json belong to different networks",
            )
        names[index] = output.name
        tensors[index] = f"{modules[place]};_{output.name}"
    if len(outputs) != len(contract.outputs):
        raise ArtifactError("The network has other outputs than its contract.", got=str(sorted(outputs)))
    inputs = {graph.inputs[0]: contract.input.name}
    return rename_signature(data, inputs=inputs, outputs=names, tensors=tensors)
