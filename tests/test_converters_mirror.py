"""The integer mirror: a trained program run in integers gives what its file gives in XNNPACK, every integer."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from mirror_networks import SIDE, Everything, GridConv, OnGrid, Then, everything_exported, everything_file
from mirror_networks import everything_folder as folder
from test_converters_tinynet import SIDE as TINY_SIDE
from test_converters_tinynet import Nhwc, converted_files, save_program, smooth_pictures, tiny_contract
from torch import nn

from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.integers.mirror import IntegerMirror
from edge_seg.converters.integers.network import IntegerNetwork, IntegerOp
from edge_seg.converters.integers.program import network_of_program
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.program import program_runner
from edge_seg.errors import InputError
from edge_seg.layers.ops import Add, Concat, Upsample
from edge_seg.schemes import Grid

pytestmark = pytest.mark.slow  # one conversion of twenty operations

KINDS = {"convolution", "constant", "add", "concat", "resize_bilinear", "mean_hw"}


@functools.cache
def program_mirror():
    return IntegerMirror.of_program(everything_exported().program, everything_exported().contract)


@functools.cache
def file_mirror():
    runner = TfliteRunner(everything_file())
    return IntegerMirror.of_file(runner.graph, runner.contract)


def raw_of(file, picture):
    runner = TfliteRunner(file)
    runner.invoke(picture)
    return runner.raw_outputs()


def assert_equal(found, wanted):
    assert set(found) == set(wanted)
    for name in wanted:
        assert wanted[name].std() > 1, "an output that is constant proves nothing"
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


@pytest.mark.parametrize("mirror", [program_mirror, file_mirror], ids=["program", "file"])
@pytest.mark.parametrize("seed", range(4))
def test_every_integer_of_every_output_is_the_runtimes(mirror, seed):
    picture = smooth_pictures(1, seed=seed, side=SIDE)[0]
    assert_equal(mirror().run(picture), raw_of(everything_file(), picture))


def test_the_network_of_these_tests_has_every_operation_and_runs_in_one_partition():
    assert {op.kind for op in program_mirror().network.ops} == KINDS
    assert {op.kind for op in file_mirror().network.ops} == KINDS | {"pad"}
    told = TfliteRunner(everything_file()).xnnpack_partitions()
    assert (told.partitions, told.outside) == (1, ())


def test_a_file_quantised_after_training_equals_its_mirror():
    file = converted_files()["w8a8"].file
    runner = TfliteRunner(file)
    mirror = IntegerMirror.of_file(runner.graph, runner.contract)
    for picture in smooth_pictures(4, seed=5, side=TINY_SIDE):
        assert_equal(mirror.run(picture), raw_of(file, picture))


def test_layers_come_by_module_path_in_order_and_end_in_the_outputs():
    picture = smooth_pictures(1, side=SIDE)[0]
    layers = program_mirror().run_layers(picture)
    assert list(layers)[:3] == ["normalise", "stem", "depthwise"]
    assert layers["split.odd"].shape == (1, SIDE // 4, SIDE // 4, 24)
    assert_equal({"semantic": layers["logits"], "features": layers["features"]}, program_mirror().run(picture))


def test_program_and_file_agree_in_every_layer():
    picture = smooth_pictures(1, seed=2, side=SIDE)[0]
    program = list(program_mirror().run_layers(picture).values())
    ops = file_mirror().network.ops
    pads = [op.kind == "pad" for op in ops]
    file = [v for v, is_pad in zip(file_mirror().run_layers(picture).values(), pads, strict=True) if not is_pad]
    assert len(program) == len(file)
    assert {tuple(v.ravel()) for v in program} == {tuple(v.ravel()) for v in file}


def test_the_mirror_stays_near_the_float_program():
    """Shapes and meaning, from an independent source: the float program, within a few steps."""
    picture = smooth_pictures(1, seed=3, side=SIDE)[0]
    real = program_runner(everything_exported().program, everything_exported().contract)(picture)
    network = program_mirror().network
    for name, integers in program_mirror().run(picture).items():
        grid = network.grids[network.outputs[name]]
        assert np.abs(grid.real(integers) - real[name]).max() <= 4 * grid.scale


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(InputError, match="does not fit the network's input"):
        program_mirror().run(np.zeros((SIDE, SIDE + 1, 3), np.uint8))


def test_a_second_operation_of_one_module_has_a_name_of_its_own():
    ops = tuple(IntegerOp("add", "block", (0, 0), i + 1) for i in range(2))
    network = IntegerNetwork("by hand", ops, {i: Grid(1.0, 0) for i in range(3)}, 0, {"y": 2})
    assert list(network.names()) == ["block", "block#2"]


def test_an_operation_without_a_kernel_is_named():
    ops = (IntegerOp("softmax", "head", (0,), 1),)
    network = IntegerNetwork("by hand", ops, {0: Grid(1.0, 0), 1: Grid(1.0, 0)}, 0, {"y": 1})
    with pytest.raises(InputError, match=r"no rule for 'softmax' at 'head'"):
        IntegerMirror(network, everything_exported().contract)


def test_an_operator_of_a_file_without_a_rule_is_named():
    graph = read_graph(everything_file())
    ops = (*graph.ops[:-1], replace(graph.ops[-1], name="LOGISTIC"))
    with pytest.raises(InputError, match=r"no rule for LOGISTIC at "):
        IntegerMirror.of_file(replace(graph, ops=ops), TfliteRunner(everything_file()).contract)


def test_a_file_that_computes_in_float_has_no_mirror():
    runner = TfliteRunner(converted_files()["fp32"].file)
    with pytest.raises(InputError, match="cannot hold"):
        IntegerMirror.of_file(runner.graph, runner.contract)


class Small(nn.Module):
    """A picture on its grid, a convolution on a grid, and one operation under test."""

    def __init__(self, last):
        super().__init__()
        self.input, self.last = OnGrid(1.0, -128), last
        self.conv = GridConv(nn.Conv2d(3, 4, 3, padding=1), 1.0, OnGrid(0.5, 0))

    def forward(self, image):
        return self.last(self.conv(self.input(image)))


class Twice(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, x):
        return self.op(x, x)


REFUSED = {
    "a sigmoid": (nn.Sigmoid(), r"no rule for aten\.sigmoid\.default at 'last'"),
    "a sum without a grid": (Twice(Add()), r"result of 'last\.op' is computed in float"),
    "a join on another grid": (Then(Twice(Concat()), OnGrid(0.25, 0)), r"concat at 'last\.op\.op' does not keep"),
    "a resize on another grid": (Then(Upsample(2), OnGrid(0.5, 1)), "does not keep its grid"),
    "an activation behind a grid": (Then(nn.ReLU(), OnGrid(0.5, 0)), "does not follow a convolution or a sum"),
    "weights without a grid": (Then(nn.Conv2d(4, 4, 1), OnGrid(0.5, 0)), r"weights of 'last\.op' are not on a grid"),
    "a pooling without a rule": (Then(nn.AdaptiveAvgPool2d(2), OnGrid(0.5, 0)), "no rule for aten"),
}


def small_network(last, path):
    torch.manual_seed(0)
    save_program(Nhwc(Small(last)).eval(), path, 16)
    contract = tiny_contract()
    return network_of_program(path, replace(contract, outputs=contract.outputs[:1]))


@pytest.mark.parametrize("case", REFUSED)
def test_what_integers_cannot_say_is_refused_with_its_module(case, tmp_path):
    last, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        small_network(last, tmp_path / "model.pt2")


def test_a_second_grid_behind_the_first_becomes_a_change_of_grid(tmp_path):
    network = small_network(OnGrid(0.25, 3), tmp_path / "model.pt2")
    assert [op.kind for op in network.ops] == ["convolution", "requantize"]
    assert network.grids[network.outputs["semantic"]] == Grid(0.25, 3)


def test_the_same_grid_twice_changes_nothing(tmp_path):
    network = small_network(OnGrid(0.5, 0), tmp_path / "model.pt2")
    assert [op.kind for op in network.ops] == ["convolution"]


def test_an_activation_in_place_reaches_every_reader(tmp_path):
    class InPlace(Everything):
        def __init__(self):
            super().__init__()
            self.stem.act = nn.ReLU(inplace=True)

    torch.manual_seed(5)
    save_program(Nhwc(InPlace()).eval(), tmp_path / "model.pt2", SIDE)
    contract = everything_exported().contract
    found = IntegerMirror.of_program(tmp_path / "model.pt2", contract)
    picture = smooth_pictures(1, side=SIDE)[0]
    assert_equal(found.run(picture), program_mirror().run(picture))


def test_the_exported_folder_of_these_tests_is_whole():
    assert {p.name for p in folder().iterdir()} >= {"model.pt2", "contract.json", "reference.npz"}
