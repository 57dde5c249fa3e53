"""Exported folder -> `NAME_SCHEME.tflite`, with contract, labels and decoder constants inside.

The float conversion is the slow part and is shared: every scheme starts from `NAME_fp32.tflite` in the output
folder, which is made once and taken again while it belongs to the same export.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import manifest_path, read_manifest, sha256_of, tool_versions, write_json, write_manifest
from edge_seg.contract import Contract, InputTensor, ModelInfo, OutputTensor, Quantization
from edge_seg.converters import metadata
from edge_seg.converters.exported import Exported, open_exported
from edge_seg.converters.flatbuffer import Graph, graph_of, read_graph
from edge_seg.converters.ptq.calibration import Images
from edge_seg.converters.ptq.calibration_report import CalibrationReport, report_of
from edge_seg.converters.ptq.post_training import (
    Calibrated,
    PtqSettings,
    calibrate,
    calibration_images,
    needs_pictures,
    quantize,
    quantized,
)
from edge_seg.converters.ptq.recipe import Recipe
from edge_seg.converters.ptq.targets import scheme_warnings
from edge_seg.converters.routes import ROUTES, OwnTools
from edge_seg.converters.zero_taps import cut_zero_taps
from edge_seg.errors import ArtifactError, EdgeSegError, InputError, nearest
from edge_seg.schemes import SCHEMES as TABLE

# made from a float network with no more than pictures
SCHEMES = tuple(s.name for s in TABLE.values() if s.kind != "trained" and s.name != "mixed")
_TRAINED = next(s.name for s in TABLE.values() if s.kind == "trained")
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
        calibration_path: `NAME_SCHEME.calibration.json`, or None where nothing was calibrated here.
        calibration_text: The report for people, its first line a summary; "" where there is none.
        warnings: What the chosen scheme costs on this network, one sentence each.
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
    calibration_path: Path | None = None
    calibration_text: str = ""
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the record as plain JSON types."""
        paths = {k: str(v) for k, v in vars(self).items() if isinstance(v, Path)}
        plain = {k: v for k, v in vars(self).items() if k != "calibration_text"}
        return {**plain, **paths, "warnings": list(self.warnings)}


def convert(
    exported: Path,
    *,
    scheme: str,
    out: Path,
    route: str = "litert",
    calibration: Iterable[NDArray[np.uint8]] | None = None,
    settings: PtqSettings | None = None,
) -> Converted:
    """Converts an exported network.

    Args:
        exported: Folder that `edge-seg export` wrote.
        scheme: A name of `edge_seg.schemes.SCHEMES`.
        out: Folder for the result; the float file is kept there as well.
        route: A registered route.
        calibration: Letterboxed pictures, uint8 [H, W, 3]; needed by calibrated schemes.
        settings: Ranges, corrections and the recipe of calibrated schemes.

    Returns:
        The file and what is in it.

    Raises:
        InputError: Unknown scheme or route, calibration missing, a recipe that does not fit, a network the tools
            refuse, a full disk.
        ArtifactError: The exported folder is broken or was changed.
        MissingHere: A converter is not installed.
    """
    return convert_many(exported, [scheme], out=out, route=route, calibration=calibration, settings=settings)[-1]


def convert_many(
    exported: Path,
    schemes: Sequence[str],
    *,
    out: Path,
    route: str = "litert",
    calibration: Iterable[NDArray[np.uint8]] | None = None,
    settings: PtqSettings | None = None,
) -> list[Converted]:
    """Converts an exported network to several schemes with one float conversion; arguments as `convert`."""
    chosen = settings or PtqSettings()
    check_wanted(schemes, route, chosen, with_pictures=calibration is not None)
    source = open_exported(exported)
    images = calibration_images(calibration, source.contract)
    job = _Job(source, out, route, images, chosen)
    return [job.convert(scheme) for scheme in schemes]


def check_wanted(schemes: Sequence[str], route: str, settings: PtqSettings, *, with_pictures: bool) -> None:
    """Refuses what no network could be converted to; quick, so that it comes before anything slow.

    Args:
        schemes: Names of schemes.
        route: Name of a route.
        settings: Ranges, corrections and the recipe of calibrated schemes.
        with_pictures: Whether there are calibration pictures.

    Raises:
        InputError: Unknown scheme or route, a route that cannot do it, a recipe that does not fit a scheme, or a
            calibrated scheme without pictures.
    """
    for scheme in schemes:
        if scheme not in TABLE:
            raise InputError(f"There is no scheme {scheme!r}.", got=scheme, todo=nearest(scheme, tuple(TABLE)))
    static = [s for s in schemes if TABLE[s].needs_calibration]
    _check_route(route, static, settings)
    for scheme in static:
        settings.recipe_for(scheme)
    if static and not with_pictures:
        raise needs_pictures(sorted(static)[0])


def _check_route(route: str, static: Sequence[str], settings: PtqSettings) -> None:
    """Refuses what a route with a quantiser of its own cannot do."""
    if not isinstance(ROUTES[route], OwnTools):
        return
    beyond = [s for s in static if s != "w8a8"]
    if beyond or (static and settings != PtqSettings()):
        raise InputError(
            f"The route {route} calibrates and quantises with its own tools.",
            expected="w8a8 without further settings, or a scheme that is not calibrated",
            got=beyond[0] if beyond else ", ".join(f"{k} {v}" for k, v in settings.to_json().items()),
            todo="convert with --route litert",
        )


def in_memory(float_file: Path, network: Calibrated, recipe: Recipe) -> bytes:
    """Quantises by a recipe and returns the whole file with its contract, as `convert` would write it.

    Args:
        float_file: `NAME_fp32.tflite`, whose contract and decoder constants are taken over.
        network: That file, calibrated.
        recipe: Precision of every layer.
    """
    data = quantize(network, recipe).data
    graph = graph_of(data, float_file)
    source = metadata.read_contract(float_file)
    contract = _completed(source, graph, replace(source.model, scheme="mixed"))
    order = metadata.output_order(graph, graph.signatures[0].key, contract)
    constants = metadata.read_member(float_file, metadata.CONSTANTS)
    return metadata.embed(data, contract, constants=constants, outputs=order)


@dataclass(frozen=True)
class _Job:
    source: Exported
    out: Path
    route: str
    images: Images | None
    settings: PtqSettings

    def convert(self, scheme: str) -> Converted:
        started = time.perf_counter()
        if TABLE[scheme].kind == "trained":
            return self._written(self._routed("int8"), scheme, started)
        route = ROUTES[self.route]
        if TABLE[scheme].needs_calibration and isinstance(route, OwnTools):
            data = route.w8a8(self.source.program, self.source.contract, self.images or ())
            return self._written(data, scheme, started)
        data, graph = self._float()
        if TABLE[scheme].needs_calibration:
            done = quantize(self._calibrated, self.settings.recipe_for(scheme))
            return self._written(done.data, scheme, started, report_of(self._calibrated, done, scheme))
        if scheme != "fp32":
            data = quantized(data, graph, self.source.contract, scheme=scheme, calibration=None)
        return self._written(data, scheme, started)

    @functools.cached_property
    def _calibrated(self) -> Calibrated:
        """The float network with its statistics: the slow part that calibrated schemes share."""
        data, graph = self._float()
        return calibrate(data, graph, self.source.contract, self.images or (), self.settings)

    def _file(self, scheme: str) -> Path:
        return self.out / f"{self.source.contract.model.name}_{scheme}.tflite"

    def _float(self) -> tuple[bytes, Graph]:
        """Returns the float file, made now or found in the output folder."""
        file = self._file("fp32")
        if not self._is_ours(file):
            self._written(self._routed("float32"), "fp32", time.perf_counter())
        return file.read_bytes(), read_graph(file)

    def _routed(self, dtype: str) -> bytes:
        """Runs the route, cuts zero taps and checks that the file computes in `dtype`, as the scheme says."""
        data = cut_zero_taps(ROUTES[self.route](self.source.program, self.source.contract), self.source.program)
        graph = graph_of(data, self.source.program)
        found = graph.tensors[graph.inputs[0]].dtype
        if found != dtype:
            trained = found == "int8"
            raise InputError(
                f"{self.source.folder} holds a network {'' if trained else 'not '}trained quantisation-aware.",
                expected=_TRAINED if trained else ", ".join(SCHEMES),
                got=f"a scheme for {dtype} networks",
                todo=f"convert with --scheme {_TRAINED}" if trained else "edge-seg qat, then export and convert",
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
            and all(manifest.config.get(k) == self._settings("fp32").get(k) for k in ("route_tools", "zero_taps"))
        )

    def _written(self, data: bytes, scheme: str, started: float, report: CalibrationReport | None = None) -> Converted:
        file = self._file(scheme)
        graph = graph_of(data, file)
        parents = {**self.source.contract.model.parents, "exported_sha256": self.source.program_sha256}
        model = replace(self.source.contract.model, scheme=scheme, route=self.route, parents=parents)
        contract = _completed(self.source.contract, graph, model)
        order = metadata.output_order(graph, graph.signatures[0].key, contract)
        data = metadata.embed(data, contract, constants=self.source.constants, outputs=order)
        _fresh(file)
        metadata.write(file, data, contract)
        write_manifest(
            file, kind="tflite", step="convert", config=self._settings(scheme), parents=[self.source.program]
        )
        if report is not None:
            write_json(calibration_path(file), report.to_json())
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
            calibration_path=calibration_path(file) if report else None,
            calibration_text=report.text() if report else "",
            warnings=scheme_warnings(graph, scheme),
        )

    def _settings(self, scheme: str) -> dict[str, Any]:
        """Returns what goes into the manifest."""
        static = TABLE[scheme].needs_calibration
        settings: dict[str, Any] = {"scheme": scheme, "route": self.route, "zero_taps": "cut"}
        settings["calibration_images"] = len(self.images or ()) if static else 0
        route = ROUTES[self.route]
        if isinstance(route, OwnTools):
            return {**settings, "route_tools": route.tools}
        if static:
            recipe = self.settings.recipe_for(scheme)
            settings |= {"calibration": replace(self.settings, recipe=recipe).to_json()}
        return settings


def calibration_path(file: Path) -> Path:
    """Returns where the calibration report of `NAME_SCHEME.tflite` lies: `NAME_SCHEME.calibration.json`."""
    return file.with_name(f"{file.stem}.calibration.json")


def _completed(contract: Contract, graph: Graph, model: ModelInfo) -> Contract:
    """Returns the contract with what only the converted file knows."""
    return replace(
        contract,
        model=model,
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
    """Removes what belongs to a file that is about to be replaced, so that no moment has a wrong pair."""
    with contextlib.suppress(OSError):
        manifest_path(file).unlink(missing_ok=True)
        calibration_path(file).unlink(missing_ok=True)
