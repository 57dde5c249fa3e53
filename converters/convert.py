"""Exported folder -> `NAME_SCHEME.tflite`, with contract, labels and decoder constants inside.

The float conversion is the slow part and is shared: every scheme starts from `NAME_fp32.tflite` in the output
folder, which is made once and taken again while it belongs to the same export.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import read_manifest, sha256_of, tool_versions, write_manifest
from edge_seg.contract import Contract, InputTensor, OutputTensor, Quantization
from edge_seg.converters import metadata
from edge_seg.converters.exported import Exported, open_exported
from edge_seg.converters.flatbuffer import Graph, graph_of, read_graph
from edge_seg.converters.quantize import NEEDS_CALIBRATION, Images, calibration_images, quantized
from edge_seg.converters.routes import ROUTES, OwnTools
from edge_seg.errors import ArtifactError, EdgeSegError, InputError, nearest

SCHEMES = ("fp32", "fp16", "w8_dynamic", "w8a8")  # made from a float network
TRAINED = "qat_w8a8"  # made from a network that was trained quantisation-aware
_TOOLS_THAT_MATTER = ("torch", "litert-torch")
T = TypeVar("T", InputTensor, OutputTensor)


@dataclass(frozen=True)
class Converted:
    """One converted file.

    Attributes:
        file: `NAME_SCHEME.tflite`.
        scheme: How numbers are stored.
        route: Which converter made the float file.
        size_bytes: Size of the file with all that is embedded.
        sha256: Its hash.
        seconds: Wall time of this scheme; without the float conversion where that was taken from before.
        ops: Number of operators by name.
        transposes: TRANSPOSE operators; 0 in a clean channels-last graph.
        contract_path: `NAME_SCHEME.contract.json`.
    """

    file: Path
    scheme: str
    route: str
    size_bytes: int
    sha256: str
    seconds: float
    ops: dict[str, int]
    transposes: int
    contract_path: Path

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain JSON types."""
        return {**vars(self), "file": str(self.file), "contract_path": str(self.contract_path)}


def convert(
    exported: Path,
    *,
    scheme: str,
    out: Path,
    route: str = "litert",
    calibration: Iterable[NDArray[np.uint8]] | None = None,
) -> Converted:
    """Converts an exported network.

    Args:
        exported: Folder that `edge-seg export` wrote.
        scheme: One of SCHEMES, or TRAINED for a network that was trained quantisation-aware.
        out: Folder for the result; the float file is kept there as well.
        route: A registered route.
        calibration: Letterboxed pictures, uint8 [H, W, 3]; needed by w8a8.

    Returns:
        The file and what is in it.

    Raises:
        InputError: Unknown scheme or route, calibration missing, a network the tools refuse, a full disk.
        ArtifactError: The exported folder is broken or was changed.
        MissingHere: A converter is not installed.
    """
    return convert_many(exported, [scheme], out=out, route=route, calibration=calibration)[-1]


def convert_many(
    exported: Path,
    schemes: Sequence[str],
    *,
    out: Path,
    route: str = "litert",
    calibration: Iterable[NDArray[np.uint8]] | None = None,
) -> list[Converted]:
    """Converts an exported network to several schemes with one float conversion; arguments as `convert`."""
    for scheme in schemes:
        if scheme not in (*SCHEMES, TRAINED):
            todo = nearest(scheme, (*SCHEMES, TRAINED))
            raise InputError(f"There is no scheme {scheme!r}.", got=scheme, todo=todo)
    source = open_exported(exported)
    ROUTES[route]  # an unknown route ends here, before anything slow
    images = calibration_images(calibration, source.contract)
    needing = sorted(NEEDS_CALIBRATION & set(schemes))
    if needing and images is None:
        raise InputError(
            f"The scheme {needing[0]} needs calibration pictures.",
            expected="--calibration DATA",
            got="none",
            todo="give a data set, or choose w8_dynamic, which needs none",
        )
    job = _Job(source, out, route, images)
    return [job.convert(scheme) for scheme in schemes]


@dataclass(frozen=True)
class _Job:
    source: Exported
    out: Path
    route: str
    images: Images | None

    def convert(self, scheme: str) -> Converted:
        started = time.perf_counter()
        if scheme == TRAINED:
            return self._written(self._routed("int8"), scheme, started)
        route = ROUTES[self.route]
        if scheme in NEEDS_CALIBRATION and isinstance(route, OwnTools):
            data = route.w8a8(self.source.program, self.source.contract, self.images or ())
            return self._written(data, scheme, started)
        data, graph = self._float()
        if scheme != "fp32":
            contract = self.source.contract
            data = quantized(data, graph, contract, scheme=scheme, calibration=self.images)
        return self._written(data, scheme, started)

    def _file(self, scheme: str) -> Path:
        return self.out / f"{self.source.contract.model.name}_{scheme}.tflite"

    def _float(self) -> tuple[bytes, Graph]:
        """Returns the float file, made now or found in the output folder."""
        file = self._file("fp32")
        if not self._is_ours(file):
            self._written(self._routed("float32"), "fp32", time.perf_counter())
        return file.read_bytes(), read_graph(file)

    def _routed(self, dtype: str) -> bytes:
        """Runs the route and checks that what comes out computes in `dtype`, as the scheme says."""
        data = ROUTES[self.route](self.source.program, self.source.contract)
        graph = graph_of(data, self.source.program)
        found = graph.tensors[graph.inputs[0]].dtype
        if found != dtype:
            trained = found == "int8"
            raise InputError(
                f"{self.source.folder} holds a network {'' if trained else 'not '}trained quantisation-aware.",
                expected=TRAINED if trained else ", ".join(SCHEMES),
                got=f"a scheme for {dtype} networks",
                todo=f"convert with --scheme {TRAINED}" if trained else "edge-seg qat, then export and convert",
            )
        return data

    def _is_ours(self, file: Path) -> bool:
        """Whether a float file is there, whole, and made from this very export by these tools."""
        if not file.is_file():
            return False
        try:
            manifest = read_manifest(file)
            contract = metadata.read_contract(file)
        except EdgeSegError:
            return False  # broken or somebody else's: it is made anew, and written over
        tools = tool_versions()
        return (
            manifest is not None
            and all(manifest.tools.get(t) == tools.get(t) for t in _TOOLS_THAT_MATTER)
            and contract.model.parents.get("exported_sha256") == self.source.program_sha256
            and contract.model.route == self.route
            and manifest.config.get("route_tools") == self._settings("fp32").get("route_tools")
        )

    def _written(self, data: bytes, scheme: str, started: float) -> Converted:
        file = self._file(scheme)
        graph = graph_of(data, file)
        contract = self._completed(graph, scheme)
        order = metadata.output_order(graph, graph.signatures[0].key, contract)
        data = metadata.embed(data, contract, constants=self.source.constants, outputs=order)
        _fresh(file)
        metadata.write(file, data, contract)
        write_manifest(
            file, kind="tflite", step="convert", config=self._settings(scheme), parents=[self.source.program]
        )
        graph = read_graph(file)
        return Converted(
            file=file,
            scheme=scheme,
            route=self.route,
            size_bytes=graph.size_bytes,
            sha256=sha256_of(file),
            seconds=time.perf_counter() - started,
            ops=graph.op_histogram,
            transposes=graph.transposes,
            contract_path=metadata.contract_path(file),
        )

    def _settings(self, scheme: str) -> dict[str, Any]:
        """Returns what goes into the manifest."""
        pictures = len(self.images or ()) if scheme in NEEDS_CALIBRATION else 0
        settings = {"scheme": scheme, "route": self.route, "calibration_images": pictures}
        route = ROUTES[self.route]
        return {**settings, "route_tools": route.tools} if isinstance(route, OwnTools) else settings

    def _completed(self, graph: Graph, scheme: str) -> Contract:
        """Returns the contract with what only the converted file knows."""
        contract = self.source.contract
        parents = {**contract.model.parents, "exported_sha256": self.source.program_sha256}
        return replace(
            contract,
            model=replace(contract.model, scheme=scheme, route=self.route, parents=parents),
            input=_bound(contract.input, graph, graph.signatures[0].inputs),
            outputs=tuple(_bound(o, graph, graph.signatures[0].outputs) for o in contract.outputs),
        )


def _bound(wanted: T, graph: Graph, keys: Any) -> T:
    if wanted.name not in keys:
        raise ArtifactError(
            f"The converted network has no tensor {wanted.name!r}.", expected=wanted.name, got=", ".join(keys)
        )
    tensor = graph.tensors[keys[wanted.name]]
    grid = Quantization(tensor.scale[0], tensor.zero_point[0]) if tensor.scale else None
    return replace(wanted, signature_key=wanted.name, tensor_name=tensor.name, dtype=tensor.dtype, quantization=grid)


def _fresh(file: Path) -> None:
    """Removes the manifest of a file that is about to be replaced, so that no moment has a wrong pair."""
    with contextlib.suppress(OSError):
        file.with_name(f"{file.name}.manifest.json").unlink(missing_ok=True)
