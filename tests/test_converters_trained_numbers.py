"""Planted faults in a trained file: each is found, and named with its module and both values."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from mirror_networks import SIDE, everything_exported, everything_file, everything_folder
from test_converters_tinynet import converted_files, exported_folder, smooth_pictures

from edge_seg.converters import flatbuffer_edit, metadata
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.integers import kernels as integer_kernels
from edge_seg.converters.integers.file import network_of_file
from edge_seg.converters.integers.mirror import IntegerMirror
from edge_seg.converters.integers.network import IntegerOp
from edge_seg.converters.integers.program import network_of_program
from edge_seg.converters.integers.trained_numbers import KINDS, compare_numbers
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.metadata import read_contract
from edge_seg.converters.verify import verify
from edge_seg.errors import InputError

pytestmark = pytest.mark.slow  # one conversion of twenty operations

CONVOLUTIONS = 15
OPERATIONS = 24
MAPS = 1  # a constant map has integers, but neither weight scales nor a bias


@functools.cache
def program():
    return network_of_program(everything_exported().program, everything_exported().contract)


def numbers(file):
    return compare_numbers(program(), network_of_file(read_graph(file), read_contract(file)))


def changed(path, change):
    """Writes a changed copy of the file, with its contract; `change` gets its tensors, its buffers and the graph."""
    graph, contract = read_graph(everything_file()), read_contract(everything_file())
    model = flatbuffer_edit._unpack(everything_file().read_bytes())
    change(model.subgraphs[0].tensors, model.buffers, graph)
    order = metadata.output_order(graph, graph.signatures[0].key, contract)
    constants = everything_exported().constants
    path.write_bytes(metadata.embed(flatbuffer_edit._pack(model), contract, constants=constants, outputs=order))
    return path


def op_of(graph, module):
    return next(o for o in graph.ops if graph.source(o) == module and o.name != "PAD")


def step(place, module, element, by):
    """A change of one integer in the constant at a place of an operator's inputs."""

    def change(tensors, buffers, graph):
        index = op_of(graph, module).inputs[place]
        values = graph.constant(index).copy()
        values.reshape(-1)[element] += by
        buffers[tensors[index].buffer].data = values.tobytes()

    return change


def doubled(pick, channel):
    """A change that doubles one scale of the tensor that `pick(graph)` names."""

    def change(tensors, buffers, graph):
        scales = np.array(tensors[pick(graph)].quantization.scale, np.float32)
        scales[channel] *= 2
        tensors[pick(graph)].quantization.scale = scales

    return change


def moved(tensors, buffers, graph):
    tensors[op_of(graph, "dilated").outputs[0]].quantization.zeroPoint = np.array([-34])


FAULTS = {
    "a weight scale doubled": (
        doubled(lambda g: op_of(g, "dilated").inputs[1], 7),
        ("weight_scale", "dilated", (7,), 1),
    ),
    "an activation scale doubled": (
        doubled(lambda g: op_of(g, "point").outputs[0], 0),
        ("activation_scale", "point", (), 1),
    ),
    "a zero point moved": (moved, ("activation_zero_point", "dilated", (), 1)),
    "a weight flipped": (step(1, "split.odd", 30, 1), ("weight", "split.odd", (6, 0, 1, 0), 1)),
    "a bias off by a step": (step(2, "deep", 3, 1), ("bias", "deep", (3,), 1)),
}


def test_a_converted_file_holds_every_trained_number():
    found = numbers(everything_file())
    assert found.passed, found.text()
    assert found.equal == found.total
    activations = OPERATIONS + 1
    wanted = [OPERATIONS, activations, activations, CONVOLUTIONS, CONVOLUTIONS + MAPS, CONVOLUTIONS]
    assert found.total == dict(zip(KINDS, wanted, strict=True))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_named(fault, tmp_path):
    change, wanted = FAULTS[fault]
    found = numbers(changed(tmp_path / "changed.tflite", change))
    assert not found.passed
    (difference,) = found.differences
    kind, module, place, differing = wanted
    assert (difference.kind, difference.module) == (kind, module)
    assert difference.differing == differing
    assert found.equal[kind] == found.total[kind] - 1
    assert difference.place == place
    assert difference.wanted != difference.found
    assert f"{module}: {kind}" in found.text()


def test_the_first_value_that_differs_is_named_with_both_values(tmp_path):
    (difference,) = numbers(changed(tmp_path / "c.tflite", step(2, "deep", 3, 1))).differences
    op = next(o for o in program().ops if o.module == "deep")
    assert difference.wanted == str(op.weights.bias_o[3])
    assert difference.found == str(op.weights.bias_o[3] + 1)
    assert difference.size == 32


@pytest.mark.parametrize("fault", ["a weight scale doubled", "a bias off by a step", "a zero point moved"])
def test_verify_fails_on_a_planted_fault_and_says_where(fault, tmp_path):
    change, (kind, module, *_) = FAULTS[fault]
    report = verify(changed(tmp_path / "changed.tflite", change), everything_folder())
    assert not report.passed
    assert f"FAIL trained numbers: operation {OPERATIONS}/{OPERATIONS}" in report.text()
    assert f"{module}: {kind}" in report.text()


def test_verify_proves_a_trained_file_exact():
    report = verify(everything_file(), everything_folder(), list(smooth_pictures(2, seed=8, side=SIDE)))
    assert report.passed
    document = json.loads(json.dumps(report.to_json()))
    mirror = document["integer_mirror"]
    assert (mirror["equal"], mirror["max_lsb"], mirror["pictures"], mirror["source"]) == (1.0, 0, 4, "program")
    assert [o["name"] for o in mirror["outputs"]] == ["semantic", "features"]
    assert document["trained_numbers"]["total"]["bias"] == CONVOLUTIONS
    assert "ok   integer mirror of the program: 100.000% equal" in report.text()
    assert "ok   trained numbers" in report.text()


def test_a_mirror_that_differs_fails_a_trained_file(monkeypatch):
    """A runtime with other kernels: here the mirror's sums are made to round the other way."""
    right = integer_kernels.add
    monkeypatch.setattr(integer_kernels, "add", lambda *args: right(*args) ^ np.int8(1))
    report = verify(everything_file(), everything_folder())
    assert report.trained_numbers.passed
    assert not report.passed
    assert report.integer_mirror.max_lsb > 0
    assert "FAIL integer mirror of the program" in report.text()


def test_a_file_quantised_after_training_is_told_about_its_own_mirror():
    report = verify(converted_files()["w8a8"].file, exported_folder())
    assert report.trained_numbers is None
    assert (report.integer_mirror.source, report.integer_mirror.max_lsb) == ("file", 0)
    assert "ok   integer mirror of the file: 100.000% equal" in report.text()


def test_a_mirror_that_differs_is_reported_for_a_file_quantised_after_training(monkeypatch):
    right = integer_kernels.add
    monkeypatch.setattr(integer_kernels, "add", lambda *args: right(*args) ^ np.int8(1))
    report = verify(converted_files()["w8a8"].file, exported_folder())
    assert report.passed
    assert "DIFF integer mirror of the file" in report.text()


def test_float_files_have_no_mirror():
    report = verify(converted_files()["fp32"].file, exported_folder())
    assert report.trained_numbers is None
    assert report.integer_mirror is None


def test_with_reference_kernels_the_numbers_decide_and_the_mirror_says_why_it_is_missing():
    report = verify(everything_file(), everything_folder(), kernels="reference")
    assert report.passed
    assert report.integer_mirror.equal is None
    assert "reference kernels round in other ways" in report.text()


def test_an_operation_too_many_is_a_difference():
    network = network_of_file(read_graph(everything_file()), TfliteRunner(everything_file()).contract)
    last = network.outputs["features"]
    extra = IntegerOp("requantize", "late", (last,), 10_000)
    grids = {**network.grids, 10_000: network.grids[last]}
    outputs = {**network.outputs, "features": 10_000}
    found = compare_numbers(program(), replace(network, ops=(*network.ops, extra), grids=grids, outputs=outputs))
    assert not found.passed
    first = found.differences[0]
    assert (first.kind, first.module) == ("operation", "features")
    assert first.found == "requantize"
    assert "convolution 8x1x1x32" in first.wanted


def test_another_stride_is_a_difference():
    ops = tuple(
        replace(op, window=replace(op.window, stride_hw=(1, 1))) if op.module == "stem" else op for op in program().ops
    )
    (difference,) = compare_numbers(program(), replace(program(), ops=ops)).differences
    assert (difference.kind, difference.module) == ("operation", "stem")
    assert "stride (2, 2)" in difference.wanted
    assert "stride (1, 1)" in difference.found


def test_a_join_of_unlike_grids_has_no_mirror_and_is_named(tmp_path):
    file = changed(tmp_path / "changed.tflite", doubled(lambda g: op_of(g, "skip").outputs[0], 0))
    with pytest.raises(InputError, match=r"CONCATENATION at 'concat\.op' does not keep its grid"):
        numbers(file)


def test_padding_of_its_own_or_inside_the_convolution_is_the_same_network():
    picture = smooth_pictures(1, side=SIDE)[0]
    network = network_of_file(read_graph(everything_file()), read_contract(everything_file()))
    folded = network.without_pads()
    assert [op.kind for op in network.ops].count("pad") == 1
    assert [op.kind for op in folded.ops].count("pad") == 0
    contract = everything_exported().contract
    one, other = IntegerMirror(network, contract).run(picture), IntegerMirror(folded, contract).run(picture)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
