"""Runs an exported program layer by layer: whole, one layer on given inputs, and with everything rounded to half.

torch is imported when that happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.converters.interpreter import check_picture
from edge_seg.converters.layers.match import MatchedLayer, Sources, folded_between, kind_of
from edge_seg.converters.program import load_program
from edge_seg.converters.quiet import quiet_tools

Map = NDArray[np.float32]
ACTIVATIONS = frozenset({"relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_"})


class Constants(Protocol):
    """Weights and bias of a convolution, in float64."""

    @property
    def weight_ohwi(self) -> NDArray[np.float64]:
        """[out, kernel height, kernel width, input channels of a group]."""
        ...

    @property
    def bias_o(self) -> NDArray[np.float64]:
        """[out]."""
        ...


@dataclass(frozen=True, eq=False)
class FoldedWeights:
    """Weights and bias of a convolution with its batch normalisation folded in, in float64.

    Attributes:
        weight_ohwi: [out, kernel height, kernel width, input channels of a group].
        bias_o: [out].
        bias_floor_o: [out]; what float32 may lose of a bias, since it is a difference of larger numbers.
        offset_o: [out]; the part of the bias that is added last, for itself: the norm's shift, or all of it.
    """

    weight_ohwi: NDArray[np.float64]
    bias_o: NDArray[np.float64]
    bias_floor_o: NDArray[np.float64]
    offset_o: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Convolved:
    """A convolution run alone; float64, channels last.

    Attributes:
        value: The result.
        magnitude: Sums of the magnitudes that were added.
        slack: What may change where the kernel puts its input on an 8-bit grid of its own first, else 0.
    """

    value: NDArray[np.float64]
    magnitude: NDArray[np.float64]
    slack: NDArray[np.float64]


class LayeredProgram:
    """An exported program whose every value can be read.

    Args:
        program: `model.pt2`.
        contract: Says which pictures it takes.

    Attributes:
        sources: How its operations hang together.
        quantised: Whether it was trained quantisation-aware: its values then lie on grids.

    Raises:
        MissingHere: torch is not installed.
        ArtifactError: It cannot be loaded.
    """

    def __init__(self, program: Path, contract: Contract) -> None:
        with quiet_tools("torch.export"):
            self._program = load_program(program)
        self.contract = contract
        self.sources = Sources(self._program)
        self.quantised = any(kind_of(n) == "quantize_per_tensor" for n in self.sources.order)
        self._constants = self._stored()

    def _stored(self) -> dict[Any, Any]:
        signature, program = self._program.graph_signature, self._program
        kept = {**program.constants, **program.state_dict}
        targets = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        found = {n: kept[targets[n.name]].detach() for n in self.sources.order if n.name in targets}
        for node in self.sources.order:
            if node.op == "call_function" and self.sources.constant[node]:
                found[node] = _called(node, found)
        return found

    def run(self, image_hwc_u8: NDArray[np.uint8], wanted: Sequence[Any]) -> dict[Any, Map]:
        """Runs the program once.

        Args:
            image_hwc_u8: Letterboxed picture, uint8 [H, W, 3].
            wanted: Values to keep.

        Returns:
            float32 maps, channels last, by value.
        """
        return {n: self._shown(n, v) for n, v in self._all(image_hwc_u8, wanted).items()}

    def run_half(self, image_hwc_u8: NDArray[np.uint8], layers: Sequence[MatchedLayer]) -> dict[Any, Map]:
        """Runs the program with folded weights, biases and every layer's result rounded to float16; sums are float32.

        An emulation of a GPU that stores half precision, not a measurement: a GPU may also sum in half precision.

        Args:
            image_hwc_u8: As `run`.
            layers: Layers whose results are rounded.

        Returns:
            As `run`, of every layer's value.
        """
        values: dict[Any, Any] = {}
        self._start(image_hwc_u8, values)
        for layer in sorted((x for x in layers if x.compute is not None), key=lambda x: self.sources.order[x.node]):
            if all(node in values for _, node in layer.inputs):
                values[layer.node] = self._half(layer, values)
        return {x.node: self._shown(x.node, values[x.node]) for x in layers if x.node in values}

    def layer(self, layer: MatchedLayer, inputs: Mapping[Any, Map]) -> Map | None:
        """Runs one layer on given inputs.

        Args:
            layer: The layer.
            inputs: Maps by the program's value they stand for, channels last.

        Returns:
            Its result, channels last; None where the layer depends on more than these inputs.
        """
        given = {node: self._laid_out(node, value) for node, value in inputs.items()}
        result = self._between(layer.node, given)
        return None if result is None else self._shown(layer.node, result)

    def convolved(
        self, layer: MatchedLayer, inputs: Mapping[Any, Map], constants: Constants, *, dynamic: bool
    ) -> Convolved | None:
        """Runs one convolution on given inputs with given constants, in float64.

        Args:
            layer: The convolution.
            inputs: As `layer`.
            constants: Weights and bias.
            dynamic: Whether the kernel puts its input on an 8-bit grid first.

        Returns:
            The result; None where it depends on more than these inputs.
        """
        import torch

        node = layer.compute
        source = self._between(node.args[0], {n: self._laid_out(n, v) for n, v in inputs.items()})
        if source is None:
            return None
        taps = torch.from_numpy(np.ascontiguousarray(constants.weight_ohwi.transpose(0, 3, 1, 2)))
        bias, source = torch.from_numpy(constants.bias_o.copy()), source.double()

        def apply(x: Any, w: Any, b: Any) -> Any:
            return torch.ops.aten.conv2d.default(x, w, b, *node.args[3:], **node.kwargs)

        with torch.inference_mode():
            value = apply(source, taps, bias)
            magnitude = apply(source.abs(), taps.abs(), bias.abs())
            half_step = source.abs().amax() / 254.0 if dynamic else 0.0
            slack = apply(torch.ones_like(source) * half_step, taps.abs(), None)
            for folded in reversed(list(folded_between(self.sources, layer.node, node))):
                if kind_of(folded) in ACTIVATIONS:
                    value = folded.target(value, *folded.args[1:], **folded.kwargs)
        return Convolved(*(t.numpy().transpose(0, 2, 3, 1) for t in (value, magnitude, slack)))

    def folded(self, layer: MatchedLayer) -> FoldedWeights | None:
        """Returns what a convolution's constants should be; None for other layers."""
        if layer.compute is None or kind_of(layer.compute) != "conv2d":
            return None
        arguments = [*layer.compute.args, None, None][:3]
        weight = self._constants[arguments[1]].double().numpy().transpose(0, 2, 3, 1)
        bias = np.zeros(len(weight)) if arguments[2] is None else self._constants[arguments[2]].double().numpy()
        found = FoldedWeights(weight, bias, np.abs(bias), bias)
        for node in reversed(list(folded_between(self.sources, layer.node, layer.compute))):
            found = self._normalised(node, found) if kind_of(node) == "batch_norm" else found
        return found

    def added_nhwc(self, layer: MatchedLayer) -> NDArray[np.float64] | None:
        """Returns the constant map that an addition adds, [1, h, w, c]; None for other layers."""
        if layer.compute is None or kind_of(layer.compute) not in ("add", "add_"):
            return None
        maps = [self._constants[a] for a in layer.compute.args[:2] if a in self._constants]
        found = maps[0].detach().double().numpy() if len(maps) == 1 else None
        return found.transpose(0, 2, 3, 1) if found is not None and found.ndim == 4 else None

    def grid(self, node: Any) -> tuple[float, int] | None:
        """Returns scale and zero point of the grid a value was put on; None for a value that lies on none."""
        if kind_of(node) != "dequantize_per_tensor":
            return None
        given = [self._constants[a].item() if a in self._constants else a for a in node.args[1:3]]
        return float(np.float32(given[0])), int(given[1])

    def _normalised(self, node: Any, found: FoldedWeights) -> FoldedWeights:
        gamma, beta, mean, variance = (self._constants[n].double().numpy() for n in node.args[1:5])
        factor = gamma / np.sqrt(variance + float(node.args[7]))
        moved = (found.bias_o - mean) * factor
        floor = np.abs(beta) + np.abs(mean * factor) + np.abs(found.bias_o * factor)
        return FoldedWeights(found.weight_ohwi * factor[:, None, None, None], beta + moved, floor, beta)

    def _half(self, layer: MatchedLayer, values: Mapping[Any, Any]) -> Any:
        import torch

        given = {node: values[node] for _, node in layer.inputs}
        weights = self.folded(layer)
        if weights is not None:
            taps = torch.from_numpy(weights.weight_ohwi.transpose(0, 3, 1, 2).astype(np.float16).astype(np.float32))
            bias = torch.from_numpy(weights.bias_o.astype(np.float16).astype(np.float32))
            node = layer.compute
            with torch.inference_mode():
                source = self._between(node.args[0], given)
                y = torch.ops.aten.conv2d.default(source, taps, bias, *node.args[3:], **node.kwargs)
            given = {node: y}
            for folded in reversed(list(folded_between(self.sources, layer.node, node))):
                value = given[self.sources.inputs[folded][0]]
                given[folded] = value if kind_of(folded) == "batch_norm" else self._between(folded, given)
            return given[layer.node].half().float()
        return self._between(layer.node, given).half().float()

    def _start(self, image_hwc_u8: NDArray[np.uint8], values: dict[Any, Any]) -> None:
        import torch

        check_picture(image_hwc_u8, self.contract)
        (picture,) = (n for n in self.sources.order if n.name in self._program.graph_signature.user_inputs)
        values[picture] = torch.from_numpy(image_hwc_u8[None].astype(np.float32))

    def _all(self, image_hwc_u8: NDArray[np.uint8], wanted: Sequence[Any]) -> dict[Any, Any]:
        import torch

        values = dict(self._constants)
        self._start(image_hwc_u8, values)
        last = {n: i for i, node in enumerate(self.sources.order) for n in _arguments(node)}
        kept = set(wanted)
        with torch.inference_mode():
            for place, node in enumerate(self.sources.order):
                if node.op != "call_function" or node in values:
                    continue
                values[node] = _called(node, values)
                for source in set(_arguments(node)) - kept:
                    if last[source] == place and not self.sources.constant[source]:
                        del values[source]  # a network at 640 px would otherwise hold gigabytes
        return {n: values[n] for n in wanted if n in values}

    def _between(self, node: Any, given: Mapping[Any, Any]) -> Any:
        """Returns a value computed from given ones, or None where something else is needed."""
        import torch

        needed, open_nodes = set(), [node]
        while open_nodes:
            one = open_nodes.pop()
            if one in given or one in self._constants or one in needed:
                continue
            if one.op != "call_function":
                return None
            needed.add(one)
            open_nodes += self.sources.inputs[one]
        values = {**self._constants, **{n: v.clone() for n, v in given.items()}}
        with torch.inference_mode():
            for one in sorted(needed, key=self.sources.order.__getitem__):
                values[one] = _called(one, values)
        return values[node]

    def _shown(self, node: Any, value: Any) -> Map:
        array: Map = value.detach().float().numpy()
        return array if self.sources.channels_last[node] or array.ndim != 4 else array.transpose(0, 2, 3, 1)

    def _laid_out(self, node: Any, value: Map) -> Any:
        import torch

        nchw = value.ndim == 4 and not self.sources.channels_last[node]
        return torch.from_numpy(np.array(value.transpose(0, 3, 1, 2) if nchw else value, np.float32, order="C"))


def _arguments(node: Any) -> list[Any]:
    return list(node.all_input_nodes)


def _called(node: Any, values: Mapping[Any, Any]) -> Any:
    from torch.fx.node import map_arg

    arguments = map_arg(node.args, values.__getitem__)
    return node.target(*arguments, **map_arg(node.kwargs, values.__getitem__))
