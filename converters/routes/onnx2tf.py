"""A second route, as a second opinion: torch.export program -> ONNX -> onnx2tf -> TensorFlow -> TFLite.

It shares no compiler with the default route, so that what both files agree on is not one converter's mistake. Its
tools run as subprocesses in side environments (`edge-seg doctor --setup onnx2tf`; about 2.7 GB): onnx2tf pins NumPy
1.26, protobuf 4 and TensorFlow 2.19, none of which can live beside litert-torch. The step to ONNX runs in our own
interpreter, with the three packages it needs on the path from an environment of their own: only the torch that wrote
`model.pt2` reads it, and it need not be installed twice.

What differs from the default route: tensor names carry no PyTorch module paths, apart from inputs and outputs, so
that `check` cannot name modules; `w8a8` is calibrated and quantised by TensorFlow, not by ai-edge-quantizer; networks
trained quantisation-aware are refused, because onnx2tf drops their quantize and dequantize operations silently.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import write_arrays, write_json
from edge_seg.contract import Contract
from edge_seg.converters.environments import find_environment, load_recipe, run_in_environment
from edge_seg.converters.flatbuffer import Graph, graph_of
from edge_seg.converters.flatbuffer_edit import rename_signature
from edge_seg.converters.program import load_program
from edge_seg.converters.quiet import quiet_tools
from edge_seg.converters.routes import ROUTES
from edge_seg.errors import ArtifactError, InputError

ENVIRONMENT = "onnx2tf"
_WORKERS = Path(__file__).resolve().parent.parent / "workers"
_INPUT = "picture"  # names of our own on the way: those of the contract need not be valid in ONNX and TensorFlow


class _Onnx2tf:
    """The route, with a static quantiser of its own (see `edge_seg.converters.routes`)."""

    @property
    def tools(self) -> str:
        """Which versions convert: a float file made by others is not taken again."""
        return " ".join(f"{name}:{load_recipe(name).digest}" for name in (ENVIRONMENT, "onnx"))

    def __call__(self, program: Path, contract: Contract) -> bytes:
        """Converts an exported program to float32.

        Args:
            program: `model.pt2`: takes float32 [1, H, W, 3], returns NHWC maps in the order of the contract.
            contract: Names and shapes of its input and outputs.

        Returns:
            The file; its signature speaks the contract's names.

        Raises:
            MissingHere: The side environments are not set up, or torch is not installed.
            InputError: The tools cannot convert the network, or it was trained quantisation-aware.
            ArtifactError: The program is broken, or the result does not fit the contract.
        """
        return _converted(program, contract, None)

    def w8a8(self, program: Path, contract: Contract, images: Sequence[NDArray[np.uint8]]) -> bytes:
        """Converts to int8 with TensorFlow's own calibration, input and outputs included.

        Args:
            program: As above.
            contract: As above.
            images: Letterboxed pictures, uint8 [H, W, 3].

        Returns:
            The file; its input is scale 1, zero point -128. Raises as above.
        """
        return _converted(program, contract, images)


ROUTES.register("onnx2tf")(_Onnx2tf())


def _converted(program: Path, contract: Contract, images: Sequence[NDArray[np.uint8]] | None) -> bytes:
    find_environment(ENVIRONMENT)  # before torch is loaded: without it nothing below can be done
    _check_float(program, contract)
    with tempfile.TemporaryDirectory(prefix="edge_seg_") as name:
        folder = Path(name)
        job = _job(program, contract, folder)
        if images is not None:
            job["calibration"] = str(folder / "calibration.npz")
            write_arrays(folder / "calibration.npz", {"pictures_nhwc_u8": _whole_range(images)})
        write_json(folder / "job.json", job)
        _run("onnx", "onnx_worker.py", folder, f"torch.onnx.export cannot export {contract.model.name!r}")
        _run(ENVIRONMENT, "onnx2tf_worker.py", folder, f"onnx2tf cannot convert {contract.model.name!r}")
        data = Path(job["tflite"]).read_bytes()
    return _named(data, graph_of(data, program), contract)


def _check_float(program: Path, contract: Contract) -> None:
    with quiet_tools("torch.export"):
        loaded = load_program(program)
    if any("quantized_decomposed" in str(node.target) for node in loaded.graph.nodes):
        raise InputError(
            f"{contract.model.name!r} was trained quantisation-aware, which does not survive onnx2tf.",
            expected="a float network",
            got="quantize and dequantize operations, which onnx2tf drops silently",
            todo="convert with --route litert",
        )


def _job(program: Path, contract: Contract, folder: Path) -> dict[str, Any]:
    return {
        "program": str(program.absolute()),
        "onnx": str(folder / "network.onnx"),
        "tflite": str(folder / "network.tflite"),
        "calibration": "",
        "shape_nhwc": list(contract.input.shape),
        "input": _INPUT,
        "outputs": [_output(place) for place in range(len(contract.outputs))],
    }


def _output(place: int) -> str:
    return f"output_{place}"


def _whole_range(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Stacks calibration pictures and gives the first one a black and a white pixel in its corner.

    TensorFlow takes the input's range from the pictures and offers no way to set it; 0..255 is scale 1, zero point
    -128, which every reader of our files relies on.
    """
    stacked = np.stack(list(images))
    stacked[0, 0, 0], stacked[0, 0, 1] = 0, 255
    return stacked


def _run(environment: str, worker: str, folder: Path, what: str) -> None:
    arguments, todo = [str(folder / "job.json")], "convert with --route litert, or rewrite the operation it names"
    run_in_environment(environment, _WORKERS / worker, arguments, folder=folder, what=what, todo=todo)


def _named(data: bytes, graph: Graph, contract: Contract) -> bytes:
    """Renames the signature to the contract's names, and tensors so that none is taken for a PyTorch module path."""
    if len(graph.signatures) != 1 or len(graph.inputs) != 1:
        raise ArtifactError("onnx2tf wrote an unexpected graph.", got=f"{graph.signatures}")
    found = graph.signatures[0].outputs
    indices = [found.get(_output(place), -1) for place in range(len(contract.outputs))]
    shapes = [graph.tensors[i].shape if i >= 0 else None for i in (graph.inputs[0], *indices)]
    wanted = [tuple(contract.input.shape), *(tuple(o.shape) for o in contract.outputs)]
    if shapes != wanted or len(found) != len(indices):
        raise ArtifactError(
            "The network that onnx2tf converted does not fit the contract.",
            expected=str(wanted),
            got=str(shapes),
            todo="export again: model.pt2 and contract.json belong to different networks",
        )
    inputs = {graph.inputs[0]: contract.input.name}
    outputs = dict(zip(indices, (o.name for o in contract.outputs), strict=True))
    tensors = {t.index: f"tfl.{t.name.replace(';', '|')}" for t in graph.tensors}
    tensors |= {index: f"_{name}" for index, name in {**inputs, **outputs}.items()}
    return rename_signature(data, inputs=inputs, outputs=outputs, tensors=tensors)
