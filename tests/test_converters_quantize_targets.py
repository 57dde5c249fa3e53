"""Advice per processor and warnings, against what the runtime itself does with the graph."""

from __future__ import annotations

import numpy as np
import pytest
from quantize_graphs import PLACE, Net, contract, noise, random_weights

from edge_seg.converters.flatbuffer import graph_of
from edge_seg.converters.interpreter import plain_interpreter
from edge_seg.converters.ptq.post_training import calibrate, quantize
from edge_seg.converters.ptq.recipe import Recipe
from edge_seg.converters.ptq.targets import advise, as_int8, scheme_warnings
from edge_seg.errors import InputError


def _chain(between):
    rng, net = np.random.default_rng(0), Net()
    x = net.conv("first", net.input, random_weights(rng, 8, 3), act="RELU")
    for k in range(2):
        x = net.unary(between, f"act{k}", x) if between else x
        x = net.conv(f"conv{k}", x, random_weights(rng, 8, 8), act="RELU")
    return net.finish(x)


def _int8(data, graph):
    done = quantize(calibrate(data, graph, contract(), noise(3)), Recipe("int8"))
    return done.data, graph_of(done.data, PLACE)


def _partitions_of_the_runtime(data):
    return sum(op["op_name"] == "DELEGATE" for op in plain_interpreter(data)._get_ops_details())


@pytest.mark.parametrize(("between", "scheme"), [("", "w8a8"), ("HARD_SWISH", "fp32"), ("GELU", "fp32")])
def test_a_cpu_gets_int8_only_where_the_graph_stays_whole(between, scheme):
    data, graph = _chain(between)
    advice = advise(graph, "cpu")
    assert advice.scheme == scheme
    quantised, file = _int8(data, graph)
    partitions = _partitions_of_the_runtime(quantised)
    assert as_int8(graph).partitions == partitions
    assert (partitions == 1) == (scheme == "w8a8")
    warnings = scheme_warnings(file, "w8a8")
    assert bool(warnings) == (scheme == "fp32")
    if between:
        assert f"2 {between}" in advice.why
        assert f"{partitions} partitions" in advice.why
        assert f"{partitions} partitions and leaves out 2 {between}" in warnings[0]


@pytest.mark.parametrize(("target", "scheme"), [("gpu", "fp16"), ("npu", "w8a8")])
def test_gpu_and_npu_get_what_they_compute_in(target, scheme):
    assert advise(_chain("")[1], target).scheme == scheme


def test_an_unknown_processor_names_its_neighbours():
    with pytest.raises(InputError, match="gpu"):
        advise(_chain("")[1], "gpuu")


def test_int16_activations_are_said_to_be_slow():
    data, graph = _chain("")
    done = quantize(calibrate(data, graph, contract(), noise(3)), Recipe("int16"))
    assert _partitions_of_the_runtime(done.data) == 0
    assert "no kernels for int16" in scheme_warnings(graph_of(done.data, PLACE), "w8a16")[0]


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8_dynamic"])
def test_float_schemes_have_no_warning(scheme):
    assert scheme_warnings(_chain("HARD_SWISH")[1], scheme) == ()
