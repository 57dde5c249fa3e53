"""Runs a converted file on the host. The only file that imports a TFLite runtime."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract, Quantization
from edge_seg.converters.flatbuffer import Graph, OpInfo, read_graph
from edge_seg.converters.metadata import read_constants, read_contract
from edge_seg.errors import ArtifactError, InputError, MissingHere, nearest

Kernels = Literal["xnnpack", "reference"]
_RUNTIMES = (
    ("ai_edge_litert.interpreter", "ai-edge-litert"),
    ("tflite_runtime.interpreter", "tflite-runtime"),
)
_RESOLVERS = {"xnnpack": "AUTO", "reference": "BUILTIN_REF"}
BYTE_GRID = Quantization(1.0, -128)  # int8 input: the app writes byte - 128


@dataclass(frozen=True)
class Delegation:
    """What a delegate took of a graph, as the runtime reports it after preparing the graph.

    Attributes:
        partitions: Number of delegate kernels; None where the runtime does not tell.
        nodes_delegated: Operators inside them; None likewise.
        nodes_total: Operators of the graph.
        outside: Operators that stayed with the runtime's own kernels.
        reason: Why a figure is None, else "".
    """

    partitions: int | None
    nodes_delegated: int | None
    nodes_total: int
    outside: tuple[OpInfo, ...] = ()
    reason: str = ""


class TfliteRunner:
    """A converted file, ready to run: bytes in, raw outputs by contract name out.

    Args:
        path: A .tflite that carries its contract.
        threads: CPU threads, at least 1.
        kernels: "xnnpack" (the runtime's default delegate) or "reference" (plain reference kernels, slow).

    Raises:
        InputError: No such file, or a bad argument.
        ArtifactError: The file is truncated, carries no contract, or does not fit its contract.
        MissingHere: No TFLite runtime is installed.
    """

    def __init__(self, path: Path, *, threads: int = 1, kernels: Kernels = "xnnpack") -> None:
        if kernels not in _RESOLVERS:
            raise InputError(f"There are no kernels {kernels!r}.", todo=nearest(kernels, list(_RESOLVERS)))
        if threads < 1:
            raise InputError("A runner needs at least one thread.", expected="threads >= 1", got=str(threads))
        self.path, self.threads, self.kernels = path, threads, kernels
        self.graph: Graph = read_graph(path)
        self.contract: Contract = read_contract(path)
        self._input, self._outputs = places(self.graph, self.contract)
        module, self.runtime = _runtime()
        self._interpreter: Any = _prepared(module, path, threads, _RESOLVERS[kernels])

    @functools.cached_property
    def constants(self) -> Mapping[str, NDArray[Any]]:
        """The decoder's constants that travel with the file."""
        return read_constants(self.path)

    def __call__(self, input_hwc_u8: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Runs the network once.

        Args:
            input_hwc_u8: The letterboxed picture, uint8 [H, W, 3], RGB, of the contract's size.

        Returns:
            Raw outputs by contract name, dequantised to float32, NHWC with batch axis 1.
        """
        self.invoke(input_hwc_u8)
        return {name: self._real(name, raw) for name, raw in self.raw_outputs().items()}

    def invoke(self, input_hwc_u8: NDArray[np.uint8]) -> None:
        """Writes the input and runs the graph; `raw_outputs` then holds the results.

        Raises:
            InputError: The picture has another shape or dtype than the contract's input.
            ArtifactError: The runtime cannot run the graph.
        """
        check_picture(input_hwc_u8, self.contract)
        try:
            self._interpreter.set_tensor(self._input, encode(input_hwc_u8, self.contract.input.dtype))
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise _refused(self.path, error) from error

    def raw_outputs(self) -> dict[str, NDArray[Any]]:
        """Returns copies of the last outputs by contract name, in the file's own dtype (int8 in w8a8)."""
        return {name: self._interpreter.get_tensor(index) for name, index in self._outputs.items()}

    def _real(self, name: str, raw: NDArray[Any]) -> NDArray[np.float32]:
        grid = self.contract.output(name).quantization
        return dequantize(raw, grid)

    def xnnpack_partitions(self) -> Delegation:
        """Tells how many delegate kernels run the graph and which operators stayed outside.

        The runtime lists its nodes after preparation: the original ones plus one "DELEGATE" node for each
        kernel, with the tensors that enter and leave it. The operators between those are the kernel's.
        """
        total = len(self.graph.ops)
        if not hasattr(self._interpreter, "_get_ops_details"):
            reason = f"{self.runtime['name']} {self.runtime['version']} does not list its nodes"
            return Delegation(None, None, total, reason=reason)
        nodes = [n for n in self._interpreter._get_ops_details() if n["op_name"] == "DELEGATE"]
        inside: set[int] = set()
        for node in nodes:
            inside |= _between(self.graph, node["inputs"].tolist(), node["outputs"].tolist())
        outside = tuple(op for op in self.graph.ops if op.index not in inside)
        return Delegation(len(nodes), len(inside), total, outside)


class PlainRunner:
    """Any .tflite with one picture as input and no contract: for timing other people's networks beside ours.

    Args:
        path: The file.
        threads: CPU threads.

    Attributes:
        inputs: Seeded noise by tensor index, 0..1, or integers over their range.

    Raises:
        InputError: No such file.
        ArtifactError: It is truncated or the runtime cannot run it.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self.graph: Graph = read_graph(path)
        module, self.runtime = _runtime()
        self._interpreter: Any = _prepared(module, path, threads, _RESOLVERS["xnnpack"])
        # made once: a measured run must not contain the making of its input
        self.inputs = {detail["index"]: _noise(detail) for detail in self._interpreter.get_input_details()}
        self._outputs = [detail["index"] for detail in self._interpreter.get_output_details()]

    def run(self) -> list[NDArray[Any]]:
        """Writes the noise, runs the graph and returns every output."""
        for index, noise in self.inputs.items():
            self._interpreter.set_tensor(index, noise)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]


def _noise(detail: Mapping[str, Any]) -> NDArray[Any]:
    dtype = np.dtype(detail["dtype"])
    noise = np.random.default_rng(0).random(tuple(detail["shape"]), np.float32)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        noise = limits.min + noise * (float(limits.max) - limits.min)
    return noise.astype(dtype)


def check_picture(input_hwc_u8: NDArray[np.uint8], contract: Contract) -> None:
    """Raises InputError unless a picture has the dtype and the shape of the contract's input."""
    wanted = tuple(contract.input.shape[1:])
    if input_hwc_u8.shape != wanted or input_hwc_u8.dtype != np.uint8:
        raise InputError(
            "The picture does not fit the network's input.",
            expected=f"uint8 {list(wanted)}",
            got=f"{input_hwc_u8.dtype} {list(input_hwc_u8.shape)}",
            todo="letterbox it to the contract's size first",
        )


def dequantize(raw: NDArray[Any], grid: Quantization | None) -> NDArray[np.float32]:
    """Returns real values in float32: scale * (integer - zero_point), or the values themselves."""
    if grid is None:
        return raw.astype(np.float32, copy=False)
    return np.float32(grid.scale) * (raw.astype(np.float32) - np.float32(grid.zero_point))


def runtime_version() -> dict[str, str]:
    """Returns name and version of the TFLite runtime that runs here; raises MissingHere if there is none."""
    return _runtime()[1]


@functools.cache
def _runtime() -> tuple[Any, dict[str, str]]:
    for module, package in _RUNTIMES:
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
        return found, {"name": package, "version": importlib.metadata.version(package)}
    raise MissingHere(
        "No TFLite runtime is installed here.",
        expected=" or ".join(p for _, p in _RUNTIMES),
        todo="pip install ai-edge-litert==2.3.0",
    )


def plain_interpreter(content: bytes, *, threads: int = 1, keep_all: bool = False, kernels: Kernels = "xnnpack") -> Any:
    """Returns a prepared interpreter of a .tflite held in memory.

    Args:
        content: The whole file.
        threads: CPU threads.
        keep_all: Whether every intermediate tensor stays readable; each operator is then a delegate's piece of its
            own, with the same kernels.
        kernels: Kernels that run it.

    Raises:
        ArtifactError: The runtime cannot run it.
        MissingHere: No TFLite runtime is installed.
    """
    module, _ = _runtime()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that all tensors are kept costs memory: known and wanted
            interpreter = _in_memory(module, content, threads, keep_all, _RESOLVERS[kernels])
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise _refused(Path("(in memory)"), error) from error
    return interpreter


def _in_memory(module: Any, content: bytes, threads: int, keep_all: bool, resolver: str) -> Any:
    return module.Interpreter(
        model_content=content,
        num_threads=threads,
        experimental_preserve_all_tensors=keep_all,
        experimental_op_resolver_type=getattr(module.OpResolverType, resolver),
    )


def _prepared(module: Any, path: Path, threads: int, resolver: str) -> Any:
    kind = getattr(module.OpResolverType, resolver)
    try:
        interpreter = module.Interpreter(model_path=str(path), num_threads=threads, experimental_op_resolver_type=kind)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise _refused(path, error) from error
    return interpreter


def _refused(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"The TFLite runtime here cannot run {path}.",
        expected="operators and versions that the installed runtime knows",
        got=str(error).strip()[:300],
        todo="edge-seg check FILE --delegate xnnpack names the operators; or update ai-edge-litert",
    )


def places(graph: Graph, contract: Contract) -> tuple[int, dict[str, int]]:
    """Finds the tensors of the contract by signature key, else by name, and checks shape, dtype and grid.

    Returns:
        The input's tensor index, and those of the outputs by contract name.

    Raises:
        ArtifactError: The file does not fit its contract.
    """
    signature = graph.signatures[0] if graph.signatures else None
    inputs = dict(signature.inputs) if signature else {}
    outputs = dict(signature.outputs) if signature else {}
    source = _place(graph, contract.input, inputs, graph.inputs)
    return source, {o.name: _place(graph, o, outputs, graph.outputs) for o in contract.outputs}


def _place(graph: Graph, wanted: Any, keys: Mapping[str, int], allowed: tuple[int, ...]) -> int:
    names = {graph.tensors[i].name: i for i in allowed}
    index = keys.get(wanted.signature_key, names.get(wanted.tensor_name, -1))
    if index not in allowed:
        raise _misfit(graph, wanted.name, f"a tensor {wanted.signature_key or wanted.tensor_name!r}", "none")
    tensor = graph.tensors[index]
    grid = Quantization(tensor.scale[0], tensor.zero_point[0]) if tensor.scale else None
    expected = (tuple(wanted.shape), wanted.dtype, wanted.quantization)
    found = (tensor.shape, tensor.dtype, grid)
    if expected != found:
        raise _misfit(graph, wanted.name, str(expected), str(found))
    if wanted.name and allowed == graph.inputs and tensor.dtype == "int8" and grid != BYTE_GRID:
        raise _misfit(graph, wanted.name, f"an int8 input on the grid {BYTE_GRID}", str(grid))
    return index


def _misfit(graph: Graph, name: str, expected: str, got: str) -> ArtifactError:
    return ArtifactError(
        f"{graph.path} does not fit its contract at {name!r}.",
        expected=expected,
        got=got,
        todo="convert it again with edge-seg",
    )


def encode(input_hwc_u8: NDArray[np.uint8], dtype: str) -> NDArray[Any]:
    """Puts a picture on the input's grid, [1, H, W, 3]: byte - 128 for int8, the byte itself otherwise."""
    batch = input_hwc_u8[None]
    if dtype == "int8":
        return (batch ^ np.uint8(128)).view(np.int8)
    return batch.astype(dtype)


def _between(graph: Graph, inputs: list[int], outputs: list[int]) -> set[int]:
    """Returns the operators one passes walking back from `outputs` until `inputs`."""
    stop, open_tensors, found = set(inputs), list(outputs), set()
    while open_tensors:
        op = graph.producer(open_tensors.pop())
        if op is not None and op.index not in found:
            found.add(op.index)
            open_tensors += [t for t in op.inputs if t >= 0 and t not in stop]
    return found
