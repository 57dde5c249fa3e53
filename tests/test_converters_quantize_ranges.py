"""Histograms against NumPy's, clipping against brute force, every tensor of a file against the table of grids."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from quantize_graphs import PLACE, Net, contract, noise, random_weights, run

from edge_seg.converters.flatbuffer import graph_of
from edge_seg.converters.interpreter import plain_interpreter
from edge_seg.converters.ptq.calibration import BINS, Histogram, observe
from edge_seg.converters.ptq.post_training import PtqSettings, calibrate, quantize
from edge_seg.converters.ptq.ranges import (
    WEIGHT_AXIS,
    RangeMethod,
    activation_grids,
    chosen_ranges,
    clipped,
    shared_grids,
)
from edge_seg.converters.ptq.recipe import Recipe
from edge_seg.errors import DataError, InputError
from edge_seg.schemes import activation_grid, bias_scales, weight_scales


def _histogram(values):
    made = Histogram()
    for part in np.array_split(np.asarray(values, np.float32), 7):
        made.add(part, float(np.abs(part).max()))
    return made


def test_a_growing_histogram_counts_what_numpy_counts_in_one_go():
    rng = np.random.default_rng(0)
    values = np.sort(np.abs(rng.standard_cauchy(5000))).astype(np.float32)  # each part reaches further than the last
    values *= rng.choice([-1, 1], 5000).astype(np.float32)
    made = _histogram(values)
    expected, _ = np.histogram(values, BINS, (-made.reach, made.reach))
    assert np.array_equal(made.counts, expected)
    assert made.reach / 2 <= np.abs(values).max() < made.reach


def test_merging_histograms_of_different_reach_loses_no_value():
    rng = np.random.default_rng(1)
    small, large = rng.normal(0, 0.1, 3000).astype(np.float32), rng.normal(0, 9, 3000).astype(np.float32)
    both = _histogram(small).merged(_histogram(large))
    expected, _ = np.histogram(np.concatenate([small, large]), BINS, (-both.reach, both.reach))
    assert np.array_equal(both.counts, expected)


def test_minmax_keeps_the_whole_range():
    values = np.linspace(-1, 5, 70)
    assert clipped(_histogram(values), -1, 5, RangeMethod("minmax")) == (-1, 5)


def test_a_percentile_cuts_both_ends_where_numpy_says():
    values = np.random.default_rng(2).normal(1, 2, 100_000).astype(np.float32)
    low, high = clipped(_histogram(values), values.min(), values.max(), RangeMethod("percentile", 99))
    assert (low, high) == pytest.approx(np.percentile(values, [1, 99]), abs=0.01)


def test_percentile_100_is_minmax():
    values = np.random.default_rng(3).normal(0, 1, 1000).astype(np.float32)
    ends = clipped(_histogram(values), float(values.min()), float(values.max()), RangeMethod("percentile", 100))
    assert ends == pytest.approx((values.min(), values.max()), abs=1e-3)


def _true_error(values, low, high):
    grid = activation_grid(low, high)
    return float(((values - grid.real(grid.integers(values))) ** 2).mean())


@pytest.mark.parametrize("kind", ["one-sided", "two-sided"])
def test_mse_finds_a_clipping_as_good_as_brute_force(kind):
    values = np.random.default_rng(4).laplace(0, 1, 20_000).astype(np.float32)
    values = np.abs(values) if kind == "one-sided" else values - 0.5
    low, high = clipped(_histogram(values), float(values.min()), float(values.max()), RangeMethod("mse"))
    lows = [0.0] if kind == "one-sided" else np.linspace(0.3, 1, 25) * values.min()
    best = min(_true_error(values, a, b) for a in lows for b in np.linspace(0.3, 1, 40) * values.max())
    found = _true_error(values, low, high)
    assert found <= 1.03 * best
    assert found < _true_error(values, float(values.min()), float(values.max()))


@pytest.mark.parametrize("text", ["minmax", "mse", "percentile", "percentile:99.9"])
def test_a_method_is_read_and_written_back(text):
    method = RangeMethod.parse(text)
    assert RangeMethod.parse(str(method)) == method


@pytest.mark.parametrize("text", ["maxmin", "mse:3", "percentile:x", "percentile:50", "percentile:101", ""])
def test_a_method_that_there_is_not_is_refused(text):
    with pytest.raises(InputError):
        RangeMethod.parse(text)


def _two_branches():
    """Two outputs with ranges 100 times apart, and a concatenation inside."""
    rng, net = np.random.default_rng(5), Net()
    a = net.conv("a", net.input, random_weights(rng, 4, 3), act="RELU")
    b = net.conv("b", net.input, 0.2 * random_weights(rng, 4, 3), act="RELU")
    joined = net.concat("joined", a, b)
    small = net.conv("small", joined, 0.001 * random_weights(rng, 2, 8))
    large = net.conv("large", joined, 10 * random_weights(rng, 2, 8))
    gate = net.unary("LOGISTIC", "gate", small)
    return net.finish(gate, large, small)


def test_tensors_of_a_concatenation_share_one_grid_and_outputs_do_not():
    data, graph = _two_branches()
    done = quantize(calibrate(data, graph, contract(), noise(4)), Recipe("int8"))
    file = graph_of(done.data, PLACE)
    scales = {t.name: t.scale for t in file.tensors if t.scale and not t.constant}
    assert scales["a;"] == scales["b;"] == scales["joined;"]
    assert scales["large;"][0] > 1000 * scales["small;"][0]
    assert scales["gate;"] == (1 / 256,)
    assert file.op_histogram == graph.op_histogram  # no operator that moves values between grids


def test_each_output_spans_its_own_calibrated_range():
    data, graph = _two_branches()
    statistics = observe(data, graph, noise(4), progress="")
    grids = activation_grids(
        graph, chosen_ranges(graph, statistics, RangeMethod("minmax")), dict.fromkeys(statistics, 8)
    )
    for output in graph.outputs[1:]:
        low, high = min(0, statistics[output].low), max(0, statistics[output].high)
        assert grids[output].range[1] - grids[output].range[0] == pytest.approx(high - low, rel=1e-6)
        assert grids[output].range == pytest.approx((low, high), abs=0.51 * grids[output].scale)


def test_a_tensor_that_keeps_its_grid_is_joined_with_its_source():
    net = Net()
    wide = net.conv("wide", net.input, random_weights(np.random.default_rng(0), 4, 3))
    net.channels[wide] = 4
    pooled = net.mean("pooled", wide)  # a mean has a grid of its own
    data, graph = net.finish(pooled)
    assert sorted(map(len, shared_grids(graph, observe(data, graph, noise(2), progress="")))) == [1, 1, 1]


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("int16", 16)])
@pytest.mark.parametrize("ranges", ["minmax", "mse", "percentile:99"])
def test_every_tensor_of_a_file_lies_on_the_grid_of_the_table(precision, bits, ranges):
    data, graph = _two_branches()
    settings = PtqSettings(ranges=RangeMethod.parse(ranges))
    done = quantize(calibrate(data, graph, contract(), noise(4), settings), Recipe(precision))
    _agrees_with_the_table(graph, done, bits)


def _agrees_with_the_table(graph, done, bits):
    file = graph_of(done.data, PLACE)
    source = {t.name: t for t in graph.tensors}
    checked = 0
    for op in file.ops:
        for t in op.outputs:
            tensor = file.tensors[t]
            if tensor.name in source:
                grid = done.grids[source[tensor.name].index]
                assert (tensor.scale, tensor.zero_point) == ((grid.scale,), (grid.zero_point,)), tensor.name
                assert tensor.dtype == f"int{bits}"
                checked += 1
        if op.name in WEIGHT_AXIS:
            weights, bias = file.tensors[op.inputs[1]], file.tensors[op.inputs[2]]
            values = graph.constant(source[weights.name].index)
            scales = weight_scales(np.moveaxis(values, WEIGHT_AXIS[op.name][1], 0))
            assert np.array_equal(np.float32(weights.scale), scales)
            assert np.array_equal(np.float32(bias.scale), bias_scales(file.tensors[op.inputs[0]].scale[0], scales))
            assert set(weights.zero_point) == {0}
    assert checked == sum(len(op.outputs) for op in graph.ops)
    assert (file.tensors[file.inputs[0]].scale, file.tensors[file.inputs[0]].zero_point) == ((1.0,), (-128,))


@pytest.mark.slow
@pytest.mark.parametrize("ranges", ["minmax", "mse"])
def test_every_tensor_of_a_real_network_lies_on_the_grid_of_the_table(real_network, ranges):
    settings = PtqSettings(ranges=RangeMethod.parse(ranges))
    done = quantize(dataclasses.replace(real_network, settings=settings), Recipe("int8"))
    _agrees_with_the_table(real_network.graph, done, 8)


@pytest.fixture(scope="module")
def real_network(tiny_exported, tmp_path_factory):
    from edge_seg.contract import Contract
    from edge_seg.converters.convert import convert
    from edge_seg.converters.flatbuffer import read_graph

    file = convert(tiny_exported, scheme="fp32", out=tmp_path_factory.mktemp("real")).file
    own = Contract.load(tiny_exported / "contract.json")
    pictures = list(np.random.default_rng(0).integers(0, 256, (2, *own.input.shape[1:]), np.uint8))
    return calibrate(file.read_bytes(), read_graph(file), own, pictures)


def test_a_channel_of_zeros_with_a_bias_computes_its_bias():
    # with the tool's own floor its int32 bias would overflow, and the channel would come out as almost nothing
    net = Net()
    weights = random_weights(np.random.default_rng(6), 4, 3)
    weights[2] = 0
    data, graph = net.finish(net.conv("stem", net.input, weights, [1, 2, 30, 4]))
    done = quantize(calibrate(data, graph, contract(), noise(4)), Recipe("int8"))
    step = graph_of(done.data, PLACE).tensors[-1].scale
    values = run(done.data, noise(1)[0])["stem;"]
    assert np.abs(values[..., 2] - 30).max() <= 0.51 * done.grids[graph.outputs[0]].scale, step


def test_a_bias_that_int32_cannot_hold_is_refused_and_names_the_layer():
    net = Net()
    weights = random_weights(np.random.default_rng(7), 4, 3)
    weights[1] = 0
    data, graph = net.finish(net.conv("stem.conv", net.input, weights, [0, 1e5, 0, 0]))
    with pytest.raises(InputError, match=r"bias of stem\.conv"):
        quantize(calibrate(data, graph, contract(), noise(2)), Recipe("int8"))


def test_a_network_with_nan_names_the_first_module():
    net, rng = Net(), np.random.default_rng(8)
    fine = net.conv("body.fine", net.input, random_weights(rng, 4, 3))
    broken = net.conv("body.broken", fine, random_weights(rng, 4, 4), [0, np.nan, 0, 0])
    data, graph = net.finish(net.conv("body.later", broken, random_weights(rng, 2, 4)))
    with pytest.raises(DataError, match=r"body\.broken.*not finite"):
        observe(data, graph, noise(1), progress="")


def test_no_pictures_are_refused():
    data, graph = _two_branches()
    with pytest.raises(DataError, match="no calibration pictures"):
        observe(data, graph, [], progress="")


def test_a_quantised_file_is_not_calibrated():
    data, graph = _two_branches()
    done = quantize(calibrate(data, graph, contract(), noise(2)), Recipe("int8"))
    with pytest.raises(InputError, match="quantised already"):
        calibrate(done.data, graph_of(done.data, PLACE), contract(), noise(2))


def _with_a_quiet_part(share):
    """A concatenation of a map and of a resized one whose range is a share of it."""
    rng, net = np.random.default_rng(9), Net()
    loud = net.conv("loud", net.input, random_weights(rng, 4, 3), act="RELU")
    quiet = net.conv("quiet", net.input, share * random_weights(rng, 4, 3), act="RELU")
    spread = net.resize("spread", quiet)
    data, graph = net.finish(net.conv("merge", net.concat("joined", loud, spread), random_weights(rng, 2, 8)))
    done = quantize(calibrate(data, graph, contract(), noise(4)), Recipe("int8"))
    return done.data, graph_of(done.data, PLACE)


def test_a_resized_part_of_like_range_lies_on_the_grid_of_the_concatenation():
    _, file = _with_a_quiet_part(0.8)
    scales = {t.name: t.scale for t in file.tensors}
    assert scales["quiet;"] == scales["spread;"] == scales["joined;"]
    assert "QUANTIZE" not in file.op_histogram


def test_a_resized_part_of_a_small_range_keeps_a_grid_of_its_own_up_to_the_concatenation():
    # on the common grid the part would have a single step or two, and whatever its layer gets wrong would be as
    # large as the whole: in a trained network this cost 5 to 6 dB at the outputs
    data, file = _with_a_quiet_part(0.01)
    scales = {t.name: t.scale for t in file.tensors}
    assert scales["quiet;"] == scales["spread;"]
    assert scales["quiet;"][0] < 0.05 * scales["joined;"][0]
    assert file.op_histogram["QUANTIZE"] == 1
    told = plain_interpreter(data)._get_ops_details()
    assert sum(op["op_name"] == "DELEGATE" for op in told) == 1
