"""Whether one layer of a file is right, whatever happened before it: its constants, its grids, its arithmetic.

After one fault every later layer looks bad, so the first divergence is not looked for in the error that has gathered.
Each layer is judged alone, in two halves that together leave no room:

- its constants and grids against the program's, to within the rounding of its own number format;
- its result, on the inputs that the file itself feeds it, against the same operation in PyTorch with the file's own
  constants, to within the rounding of its arithmetic. For int8 the integer mirror asks for equality on top.

Neither half knows how far rounding has already carried the network, so neither needs a generous limit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.graph import Graph, TensorInfo
from edge_seg.converters.layers.match import MatchedLayer, kind_of
from edge_seg.converters.layers.moved import AddedMaps
from edge_seg.converters.layers.program import Convolved, FoldedWeights, LayeredProgram

Kind = Literal["scale", "weight", "bias", "geometry", "arithmetic", "jump"]
KINDS: tuple[Kind, ...] = ("scale", "weight", "bias", "geometry", "arithmetic", "jump")


@dataclass(frozen=True)
class LayerTolerance:
    """What one layer may differ by, alone.

    Attributes:
        weight_steps: Weights, in halves of the distance between two numbers of their format.
        sum_ulps: Float results, in units of 2^-24 of the sum of the magnitudes that were added.
        output_steps: Integer results, in steps of their grid, by kernels.
    """

    weight_steps: float
    sum_ulps: float
    output_steps: Mapping[str, float]


# By scheme. The weights of a network trained quantisation-aware lie on their grid already and must come out on it;
# everybody else's are rounded once, by half a step. A sum of n float32 products is off by at most n units in the last
# place; measured on a trained MaskConver-MobileNetV2 at 256 px, worst layer: 27 (a mean), 12 (a convolution).
_INTEGERS = {"xnnpack": 1.02, "reference": 2.02}
_ROUNDED = LayerTolerance(1.01, 256.0, _INTEGERS)
LAYER_TOLERANCES: Mapping[str, LayerTolerance] = {
    "fp32": _ROUNDED,
    "fp16": _ROUNDED,
    "w8_dynamic": _ROUNDED,
    "w8a8": _ROUNDED,
    "w8a16": _ROUNDED,
    "mixed": _ROUNDED,
    "qat_w8a8": LayerTolerance(0.01, 256.0, _INTEGERS),
}
# After equalisation or bias correction most layers hold other constants than the program: then they decide nothing.
REWRITTEN_SHARE = 0.25
JUMP_DB = 20.0
_ULP = 2.0**-24
_DEAD = 1e-6  # weights below this share of the layer's largest are zero
_INT32 = np.iinfo(np.int32)
_SAME_SCALE = 1e-5  # float32 products of scales differ by 1e-7
_MOVING = frozenset({"CONCATENATION", "RESIZE_BILINEAR", "PAD", "MAX_POOL_2D"})


@dataclass(frozen=True)
class Finding:
    """Something about a layer that is not as it should be.

    Attributes:
        op: Index of the operator.
        kind: What is wrong; one of KINDS.
        text: What was expected and what was found.
    """

    op: int
    kind: Kind
    text: str


@dataclass(frozen=True, eq=False)
class FileConstants:
    """Weights and bias of a convolution as the kernel takes them, in float64.

    Attributes:
        weight_ohwi: Real values.
        bias_o: Real values.
        half_ohwi: Half the distance between two weights, by weight; broadcasts.
        bias_step_o: Distance between two biases; 0 for float biases.
    """

    weight_ohwi: NDArray[np.float64]
    bias_o: NDArray[np.float64]
    half_ohwi: NDArray[np.float64]
    bias_step_o: NDArray[np.float64]


def file_constants(graph: Graph, layer: MatchedLayer, wanted: FoldedWeights) -> FileConstants:
    """Reads the constants of a convolution of a file; int32 biases lie on input scale * weight scale.

    Args:
        graph: The file.
        layer: A convolution.
        wanted: What they should be, for the size of their rounding.
    """
    stored = _stored(graph, layer.op.inputs[1])
    values = graph.constant(stored.index).astype(np.float64)
    depthwise = layer.op.name == "DEPTHWISE_CONV_2D"
    values = values.transpose(3, 1, 2, 0) if depthwise else values
    values = values[:, None, None] if values.ndim == 2 else values
    values = _with_zero_taps(values, wanted.weight_ohwi)
    half = _half_distance(stored, wanted.weight_ohwi)
    if stored.scale:
        scale = np.broadcast_to(np.array(stored.scale, np.float64), (len(values),))
        zero = np.broadcast_to(np.array(stored.zero_point, np.float64), (len(values),))
        values = (values - zero[:, None, None, None]) * scale[:, None, None, None]
        half = np.broadcast_to(scale[:, None, None, None] / 2, values.shape)
    bias, step = np.zeros(len(values)), np.zeros(len(values))
    if len(layer.op.inputs) > 2 and layer.op.inputs[2] >= 0:
        bias = graph.constant(layer.op.inputs[2]).astype(np.float64)
        if graph.tensors[layer.op.inputs[2]].dtype.startswith("int"):
            step = graph.tensors[layer.op.inputs[0]].scale[0] * np.array(stored.scale, np.float64)
            step = np.broadcast_to(step, bias.shape)
            bias = bias * step
    return FileConstants(values, bias, half, step)


def _with_zero_taps(values: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a kernel with the rows and columns of zeros in front that conversion cut off the program's."""
    missing = [w - v for v, w in zip(values.shape, wanted.shape, strict=True)]
    if not any(missing) or min(missing) < 0 or missing[0] or missing[3]:
        return values
    if wanted[:, : missing[1]].any() or wanted[:, :, : missing[2]].any():
        return values
    return np.pad(values, [(n, 0) for n in missing])


def _stored(graph: Graph, tensor: int) -> TensorInfo:
    """Returns the tensor that the file stores: what an operator unpacks, or the tensor itself."""
    op = graph.producer(tensor)
    return graph.tensors[op.inputs[0]] if op is not None else graph.tensors[tensor]


def _half_distance(stored: TensorInfo, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns half the distance between two floats around each weight; of float32 what folding may lose."""
    largest = np.abs(weight).max((1, 2, 3), keepdims=True)
    if stored.dtype == "float16":
        rounded: NDArray[np.float64] = np.maximum(np.abs(weight) * 2.0**-11, 2.0**-25) + largest * 2.0**-21
        return rounded
    spread: NDArray[np.float64] = np.broadcast_to(largest * 2.0**-20, weight.shape)
    return spread


class LayerChecks:
    """Judges the layers of a file.

    Args:
        graph: The file.
        layers: Its layers.
        program: The program it was made from.
        scheme: Its scheme.

    Attributes:
        maps: Constant maps, and what was moved into them.
        findings: What is wrong with constants and grids, by operator.
        rewritten: Kinds of constants that most layers hold otherwise than the program, and which decide nothing.
    """

    def __init__(self, graph: Graph, layers: Sequence[MatchedLayer], program: LayeredProgram, scheme: str) -> None:
        self.graph, self.program, self.layers = graph, program, layers
        self.tolerance = LAYER_TOLERANCES[scheme]
        self.constants: dict[int, FileConstants] = {}
        self.maps = AddedMaps(graph, layers, program)
        found = [f for layer in layers for f in self._constants(layer)]
        found += [Finding(index, "weight", text) for index, text in self.maps.wrong()]
        self.rewritten = () if program.quantised else self._common(found)
        found = [f for f in found if f.kind not in self.rewritten] + list(self._grids())
        self.findings = tuple(sorted(found, key=lambda f: (f.op, KINDS.index(f.kind))))

    def _common(self, found: Sequence[Finding]) -> tuple[Kind, ...]:
        counts = Counter(f.kind for f in found)
        return tuple(k for k in KINDS if counts[k] > max(3, REWRITTEN_SHARE * len(self.constants)))

    def _constants(self, layer: MatchedLayer) -> Iterator[Finding]:
        wanted = self.program.folded(layer)
        if wanted is None:
            return
        found = file_constants(self.graph, layer, wanted)
        if found.weight_ohwi.shape != wanted.weight_ohwi.shape:
            shapes = f"shape {list(found.weight_ohwi.shape)}, of the program {list(wanted.weight_ohwi.shape)}"
            yield Finding(layer.op.index, "weight", shapes)
            return
        self.constants[layer.op.index] = found
        slack = _DEAD * np.abs(wanted.weight_ohwi).max(initial=0.0)
        error = np.abs(found.weight_ohwi - wanted.weight_ohwi)
        wrong = ~(error <= self.tolerance.weight_steps * found.half_ohwi + slack)
        if wrong.any():
            yield Finding(layer.op.index, "weight", _weight_text(wrong, wanted.weight_ohwi, found.weight_ohwi))
        yield from self._bias(layer, wanted, found)

    def _bias(self, layer: MatchedLayer, wanted: FoldedWeights, found: FileConstants) -> Iterator[Finding]:
        allowed = 0.505 * found.bias_step_o + wanted.bias_floor_o * 2.0**-20
        moved = self.maps.offset_o(layer, wanted, found.bias_o)
        wrong = ~(np.abs(found.bias_o - (wanted.bias_o - moved)) <= allowed)
        wrong &= ~self._same_constant(layer, wanted, found)
        for channel in np.flatnonzero(wrong)[:1]:
            step = found.bias_step_o[channel]
            steps = (found.bias_o[channel] - wanted.bias_o[channel]) / step if step else 0.0
            text = f"channel {channel} has {found.bias_o[channel]:.6g}, the program {wanted.bias_o[channel]:.6g}"
            text += f" ({steps:+.4g} steps)" if step else ""
            held = not step or abs(wanted.bias_o[channel] / step) <= _INT32.max
            text += "" if held else "; its weights are zero, and int32 cannot hold the bias on so fine a grid"
            yield Finding(layer.op.index, "bias", f"{text}; {int(wrong.sum())} of {wrong.size} channels differ")

    def _same_constant(self, layer: MatchedLayer, wanted: FoldedWeights, found: FileConstants) -> NDArray[np.bool_]:
        """Returns the channels without weights whose bias gives the same constant once the activation has cut it."""
        axes = (1, 2, 3)
        largest = np.abs(wanted.weight_ohwi).max(initial=0.0)
        dead: NDArray[np.bool_] = np.abs(wanted.weight_ohwi).max(axes) <= _DEAD * largest
        low, high = _LIMITS.get(str(layer.op.options.get("fused_activation_function")), (-np.inf, np.inf))
        scale = self.graph.tensors[layer.tensor].scale
        step = scale[0] if scale else 0.0
        ends = np.clip(found.bias_o, low, high), np.clip(wanted.bias_o, low, high)
        same: NDArray[np.bool_] = dead & (np.abs(ends[0] - ends[1]) <= step / 2)
        return same

    def _grids(self) -> Iterator[Finding]:
        for layer in self.layers:
            yield from self._trained_grid(layer)
        if self.program.quantised:
            return
        makers = {layer.tensor: layer.op.index for layer in self.layers}
        torn: dict[int, list[str]] = {}
        for tensor, text in [*self._torn_grids(), *self._untied_grids()]:
            torn.setdefault(self._before_pad(tensor), []).append(text)
        for tensor, texts in torn.items():
            others = f", and {len(texts) - 1} more such" if len(texts) > 1 else ""
            yield Finding(makers.get(tensor, -1), "scale", texts[0] + others)

    def _before_pad(self, tensor: int) -> int:
        op = self.graph.producer(tensor)
        return op.inputs[0] if op is not None and op.name == "PAD" else tensor

    def _trained_grid(self, layer: MatchedLayer) -> Iterator[Finding]:
        tensor, wanted = self.graph.tensors[layer.tensor], self.program.grid(layer.node)
        if wanted is None or not tensor.scale:
            return
        found = tensor.scale[0], tensor.zero_point[0]
        if (float(np.float32(found[0])), found[1]) != wanted:
            text = f"the output's scale is {found[0]:.8g}, {found[0] / wanted[0]:.4g} times the trained one"
            yield Finding(layer.op.index, "scale", f"{text}; its zero point is {found[1]}, trained {wanted[1]}")

    def _torn_grids(self) -> Iterator[tuple[int, str]]:
        """Yields maps whose grid does not fit the int32 biases that were made for it.

        A bias lies on input scale * weight scale and records that product: the only trace of a calibrated scale.
        """
        for layer, ratio in self._bias_ratios():
            wrong, source = np.abs(ratio - 1.0) > _SAME_SCALE, layer.op.inputs[0]
            if wrong.all():
                scale = f"the output's scale is {self.graph.tensors[source].scale[0]:.8g}"
                yield source, f"{scale}, {np.median(ratio):.4g} times what the biases of {layer.module} are made for"
            elif wrong.any():
                channel = int(np.flatnonzero(wrong)[0])
                text = f"the weight scale of channel {channel} is {ratio[channel]:.4g} times what its bias is made for"
                yield layer.tensor, text

    def _bias_ratios(self) -> Iterator[tuple[MatchedLayer, NDArray[np.float64]]]:
        """Yields convolutions and, by channel, input scale * weight scale over the scale their bias records."""
        for layer in self.layers:
            op = layer.op
            if op.index in self.constants and len(op.inputs) > 2 and op.inputs[2] >= 0:
                bias, step = self.graph.tensors[op.inputs[2]], self.constants[op.index].bias_step_o
                if bias.scale and step.all():
                    yield layer, step / np.broadcast_to(np.array(bias.scale, np.float64), step.shape)

    def _untied_grids(self) -> Iterator[tuple[int, str]]:
        """Yields maps on another grid than the operator that only moves their integers gives them.

        Of the two the one is wrong that no bias vouches for; where none does, the operator itself is named.
        """
        good = [(x.op.inputs[0], (np.abs(ratio - 1.0) <= _SAME_SCALE).all()) for x, ratio in self._bias_ratios()]
        vouched = {tensor for tensor, fits in good if fits} - {tensor for tensor, fits in good if not fits}
        for op in self.graph.ops:
            here = self.graph.tensors[op.outputs[0]]
            for source in op.inputs if op.name in _MOVING and here.scale else ():
                there = self.graph.tensors[source] if source >= 0 else here
                if there.scale and abs(there.scale[0] / here.scale[0] - 1.0) > _SAME_SCALE:
                    blamed = source if op.outputs[0] in vouched and source not in vouched else op.outputs[0]
                    scales = f"{there.scale[0]:.8g} in front of {op.name} {op.index} and {here.scale[0]:.8g} behind it"
                    yield blamed, f"the scale is {scales}, which keeps its grid"

    def arithmetic(
        self, layer: MatchedLayer, inputs: Mapping[Any, NDArray[np.float32]], found: NDArray[np.float32], kernels: str
    ) -> float | None:
        """Runs a layer on the file's own inputs with the file's own constants.

        Args:
            layer: The layer.
            inputs: The file's maps by the program's value they stand for, real numbers.
            found: The file's result.
            kernels: Kernels that computed it.

        Returns:
            The largest error as a share of what is allowed; above 1 the layer computes something else. None where
            the layer cannot run alone.
        """
        made = self._wanted(layer, inputs)
        if made is None or made.value.shape != found.shape:
            return None
        wanted, tensor = made.value, self.graph.tensors[layer.tensor]
        allowed = made.slack + made.magnitude * (_ULP * self.tolerance.sum_ulps)
        if tensor.scale:
            limits = np.iinfo(tensor.dtype)
            low, high = ((v - tensor.zero_point[0]) * tensor.scale[0] for v in (limits.min, limits.max))
            wanted = np.clip(wanted, low, high)
            allowed = allowed + self.tolerance.output_steps[kernels] * tensor.scale[0]
        error = np.abs(found - wanted)
        if not np.isfinite(error).all():
            return float("inf")
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(error > 0.0, error / allowed, 0.0)
        return float(shares.max(initial=0.0))

    def _wanted(self, layer: MatchedLayer, inputs: Mapping[Any, NDArray[np.float32]]) -> Convolved | None:
        """Returns a layer's result and the magnitudes that were summed up for it."""
        constants = self.constants.get(layer.op.index)
        if constants is not None:
            return self.program.convolved(layer, inputs, constants, dynamic=self._is_dynamic(layer))
        result = self.program.layer(layer, inputs)
        if result is None:
            return None
        largest = max([float(np.abs(v).max(initial=0.0)) for v in (result, *inputs.values())])
        return Convolved(result.astype(np.float64), np.full(result.shape, largest), np.zeros(result.shape))

    def _is_dynamic(self, layer: MatchedLayer) -> bool:
        """Whether a kernel puts float maps on a grid of its own before it multiplies them with int8 weights."""
        weights, source = self.graph.tensors[layer.op.inputs[1]], self.graph.tensors[layer.op.inputs[0]]
        return weights.dtype == "int8" and source.dtype == "float32"

    def geometry(self, layer: MatchedLayer) -> str:
        """Returns in what form a layer differs from the program's operation; "" where nothing is known."""
        options, compute = layer.op.options, layer.compute
        if compute is None:
            return ""
        if kind_of(compute) == "upsample_bilinear2d":
            wanted: dict[str, int] = {"align_corners": bool(compute.args[2]), "half_pixel_centers": not compute.args[2]}
        elif kind_of(compute) == "conv2d" and "stride_h" in options:
            stride, dilation = (_pair(compute.args[i] if len(compute.args) > i else 1) for i in (3, 5))
            wanted = dict(zip(("stride_h", "stride_w"), stride, strict=True))
            wanted |= dict(zip(("dilation_h_factor", "dilation_w_factor"), dilation, strict=True))
        else:
            return ""
        wrong = [f"{k} is {options.get(k)}, of the program {v}" for k, v in wanted.items() if options.get(k) != v]
        return "; ".join(wrong)


_LIMITS: Mapping[str, tuple[float, float]] = {"RELU": (0.0, np.inf), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    return int(values[0]), int(values[-1])


def _weight_text(wrong: NDArray[np.bool_], wanted: NDArray[np.float64], found: NDArray[np.float64]) -> str:
    place = tuple(int(i[0]) for i in np.nonzero(wrong))
    channels = np.flatnonzero(wrong.any((1, 2, 3)))
    flipped = [c for c in channels if np.allclose(found[c], -wanted[c], atol=0.02 * np.abs(wanted[c]).max())]
    text = f"at {list(place)} the file has {found[place]:.6g}, the program {wanted[place]:.6g}"
    text += f"; {int(wrong.sum())} of {wrong.size} weights in {len(channels)} of {len(wanted)} channels differ"
    return text + (f"; channel {flipped[0]} has the opposite sign" if flipped else "")
