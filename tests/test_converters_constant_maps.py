"""A constant map under a sum, and resizes to any size: no float and no transposition stays, every integer is known."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from mirror_networks import GridConv, OnGrid, Then, export_folder
from test_converters_tinynet import _root, smooth_pictures
from torch import nn

from edge_seg.converters.convert import convert_many
from edge_seg.converters.exported import open_exported
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.integers.file import network_of_file
from edge_seg.converters.integers.mirror import IntegerMirror
from edge_seg.converters.integers.trained_numbers import compare_numbers
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.layers.ops import Add, ConstantMap, Resize

pytestmark = pytest.mark.slow  # one conversion

SIDE, CELLS = 32, 7


class Constants(nn.Module):
    """A map at half the size, resized to 7 x 7, plus a constant; its second output is resized up to 13 x 13."""

    def __init__(self):
        super().__init__()
        self.input = OnGrid(1.0, -128)
        norm = nn.Conv2d(3, 3, 1, groups=3)
        nn.init.constant_(norm.weight, 1 / 127.5)
        self.normalise = GridConv(norm, 1.0, OnGrid(1 / 127.5, 0))
        self.stem = GridConv(nn.Conv2d(3, 8, 4, 2, 1), 1 / 127.5, OnGrid(0.0117, -20))
        self.resize = Then(Resize((CELLS, CELLS)), OnGrid(0.0117, -20))
        self.constant = ConstantMap(torch.randn(1, 8, CELLS, CELLS) * 0.4)
        self.constant_grid = OnGrid(0.0071, 13)
        self.add = Then(Add(), OnGrid(0.0149, -128))
        self.act = nn.ReLU()
        self.head = GridConv(nn.Conv2d(8, 5, 1), 0.0149, OnGrid(0.016, 5))
        self.grown = Then(Resize((13, 13)), OnGrid(0.0149, -128))
        self.features = GridConv(nn.Conv2d(8, 4, 1), 0.0149, OnGrid(0.02, -9))

    def forward(self, image):
        x = self.resize(self.stem(self.normalise(self.input(image))))
        x = self.add.grid(self.act(self.add.op(x, self.constant_grid(self.constant()))))
        return self.head(x), self.features(self.grown(x))


@functools.cache
def net():
    torch.manual_seed(2)
    return Constants().eval()


@functools.cache
def exported():
    return open_exported(export_folder(net(), _root()[1] / "constants", side=SIDE))


@functools.cache
def file():
    folder = _root()[1] / "constants"
    exported()
    return convert_many(folder, ["qat_w8a8"], out=_root()[1] / "constants_out")[0]


def mirrors():
    runner = TfliteRunner(file().file)
    of_program = IntegerMirror.of_program(exported().program, exported().contract)
    return of_program, IntegerMirror.of_file(runner.graph, runner.contract)


def test_the_sum_is_one_operation_in_one_partition_and_nothing_is_transposed():
    assert file().ops == {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 1, "ADD": 1, "RESIZE_BILINEAR": 2}
    told = TfliteRunner(file().file).xnnpack_partitions()
    assert (told.partitions, told.outside) == (1, ())


def test_the_constant_arrives_as_trained_channels_last():
    graph = read_graph(file().file)
    (add,) = (op for op in graph.ops if op.name == "ADD")
    (place,) = (i for i in add.inputs if graph.tensors[i].constant)
    steps = np.rint(net().constant.value.detach().numpy() / np.float32(0.0071)) + 13
    assert np.array_equal(graph.constant(place), np.clip(steps, -128, 127).transpose(0, 2, 3, 1))
    assert graph.tensors[place].scale == (net().constant_grid.grid[0],)
    assert graph.tensors[place].zero_point == (13,)


@pytest.mark.parametrize("seed", range(3))
def test_the_mirrors_of_program_and_file_give_every_integer_of_the_runtime(seed):
    picture = smooth_pictures(1, seed=seed, side=SIDE)[0]
    runner = TfliteRunner(file().file)
    runner.invoke(picture)
    wanted = runner.raw_outputs()
    for mirror in mirrors():
        found = mirror.run(picture)
        for name, values in wanted.items():
            assert values.std() > 1
            np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_a_changed_constant_is_found_among_the_trained_numbers():
    wanted = mirrors()[0].network
    found = network_of_file(read_graph(file().file), TfliteRunner(file().file).contract)
    assert compare_numbers(wanted, found).passed
    changed = [
        replace(op, values_nhwc=np.where(op.values_nhwc == op.values_nhwc.max(), 0, op.values_nhwc).astype(np.int8))
        if op.kind == "constant"
        else op
        for op in found.ops
    ]
    report = compare_numbers(wanted, replace(found, ops=tuple(changed)))
    assert not report.passed
    assert [d.kind for d in report.differences] == ["weight"]
