"""The runner of the GPU accelerator: what its clock sees, a file it takes in part, and no device at all."""

from __future__ import annotations

import json

import numpy as np
import pytest
from gpu_graphs import conv_weights
from gpu_outcomes import missing, noise

from edge_seg.benchmarks.runners import host_gpu
from edge_seg.converters import metadata
from edge_seg.converters.convert import convert
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.flatbuffer_edit import _pack, _tool, _unpack
from edge_seg.converters.gpu import accelerator as accelerator_module
from edge_seg.converters.gpu.accelerator import Accelerator
from edge_seg.converters.gpu.runner import GpuRunner
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.small_graph import GraphWriter

PROFILE = """
name = "quick"
title = "The GPU accelerator, in a moment"
soc = "host"
runner = "host_gpu"
delegates = ["gpu"]
threads = 1
cpu_mask = ""
precision = "fp32"
sessions = 1
min_runs = 2
min_time_s = 0.0
max_time_s = 0.2
target_ci_pct = 50.0
cool_down_s = 0.0
"""


@pytest.fixture
def needs_gpu():
    """Skips where no Vulkan implementation runs the accelerator."""
    if missing():
        pytest.skip(missing())


@pytest.fixture(scope="module")
def whole_file(tiny_exported, tmp_path_factory):
    """A MaskConver at 64 pixels that the accelerator takes whole."""
    return convert(tiny_exported, scheme="fp32", out=tmp_path_factory.mktemp("converted")).file


@pytest.fixture(scope="module")
def partial_file(whole_file, tmp_path_factory):
    """The same network behind a BROADCAST_TO of its input to its own shape: equal, and the accelerator refuses it."""
    path = tmp_path_factory.mktemp("partial") / "partial_fp32.tflite"
    contract = metadata.read_contract(whole_file)
    path.write_bytes(_with_broadcast(whole_file.read_bytes()))
    constants = metadata.read_member(whole_file, metadata.CONSTANTS)
    names = [o.name for o in contract.outputs]
    metadata.write(path, metadata.embed(path.read_bytes(), contract, constants=constants, outputs=names), contract)
    return path


def _with_broadcast(data):
    model, schema = _unpack(data), _tool().schema_fb
    main = model.subgraphs[0]
    source = int(main.inputs[0])
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(np.array(main.tensors[source].shape, "<i4").tobytes(), np.uint8)
    model.buffers.append(buffer)
    shape, copied = schema.TensorT(), schema.TensorT()
    shape.name, shape.shape, shape.type, shape.buffer = b"shape", [4], schema.TensorType.INT32, len(model.buffers) - 1
    copied.name, copied.shape, copied.buffer = b"copied", list(main.tensors[source].shape), 0
    copied.type = main.tensors[source].type
    main.tensors += [shape, copied]
    first = len(main.tensors) - 2
    for operator in main.operators:
        operator.inputs = [first + 1 if t == source else int(t) for t in operator.inputs]
    code = schema.OperatorCodeT()
    code.builtinCode = schema.BuiltinOperator.BROADCAST_TO
    code.deprecatedBuiltinCode, code.version = 127, 2
    model.operatorCodes.append(code)
    added = schema.OperatorT()
    added.opcodeIndex, added.inputs, added.outputs = len(model.operatorCodes) - 1, [source, first], [first + 1]
    main.operators.insert(0, added)
    return _pack(model)


def _profile(tmp_path):
    path = tmp_path / "quick.toml"
    path.write_text(PROFILE)
    return path


def _convs(path):
    """Six 3x3 convolutions of 48 channels: the work is large beside what is written and read."""
    graph, weights = GraphWriter(), conv_weights(48, 3, 48)
    result = graph.input("x", (1, 32, 32, 48))
    fields = {"padding": 0, "strideW": 1, "strideH": 1, "dilationWFactor": 1, "dilationHFactor": 1}
    for _ in range(6):
        inputs = [result, graph.constant(weights), graph.constant(np.zeros(48, np.float32))]
        result = graph.op("CONV_2D", inputs, (1, 32, 32, 48), options=("Conv2DOptions", fields))
    path.write_bytes(graph.finish(result))
    return path


@pytest.mark.gpu_accelerator
@pytest.mark.slow
def test_write_run_and_read_take_as_long_as_the_run_in_benchmark_mode_within_a_fifth(tmp_path, needs_gpu):
    """Minima of both, taken in turns: another process can only lengthen a run, so more rounds only come closer."""
    path = _convs(tmp_path / "convs.tflite")
    inputs = noise(read_graph(path), -1, 1)
    with Accelerator() as plain, Accelerator(benchmark_mode=True) as waiting:
        plain.open(path)
        waiting.open(path)
        seen = {"plain": [], "waiting": []}
        for round_ in range(60):
            seen["plain"].append(plain.run(inputs)[1].total_ms)
            seen["waiting"].append(waiting.run(inputs)[1].run_ms)
            ratio = min(seen["waiting"]) / min(seen["plain"])
            if round_ >= 12 and 1 / 1.2 <= ratio <= 1.2:
                break
    assert 1 / 1.2 <= ratio <= 1.2


@pytest.mark.gpu_accelerator
@pytest.mark.slow
def test_a_file_with_an_operator_that_is_refused_is_reported_as_partly_delegated(
    partial_file, tmp_path, edge_seg, needs_gpu
):
    out = tmp_path / "results.json"
    run = edge_seg(
        "benchmark", partial_file, "--profile", _profile(tmp_path), "--data", "synthetic:easy", "--images", "1",
        "--out", out,
    )  # fmt: skip
    assert run.code == 0, run.err
    (record,) = json.loads(out.read_text())
    total = len(read_graph(partial_file).ops)
    assert (record["delegate_requested"], record["delegate_actual"]) == ("gpu", "gpu")
    assert (record["nodes_delegated"], record["nodes_total"]) == (total - 1, total)
    assert record["protocol"]["refused"] == ["BROADCAST_TO: Operation is not supported."]
    assert record["protocol"]["partitions"] is None
    assert "does not log" in record["unknown"]["protocol.partitions"]
    assert f"{total - 1} of {total} nodes ran on gpu, the rest outside it" in record["warnings"]


@pytest.mark.gpu_accelerator
@pytest.mark.slow
def test_a_file_in_parts_computes_what_the_cpu_does(partial_file, needs_gpu):
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with GpuRunner(partial_file, with_cpu=True) as gpu:
        found = gpu(picture)
    for name, wanted in TfliteRunner(partial_file)(picture).items():
        assert np.abs(found[name] - wanted).max() <= 1e-5 * np.ptp(wanted)


def _told(log, graph, *, with_cpu=True):
    """A runner that has opened a file, as the records see it."""

    class Runner:
        told, runtime = log, {"name": "litert"}

    class Model:
        name, scheme = "m", "fp32"

    Runner.graph, Runner.with_cpu = graph, with_cpu
    Runner.contract = type("Contract", (), {"model": Model})
    return Runner


@pytest.fixture
def graph(tmp_path):
    return read_graph(_convs(tmp_path / "convs.tflite"))


def test_nodes_are_those_that_the_runtime_counted(graph):
    log = (
        "INFO: [compiled_model.cc:829] Flatbuffer model initialized.\n"
        "ERROR: Following operations are not supported by GPU delegate:\n"
        "LOG_SOFTMAX: Operation is not supported.\n"
        "2 operations will run on the GPU, and the remaining 4 operations will run on the CPU.\n"
        "I0000 00:00:1795312840.245351    4112 delegate_kernel.cc:984] Initializing WebGPU-based API from graph.\n"
    )
    facts = host_gpu._facts(_told(log, graph), 1.0)
    assert (facts.delegate_actual, facts.nodes_delegated, facts.nodes_total) == ("gpu", 2, 6)
    assert facts.refused == ("LOG_SOFTMAX: Operation is not supported.",)
    assert set(facts.unknown) == {"protocol.partitions"}


def test_where_the_runtime_does_not_count_nodes_the_share_is_null_with_a_reason(graph):
    facts = host_gpu._facts(_told("Initializing WebGPU-based API from graph.", graph), 1.0)
    assert (facts.nodes_delegated, facts.nodes_total, facts.refused) == (None, 6, ())
    assert facts.unknown["nodes_delegated"] == "LiteRT does not log it"


def test_a_file_that_opens_for_the_gpu_alone_is_delegated_whole(graph):
    facts = host_gpu._facts(_told("", graph, with_cpu=False), 1.0)
    assert (facts.nodes_delegated, facts.nodes_total) == (6, 6)


def test_without_a_vulkan_device_a_benchmark_is_refused_with_exit_code_three(
    whole_file, tmp_path, edge_seg, monkeypatch
):
    monkeypatch.setattr(accelerator_module, "found", list)
    out = tmp_path / "results.json"
    run = edge_seg(
        "benchmark", whole_file, "--profile", "host_gpu", "--data", "synthetic:easy", "--images", "1",
        "--out", out,
    )  # fmt: skip
    assert run.code == 3
    assert "No Vulkan implementation is installed here" in run.err
    assert "doctor --setup vulkan" in run.err
    assert not out.exists() or json.loads(out.read_text()) == []
