"""The search for the operator at which GPU and CPU part, on stand-ins for a device and on the accelerator."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from gpu_graphs import conv_weights
from gpu_outcomes import missing
from test_converters_tinynet import converted_files

from edge_seg.commands.bisect import bisect as command
from edge_seg.converters.flatbuffer import graph_of
from edge_seg.converters.gpu import accelerator as accelerator_module
from edge_seg.converters.gpu.bisect import Search, difference
from edge_seg.converters.gpu.bisect_file import bisect_file, every_value, on_cpu
from edge_seg.converters.gpu.cuts import Cuts
from edge_seg.converters.graph import TensorInfo
from edge_seg.converters.small_graph import GraphWriter
from edge_seg.errors import CheckFailed, InputError, MissingHere

H, C = 8, 6
SHAPE = (1, H, H, C)
LIMIT = 1e-5


@pytest.fixture
def needs_gpu():
    """Skips where no Vulkan implementation runs the accelerator."""
    if missing():
        pytest.skip(missing())


# --- graphs


def conv(graph, source, shape=SHAPE, *, cin=C, stride=1, padding=0):
    fields = {"padding": padding, "strideW": stride, "strideH": stride, "dilationWFactor": 1, "dilationHFactor": 1}
    inputs = [source, graph.constant(conv_weights(shape[-1], 3, cin)), graph.constant(np.zeros(shape[-1], np.float32))]
    return graph.op("CONV_2D", inputs, shape, options=("Conv2DOptions", fields))


def two_branches():
    """0 conv; 1 tanh, 2 conv on one branch; 3 relu, 4 conv on the other; 5 add; 6 tanh; 7 conv."""
    graph = GraphWriter()
    stem = conv(graph, graph.input("x", SHAPE))
    left = conv(graph, graph.op("TANH", [stem], SHAPE))
    right = conv(graph, graph.op("RELU", [stem], SHAPE))
    joined = graph.op("ADD", [left, right], SHAPE, options=("AddOptions", {}))
    return graph.finish(conv(graph, graph.op("TANH", [joined], SHAPE)))


def padded_chain(value):
    """0 conv, 1 relu, 2 padv2 with `value`, 3 strided conv, 4 tanh, 5 conv."""
    graph = GraphWriter()
    first = graph.op("RELU", [conv(graph, graph.input("x", (1, 16, 16, 3)), (1, 16, 16, C), cin=3)], (1, 16, 16, C))
    amounts = graph.constant(np.array([[0, 0], [0, 1], [0, 1], [0, 0]], np.int32))
    padded = graph.op("PADV2", [first, amounts, graph.constant(np.float32(value))], (1, 17, 17, C))
    small = conv(graph, padded, SHAPE, stride=2, padding=1)
    return graph.finish(conv(graph, graph.op("TANH", [small], SHAPE)))


# --- a stand-in for the accelerator: the CPU, with faults


class FaultyDevice:
    """Runs a part operator by operator on the CPU; `faults` change the result of an operator by its tensor's name.

    Args:
        faults: By name of the result: takes the result and the names of the operator's inputs within the part.
        rounding: Relative noise on every result.
    """

    def __init__(self, faults=None, rounding=0.0):
        self.faults, self.rounding, self.runs = faults or {}, rounding, 0

    def __call__(self, file, inputs):
        self.runs += 1
        cuts = Cuts(file, None)
        return [self._one(cuts, row) for row in inputs]

    def _one(self, cuts, row):
        graph, rng = cuts.graph, np.random.default_rng(self.runs)
        values = dict(zip(graph.inputs, row, strict=True))
        for op in graph.ops:
            part = cuts.window([op.index])
            (found,) = on_cpu(cuts.file(part), [[values[t] for t in part.inputs]])
            for tensor, value in zip(part.outputs, found, strict=True):
                value = (value * (1 + self.rounding * rng.uniform(-1, 1, value.shape))).astype(value.dtype)
                before = [p.name for t in op.inputs if (p := graph.producer(t)) is not None]
                fault = self.faults.get(graph.tensors[tensor].name)
                values[tensor] = fault(value, before) if fault else value
        return [values[t] for t in graph.outputs]


def name_of(data, op):
    graph = graph_of(data, None)
    return graph.tensors[graph.ops[op].outputs[0]].name


def searched(data, device, limit=LIMIT):
    cuts = Cuts(data, None)
    shapes = {t: cuts.graph.tensors[t].shape for t in cuts.graph.inputs}
    rows = [
        {t: np.random.default_rng(s).uniform(-1, 1, v).astype(np.float32) for t, v in shapes.items()} for s in (0, 1)
    ]
    return Search(cuts, every_value(data, cuts.graph, rows), device, on_cpu, limit).run()


@pytest.mark.parametrize("op", range(8))
def test_an_operator_that_is_wrong_by_itself_is_named_wherever_it_stands(op):
    data = two_branches()
    device = FaultyDevice({name_of(data, op): lambda value, _: value + 0.1 * np.ptp(value)})
    parting = searched(data, device).partings[-1]
    assert (parting.op, parting.how, parting.with_ops) == (op, "alone", ())
    assert parting.alone.range_share == pytest.approx(0.1, rel=1e-3)
    assert parting.before is None or parting.before.range_share == 0.0
    assert parting.after.range_share == pytest.approx(0.1, rel=1e-3)


def test_two_equal_devices_part_nowhere_and_one_run_tells():
    device = FaultyDevice()
    found = searched(two_branches(), device)
    assert (found.partings, device.runs) == ((), 1)
    assert all(d.range_share <= 1e-6 for d in found.outputs.values())


def test_the_first_of_two_wrong_operators_is_named():
    data = two_branches()
    faults = {name_of(data, op): lambda value, _: value * 1.5 for op in (2, 6)}
    assert searched(data, FaultyDevice(faults)).partings[-1].op == 2


def test_a_fault_on_one_branch_is_not_blamed_on_the_other_though_that_runs_later():
    data = two_branches()
    device = FaultyDevice({name_of(data, 1): lambda value, _: value * 1.5})
    parting = searched(data, device).partings[-1]
    assert parting.op == 1


def test_an_operator_that_is_wrong_only_behind_another_is_named_with_it():
    data = padded_chain(0.0)
    fault = {name_of(data, 3): lambda value, before: value + (0.3 * np.ptp(value) if "PADV2" in before else 0.0)}
    parting = searched(data, FaultyDevice(fault)).partings[-1]
    assert (parting.op, parting.how, parting.with_ops) == (3, "together", (2,))
    assert parting.alone.range_share == pytest.approx(0.3, rel=1e-3)


def test_rounding_that_adds_up_is_no_wrong_operator():
    (parting,) = searched(two_branches(), FaultyDevice(rounding=4e-6), limit=1e-6).partings
    assert (parting.how, parting.with_ops) == ("accumulated", ())
    assert 1e-6 < parting.after.range_share < parting.allowed_share < 1e-4


def test_a_wrong_operator_behind_rounding_that_adds_up_is_still_found():
    data = two_branches()
    device = FaultyDevice({name_of(data, 6): lambda value, _: value + 0.2 * np.ptp(value)}, rounding=4e-6)
    first, *_, last = searched(data, device, limit=1e-6).partings
    assert (first.how, last.op, last.how) == ("accumulated", 6, "alone")
    assert first.op < 6


def test_a_result_that_is_not_finite_on_one_device_parts():
    data = two_branches()
    device = FaultyDevice({name_of(data, 4): lambda value, _: np.full_like(value, np.nan)})
    parting = searched(data, device).partings[-1]
    assert (parting.op, parting.after.range_share) == (4, np.inf)


@pytest.mark.parametrize("op", range(6))
def test_a_cut_gives_the_same_bits_as_the_whole_graph(op):
    data = padded_chain(0.0)
    cuts = Cuts(data, None)
    row = {cuts.graph.inputs[0]: np.random.default_rng(0).normal(size=(1, 16, 16, 3)).astype(np.float32)}
    (values,) = every_value(data, cuts.graph, [row])
    for part in (cuts.head(op), cuts.window([op])):
        (found,) = on_cpu(cuts.file(part), [[values[t] for t in part.inputs]])
        for tensor, array in zip(part.outputs, found, strict=True):
            np.testing.assert_allclose(array, values[tensor], atol=1e-6)
    assert len(cuts.file(cuts.window([op]))) < len(data)


def test_a_cut_gives_all_that_the_rest_needs():
    cuts = Cuts(two_branches(), None)
    made = [[t for o in cuts.graph.ops[: k + 1] for t in o.outputs] for k in range(8)]
    needed = [{t for o in cuts.graph.ops[k + 1 :] for t in o.inputs} | set(cuts.graph.outputs) for k in range(8)]
    assert [set(cuts.live(k)) for k in range(8)] == [set(m) & n for m, n in zip(made, needed, strict=True)]
    assert len(cuts.live(3)) == 2


def test_constants_behind_a_dequantize_are_no_place_to_cut():
    data = converted_files()["fp16"].file.read_bytes()
    cuts = Cuts(data, None)
    names = {op.name for op in cuts.graph.ops}
    assert "DEQUANTIZE" in names
    assert "DEQUANTIZE" not in {cuts.graph.ops[p].name for p in cuts.positions}


def test_a_difference_is_a_share_of_the_range_and_counts_steps_of_a_grid():
    tensor = TensorInfo(0, "a", (2, 2), "int8", (0.5,), (3,))
    wanted, found = np.array([[0, 10], [20, 40]], np.int8), np.array([[0, 10], [20, 44]], np.int8)
    measured = difference(tensor, [wanted], [found])
    assert (measured.range_share, measured.steps) == (0.1, 4)
    assert measured.snr_db == pytest.approx(10 * np.log10((100 + 400 + 1600) / 16))
    assert not measured.exceeds(0.05, 4)
    assert measured.exceeds(0.05, 3)


# --- the command


def written(tmp_path, data):
    path = tmp_path / "small.tflite"
    path.write_bytes(data)
    return path


def test_without_a_vulkan_device_the_command_refuses_with_exit_code_three(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator_module, "found", list)
    result = CliRunner().invoke(command, [str(written(tmp_path, two_branches()))])
    assert isinstance(result.exception, MissingHere)
    assert result.exception.exit_code == 3
    assert "doctor --setup vulkan" in str(result.exception)


def test_pictures_for_a_file_without_a_contract_and_a_limit_of_nothing_are_refused(tmp_path):
    path = written(tmp_path, two_branches())
    with pytest.raises(InputError, match="no contract"):
        bisect_file(path, [np.zeros((H, H, 3), np.uint8)])
    with pytest.raises(InputError, match="share of the range"):
        bisect_file(path, limit=0.0)


@pytest.mark.gpu_accelerator
@pytest.mark.slow
def test_a_padding_that_the_accelerator_gets_wrong_is_found_in_the_middle_of_a_chain(tmp_path, needs_gpu):
    result = CliRunner().invoke(command, [str(written(tmp_path, padded_chain(127.5))), "--json"])
    assert isinstance(result.exception, CheckFailed)
    document = json.loads(result.stdout)
    parting = document["parting"]
    assert (parting["op"], parting["type"], parting["how"], parting["with_ops"]) == (3, "CONV_2D", "together", [2])
    assert parting["before"]["range_share"] < LIMIT
    assert parting["after"]["range_share"] > 0.1
    assert [r["op"] for r in parting["rules"]] == ["PADV2"]
    assert "pad with zero" in parting["next"]


@pytest.mark.gpu_accelerator
@pytest.mark.slow
def test_on_a_clean_network_the_devices_do_not_part(needs_gpu):
    result = CliRunner().invoke(command, [str(converted_files()["fp32"].file)])
    assert result.exit_code == 0
    assert "do not part" in result.output
    assert "2 seeded pictures" in result.output


@pytest.mark.gpu_accelerator
@pytest.mark.slow
def test_weights_in_eight_bits_part_where_the_cpu_rounds_its_input(needs_gpu):
    found = bisect_file(converted_files()["w8_dynamic"].file)
    op = found.graph.ops[found.parting.op]
    assert op.name in ("CONV_2D", "DEPTHWISE_CONV_2D")
    assert found.parting.alone.range_share > 1e-4  # the step of the CPU's grid, which a last bit can tip over
    assert "int8 grid" in found.advice()
