"""Equalisation, bias correction and the calibration report, on small networks with a known fault."""

from __future__ import annotations

import json

import numpy as np
import pytest
from quantize_graphs import PLACE, Net, contract, noise, random_weights, run

from edge_seg.converters.flatbuffer import graph_of
from edge_seg.converters.ptq.bias_correction import corrected
from edge_seg.converters.ptq.calibration import observe
from edge_seg.converters.ptq.calibration_report import report_of
from edge_seg.converters.ptq.equalize import equalized
from edge_seg.converters.ptq.post_training import PtqSettings, calibrate, quantize
from edge_seg.converters.ptq.recipe import Recipe, Rule

PICTURES = noise(6)
INT8 = Recipe("int8")


def _unequal(act):
    """Channels of the first map differ by a factor of 1000; the second convolution makes up for it."""
    rng, net = np.random.default_rng(0), Net()
    factors = np.logspace(-1.5, 1.5, 8)
    first = random_weights(rng, 8, 3) * factors[:, None, None, None]
    second = random_weights(rng, 4, 8) / factors
    x = net.conv("first", net.input, first, 0.1 * factors, act=act)
    return net.finish(net.conv("second", x, second))


def _error(data, reference, name):
    values = [run(data, p)[name] for p in PICTURES]
    return np.mean([np.square(v - r).mean() for v, r in zip(values, reference, strict=True)])


@pytest.mark.parametrize("act", ["NONE", "RELU"])
def test_equalisation_gives_the_same_bits_in_float_and_less_error_in_int8(act):
    data, graph = _unequal(act)
    changed = equalized(data, graph, observe(data, graph, PICTURES, progress=""))
    assert (changed.pairs, changed.skipped_relu6, changed.skipped_other) == (1, 0, 0)
    reference = [run(data, p)["second;"] for p in PICTURES]
    assert all(np.array_equal(run(changed.data, p)["second;"], r) for p, r in zip(PICTURES, reference, strict=True))
    plain, equal = (
        quantize(calibrate(data, graph, contract(), PICTURES, PtqSettings(equalize=e)), Recipe("int8")).data
        for e in (False, True)
    )
    assert _error(equal, reference, "second;") < 0.2 * _error(plain, reference, "second;")


def test_relu6_pairs_are_left_alone_and_counted():
    data, graph = _unequal("RELU6")
    changed = equalized(data, graph, observe(data, graph, PICTURES, progress=""))
    assert (changed.pairs, changed.skipped_relu6) == (0, 1)
    before, after = graph, graph_of(changed.data, PLACE)
    for op in before.ops:
        assert np.array_equal(before.constant(op.inputs[1]), after.constant(after.ops[op.index].inputs[1]))


def _around_an_addition(*, output):
    """Two branches join in an addition; depthwise and summing convolutions read it; a bias is shared by both."""
    rng, net = np.random.default_rng(1), Net()
    factors = np.logspace(-1, 1, 6)[:, None, None, None]
    a = net.conv("a", net.input, random_weights(rng, 6, 3) * factors)
    b = net.depthwise("b", a, rng.normal(0, 1, (1, 1, 6)))
    total = net.add("total", net.conv("c", b, random_weights(rng, 6, 6) * factors), a, act="RELU")
    outputs = [net.depthwise("d", total, rng.normal(0, 1, (1, 1, 6))), net.conv("e", total, random_weights(rng, 3, 6))]
    return net.finish(*outputs, *([total] if output else []))


def test_numbers_pass_through_an_addition_to_all_writers_and_readers():
    data, graph = _around_an_addition(output=False)
    changed = equalized(data, graph, observe(data, graph, PICTURES, progress=""))
    # maps: {a, c, total} is written by a and c and read by b, d and e; {b} is written by b and read by c
    assert (changed.pairs, changed.skipped_other) == (7, 0)
    assert max(changed.modules.values()) >= 2
    for picture in PICTURES:
        before, after = run(data, picture), run(changed.data, picture)
        assert np.array_equal(before["d;"], after["d;"])
        assert np.array_equal(before["e;"], after["e;"])


def test_a_map_that_is_an_output_keeps_its_numbers():
    data, graph = _around_an_addition(output=True)
    changed = equalized(data, graph, observe(data, graph, PICTURES, progress=""))
    assert (changed.pairs, changed.skipped_other) == (1, 6)
    assert np.array_equal(run(data, PICTURES[0])["total;"], run(changed.data, PICTURES[0])["total;"])


def _shifted():
    """Inputs of one sign and weights that all round the same way: the second map's mean moves."""
    net, into = Net(), 64
    x = net.conv("first", net.input, np.full((into, 1, 1, 3), 0.01), act="RELU")
    weights = np.full((4, 1, 1, into), 0.0149)
    weights[:, :, :, 0] = [[[1.0]]]  # sets the scale to 1/127: the others lie 0.89 steps up and come out as 2 steps
    y = net.conv("second", x, weights, act="RELU")
    return net.finish(net.conv("third", y, random_weights(np.random.default_rng(0), 3, 4)))


def test_bias_correction_takes_the_mean_shift_away_and_from_what_follows():
    data, graph = _shifted()
    plain = quantize(calibrate(data, graph, contract(), PICTURES), Recipe("int8"))
    done = corrected(data, plain.data, PICTURES, progress="")
    assert done.convolutions == 3
    for name in ("second;", "third;"):
        reference = np.mean([run(data, p)[name] for p in PICTURES], (0, 1, 2, 3))
        shift = {
            k: np.mean([run(d, p)[name] for p in PICTURES], (0, 1, 2, 3)) - reference
            for k, d in {"plain": plain.data, "corrected": done.data}.items()
        }
        assert np.abs(shift["corrected"]).max() < 0.3 * np.abs(shift["plain"]).max(), name


def test_bias_correction_changes_biases_and_nothing_else():
    data, graph = _shifted()
    plain = quantize(calibrate(data, graph, contract(), PICTURES), Recipe("int8")).data
    before, after = graph_of(plain, PLACE), graph_of(corrected(data, plain, PICTURES, progress="").data, PLACE)
    assert [t.scale for t in before.tensors] == [t.scale for t in after.tensors]
    for t in before.tensors:
        if t.constant and t.dtype != "int32":
            assert np.array_equal(before.constant(t.index), after.constant(t.index))


def _reported(data, graph, recipe=INT8, **settings):
    network = calibrate(data, graph, contract(), PICTURES, PtqSettings(**settings))
    return report_of(network, quantize(network, recipe), "w8a8")


def _flags(report):
    return {(f.kind, f.module) for f in report.flags}


def test_the_report_has_a_line_per_activation_with_figures_that_add_up():
    data, graph = _unequal("RELU")
    report = _reported(data, graph)
    assert [(t.module, t.op) for t in report.tensors] == [("input", ""), ("first", "CONV_2D"), ("second", "CONV_2D")]
    line = report.tensors[1]
    values = np.stack([run(data, p)["first;"] for p in PICTURES])
    assert (line.low, line.high) == pytest.approx((values.min(), values.max()))
    steps = np.clip(np.rint(values / line.step) + line.zero_point, -128, 127)
    noise_power = np.square((steps - line.zero_point) * line.step - values).mean()
    assert line.snr_db == pytest.approx(10 * np.log10(np.square(values).mean() / noise_power), abs=0.3)
    json.dumps(report.to_json(), allow_nan=False)
    assert report.text().startswith(report.summary())


def test_the_share_of_clipped_values_is_counted():
    data, graph = _unequal("RELU")
    from edge_seg.converters.ptq.ranges import RangeMethod

    line = _reported(data, graph, ranges=RangeMethod("percentile", 95)).tensors[2]
    values = np.stack([run(data, p)["second;"] for p in PICTURES])
    outside = (values < line.range_low - line.step / 2) | (values > line.range_high + line.step / 2)
    assert line.saturated == pytest.approx(outside.mean(), abs=0.005)
    assert 0.05 < line.saturated < 0.15


def test_dead_channels_are_listed():
    net = Net()
    weights = random_weights(np.random.default_rng(2), 5, 3)
    weights[[1, 4]] = 0
    report = _reported(*net.finish(net.conv("stem.conv", net.input, weights)))
    flag = next(f for f in report.flags if f.kind == "dead_channels")
    assert flag.module == "stem.conv"
    assert flag.reason.startswith("2 of 5")
    assert flag.reason.endswith("1, 4")


@pytest.mark.parametrize(("gain", "flagged"), [(100, False), (300, True)])
def test_sums_that_can_pass_65504_are_flagged_although_the_values_do_not(gain, flagged):
    # every output is the difference of two large sums: 255 * gain each, which cancel
    net = Net()
    weights = np.zeros((2, 1, 1, 3))
    weights[:, 0, 0, :2] = [gain, -gain]
    data, graph = net.finish(net.conv("head.sum", net.input, weights))
    grey = [np.full((8, 8, 3), v, np.uint8) for v in (10, 255)]
    network = calibrate(data, graph, contract(), grey)
    report = report_of(network, quantize(network, Recipe("int8")), "w8a8")
    line = report.tensors[1]
    assert max(-line.low, line.high) == 0
    assert line.fp16_bound == pytest.approx(2 * gain * 255)
    assert line.fp16_fits is not flagged
    assert (("fp16", "head.sum") in _flags(report)) is flagged


def test_a_mean_whose_sum_passes_65504_is_flagged_with_its_rewrite():
    net = Net()
    wide = net.conv("wide", net.input, np.full((2, 1, 1, 3), 10.0))
    report = _reported(*net.finish(net.mean("squeeze", wide)))
    flag = next(f for f in report.flags if f.module == "squeeze" and f.kind == "fp16")
    assert "divide before" in flag.rewrite  # 64 values of up to 7650


def test_an_output_that_joins_unlike_ranges_is_flagged():
    rng, net = np.random.default_rng(3), Net()
    box = net.conv("box", net.input, 10 * random_weights(rng, 4, 3))
    score = net.conv("score", net.input, 0.001 * random_weights(rng, 1, 3))
    report = _reported(*net.finish(net.concat("joined", box, score)))
    assert ("unlike_outputs", "joined") in _flags(report)


def test_a_layer_that_cancels_large_terms_is_called_weak_and_not_when_it_is_left_in_float():
    # the map is large and nearly constant; the layer subtracts the constant and amplifies what is left
    rng, net = np.random.default_rng(4), Net()
    x = net.conv("large", net.input, 1e-4 * random_weights(rng, 8, 3), np.full(8, 100.0))
    y = net.conv("cancels", x, np.tile([50.0, -50.0], (2, 1, 1, 4)))
    data, graph = net.finish(y)
    assert ("weak_layer", "cancels") in _flags(_reported(data, graph))
    kept = _reported(data, graph, Recipe("int8", (Rule("cancels", "float"),)))
    assert ("weak_layer", "cancels") not in _flags(kept)
    assert [t.bits for t in kept.tensors] == [8, 8, 32]


def test_the_notes_say_what_the_corrections_did():
    data, graph = _unequal("RELU")
    notes = _reported(data, graph, equalize=True, bias_correction=True).notes
    assert notes[0].startswith("equalised 1 pairs")
    assert notes[1].startswith("corrected the biases of 2 convolutions")
