"""Operators run alone: the same numbers as in the whole graph, and sums that add up."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from edge_seg.converters.flatbuffer import graph_of, read_graph
from edge_seg.converters.flatbuffer_edit import Editor
from edge_seg.converters.interpreter import plain_interpreter
from edge_seg.converters.operations import kind_of, profile_operations
from edge_seg.converters.small_graph import GraphWriter
from edge_seg.errors import InputError
from edge_seg.studies.operation_speed import main
from edge_seg.studies.results.page import results_markdown


@pytest.fixture
def file(tmp_path):
    """A depthwise convolution of stride 2, the sum of its result with itself, a 1x1 convolution."""
    rng = np.random.default_rng(0)
    writer = GraphWriter()
    source = writer.input("picture", (1, 8, 8, 4))
    depthwise = [source, writer.constant(rng.random((1, 3, 3, 4), np.float32)), writer.constant(np.ones(4, np.float32))]
    options = ("DepthwiseConv2DOptions", {"padding": 0, "strideW": 2, "strideH": 2, "depthMultiplier": 1})
    narrow = writer.op("DEPTHWISE_CONV_2D", depthwise, (1, 4, 4, 4), options=options)
    twice = writer.op("ADD", [narrow, narrow], (1, 4, 4, 4), options=("AddOptions", {}))
    weights = writer.constant(rng.random((6, 1, 1, 4), np.float32))
    bias = writer.constant(np.zeros(6, np.float32))
    options = ("Conv2DOptions", {"padding": 0, "strideW": 1, "strideH": 1})
    result = writer.op("CONV_2D", [twice, weights, bias], (1, 4, 4, 6), options=options)
    path = tmp_path / "small.tflite"
    path.write_bytes(writer.finish(result))
    return path


def test_an_operator_alone_gives_what_it_gives_in_the_whole_graph(file):
    graph, editor = read_graph(file), Editor(file.read_bytes())
    whole = plain_interpreter(file.read_bytes(), keep_all=True)
    whole.set_tensor(graph.inputs[0], np.random.default_rng(1).random((1, 8, 8, 4), np.float32))
    whole.invoke()
    for op in graph.ops:
        alone = plain_interpreter(editor.alone(op.index))
        assert len(graph_of(editor.alone(op.index), file).ops) == 1
        for detail in alone.get_input_details():
            alone.set_tensor(detail["index"], whole.get_tensor(detail["index"]))
        alone.invoke()
        assert np.array_equal(alone.get_tensor(op.outputs[0]), whole.get_tensor(op.outputs[0]))


def test_cutting_one_operator_out_leaves_the_editor_whole(file):
    editor = Editor(file.read_bytes())
    before = editor.packed()
    editor.alone(1)
    assert editor.packed() == before


def test_kinds_name_kernel_and_stride(file):
    graph = read_graph(file)
    assert [kind_of(graph, op) for op in graph.ops] == ["depthwise 3x3 stride 2", "ADD", "convolution 1x1"]


def test_times_come_from_the_clock_and_sums_add_up(file):
    """A clock that ticks one millisecond at each look: every run takes one."""
    ticks = itertools.count(0.0, 1e-3)
    rounds = []
    (profile,) = profile_operations([file], rounds=3, on_round=lambda: rounds.append(1), clock=lambda: next(ticks))
    assert [o.median_ms for o in profile.operations] == pytest.approx([1.0, 1.0, 1.0])
    assert profile.whole_ms == pytest.approx(1.0)
    assert profile.sum_ms == pytest.approx(3.0)
    assert len(rounds) == profile.rounds == 3
    for groups in (profile.by_kind(), profile.by_part()):
        assert sum(count for count, _ in groups.values()) == 3
        assert sum(ms for _, ms in groups.values()) == pytest.approx(profile.sum_ms)
    document = profile.to_json()
    assert document["by_kind"]["ADD"] == {"operators": 1, "ms": pytest.approx(1.0)}
    assert "3.00 ms its operators alone" in profile.text()


def test_a_profile_of_nothing_is_refused(file):
    with pytest.raises(InputError):
        profile_operations([])
    with pytest.raises(InputError):
        profile_operations([file], rounds=0)


def test_a_missing_file_is_named():
    with pytest.raises(InputError, match=r"gone\.tflite"):
        profile_operations([Path("gone.tflite")])


def test_the_study_writes_a_document_that_the_readme_shows(file, tmp_path):
    out = tmp_path / "results" / "speed" / "operations.json"
    done = CliRunner().invoke(main, [str(file), "--rounds", "2", "--json", str(out)])
    assert done.exit_code == 0, done.output
    profile = json.loads(out.read_text())["profiles"][0]
    shown = results_markdown(tmp_path / "results")
    assert f"| ADD | {profile['by_kind']['ADD']['ms']:.2f} (1) |" in shown
    assert f"| the whole network | {profile['whole_ms']:.2f} |" in shown
