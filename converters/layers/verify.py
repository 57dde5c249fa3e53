"""Compares a converted file with its program at every layer and names the first one that diverges.

Two questions are kept apart. How far has the error grown here, with every side running by itself? Those are the
columns; none of them decides. Is this layer right by itself? That is asked by `layer_checks` and, for int8, by the
integer mirror on the file's own integers; the first layer in the order of execution that is not right is the first
divergence. Only a layer that cannot run alone is judged by a jump of the error that has grown.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import sha256_of
from edge_seg.converters.exported import Exported, open_exported, read_reference
from edge_seg.converters.graph import OpInfo
from edge_seg.converters.interpreter import runtime_version
from edge_seg.converters.layers.checks import JUMP_DB, KINDS, Finding, Kind, LayerChecks
from edge_seg.converters.layers.figures import MapFigures, MapTally, StepFigures, StepTally
from edge_seg.converters.layers.match import MatchedLayer, is_unpacking, match_layers
from edge_seg.converters.layers.mirror import LayerMirror
from edge_seg.converters.layers.program import LayeredProgram
from edge_seg.converters.layers.report import COLUMNS, FirstDivergence, LayerRow, LayersReport
from edge_seg.converters.layers.values import FileValues
from edge_seg.converters.verify import check_origin
from edge_seg.errors import ArtifactError, EdgeSegError
from edge_seg.schemes import SCHEMES

REFERENCE_IMAGES = 2
SLOW_KERNELS_IMAGES = 1  # the reference kernels take seconds a picture


def verify_layers(file: Path, against: Path, images: Sequence[NDArray[np.uint8]] = ()) -> LayersReport:
    """Compares every layer of a converted file with the exported program it was made from.

    Args:
        file: `NAME_SCHEME.tflite`. The float file `NAME_fp32.tflite` beside it, of the same program, is compared too.
        against: The exported folder.
        images: Letterboxed pictures, uint8 [H, W, 3], besides the seeded reference inputs.

    Returns:
        A row for each layer and the first divergence.

    Raises:
        InputError: A path does not exist, or a picture has another size.
        ArtifactError: A file is broken, `file` was not made from `against`, or the runtime cannot run it although
            its constants and grids are right.
        MissingHere: torch or a TFLite runtime is not installed.
    """
    exported = open_exported(against)
    values = FileValues(file, "xnnpack")
    check_origin(file, values.contract, exported, SCHEMES)
    pictures = [*read_reference(exported).inputs_nhwc_u8[:REFERENCE_IMAGES], *images]
    comparison = _Comparison(values, FileValues(file, "reference"), exported, file)
    try:
        for place, picture in enumerate(pictures):
            comparison.add(picture, slow=place < SLOW_KERNELS_IMAGES)
    except ArtifactError as error:
        if not comparison.checks.findings:
            raise
        comparison.notes.append(f"judged by constants and grids only: {error.what} {error.got}")
        return comparison.report(0)
    if values.kept_share:
        comparison.notes.append(
            f"where it need not keep every tensor the runtime's outputs differ by up to {values.kept_share:.1e} of "
            "their range: it computes means of squares in one step"
        )
    return comparison.report(len(pictures))


@dataclass(eq=False)
class _Tallies:
    """What is summed up for one layer."""

    columns: dict[str, MapTally] = field(default_factory=lambda: {c: MapTally() for c in COLUMNS})
    alone: MapTally = field(default_factory=MapTally)
    of_allowed: dict[str, float] = field(default_factory=dict)
    mirror: StepTally = field(default_factory=StepTally)
    mirror_alone: StepTally = field(default_factory=StepTally)


class _Comparison:
    """Runs every side on one picture after the other."""

    def __init__(self, values: FileValues, slow: FileValues, exported: Exported, file: Path) -> None:
        self.file, self.exported = file, exported
        self.fast, self.slow, self.graph = values, slow, values.graph
        self.scheme = values.contract.model.scheme
        self.program = LayeredProgram(exported.program, exported.contract)
        order = [values.outputs[o.name] for o in exported.contract.outputs]
        self.layers = match_layers(self.graph, order, self.program.sources)
        self.checks = LayerChecks(self.graph, self.layers, self.program, self.scheme)
        self.mirror = LayerMirror(self.graph, values.contract, exported, self.layers, self.program.sources)
        self.notes: list[str] = []
        self.floats = self._float_file()
        self.tallies = {layer.op.index: _Tallies() for layer in self.layers}

    def _float_file(self) -> list[tuple[str, FileValues, dict[Any, int]]]:
        """Opens the float file beside this one: (column, file, its tensors by the program's value)."""
        if self.scheme == "fp32" or self.program.quantised:
            return []
        path = self.file.with_name(f"{self.file.stem.removesuffix('_' + self.scheme)}_fp32.tflite")
        try:
            opened: list[tuple[str, FileValues]] = [
                (f"float_{kernels}", FileValues(path, kernels)) for kernels in ("xnnpack", "reference")
            ]
            check_origin(path, opened[0][1].contract, self.exported, SCHEMES)
        except EdgeSegError as error:
            self.notes.append(f"no fp32 file to compare with: {error.what}")
            return []
        found = opened[0][1]
        order = [found.outputs[o.name] for o in self.exported.contract.outputs]
        places = {x.node: x.tensor for x in match_layers(found.graph, order, self.program.sources)}
        return [(column, one, places) for column, one in opened]

    def add(self, image_hwc_u8: NDArray[np.uint8], *, slow: bool) -> None:
        """Compares all sides on one picture, uint8 [H, W, 3]."""
        wanted = self.program.run(image_hwc_u8, [layer.node for layer in self.layers])
        for column, maps in self._floats(image_hwc_u8, slow=slow):
            self._columns(column, wanted, maps)
        raw = self._file(self.fast, wanted, image_hwc_u8)
        if slow:
            self._file(self.slow, wanted, image_hwc_u8)
        self._mirrored(image_hwc_u8, wanted, raw)

    def _floats(
        self, image_hwc_u8: NDArray[np.uint8], *, slow: bool
    ) -> Iterator[tuple[str, dict[Any, NDArray[np.float32]]]]:
        """Yields the float sides one after the other: column, maps by the program's value."""
        for column, file, places in self.floats:
            if slow or file.kernels == "xnnpack":
                values = file.run(image_hwc_u8)
                maps = {node: file.real(values, tensor) for node, tensor in places.items()}
                yield column, self.checks.maps.all_as_program(maps)
        if not self.program.quantised:
            yield "half", self.program.run_half(image_hwc_u8, self.layers)

    def _columns(self, column: str, wanted: Mapping[Any, Any], maps: Mapping[Any, Any]) -> None:
        for layer in self.layers:
            if layer.node in maps and maps[layer.node].shape == wanted[layer.node].shape:
                self.tallies[layer.op.index].columns[column].add(wanted[layer.node], maps[layer.node])

    def _file(
        self, file: FileValues, wanted: Mapping[Any, Any], image_hwc_u8: NDArray[np.uint8]
    ) -> Mapping[int, NDArray[Any]]:
        raw, maps = file.run(image_hwc_u8), self.checks.maps
        for layer in self.layers:
            tally, found = self.tallies[layer.op.index], file.real(raw, layer.tensor)
            meant = maps.as_program(layer.node, found)
            if found.shape == wanted[layer.node].shape:
                tally.columns[file.kernels].add(wanted[layer.node], meant)
            inputs = maps.all_as_program({node: file.real(raw, tensor) for tensor, node in layer.inputs})
            if not inputs:
                continue
            share = self.checks.arithmetic(layer, inputs, found, file.kernels)
            if share is not None:
                tally.of_allowed[file.kernels] = max(share, tally.of_allowed.get(file.kernels, 0.0))
            alone = self.program.layer(layer, inputs) if file is self.fast else None
            if alone is not None and alone.shape == found.shape:
                tally.alone.add(alone, meant)
        return raw

    def _mirrored(
        self, image_hwc_u8: NDArray[np.uint8], wanted: Mapping[Any, Any], raw: Mapping[int, NDArray[Any]]
    ) -> None:
        mirrored = self.mirror.run(image_hwc_u8)
        for layer in self.layers:
            tally, ints = self.tallies[layer.op.index], mirrored.get(layer.op.index)
            if ints is None or ints.shape != raw[layer.tensor].shape:
                continue
            tally.mirror.add(ints, raw[layer.tensor])
            real = self.checks.maps.as_program(layer.node, self._mirror_real(layer, ints))
            if real.shape == wanted[layer.node].shape:
                tally.columns["mirror"].add(wanted[layer.node], real)
            alone = self.mirror.alone(layer, raw)
            if alone is not None and alone.shape == raw[layer.tensor].shape:
                tally.mirror_alone.add(alone, raw[layer.tensor])

    def _mirror_real(self, layer: MatchedLayer, ints: NDArray[np.int8]) -> NDArray[np.float32]:
        grid = self.program.grid(layer.node) if self.mirror.source == "program" else None
        tensor = self.graph.tensors[layer.tensor]
        scale, zero = grid or (tensor.scale[0], tensor.zero_point[0])
        return np.float32(scale) * (ints.astype(np.float32) - np.float32(zero))

    def report(self, pictures: int) -> LayersReport:
        """Returns the comparison of all pictures."""
        rows: dict[int, LayerRow] = {}
        for layer in self.layers:
            rows[layer.tensor] = self._row(layer, rows)
        layers = tuple(rows.values())
        first = next((_divergence(row) for row in layers if row.findings), None)
        return LayersReport(
            passed=first is None,
            complete=all(row.of_allowed for row in layers) and not self.checks.rewritten and not self._unmatched(),
            file=str(self.file),
            sha256=sha256_of(self.file),
            scheme=self.scheme,
            exported_sha256=self.exported.program_sha256,
            reference="fake_quant" if self.program.quantised else "torch_float32",
            pictures=pictures,
            slow_pictures=min(pictures, SLOW_KERNELS_IMAGES),
            runtime=runtime_version(),
            tolerance=self.checks.tolerance,
            layers=layers,
            first_divergence=first,
            notes=tuple(self.notes + self._remarks(layers)),
        )

    def _row(self, layer: MatchedLayer, before: Mapping[int, LayerRow]) -> LayerRow:
        tally, tensor = self.tallies[layer.op.index], self.graph.tensors[layer.tensor]
        figures = {c: f for c, t in tally.columns.items() if (f := t.figures()) is not None}
        mirror_alone = tally.mirror_alone.figures()
        findings = [f for f in self.checks.findings if f.op == layer.op.index]
        findings += self._computed(layer, tally, mirror_alone)
        findings += self._jumped(layer, tally, figures, before)
        return LayerRow(
            index=layer.op.index,
            module=layer.module,
            op=layer.op.name,
            tensor=tensor.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            cumulative=figures,
            alone=tally.alone.figures(),
            of_allowed=tally.of_allowed,
            mirror=tally.mirror.figures(),
            mirror_alone=mirror_alone,
            findings=tuple(sorted(findings, key=lambda f: KINDS.index(f.kind))),
        )

    def _computed(self, layer: MatchedLayer, tally: _Tallies, alone: StepFigures | None) -> list[Finding]:
        """Returns what is wrong with a layer's arithmetic."""
        found = []
        wrong = {k: v for k, v in tally.of_allowed.items() if not v <= 1.0}
        if wrong:
            words = ", ".join(
                f"{share:.3g} times what rounding explains with {k} kernels" for k, share in wrong.items()
            )
            found.append(f"on its own inputs it is off by {words}")
        if alone is not None and alone.max_lsb:
            found.append(f"{alone.exact:.3%} of its integers equal the mirror's, at most {alone.max_lsb} steps apart")
        shape = self.checks.geometry(layer) if found else ""
        kind: Kind = "geometry" if shape else "arithmetic"
        return [Finding(layer.op.index, kind, "; ".join([shape, *found] if shape else found))] if found else []

    def _jumped(
        self, layer: MatchedLayer, tally: _Tallies, figures: Mapping[str, MapFigures], before: Mapping[int, LayerRow]
    ) -> list[Finding]:
        """Judges a layer that cannot run alone by how much worse it is than what it reads."""
        if tally.of_allowed or "xnnpack" not in figures:
            return []
        rows = [before[t].cumulative.get("xnnpack") for t in layer.op.inputs if t in before]
        known = [f.snr_db for f in rows if f is not None]
        here = figures["xnnpack"].snr_db
        if not known or here >= min(known) - JUMP_DB or here >= 80.0:
            return []
        return [Finding(layer.op.index, "jump", f"{here:.1f} dB after at least {min(known):.1f} dB in what it reads")]

    def _unmatched(self) -> list[OpInfo]:
        """Returns the operators that compute something and have no counterpart in the program.

        A padding that a convolution of the program holds is judged with that convolution.
        """
        read = {t for layer in self.layers for t in layer.op.inputs}
        padding = {op.index for op in self.graph.ops if op.name == "PAD" and set(op.outputs) <= read}
        others = [op for op in self.graph.ops if op.index not in self.tallies and op.index not in padding]
        return [op for op in others if not is_unpacking(self.graph, op)]

    def _remarks(self, layers: Sequence[LayerRow]) -> list[str]:
        remarks = []
        missing = self._unmatched()
        if missing:
            names = ", ".join(f"{op.name} {op.index}" for op in missing[:4])
            remarks.append(f"{len(missing)} operators have no counterpart in the program: {names}")
        for kind in self.checks.rewritten:
            remarks.append(f"most layers hold another {kind} than the program (equalised or corrected): not judged")
        if "weight" in self.checks.rewritten:
            remarks.append("maps between equalised layers are scaled by channel: of the ratios only the outputs' count")
        if self.mirror.reason and SCHEMES[self.scheme].activation_bits == 8:
            remarks.append(f"no integer mirror: {self.mirror.reason}")
        return remarks


def _divergence(row: LayerRow) -> FirstDivergence:
    text = "; ".join(f.text if f.kind == row.findings[0].kind else f"{f.kind}: {f.text}" for f in row.findings)
    return FirstDivergence(row.module, row.op, row.index, row.tensor, row.findings[0].kind, text)
