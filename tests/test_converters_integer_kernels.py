"""Each integer kernel against the runtime's, on graphs of one operator over random grids: equal, every integer."""

from __future__ import annotations

import numpy as np
import pytest

from edge_seg.contract import Quantization
from edge_seg.converters.flatbuffer import graph_of
from edge_seg.converters.integers import kernels
from edge_seg.converters.integers.kernels import Weights, Window
from edge_seg.converters.small_graph import GraphWriter
from edge_seg.errors import InputError
from edge_seg.schemes import Grid

SEEDS = range(4)


class Writer(GraphWriter):
    """Writes weights with one scale per channel, which the plain writer does not know."""

    def per_channel(self, values, scales, axis):
        index = self.constant(values, grid=Quantization(1.0, 0))
        quantization = self._graph.tensors[index].quantization
        quantization.scale, quantization.zeroPoint = scales, np.zeros(len(scales), np.int64)
        quantization.quantizedDimension = axis
        return index


def random_grid(rng, low=0.003, high=0.3):
    return Grid(float(np.float32(np.exp(rng.uniform(np.log(low), np.log(high))))), int(rng.integers(-128, 128)))


def random_map(rng, *shape):
    return rng.integers(-128, 128, (1, *shape)).astype(np.int8)


def stored(grid):
    return Quantization(grid.scale, grid.zero_point)


def run(data, *maps):
    """Runs a graph in XNNPACK, which must take all of it."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=data)
    interpreter.allocate_tensors()
    for detail, values in zip(interpreter.get_input_details(), maps, strict=True):
        interpreter.set_tensor(detail["index"], values)
    interpreter.invoke()
    assert [n["op_name"] for n in interpreter._get_ops_details()].count("DELEGATE") == 1
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def one_op(name, maps, grids, out_shape, out, *, constants=(), options=None):
    graph = Writer()
    inputs = [
        graph.input(f"x{i}", m.shape, "int8", grid=stored(g)) for i, (m, g) in enumerate(zip(maps, grids, strict=True))
    ]
    inputs += [graph.constant(c) for c in constants]
    return run(graph.finish(graph.op(name, inputs, out_shape, "int8", grid=stored(out), options=options)), *maps)


def equal(found, wanted):
    assert found.dtype == wanted.dtype == np.int8
    assert found.min() < found.max(), "a constant map proves nothing"
    np.testing.assert_array_equal(found, wanted)


CONVS = {
    "1x1": ((8, 9, 16), (1, 1), (1, 1), (1, 1), 1),
    "4x4 stride 2": ((16, 12, 3), (4, 4), (2, 2), (1, 1), 1),
    "3x3 dilated": ((9, 11, 8), (3, 3), (1, 1), (2, 3), 1),
    "3x3 grouped": ((8, 8, 12), (3, 3), (1, 1), (1, 1), 3),
    "3x3 of 600 channels": ((5, 4, 600), (3, 3), (1, 1), (1, 1), 1),
    "depthwise 3x3 stride 2": ((11, 9, 8), (3, 3), (2, 2), (1, 1), 8),
    "depthwise 5x5": ((9, 9, 6), (5, 5), (1, 1), (1, 1), 6),
    "depthwise 2x7 dilated": ((14, 12, 6), (2, 7), (1, 1), (6, 1), 6),
}


def convolution_case(seed, shape_hwc, kernel_hw, groups):
    rng = np.random.default_rng(seed)
    height, width, channels = shape_hwc
    outputs = channels if groups == channels else 12
    integers = rng.integers(-127, 128, (outputs, *kernel_hw, channels // groups)).astype(np.int8)
    scales = rng.uniform(0.001, 0.01, outputs).astype(np.float32)
    bias = rng.integers(-20000, 20000, outputs).astype(np.int32)
    return rng, random_map(rng, height, width, channels), random_grid(rng), Weights(integers, scales, bias)


def same_window(shape_hwc, kernel_hw, strides, dilations, groups):
    """TFLite's SAME padding, written out from its definition: ceil(size / stride) places, the odd row at the end."""
    around, sizes = [], []
    for size, kernel, stride, dilation in zip(shape_hwc[:2], kernel_hw, strides, dilations, strict=True):
        wanted = -(-size // stride)
        total = max(0, (wanted - 1) * stride + (kernel - 1) * dilation + 1 - size)
        around += [total // 2, total - total // 2]
        sizes.append(wanted)
    return Window(strides, tuple(around), dilations, groups), sizes


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("case", CONVS)
def test_convolutions_equal_the_runtimes(case, seed):
    shape_hwc, kernel_hw, strides, dilations, groups = CONVS[case]
    rng, x, grid, weights = convolution_case(seed, shape_hwc, kernel_hw, groups)
    window, size_hw = same_window(shape_hwc, kernel_hw, strides, dilations, groups)
    spread = weights.integers_ohwi[0].size ** 0.5 * 73 * 73 * 0.005 * grid.scale
    relu6 = seed % 2
    out = Grid(float(np.float32(spread / 60)), int(rng.integers(-128, 128)))
    if relu6:
        out = Grid(float(np.float32(0.0251)), -119)
    wide = shape_hwc[2] == groups
    graph = Writer()
    source = graph.input("x", x.shape, "int8", grid=stored(grid))
    integers = weights.integers_ohwi.transpose(3, 1, 2, 0) if wide else weights.integers_ohwi
    kernel = graph.per_channel(np.ascontiguousarray(integers), weights.scales_o, 3 if wide else 0)
    bias = graph.per_channel(weights.bias_o, weights.scales_o * np.float32(grid.scale), 0)
    names = {"strideH": strides[0], "strideW": strides[1], "padding": 0, "fusedActivationFunction": 3 * relu6}
    names |= {"dilationHFactor": dilations[0], "dilationWFactor": dilations[1]}
    op, options = ("DEPTHWISE_CONV_2D:3", "DepthwiseConv2DOptions") if wide else ("CONV_2D:3", "Conv2DOptions")
    if wide:
        names["depthMultiplier"] = 1
    shape = (1, *size_hw, len(weights.bias_o))
    result = graph.op(op, [source, kernel, bias], shape, "int8", grid=stored(out), options=(options, names))
    low, high = kernels.activation_range(out, 0.0, 6.0) if relu6 else (-128, 127)
    limited = Grid(out.scale, out.zero_point, low, high)
    equal(run(graph.finish(result), x), kernels.convolution(x, grid, weights, window, limited))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fully_connected_layer_is_a_1x1_convolution(seed):
    _, x, grid, weights = convolution_case(seed, (1, 7, 40), (1, 1), 1)
    out = Grid(float(np.float32(grid.scale * 1.5)), 7)
    graph = Writer()
    source = graph.input("x", x.shape, "int8", grid=stored(grid))
    kernel = graph.per_channel(weights.integers_ohwi[:, 0, 0].copy(), weights.scales_o, 0)
    bias = graph.per_channel(weights.bias_o, weights.scales_o * np.float32(grid.scale), 0)
    options = ("FullyConnectedOptions", {"keepNumDims": True})
    result = graph.op(
        "FULLY_CONNECTED:5", [source, kernel, bias], (1, 1, 7, 12), "int8", grid=stored(out), options=options
    )
    equal(run(graph.finish(result), x), kernels.convolution(x, grid, weights, Window(), out))


@pytest.mark.parametrize("seed", range(8))
def test_sums_of_unlike_scales_equal_the_runtimes(seed):
    rng = np.random.default_rng(seed)
    grids, out = (random_grid(rng), random_grid(rng)), random_grid(rng, 0.02, 0.6)
    a, b = random_map(rng, 7, 9, 11), random_map(rng, 7, 9, 11)
    found = one_op("ADD:2", (a, b), grids, a.shape, out, options=("AddOptions", {"fusedActivationFunction": 0}))
    equal(found, kernels.add(a, b, grids, out))


@pytest.mark.parametrize("seed", range(8))
def test_means_over_height_and_width_equal_the_runtimes(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(1, 24, 2))
    grid = Grid(random_grid(rng).scale, int(rng.integers(-40, 40)))
    out = Grid(float(np.float32(grid.scale * rng.uniform(0.5, 1.5))), int(rng.integers(-40, 40)))
    x = random_map(rng, height, width, 40)
    options = ("ReducerOptions", {"keepDims": True})
    found = one_op("MEAN:2", (x,), (grid,), (1, 1, 1, 40), out, constants=[np.int32([1, 2])], options=options)
    equal(found, kernels.mean_hw(x, grid, out))


RESIZES = [(4, 6, 8, 12), (1, 1, 5, 7), (3, 3, 12, 12), (5, 7, 9, 11), (10, 10, 5, 5), (16, 16, 17, 33)]


@pytest.mark.parametrize("sizes", RESIZES)
def test_resizes_equal_the_runtimes(sizes):
    rng = np.random.default_rng(1)
    height, width, *size_hw = sizes
    x, grid = random_map(rng, height, width, 9), random_grid(rng)
    options = ("ResizeBilinearOptions", {"halfPixelCenters": True})
    found = one_op(
        "RESIZE_BILINEAR:3", (x,), (grid,), (1, *size_hw, 9), grid, constants=[np.int32(size_hw)], options=options
    )
    equal(found, kernels.resize_bilinear(x, tuple(size_hw)))


@pytest.mark.parametrize("seed", SEEDS)
def test_changes_of_grid_equal_the_runtimes(seed):
    rng = np.random.default_rng(seed)
    x, grid = random_map(rng, 5, 6, 7), random_grid(rng)
    out = Grid(float(np.float32(grid.scale * rng.uniform(0.1, 4.0))), int(rng.integers(-60, 60)))
    found = one_op("QUANTIZE:2", (x,), (grid,), x.shape, out, options=("QuantizeOptions", {}))
    equal(found, kernels.requantize(x, grid, out))


def test_grids_too_far_apart_are_refused():
    with pytest.raises(InputError, match="too far apart"):
        kernels.requantize(np.zeros((1, 1, 1, 1), np.int8), Grid(1.0, 0), Grid(0.001, 0))


def test_padding_and_joining_equal_the_runtimes():
    rng = np.random.default_rng(3)
    x, y, grid = random_map(rng, 4, 5, 3), random_map(rng, 4, 5, 6), random_grid(rng)
    around = np.int32([[0, 0], [1, 2], [3, 4], [0, 0]])
    found = one_op("PAD:2", (x,), (grid,), (1, 7, 12, 3), grid, constants=[around], options=("PadOptions", {}))
    equal(found, kernels.pad(x, grid.zero_point, (1, 2, 3, 4)))
    found = one_op(
        "CONCATENATION:2", (x, y), (grid, grid), (1, 4, 5, 9), grid, options=("ConcatenationOptions", {"axis": 3})
    )
    equal(found, kernels.concat([x, y]))


def test_sums_beyond_float32_stay_exact():
    """255 * 127 * 4608 is more than 2^24: a float32 sum would lose its last bits; by hand, with a scale of one."""
    integers = np.full((1, 3, 3, 512), 127, np.int8)
    integers[0, 0, 0, 0] = 126
    bias = np.array([-127 * 255 * 4608 + 255 + 3], np.int32)
    weights = Weights(integers, np.ones(1, np.float32), bias)
    x = np.full((1, 3, 3, 512), 127, np.int8)
    assert kernels.convolution(x, Grid(1.0, -128), weights, Window(), Grid(1.0, 0)).item() == 3


def test_the_graphs_written_here_are_whole_files():
    data = Writer()
    source = data.input("x", (1, 2, 2, 3), "int8", grid=Quantization(0.5, 1))
    data = data.finish(data.op("PAD", [source], (1, 2, 2, 3), "int8", grid=Quantization(0.5, 1)))
    graph = graph_of(data, "memory")
    assert graph.op_histogram == {"PAD": 1}
    assert graph.tensors[0].scale == (0.5,)
