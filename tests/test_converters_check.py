"""Offline verdicts on operators; where the runtime tells what its delegate took, it is the judge."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from test_converters_tinynet import converted_files, converted_module
from torch import nn
from torch.nn import functional

from edge_seg.converters import interpreter
from edge_seg.converters.check import count_partitions, judge
from edge_seg.converters.delegates import DELEGATES, check
from edge_seg.converters.flatbuffer import Graph, OpInfo, TensorInfo, read_graph
from edge_seg.converters.op_rules import load_rules
from edge_seg.errors import ArtifactError, ConfigError, InputError


class Block(nn.Module):
    """A convolution, and a function of its output and of the picture."""

    def __init__(self, function, layers=1):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1) for _ in range(layers)])
        self.function = function

    def forward(self, image):
        return self.function(*(layer(image) for layer in self.layers))


def _picked(x):
    return x * (functional.max_pool2d(x, 3, 1, 1) == x).float()


def _lower_rank(a, b):
    return (a.permute(0, 2, 3, 1) + b.permute(0, 2, 3, 1)[0, 0]).permute(0, 3, 1, 2)


FUNCTIONS = {
    "bilinear": lambda x: functional.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "nearest": lambda x: functional.interpolate(x, scale_factor=2.0, mode="nearest"),
    "hardswish": functional.hardswish,
    "softmax": lambda x: functional.softmax(x, 1),
    "pad_zero": lambda x: functional.pad(x, (0, 1, 0, 1)),
    "pad_value": lambda x: functional.pad(x, (0, 1, 0, 1), value=127.5),
    "argmax": lambda x: x.argmax(1, keepdim=True).float(),
    "gather": lambda x: x[:, :, [3, 1, 2]],
    "expand": lambda x: torch.cat([x[:, :1].expand(1, 8, 16, 16), x], 1),
    "bytes": lambda x: (x > 0).to(torch.uint8),
    "relu01": lambda x: torch.tanh(x).clamp(0, 1),
    "five_axes": lambda x: torch.tanh(x.reshape(1, 2, 4, 16, 16) * 2).permute(0, 2, 1, 4, 3).reshape(1, 8, 16, 16),
    "peaks": _picked,
    "sum": lambda x: x.sum((2, 3), keepdim=True),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "add": lambda a, b: a + b,
    "add_lower_rank": _lower_rank,
    "batch": lambda x: torch.cat([x, torch.tanh(x)], 0).amax(0, keepdim=True),
}
TWO = {"add", "add_lower_rank"}


class Zoo(nn.Module):
    """All functions side by side, so that one conversion serves all tests."""

    def __init__(self):
        super().__init__()
        self.zoo = nn.ModuleDict({k: Block(f, 2 if k in TWO else 1) for k, f in FUNCTIONS.items()})

    def forward(self, image):
        return tuple(block(image) for block in self.zoo.values())


@functools.cache
def float_graph():
    return read_graph(converted_module("zoo", Zoo))


@functools.cache
def int8_graph():
    """The same graph in static int8."""
    from ai_edge_quantizer import quantizer, recipe

    from edge_seg.converters.quiet import quiet_tools

    source = float_graph().path
    rng = np.random.default_rng(0)
    samples = [{"image": rng.normal(0, 1, (1, 16, 16, 3)).astype(np.float32)} for _ in range(2)]
    with quiet_tools("ai-edge-quantizer"):
        tool = quantizer.Quantizer(str(source), recipe.static_wi8_ai8())
        ranges = tool.calibrate({"serving_default": samples}, num_threads=1)
        data = bytes(tool.quantize(ranges, enable_progress_report=False).quantized_model)
    file = source.with_name("zoo_int8.tflite")
    file.write_bytes(data)
    return read_graph(file)


def _by_runtime(graph):
    """(partitions, names of the operators outside) as the runtime tells them."""
    module, version = interpreter._runtime()
    runner = object.__new__(interpreter.TfliteRunner)
    runner.graph, runner.runtime = graph, version
    runner._interpreter = interpreter._prepared(module, graph.path, 1, "AUTO")
    told = runner.xnnpack_partitions()
    return told.partitions, [op.name for op in told.outside]


@functools.cache
def refused_at(delegate, *, int8=False):
    """Refused operators by the function they belong to."""
    graph = int8_graph() if int8 else float_graph()
    found = {}
    for refusal in judge(graph, DELEGATES[delegate]()).refused:
        found.setdefault(refusal.source.removeprefix("zoo.").split(".")[0], []).append(refusal)
    return found


@pytest.mark.parametrize("graph", [float_graph, int8_graph])
def test_the_xnnpack_verdict_equals_what_the_runtime_delegated(graph):
    verdict = judge(graph(), DELEGATES["xnnpack"]())
    assert len(verdict.refused) > 5
    assert (verdict.partitions, [r.op for r in verdict.refused]) == _by_runtime(graph())


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8_dynamic", "w8a8"])
def test_the_xnnpack_verdict_on_every_scheme_equals_what_the_runtime_delegated(scheme):
    verdict = check(converted_files()[scheme].file, "xnnpack")
    assert (verdict.partitions, [r.op for r in verdict.refused]) == _by_runtime(
        read_graph(converted_files()[scheme].file)
    )


def test_int8_hard_swish_and_nearest_resize_fall_out_of_xnnpack_and_float_hard_swish_does_not():
    in_float, in_int8 = refused_at("xnnpack"), refused_at("xnnpack", int8=True)
    assert "hardswish" not in in_float
    (refused,) = in_int8["hardswish"]
    assert refused.op == "HARD_SWISH"
    assert "int8" in refused.reason
    assert "ReLU" in refused.rewrite
    assert [r.op for r in in_float["nearest"]] == ["RESIZE_NEAREST_NEIGHBOR"]
    assert not {"bilinear", "pad_zero", "mean", "add"} & set(in_int8)


ACCEPTED = ["bilinear", "nearest", "hardswish", "softmax", "pad_zero", "peaks", "mean", "add", "sum"]


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_gpu_takes(name):
    assert f"zoo.{name}" in {float_graph().source(op) for op in float_graph().ops}
    assert name not in refused_at("gpu")


@pytest.mark.parametrize(
    ("name", "op", "reason"),
    [
        ("pad_value", "PADV2", "other than zero"),
        ("argmax", "ARG_MAX", "classic GPU delegate"),
        ("gather", "GATHER_ND", "not an operator"),
        ("expand", "BROADCAST_TO", "not an operator"),
        ("bytes", "CAST", "bool to uint8"),
        ("relu01", "RELU_0_TO_1", "not an operator"),
        ("five_axes", "RESHAPE", "rank 5"),
        ("add_lower_rank", "ADD", "rank 3 to rank 4"),
        ("batch", "CONCATENATION", "batch 2"),
    ],
)
def test_the_gpu_refuses_with_reason_rewrite_and_source(name, op, reason):
    found = next(r for r in refused_at("gpu")[name] if r.op == op)
    assert reason in found.reason
    assert found.rewrite
    assert found.rule
    assert found.tensor
    assert float_graph().ops[found.index].name == op


def test_only_the_functions_meant_to_be_refused_are_refused():
    assert set(refused_at("gpu")) == set(FUNCTIONS) - set(ACCEPTED)


@pytest.mark.parametrize("name", ["TOPK_V2", "GATHER", "STABLEHLO_SORT", "CUSTOM:Magic"])
@pytest.mark.parametrize("delegate", ["gpu", "xnnpack"])
def test_operators_of_the_decoder_and_unknown_ones_are_refused(name, delegate):
    chain = _chain([True], [[-1]])
    graph = Graph(None, 0, (OpInfo(0, name, 1, (0,), (1,)),), chain.tensors, (0,), (1,), ())
    verdict = judge(graph, DELEGATES[delegate]())
    assert [r.op for r in verdict.refused] == [name]
    assert (verdict.partitions, verdict.nodes_delegable) == (0, 0)
    assert ("not in the rule table" in verdict.refused[0].reason) == name.startswith("CUSTOM")


def test_a_sum_is_taken_with_a_warning_about_half_precision():
    (warning,) = judge(float_graph(), DELEGATES["gpu"]()).warnings
    assert warning.op == "SUM"
    assert "65504" in warning.reason


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8_dynamic", "w8a8"])
def test_the_tiny_network_is_fully_delegable_to_the_gpu(scheme):
    verdict = check(converted_files()[scheme].file, "gpu")
    assert verdict.fully_delegable, verdict.refused
    assert verdict.partitions == 1


def test_the_verdict_is_json_with_the_keys_of_the_command_line():
    document = judge(float_graph(), DELEGATES["gpu"]()).to_json()
    assert {"delegate", "rules_version", "fully_delegable", "partitions", "refused"} <= set(document)
    assert {"op", "index", "tensor", "source", "reason", "rewrite"} <= set(document["refused"][0])


def test_the_verdict_for_people_names_operator_module_reason_and_rewrite():
    text = judge(float_graph(), DELEGATES["gpu"]()).text()
    line = next(line for line in text.splitlines() if "RELU_0_TO_1" in line)
    assert "zoo.relu01" in line
    assert "not an operator" in line
    assert "rewrite: write hard-sigmoid" in text


def test_an_unknown_delegate_and_a_broken_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="did you mean gpu"):
        check(converted_files()["fp32"].file, "gpu2")
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(converted_files()["fp32"].file.read_bytes()[:2000])
    with pytest.raises(ArtifactError):
        check(broken, "gpu")


def _chain(kinds, edges):
    """A graph of len(kinds) operators; `edges` lists for each the operators it reads, -1 is the input."""
    tensors = tuple(TensorInfo(i, f"t{i}", (1, 2, 2, 3), "float32") for i in range(len(kinds) + 1))
    ops = tuple(OpInfo(i, "ADD", 1, tuple(e + 1 for e in reads), (i + 1,)) for i, reads in enumerate(edges))
    return Graph(None, 0, ops, tensors, (0,), (len(kinds),), ())


@pytest.mark.parametrize(
    ("kinds", "edges", "partitions"),
    [
        ([True, True, True], [[-1], [0], [1]], 1),
        ([True, False, True], [[-1], [0], [1]], 2),
        ([False, False], [[-1], [0]], 0),
        # in list order the refused one lies between, but the third does not wait for it: one piece
        ([True, False, True], [[-1], [-1], [0]], 1),
        # ... and here a fourth joins both: two pieces
        ([True, False, True, True], [[-1], [-1], [0], [1, 2]], 2),
        ([], [], 0),
    ],
)
def test_partitions_are_counted_as_by_hand(kinds, edges, partitions):
    assert count_partitions(_chain(kinds, edges), kinds) == partitions


RULES = """
format = "edge_seg.op_rules"
delegate = "test"
version = "1"
runtime = "none"
max_rank = 4
batch_one = true
limits_source = "s"
[sources]
s = "somewhere"
[ops.ADD]
dtypes = ["float32"]
source = "s"
[refused.TOPK_V2]
reason = "r"
rewrite = "w"
source = "s"
"""


def _load(tmp_path, text):
    path = tmp_path / "rules.toml"
    path.write_text(text)
    return load_rules(path, {"known": lambda graph, op: None})


def test_a_rule_table_loads(tmp_path):
    table = _load(tmp_path, RULES)
    assert table.ops["ADD"].dtypes == ("float32",)
    assert table.refused["TOPK_V2"].rewrite == "w"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dtypes =", "dtype =", "did you mean dtypes"),
        ("max_rank", "maxrank", "maxrank"),
        ('source = "s"\n[refused', 'source = "t"\n[refused', "unknown source"),
        ('source = "s"\n[refused', 'source = "s"\nchecks = ["knwon"]\n[refused', "did you mean known"),
        ("refused.TOPK_V2", "refused.ADD", "both accepts and refuses"),
        ('"edge_seg.op_rules"', '"other"', "not a rule table"),
        ('["float32"]', '"float32"', "a list"),
        ("[sources]", "[sources", "not TOML"),
        ('rewrite = "w"\n', "", "missing"),
    ],
)
def test_a_mistake_in_a_rule_table_stops_at_load(tmp_path, old, new, message):
    assert old in RULES
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, RULES.replace(old, new))


@pytest.mark.parametrize("name", DELEGATES.names())
def test_every_delegate_has_a_table_that_covers_the_usual_operators(name):
    table = DELEGATES[name]()
    assert table.delegate == name
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "RESIZE_BILINEAR", "CONCATENATION"} <= set(table.ops)
    for entry in table.refused.values():
        assert entry.reason
        assert entry.rewrite
