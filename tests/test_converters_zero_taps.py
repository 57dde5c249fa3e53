"""Kernels without the zeros that padding SAME does not need: the same numbers, the same picture position."""

from pathlib import Path

import numpy as np
import pytest
import torch

from edge_seg.contract import Quantization
from edge_seg.converters.flatbuffer import graph_of
from edge_seg.converters.interpreter import plain_interpreter
from edge_seg.converters.small_graph import GraphWriter
from edge_seg.converters.zero_taps import cut_zero_taps
from edge_seg.layers.conv import SameConv2d

NAME = Path("small.tflite")
PADDING = {"SAME": 0, "VALID": 1}


def file_with(kernel, *, size=12, stride=2, padding="SAME", grid=None):
    """Returns a .tflite of one depthwise convolution, kernel [1, height, width, channels]."""
    writer = GraphWriter()
    channels = kernel.shape[-1]
    dtype = "int8" if grid else "float32"
    source = writer.input("map", (1, size, size, channels), dtype, grid=grid)
    weight = writer.constant(kernel, grid=grid and Quantization(0.05, 0))
    bias_grid = grid and Quantization(grid.scale * 0.05, 0)
    bias = writer.constant(np.arange(channels).astype(np.int32 if grid else np.float32), grid=bias_grid)
    taken = kernel.shape[1] if padding == "VALID" else 1
    side = -(-(size - taken + 1) // stride)
    options = {"padding": PADDING[padding], "strideW": stride, "strideH": stride, "depthMultiplier": 1}
    out = writer.op(
        "DEPTHWISE_CONV_2D",
        [source, weight, bias],
        (1, side, side, channels),
        dtype,
        grid=grid,
        options=("DepthwiseConv2DOptions", options),
    )
    return writer.finish(out)


def run(data, picture):
    interpreter = plain_interpreter(data)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def kernel_shape(data):
    graph = graph_of(data, NAME)
    return graph.tensors[graph.ops[0].inputs[1]].shape[1:3]


def kernel_with_zeros(zeros, *, taps=4, dtype=np.float32):
    """Returns a random kernel whose rows and columns named by (top, bottom, left, right) are zero."""
    kernel = np.random.default_rng(0).integers(1, 100, (1, taps, taps, 5)).astype(dtype)
    top, bottom, left, right = zeros
    kernel[:, :top] = 0
    kernel[:, taps - bottom :] = 0
    kernel[:, :, :left] = 0
    kernel[:, :, taps - right :] = 0
    return kernel


@pytest.mark.parametrize("grid", [None, Quantization(0.1, 7)], ids=["float32", "int8"])
def test_the_zero_row_and_column_of_a_stride_2_kernel_go_and_every_number_stays(grid):
    dtype = np.int8 if grid else np.float32
    data = file_with(kernel_with_zeros((1, 0, 1, 0), dtype=dtype), grid=grid)
    cut = cut_zero_taps(data, NAME)
    assert kernel_shape(data) == (4, 4)
    assert kernel_shape(cut) == (3, 3)
    picture = np.random.default_rng(1).integers(-100, 100, (1, 12, 12, 5)).astype(dtype)
    assert np.array_equal(run(data, picture), run(cut, picture))


@pytest.mark.parametrize("size", [7, 8, 11, 12])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("zeros", [(1, 0, 0, 0), (0, 1, 0, 1), (1, 1, 1, 1), (2, 0, 0, 1), (0, 2, 2, 0), (2, 1, 1, 2)])
def test_whatever_is_cut_no_output_moves(size, stride, zeros):
    data = file_with(kernel_with_zeros(zeros, taps=5), size=size, stride=stride)
    cut = cut_zero_taps(data, NAME)
    picture = np.random.default_rng(2).integers(-9, 9, (1, size, size, 5)).astype(np.float32)
    assert np.array_equal(run(data, picture), run(cut, picture))
    assert kernel_shape(cut) <= kernel_shape(data)


def test_a_symmetric_frame_of_zeros_is_cut_at_stride_1():
    data = file_with(kernel_with_zeros((1, 1, 1, 1), taps=5), stride=1)
    assert kernel_shape(cut_zero_taps(data, NAME)) == (3, 3)


@pytest.mark.parametrize(
    "kernel",
    [kernel_with_zeros((0, 0, 0, 0)), kernel_with_zeros((0, 0, 1, 0)) * 0],
    ids=["no zeros", "nothing but zeros"],
)
def test_a_kernel_without_an_edge_to_cut_leaves_the_file_as_it_is(kernel):
    data = file_with(kernel)
    assert cut_zero_taps(data, NAME) is data


def test_padding_valid_is_left_alone():
    data = file_with(kernel_with_zeros((1, 0, 1, 0)), padding="VALID")
    assert cut_zero_taps(data, NAME) is data


def test_a_first_row_of_zeros_stays_where_the_picture_would_move():
    data = file_with(kernel_with_zeros((1, 0, 1, 0)), size=11)  # SAME pads 1 before and 2 after an odd size
    assert kernel_shape(cut_zero_taps(data, NAME)) == (4, 4)


def test_retraining_never_trains_the_zeros_of_a_stride_2_kernel():
    plain = SameConv2d(3, 6).as_plain()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.1)
    before = plain.weight.detach().clone()
    for step in range(3):
        optimizer.zero_grad()
        plain(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        optimizer.step()
    assert not plain.weight[:, :, 0].any()
    assert not plain.weight[..., 0].any()
    assert (plain.weight[:, :, 1:, 1:] != before[:, :, 1:, 1:]).all()
