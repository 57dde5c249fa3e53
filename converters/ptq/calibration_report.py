"""What calibration found and chose, tensor by tensor, and what may go wrong: in int8, and in fp16 on a GPU.

"Alone" figures follow from the histogram of the tensor itself. "Layer" figures are estimates: rounding of the input
and of the weights taken as independent noise, carried through the layer's weights. fp16 accumulation is a bound, the
sum of |weight| times the largest calibrated |input| of its channel: what a layer cannot pass, not what it did reach.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.graph import Graph, OpInfo
from edge_seg.converters.ptq.calibration import Statistics
from edge_seg.converters.ptq.post_training import Calibrated, Quantized
from edge_seg.converters.ptq.ranges import UNLIKE, squared_error, weights_of
from edge_seg.schemes import SMALLEST_SCALE, Grid

FORMAT = "edge_seg.calibration_report"
HALF_LARGEST = 65504.0
_WEAK_DB = 10.0
_SUMS = frozenset({"MEAN", "SUM", "AVERAGE_POOL_2D"})


@dataclass(frozen=True)
class TensorLine:
    """One activation.

    Attributes:
        module: PyTorch module path that computes it; "input" for the picture.
        op: Operator that writes it.
        tensor: Its name in the file.
        low: Smallest calibrated value.
        high: Largest.
        range_low: Lower end of the grid.
        range_high: Upper end.
        saturated: Share of values outside the grid's range.
        step: Grid step.
        zero_point: Integer of real zero.
        bits: 8 or 16; 32 where a recipe leaves the layer in float, without grid.
        snr_db: Of the tensor alone on its grid, in dB; None where it is constant zero.
        layer_snr_db: Estimate with the rounding of the layer's input and weights; None where there are no weights.
        fp16_bound: Largest magnitude that a sum inside the layer can take; None where there is none.
        fp16_fits: Whether values and sums stay below 65504.
    """

    module: str
    op: str
    tensor: str
    low: float
    high: float
    range_low: float
    range_high: float
    saturated: float
    step: float
    zero_point: int
    bits: int
    snr_db: float | None
    layer_snr_db: float | None
    fp16_bound: float | None
    fp16_fits: bool


@dataclass(frozen=True)
class Flag:
    """Something to look at.

    Attributes:
        kind: "fp16", "dead_channels", "unlike_outputs" or "weak_layer".
        module: PyTorch module path.
        reason: What is the matter.
        rewrite: What to do about it.
    """

    kind: str
    module: str
    reason: str
    rewrite: str


@dataclass(frozen=True)
class CalibrationReport:
    """The whole report.

    Attributes:
        scheme: Scheme of the file.
        pictures: Pictures that calibrated it.
        settings: Ranges and corrections.
        tensors: One line per activation, in execution order.
        flags: What to look at.
        notes: What equalisation and bias correction did.
    """

    scheme: str
    pictures: int
    settings: Mapping[str, Any]
    tensors: tuple[TensorLine, ...]
    flags: tuple[Flag, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON types."""
        return {"format": FORMAT, **asdict(self)}

    def summary(self) -> str:
        """Returns one line."""
        kinds = [f.kind for f in self.flags]
        found = ", ".join(f"{kinds.count(k)} {k.replace('_', ' ')}" for k in dict.fromkeys(kinds)) or "nothing flagged"
        start = f"{self.scheme}: {self.pictures} pictures, ranges {self.settings['ranges']}, "
        most = max(self.tensors, key=lambda line: line.saturated)
        clipped = f"most clipped {100 * most.saturated:.2g} % of {most.module}"
        return f"{start}{len(self.tensors)} activations, {clipped}; {found}"

    def text(self) -> str:
        """Returns the report for people: the summary, flags, the ten weakest layers, notes."""
        lines = [self.summary()]
        for f in self.flags:
            lines += [f"  {f.kind} {f.module}: {f.reason}", f"      {f.rewrite}"]
        weakest = sorted((t for t in self.tensors if t.snr_db is not None), key=_strength)[:10]
        lines.append("  weakest: module, range, grid step, clipped, SNR alone, SNR of the layer (estimate)")
        for t in weakest:
            layer = "" if t.layer_snr_db is None else f"{t.layer_snr_db:.1f} dB"
            place = f"[{t.range_low:.4g}, {t.range_high:.4g}]  {t.step:.3g}  {100 * t.saturated:.3g} %"
            lines.append(f"    {t.module}  {place}  {t.snr_db:.1f} dB  {layer}")
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def _strength(line: TensorLine) -> float:
    return min(line.snr_db or 0.0, math.inf if line.layer_snr_db is None else line.layer_snr_db)


def report_of(network: Calibrated, done: Quantized, scheme: str) -> CalibrationReport:
    """Describes a calibrated network and the grids it got.

    Args:
        network: With its statistics.
        done: Its quantised form.
        scheme: Name of the scheme.
    """
    graph = network.graph
    lines = [_line(network, done, None, graph.inputs[0])]
    for op, precision in zip(graph.ops, done.precisions, strict=True):
        line = _line if precision in ("int8", "int16") else _float_line
        lines += [line(network, done, op, t) for t in op.outputs if t in done.grids]
    flags = [f for line in lines if (f := _fp16(line)) is not None]
    flags += [f for op in graph.ops if (f := _dead(graph, op)) is not None]
    flags += [f for t in graph.outputs if (f := _unlike(graph, network.statistics, t)) is not None]
    flags += [_weak(line) for line in lines if line.op and _is_weak(line)]
    settings = {k: v for k, v in network.settings.to_json().items() if k != "recipe" or scheme == "mixed"}
    return CalibrationReport(scheme, len(network.images), settings, tuple(lines), tuple(flags), _notes(network, done))


def _line(network: Calibrated, done: Quantized, op: OpInfo | None, index: int) -> TensorLine:
    graph, statistics, grid = network.graph, network.statistics[index], done.grids[index]
    low, high = grid.range
    centres, counts = statistics.histogram.filled()
    bound = None if op is None else _bound(graph, network.statistics, op)
    largest = max(-statistics.low, statistics.high, bound or 0.0)
    tensor = graph.tensors[index].name
    return TensorLine(
        module="input" if op is None else graph.source(op) or tensor,
        op="" if op is None else op.name,
        tensor=tensor,
        low=statistics.low,
        high=statistics.high,
        range_low=low,
        range_high=high,
        saturated=_outside(centres, counts, grid),
        step=grid.scale,
        zero_point=grid.zero_point,
        bits=16 if grid.high > 127 else 8,
        snr_db=_decibel(_power(centres, counts), _alone(centres, counts, grid)),
        layer_snr_db=None if op is None else _layer_snr(network, done.grids, op, index),
        fp16_bound=bound,
        fp16_fits=largest < HALF_LARGEST,
    )


def _float_line(network: Calibrated, done: Quantized, op: OpInfo, index: int) -> TensorLine:
    line = _line(network, done, op, index)
    line = replace(line, range_low=line.low, range_high=line.high, saturated=0.0, step=0.0, zero_point=0)
    return replace(line, bits=32, snr_db=None, layer_snr_db=None)


def _outside(centres: NDArray[np.float64], counts: NDArray[np.int64], grid: Grid) -> float:
    low, high = grid.range
    beyond = (centres < low - grid.scale / 2) | (centres > high + grid.scale / 2)
    return float(counts[beyond].sum() / counts.sum())


def _power(centres: NDArray[np.float64], counts: NDArray[np.int64]) -> float:
    return float((counts * centres**2).sum() / counts.sum())


def _alone(centres: NDArray[np.float64], counts: NDArray[np.int64], grid: Grid) -> float:
    """Returns the mean squared rounding and clipping error of a tensor on a grid.

    A bin of the histogram may be as wide as an int16 step: the error inside the range is then step^2 / 12, and only
    clipping follows from the counts.
    """
    if grid.high == 127:
        return squared_error(centres, counts, grid) / float(counts.sum())
    low, high = grid.range
    clipping = np.where(centres < low, low - centres, np.where(centres > high, centres - high, 0.0))
    return _power(clipping, counts) + grid.scale**2 / 12


def _decibel(signal: float, noise: float) -> float | None:
    if signal <= 0 or noise <= 0:
        return None
    return round(10 * math.log10(signal / noise), 2)


def _reads(op: OpInfo) -> int:
    """Returns the activation that an operator with weights multiplies."""
    return op.inputs[2] if op.name == "TRANSPOSE_CONV" else op.inputs[0]


def _rows(graph: Graph, op: OpInfo) -> NDArray[np.float64] | None:
    """Returns an operator's weights as [out, taps, channels], channels of the input last (1 where depthwise)."""
    found = weights_of(graph, op)
    if found is None or _reads(op) < 0 or graph.tensors[found[0]].dtype != "float32":
        return None
    values = np.moveaxis(graph.constant(found[0]), found[1], 0).astype(np.float64)
    if op.name == "DEPTHWISE_CONV_2D":
        return values.reshape(len(values), -1, 1)
    return values.reshape(len(values), -1, values.shape[-1])


def _bound(graph: Graph, statistics: Mapping[int, Statistics], op: OpInfo) -> float | None:
    """Returns the largest magnitude that a sum inside an operator can take, or None where nothing is summed."""
    source = statistics.get(_reads(op))
    if source is None:
        return None
    if op.name in _SUMS:
        values = math.prod(graph.tensors[op.inputs[0]].shape) / max(1, math.prod(graph.tensors[op.outputs[0]].shape))
        return values * float(source.channel_magnitude.max())
    rows = _rows(graph, op)
    if rows is None:
        return None
    magnitude = source.channel_magnitude.astype(np.float64)
    if op.name == "DEPTHWISE_CONV_2D":
        sums = np.abs(rows).sum((1, 2)) * np.repeat(magnitude, len(rows) // len(magnitude))
    elif rows.shape[2] == len(magnitude):
        sums = (np.abs(rows).sum(1) * magnitude).sum(1)
    else:  # grouped: which channels an output reads is not told by the weights
        sums = np.abs(rows).sum((1, 2)) * magnitude.max()
    if len(op.inputs) > 2 and op.name != "TRANSPOSE_CONV" and op.inputs[2] >= 0:
        sums = sums + np.abs(graph.constant(op.inputs[2]))
    return float(sums.max())


def _layer_snr(network: Calibrated, grids: Mapping[int, Grid], op: OpInfo, index: int) -> float | None:
    """Estimates a layer's signal-to-noise ratio when its input, weights and output are rounded."""
    graph = network.graph
    rows = _rows(graph, op)
    if rows is None or _reads(op) not in grids:
        return None
    source, target = network.statistics[_reads(op)].histogram, network.statistics[index].histogram
    input_noise = _alone(*source.filled(), grids[_reads(op)])
    steps = np.maximum(np.abs(rows).max((1, 2)) / 127, SMALLEST_SCALE)
    weight_noise = (steps**2 / 12) * rows.shape[1] * rows.shape[2] * _power(*source.filled())
    noise = (rows**2).sum((1, 2)) * input_noise + weight_noise
    return _decibel(_power(*target.filled()), float(noise.mean()) + _alone(*target.filled(), grids[index]))


def _fp16(line: TensorLine) -> Flag | None:
    if line.fp16_fits:
        return None
    if line.fp16_bound is None or max(-line.low, line.high) >= HALF_LARGEST:
        reason = f"values up to {max(-line.low, line.high):.0f}, fp16 ends at 65504"
    else:
        reason = f"sums may reach {line.fp16_bound:.0f} in {line.op}, fp16 ends at 65504"
    rewrite = "multiply its input by a power of two below one and its result by the inverse, or scale its weights"
    if line.op in _SUMS:
        rewrite = "divide before summing (average in two steps, or a 1x1 convolution by 1/N first)"
    return Flag("fp16", line.module, reason, f"{rewrite}; until then run it in fp32 on a GPU")


def _dead(graph: Graph, op: OpInfo) -> Flag | None:
    rows = _rows(graph, op)
    if rows is None or rows.any((1, 2)).all():
        return None
    channels = np.flatnonzero(~rows.any((1, 2)))
    listed = ", ".join(map(str, channels[:12])) + (" ..." if len(channels) > 12 else "")
    reason = f"{len(channels)} of {len(rows)} output channels have only zero weights: {listed}"
    return Flag("dead_channels", graph.source(op), reason, f"converted with the floor scale {SMALLEST_SCALE:g}; prune")


def _unlike(graph: Graph, statistics: Mapping[int, Statistics], output: int) -> Flag | None:
    op = graph.producer(output)
    if op is None or op.name != "CONCATENATION":
        return None
    reach = [max(-statistics[t].low, statistics[t].high) for t in op.inputs if t in statistics]
    if len(reach) < 2 or min(reach) * UNLIKE >= max(reach):
        return None
    reason = f"an output joins parts with ranges {', '.join(f'{r:.3g}' for r in reach)} on one grid"
    return Flag("unlike_outputs", graph.source(op), reason, "give every quantity an output of its own")


def _is_weak(line: TensorLine) -> bool:
    return line.bits == 8 and line.snr_db is not None and _strength(line) < _WEAK_DB


def _weak(line: TensorLine) -> Flag:
    layer = "" if line.layer_snr_db is None else f", {line.layer_snr_db:.1f} dB with its input and weights (estimate)"
    reason = f"{line.snr_db:.1f} dB alone{layer}"
    return Flag(
        "weak_layer", line.module, reason, "keep it in float or int16 with --scheme mixed, or --bias-correction"
    )


def _notes(network: Calibrated, done: Quantized) -> tuple[str, ...]:
    notes = []
    if network.equalization is not None:
        e = network.equalization
        skipped = f"skipped {e.skipped_relu6} at ReLU6 and {e.skipped_other} for other reasons"
        notes.append(f"equalised {e.pairs} pairs of convolutions; {skipped}")
    if done.correction is not None:
        share, module = done.correction.largest
        count = done.correction.convolutions
        notes.append(f"corrected the biases of {count} convolutions; largest shift {100 * share:.2g} % at {module}")
    return tuple(notes)
