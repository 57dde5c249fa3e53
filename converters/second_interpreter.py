"""A second opinion on the runtime: runs a converted file with tflite-runtime 2.14, in its own side environment.

The last release of the old package, still in many apps, needs NumPy 1 and so cannot live beside ours. Integers may
differ by a few steps between the two: their kernels round in different places. Floats agree to the order of sums.
"""

from __future__ import annotations

import functools
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import write_arrays, write_json
from edge_seg.contract import Contract, InputTensor
from edge_seg.converters.environments import find_environment, load_recipe, run_in_environment
from edge_seg.converters.flatbuffer import Graph, read_graph
from edge_seg.converters.interpreter import check_picture, dequantize
from edge_seg.converters.metadata import read_constants, read_contract
from edge_seg.errors import ArtifactError, InputError

ENVIRONMENT = "tflite_runtime"
_WORKER = Path(__file__).resolve().parent / "workers" / "tflite_worker.py"


class SecondInterpreter:
    """A converted file, run by tflite-runtime in a subprocess.

    Called with one picture it is a `RawRunner`, so that the decoder and the metric take it as any other; each call
    then costs the start of a process. Many pictures at once: `outputs`.

    Args:
        path: A .tflite that carries its contract.
        threads: CPU threads, at least 1.

    Attributes:
        delegate_kernels: Delegate kernels of the last run, as the runtime lists them; None before one, and where it
            lists none of its nodes. 0 says that the runtime's own kernels computed everything.

    Raises:
        InputError: No such file, or a bad argument.
        ArtifactError: The file is truncated, carries no contract, or does not fit its contract.
        MissingHere: The side environment is not set up.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        if threads < 1:
            raise InputError("An interpreter needs at least one thread.", expected="threads >= 1", got=str(threads))
        self.path, self.threads = path, threads
        self.contract = read_contract(path)
        self._input, self._outputs = _indices(read_graph(path), self.contract)
        find_environment(ENVIRONMENT)
        name, _, version = next(r for r in load_recipe(ENVIRONMENT).requirements if "tflite" in r).partition("==")
        self.runtime = {"name": name, "version": version}
        self.delegate_kernels: int | None = None

    @functools.cached_property
    def constants(self) -> Mapping[str, NDArray[Any]]:
        """The decoder's constants that travel with the file."""
        return read_constants(self.path)

    def __call__(self, input_hwc_u8: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Runs one letterboxed picture, uint8 [H, W, 3]; see `TfliteRunner.__call__`."""
        return self.outputs([input_hwc_u8])

    def raw_outputs(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
        """Runs the network on pictures, all in one subprocess.

        Args:
            images: Letterboxed pictures, uint8 [H, W, 3]; at least one.

        Returns:
            Outputs by contract name, [N, h, w, c] in the file's own dtype.

        Raises:
            InputError: No pictures, one of a wrong size, or the runtime cannot run the file.
        """
        if not len(images):
            raise InputError("There are no pictures to run on.", expected="at least one")
        for image in images:
            check_picture(image, self.contract)
        with tempfile.TemporaryDirectory(prefix="edge_seg_") as name:
            return self._run(Path(name), _on_grid(np.stack(list(images)), self.contract.input))

    def outputs(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        """Runs the network on pictures as `raw_outputs` does; returns real values, float32 [N, h, w, c]."""
        raw = self.raw_outputs(images)
        return {name: dequantize(raw[name], self.contract.output(name).quantization) for name in raw}

    def _run(self, folder: Path, inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        job = {
            "runtime": "tflite_runtime.interpreter",
            "tflite": str(self.path.absolute()),
            "inputs": str(folder / "inputs.npz"),
            "outputs": str(folder / "outputs.npz"),
            "facts": str(folder / "facts.json"),
            "input_index": self._input,
            "indices": list(self._outputs.values()),
            "threads": self.threads,
        }
        write_arrays(folder / "inputs.npz", {"input": inputs})
        write_json(folder / "job.json", job)
        what = f"{self.runtime['name']} {self.runtime['version']} cannot run {self.path}"
        todo = "this runtime is older than the file's operators; edge-seg check names them"
        run_in_environment(ENVIRONMENT, _WORKER, [str(folder / "job.json")], folder=folder, what=what, todo=todo)
        try:
            self.delegate_kernels = json.loads((folder / "facts.json").read_text(encoding="utf-8"))["delegate_kernels"]
            with np.load(folder / "outputs.npz", allow_pickle=False) as archive:
                return {name: archive[str(index)] for name, index in self._outputs.items()}
        except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"{what}: its outputs cannot be read.", got=str(error)) from error


def _indices(graph: Graph, contract: Contract) -> tuple[int, dict[str, int]]:
    """Returns the tensor index of the input and of each output, by signature key."""
    signature = graph.signatures[0] if graph.signatures else None
    inputs, outputs = (signature.inputs, signature.outputs) if signature else ({}, {})
    try:
        return inputs[contract.input.signature_key], {o.name: outputs[o.signature_key] for o in contract.outputs}
    except KeyError as error:
        raise ArtifactError(
            f"{graph.path} does not fit its contract.",
            expected=f"a signature with {error}",
            got=", ".join([*inputs, *outputs]) or "none",
            todo="convert it again with edge-seg",
        ) from error


def _on_grid(pictures_nhwc_u8: NDArray[np.uint8], tensor: InputTensor) -> NDArray[Any]:
    """Returns pictures in the dtype of the file's input, integers on its grid."""
    if tensor.quantization is None:
        return pictures_nhwc_u8.astype(tensor.dtype)
    steps = np.rint(pictures_nhwc_u8 / tensor.quantization.scale) + tensor.quantization.zero_point
    limits = np.iinfo(tensor.dtype)
    on_grid: NDArray[Any] = np.clip(steps, limits.min, limits.max).astype(tensor.dtype)
    return on_grid
