"""Small float networks for the tests of quantisation: built operator by operator, tensors named like modules."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from test_converters_tinynet import tiny_contract

from edge_seg.converters.flatbuffer import graph_of
from edge_seg.converters.interpreter import plain_interpreter
from edge_seg.converters.small_graph import GraphWriter

SIDE = 8
ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU6": 3}
PLACE = Path("(test)")


class Net:
    """Writes a network; every method returns the tensor it made."""

    def __init__(self, channels=3):
        self.writer = GraphWriter()
        self.channels = {}
        self.input = self.writer.input("picture", (1, SIDE, SIDE, channels))
        self.channels[self.input] = channels

    def _named(self, tensor, name, channels):
        self.writer._graph.tensors[tensor].name = f"{name};".encode()
        self.channels[tensor] = channels
        return tensor

    def conv(self, name, source, weights_ohwi, bias=None, *, act="NONE"):
        weights = np.asarray(weights_ohwi, np.float32)
        bias = np.zeros(len(weights), np.float32) if bias is None else np.asarray(bias, np.float32)
        inputs = [source, self.writer.constant(weights), self.writer.constant(bias)]
        options = {"strideW": 1, "strideH": 1, "padding": 0, "dilationWFactor": 1, "dilationHFactor": 1}
        options |= {"fusedActivationFunction": ACTIVATIONS[act]}
        shape = (1, SIDE, SIDE, len(weights))
        made = self.writer.op("CONV_2D:3", inputs, shape, options=("Conv2DOptions", options))
        return self._named(made, name, len(weights))

    def depthwise(self, name, source, weights_hwc, bias=None, *, act="NONE"):
        weights = np.asarray(weights_hwc, np.float32)[None]
        channels = weights.shape[-1]
        bias = np.zeros(channels, np.float32) if bias is None else np.asarray(bias, np.float32)
        inputs = [source, self.writer.constant(weights), self.writer.constant(bias)]
        options = {"strideW": 1, "strideH": 1, "padding": 0, "dilationWFactor": 1, "dilationHFactor": 1}
        options |= {"fusedActivationFunction": ACTIVATIONS[act], "depthMultiplier": 1}
        shape = (1, SIDE, SIDE, channels)
        made = self.writer.op("DEPTHWISE_CONV_2D:3", inputs, shape, options=("DepthwiseConv2DOptions", options))
        return self._named(made, name, channels)

    def add(self, name, a, b, *, act="NONE"):
        options = ("AddOptions", {"fusedActivationFunction": ACTIVATIONS[act]})
        shape = (1, SIDE, SIDE, self.channels[a])
        return self._named(self.writer.op("ADD:2", [a, b], shape, options=options), name, self.channels[a])

    def concat(self, name, *parts):
        channels = sum(self.channels[p] for p in parts)
        options = ("ConcatenationOptions", {"axis": 3, "fusedActivationFunction": 0})
        made = self.writer.op("CONCATENATION:2", list(parts), (1, SIDE, SIDE, channels), options=options)
        return self._named(made, name, channels)

    def unary(self, op, name, source):
        shape = (1, SIDE, SIDE, self.channels[source])
        return self._named(self.writer.op(op, [source], shape), name, self.channels[source])

    def resize(self, name, source):
        size = self.writer.constant(np.array([SIDE, SIDE], np.int32))
        options = ("ResizeBilinearOptions", {"alignCorners": False, "halfPixelCenters": True})
        shape = (1, SIDE, SIDE, self.channels[source])
        made = self.writer.op("RESIZE_BILINEAR:3", [source, size], shape, options=options)
        return self._named(made, name, self.channels[source])

    def mean(self, name, source):
        axes = self.writer.constant(np.array([1, 2], np.int32))
        options = ("ReducerOptions", {"keepDims": True})
        made = self.writer.op("MEAN:2", [source, axes], (1, 1, 1, self.channels[source]), options=options)
        return self._named(made, name, self.channels[source])

    def finish(self, *outputs):
        """Returns the file and what it contains."""
        data = self.writer.finish(*outputs)
        return data, graph_of(data, PLACE)


def contract():
    """A contract of the right input size; quantisation asks no more of it."""
    made = tiny_contract()
    return dataclasses.replace(made, input=dataclasses.replace(made.input, shape=(1, SIDE, SIDE, 3)))


def noise(count, seed=0):
    return list(np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8))


def random_weights(rng, out, into, side=1):
    return rng.normal(0, 1 / np.sqrt(into * side * side), (out, side, side, into)).astype(np.float32)


def run(data, picture):
    """Runs a file on a picture; returns real values by tensor name, of outputs and of everything between."""
    interpreter, graph = plain_interpreter(data, keep_all=True), graph_of(data, PLACE)
    batch = picture[None]
    if graph.tensors[graph.inputs[0]].dtype == "int8":
        batch = (batch ^ np.uint8(128)).view(np.int8)
    interpreter.set_tensor(graph.inputs[0], batch.astype(graph.tensors[graph.inputs[0]].dtype))
    interpreter.invoke()
    values = {}
    for t in (t for op in graph.ops for t in op.outputs):
        tensor, raw = graph.tensors[t], interpreter.get_tensor(t).astype(np.float64)
        values[tensor.name] = (raw - tensor.zero_point[0]) * tensor.scale[0] if tensor.scale else raw
    return values
