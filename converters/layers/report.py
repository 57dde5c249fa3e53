"""What `verify_layers` says: a row for each layer, the first divergence, as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from edge_seg.artifact import plain_json
from edge_seg.converters.layers.checks import Finding, LayerTolerance
from edge_seg.converters.layers.figures import MapFigures, StepFigures

COLUMNS: Mapping[str, str] = {
    "xnnpack": "this file, XNNPACK",
    "reference": "this file, reference kernels",
    "mirror": "integer mirror",
    "half": "fp16 after every layer, emulated",
    "float_xnnpack": "fp32 file, XNNPACK",
    "float_reference": "fp32 file, reference kernels",
}


@dataclass(frozen=True)
class LayerRow:
    """One layer: an operator of the file and the module it computes.

    Attributes:
        index: Index of the operator.
        module: PyTorch module path.
        op: Operator.
        tensor: Name of the tensor it writes.
        dtype: Dtype of that tensor.
        shape: Its shape.
        cumulative: Each side against the program, every side running by itself, by column; sides that do not exist
            for the scheme are absent.
        alone: This layer by itself on the file's own inputs, against the program's layer on the same inputs: what
            the layer costs; None where it cannot run alone.
        of_allowed: The largest error of its arithmetic as a share of what is allowed, by kernels.
        mirror: The file's integers against the mirror's, each running by itself; None without a mirror.
        mirror_alone: The same on the file's own inputs.
        findings: What is wrong with this layer; empty for a good one.
    """

    index: int
    module: str
    op: str
    tensor: str
    dtype: str
    shape: tuple[int, ...]
    cumulative: Mapping[str, MapFigures]
    alone: MapFigures | None
    of_allowed: Mapping[str, float]
    mirror: StepFigures | None
    mirror_alone: StepFigures | None
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class FirstDivergence:
    """The first layer, in the order of execution, that is not right by itself.

    Attributes:
        module: PyTorch module path.
        op: Operator.
        index: Its index.
        tensor: Name of the tensor it writes.
        kind: What is wrong: "scale", "weight", "bias", "geometry", "arithmetic" or "jump".
        text: What was expected and what was found, all findings of that layer.
    """

    module: str
    op: str
    index: int
    tensor: str
    kind: str
    text: str


@dataclass(frozen=True)
class LayersReport:
    """The result of `verify_layers`.

    Attributes:
        passed: Whether no layer diverges.
        complete: Whether every operator was judged, constants and arithmetic: a pass then proves the file.
        file: The converted file.
        sha256: Its hash.
        scheme: Its scheme.
        exported_sha256: Hash of the program.
        reference: What the program computes: "torch_float32", or "fake_quant" where it was trained on grids.
        pictures: Pictures compared; with the reference kernels `slow_pictures`.
        slow_pictures: Pictures compared with the reference kernels.
        runtime: Name and version of the TFLite runtime.
        tolerance: What a layer alone may differ by.
        layers: Rows in the order of execution.
        first_divergence: The first layer that is not right; None where all are.
        notes: What is missing, and why; what decides nothing, and why.
    """

    passed: bool
    complete: bool
    file: str
    sha256: str
    scheme: str
    exported_sha256: str
    reference: str
    pictures: int
    slow_pictures: int
    runtime: Mapping[str, str]
    tolerance: LayerTolerance
    layers: tuple[LayerRow, ...]
    first_divergence: FirstDivergence | None
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON types; ratios that are not finite become null."""
        document: dict[str, Any] = plain_json(asdict(self))
        return document

    def columns(self) -> list[str]:
        """Returns the columns that exist, in their order."""
        return [c for c in COLUMNS if any(c in row.cumulative for row in self.layers)]

    def worst(self, count: int = 8) -> list[LayerRow]:
        """Returns the layers that cost most by themselves, the worst first."""
        rows = [row for row in self.layers if row.alone is not None and math.isfinite(row.alone.snr_db)]
        return sorted(rows, key=lambda row: row.alone.snr_db if row.alone else math.inf)[:count]

    def text(self) -> str:
        """Returns the first divergence and the worst layers for people."""
        first = self.first_divergence
        lines = [f"  {'ok  ' if first is None else 'FAIL'} layers: {len(self.layers)}, {self.pictures} pictures"]
        if first is not None:
            lines[0] += f", first divergence at {first.module}"
            lines.append(f"       {first.op} {first.index}, tensor {first.tensor!r}: {first.kind}: {first.text}")
        lines.append("       layers that cost most by themselves:         alone      up to here, this file")
        lines += [
            f"       {row.module:42} {_db(row.alone):>9}  {_db(row.cumulative.get('xnnpack')):>9}  {row.op}"
            for row in self.worst()
        ]
        return "\n".join([*lines, *(f"       note: {note}" for note in self.notes)])


def _db(figures: MapFigures | None) -> str:
    return "" if figures is None else f"{figures.snr_db:.1f} dB"
