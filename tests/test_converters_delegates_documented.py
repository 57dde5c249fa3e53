"""The rule tables of delegates that were never run here: what they take, by hand from their documentation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from test_converters_tinynet import converted_files

from edge_seg.contract import Quantization
from edge_seg.converters.check import DELEGATES, check, judge
from edge_seg.converters.flatbuffer import graph_of
from edge_seg.converters.small_graph import GraphWriter

GRID, OTHER = Quantization(0.03125, 5), Quantization(0.05, 0)
MAP = (1, 8, 8, 4)
DOCUMENTED = ("nnapi", "qnn")
CONV = ("Conv2DOptions", {"padding": 0, "strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1})


def refusals(delegate, graph, *outputs):
    found = graph_of(graph.finish(*outputs), Path("small.tflite"))
    return [r.reason for r in judge(found, DELEGATES[delegate]()).refused]


def one(name, shapes, out, *, dtype="float32", constants=(), options=None, grids=(None, None)):
    """A graph of one operator: inputs of `shapes`, then constants."""
    graph = GraphWriter()
    inputs = [graph.input(f"x{i}", shape, dtype, grid=grids[0]) for i, shape in enumerate(shapes)]
    inputs += [graph.constant(np.asarray(c)) for c in constants]
    return graph, graph.op(name, inputs, out, dtype, grid=grids[1], options=options)


@pytest.mark.parametrize("delegate", DOCUMENTED)
@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8a8"])
def test_the_tiny_network_has_only_documented_operators(delegate, scheme):
    verdict = check(converted_files()[scheme].file, delegate)
    assert verdict.fully_delegable, verdict.text()
    assert "never run here" in verdict.runtime


@pytest.mark.parametrize(
    ("delegate", "ops"), [("nnapi", {"DEPTHWISE_CONV_2D"}), ("qnn", {"DEPTHWISE_CONV_2D", "CONV_2D"})]
)
def test_integer_weights_under_float_maps_are_refused_with_the_scheme_to_use(delegate, ops):
    verdict = check(converted_files()["w8_dynamic"].file, delegate)
    assert {r.op for r in verdict.refused} == ops
    assert all("w8a8" in r.rewrite for r in verdict.refused)


@pytest.mark.parametrize("delegate", DOCUMENTED)
def test_every_rule_says_that_it_was_read_and_not_run(delegate):
    table = DELEGATES[delegate]()
    assert all(("not run" in text or "never" in text) for text in table.sources.values())
    used = {r.source for r in (*table.ops.values(), *table.refused.values())} | {table.limits_source}
    used |= {r.warning_source for r in table.ops.values() if r.warning_source}
    assert used | ({"derived"} & set(table.sources)) == set(table.sources)


def test_nnapi_says_which_android_takes_an_operator_first():
    table = DELEGATES["nnapi"]()
    assert "Android 10" in table.sources[table.ops["TRANSPOSE_CONV"].source]
    assert "Android 8.1" in table.sources[table.ops["CONV_2D"].source]
    assert "deprecated in Android 15" in table.runtime


@pytest.mark.parametrize(
    ("name", "nnapi", "qnn"),
    [
        ("GELU", False, True),
        ("RELU_0_TO_1", False, True),
        ("SQUARE", False, True),
        ("CEIL", False, True),
        ("EXP", True, True),
        ("LOGISTIC", True, True),
        ("LOG_SOFTMAX", False, False),
    ],
)
def test_operators_of_one_input_are_taken_as_documented(name, nnapi, qnn):
    for delegate, taken in (("nnapi", nnapi), ("qnn", qnn)):
        graph, out = one(name, [MAP], MAP)
        assert (refusals(delegate, graph, out) == []) == taken


def test_nnapi_takes_broadcast_to_of_no_android_and_qnn_does():
    for delegate, taken in (("nnapi", False), ("qnn", True)):
        graph, out = one("BROADCAST_TO:2", [(1, 1, 1, 4)], MAP, constants=[np.array(MAP, np.int32)])
        assert (refusals(delegate, graph, out) == []) == taken


def test_nnapi_takes_exp_in_float_only_and_an_operator_up_to_its_version():
    graph, out = one("EXP:2", [MAP], MAP, dtype="int8", grids=(GRID, GRID))
    assert refusals("nnapi", graph, out) == ["version 2 of EXP; accepted: up to 1"]
    graph, out = one("EXP", [MAP], MAP, dtype="int8", grids=(GRID, GRID))
    assert refusals("nnapi", graph, out) == ["EXP on int8; accepted: float32"]


@pytest.mark.parametrize(("bias", "taken"), [(True, True), (False, False)])
def test_nnapi_wants_a_bias(bias, taken):
    graph = GraphWriter()
    inputs = [graph.input("x", MAP), graph.constant(np.ones((4, 3, 3, 4), np.float32))]
    inputs += [graph.constant(np.zeros(4, np.float32))] if bias else []
    assert (refusals("nnapi", graph, graph.op("CONV_2D", inputs, MAP, options=CONV)) == []) == taken


@pytest.mark.parametrize(("grid", "taken"), [(GRID, True), (OTHER, False)])
def test_nnapi_keeps_the_grid_of_a_mean(grid, taken):
    axes = np.array([1, 2], np.int32)
    options = ("ReducerOptions", {"keepDims": True})
    graph, out = one("MEAN:2", [MAP], (1, 1, 1, 4), dtype="int8", constants=[axes], options=options, grids=(GRID, grid))
    assert (refusals("nnapi", graph, out) == []) == taken


@pytest.mark.parametrize(("side", "dtype", "taken"), [(16, "int8", True), (17, "int8", False), (17, "float32", True)])
def test_nnapi_pools_at_most_256_quantised_cells(side, dtype, taken):
    grid = GRID if dtype == "int8" else None
    fields = {"padding": 1, "strideW": 1, "strideH": 1, "filterWidth": side, "filterHeight": side}
    shape = (1, side, side, 4)
    graph, out = one(
        "AVERAGE_POOL_2D", [shape], (1, 1, 1, 4), dtype=dtype, options=("Pool2DOptions", fields), grids=(grid, grid)
    )
    assert (refusals("nnapi", graph, out) == []) == taken


@pytest.mark.parametrize(("activation", "taken"), [(0, True), (1, False)])
def test_nnapi_concatenates_without_an_activation(activation, taken):
    options = ("ConcatenationOptions", {"axis": 3, "fusedActivationFunction": activation})
    graph, out = one("CONCATENATION", [MAP, MAP], (1, 8, 8, 8), options=options)
    assert (refusals("nnapi", graph, out) == []) == taken


@pytest.mark.parametrize(("axis", "taken"), [(1, True), (3, False), (-1, False)])
def test_nnapi_stacks_along_any_axis_but_the_last(axis, taken):
    graph, out = one("PACK", [(8, 8, 4)] * 2, (8, 2, 8, 4), options=("PackOptions", {"axis": axis, "valuesCount": 2}))
    assert (refusals("nnapi", graph, out) == []) == taken


@pytest.mark.parametrize(("shape", "taken"), [(MAP, True), ((1, 1, 1, 4), False)])
def test_nnapi_selects_by_a_condition_of_the_values_shape(shape, taken):
    graph = GraphWriter()
    inputs = [graph.input("c", shape, "bool"), graph.input("a", MAP), graph.input("b", MAP)]
    assert (refusals("nnapi", graph, graph.op("SELECT", inputs, MAP)) == []) == taken


@pytest.mark.parametrize(("rank", "nnapi", "qnn"), [(4, True, True), (5, False, True), (6, False, False)])
def test_the_rank_of_a_tensor_is_limited(rank, nnapi, qnn):
    shape = (1,) * (rank - 1) + (4,)
    for delegate, taken in (("nnapi", nnapi), ("qnn", qnn)):
        graph, out = one("ADD", [shape, shape], shape, options=("AddOptions", {}))
        assert (refusals(delegate, graph, out) == []) == taken


def test_a_resize_is_taken_with_a_warning_about_older_androids():
    graph, out = one(
        "RESIZE_BILINEAR:3", [MAP], (1, 16, 16, 4), constants=[np.array([16, 16], np.int32)],
        options=("ResizeBilinearOptions", {"halfPixelCenters": True}),
    )  # fmt: skip
    verdict = judge(graph_of(graph.finish(out), Path("small.tflite")), DELEGATES["nnapi"]())
    assert verdict.fully_delegable
    assert "Android 10" in verdict.warnings[0].reason
    graph, out = one("RESIZE_BILINEAR:3", [(8, 8, 4)], (16, 16, 4), constants=[np.array([16, 16], np.int32)])
    assert refusals("nnapi", graph, out) == ["RESIZE_BILINEAR of a tensor of rank 3"]


@pytest.mark.parametrize("delegate", DOCUMENTED)
def test_the_command_judges_by_these_rules(delegate, edge_seg):
    run = edge_seg("check", converted_files()["w8_dynamic"].file, "--delegate", delegate, "--json")
    document = json.loads(run.out)
    assert run.code == 1
    assert (document["delegate"], document["fully_delegable"]) == (delegate, False)
    assert all("not run" in refusal["rule"] for refusal in document["refused"])
