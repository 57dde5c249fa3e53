"""`verify --layers`: whole files have no divergence; a planted fault is found in the layer it was planted in."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from layer_faults import (
    _write,
    bias_moved,
    channel_flipped,
    file_of,
    folder_of,
    op_of,
    planted,
    planted_in,
    scale_doubled,
    whole,
    wrongly_aligned,
)
from mirror_networks import SIDE, export_folder
from test_converters_tinynet import exported_folder, smooth_pictures
from torch import nn

from edge_seg.converters.convert import convert_many
from edge_seg.converters.exported import open_exported
from edge_seg.converters.flatbuffer import read_bytes, read_graph
from edge_seg.converters.flatbuffer_edit import Editor
from edge_seg.converters.interpreter import encode, plain_interpreter
from edge_seg.converters.layers.checks import LAYER_TOLERANCES, LayerChecks
from edge_seg.converters.layers.figures import MapTally, StepTally
from edge_seg.converters.layers.values import FileValues
from edge_seg.converters.layers.verify import verify_layers
from edge_seg.errors import ArtifactError, InputError
from edge_seg.layers.ops import Add, ConstantMap
from edge_seg.schemes import SCHEMES

pytestmark = pytest.mark.slow  # conversions, and kernels without speed

FLOATS = ("fp32", "fp16", "w8_dynamic")
TINY = (*FLOATS, "w8a8")
ALL = (*TINY, "qat_w8a8")
FAULTS = {
    "qat_w8a8: a scale doubled": ("qat_w8a8", scale_doubled("point"), "point", "scale"),
    "qat_w8a8: the scale of a sum doubled": ("qat_w8a8", scale_doubled("add.op"), "add.op", "scale"),
    "qat_w8a8: a weight channel flipped": ("qat_w8a8", channel_flipped("dilated", 5), "dilated", "weight"),
    "qat_w8a8: a depthwise channel flipped": ("qat_w8a8", channel_flipped("wide", 3), "wide", "weight"),
    "qat_w8a8: a bias off by a step": ("qat_w8a8", bias_moved("deep", 3), "deep", "bias"),
    "qat_w8a8: a resize wrongly aligned": ("qat_w8a8", wrongly_aligned("up.op"), "up.op", "geometry"),
    "qat_w8a8: a resize on corners": ("qat_w8a8", wrongly_aligned("up.op", corners=True), "up.op", "geometry"),
    "w8a8: a scale doubled": ("w8a8", scale_doubled("stages.0.0"), "stages.0.0", "scale"),
    "w8a8: a scale in front of a resize doubled": ("w8a8", scale_doubled("stages.1.0"), "stages.1.0", "scale"),
    "w8a8: the scale of a resize doubled": ("w8a8", scale_doubled("body"), "body", "scale"),
    "w8a8: a weight channel flipped": ("w8a8", channel_flipped("lateral", 2), "lateral", "weight"),
    "w8a8: a bias off by a step": ("w8a8", bias_moved("stages.1.0", 4), "stages.1.0", "bias"),
    "fp32: a weight channel flipped": ("fp32", channel_flipped("stages.0.0", 2), "stages.0.0", "weight"),
    "fp32: a bias moved": ("fp32", bias_moved("lateral", 1), "lateral", "bias"),
    "fp16: a weight channel flipped": ("fp16", channel_flipped("lateral", 2), "lateral", "weight"),
    "w8_dynamic: a weight channel flipped": ("w8_dynamic", channel_flipped("lateral", 2), "lateral", "weight"),
}


@pytest.mark.parametrize("scheme", ALL)
def test_a_whole_file_has_no_divergence(scheme):
    report = whole(scheme)
    assert report.first_divergence is None, report.text()
    assert report.passed
    assert all(share <= 1.0 for row in report.layers for share in row.of_allowed.values())


class Placed(nn.Module):
    """A constant map added to one of the picture, as SOLOv2 adds its folded coordinates."""

    def __init__(self, behind):
        super().__init__()
        self.stem, self.behind = nn.Conv2d(3, 8, 4, 2, 1), behind
        self.here = ConstantMap(torch.randn(1, 8, SIDE // 2, SIDE // 2) * 40)
        self.add, self.head = Add(), nn.Conv2d(8, 4, 1)

    def forward(self, image):
        return self.head(self.add(self.behind(self.stem(image)), self.here()))


def shifted():
    norm = nn.BatchNorm2d(8)
    nn.init.normal_(norm.bias, 0, 30)
    nn.init.normal_(norm.running_mean, 0, 30)
    return norm


BEHIND = {"nothing moves": nn.ReLU, "the bias moves": nn.Identity, "the norm's shift moves": shifted}


@pytest.fixture(scope="module", params=BEHIND)
def placed_files(request, tmp_path_factory):
    """What lies behind the convolution, the exported folder and its files by scheme."""
    folder = tmp_path_factory.mktemp("placed")
    torch.manual_seed(3)
    exported = export_folder(Placed(BEHIND[request.param]()), folder / "exported")
    made = convert_many(exported, TINY, out=folder / "out", calibration=smooth_pictures(8, seed=1, side=SIDE))
    return request.param, exported, {one.scheme: one.file for one in made}


@pytest.mark.parametrize("scheme", TINY)
def test_a_constant_map_is_no_input_that_the_file_computes(scheme, placed_files):
    behind, folder, files = placed_files
    report = verify_layers(files[scheme], folder)
    assert (report.passed, report.complete) == (True, True), report.text()
    (add,) = [row for row in report.layers if row.op == "ADD"]
    assert add.of_allowed
    assert (add.mirror_alone is None) == (scheme != "w8a8")
    assert add.mirror_alone is None or add.mirror_alone.exact == 1.0
    graph = read_graph(files[scheme])
    found = graph.constant(op_of(graph, "stem").inputs[2])
    assert found.any() == (behind != "the bias moves"), "what a converter moves into the map is gone from the bias"


def stem_bias(graph):
    return op_of(graph, "stem").inputs[2]


def added_map(graph):
    (index,) = [t for o in graph.ops if o.name == "ADD" for t in o.inputs if graph.tensors[t].constant]
    return index


def raised(place, by):
    """Channel 3 of the constant that `place(graph)` names, raised by as much, or two steps of its grid."""

    def fault(model, graph):
        values = graph.constant(place(graph)).copy()
        values[..., 3] += 2 if graph.tensors[place(graph)].scale else by
        _write(model, graph, place(graph), values)

    return fault


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
@pytest.mark.parametrize(("place", "module", "kind"), [(stem_bias, "stem", "bias"), (added_map, "add", "weight")])
def test_a_fault_is_found_although_constants_have_moved(place, module, kind, scheme, placed_files, tmp_path):
    _, folder, files = placed_files
    file = planted_in(files[scheme], open_exported(folder), raised(place, 0.5), tmp_path)
    first = verify_layers(file, folder).first_divergence
    assert first is not None
    assert (first.module, first.kind) == (module, kind), first.text


@pytest.mark.parametrize("placed_files", ["nothing moves", "the bias moves"], indirect=True)
def test_nothing_moves_past_an_activation(placed_files, tmp_path):
    """The bias taken out of the convolution and put into the map: right without a ReLU between them, wrong with one."""
    behind, folder, files = placed_files

    def fault(model, graph):
        bias = graph.constant(stem_bias(graph)).copy()
        _write(model, graph, stem_bias(graph), np.zeros_like(bias))
        _write(model, graph, added_map(graph), graph.constant(added_map(graph)) + bias)

    report = verify_layers(planted_in(files["fp32"], open_exported(folder), fault, tmp_path), folder)
    assert report.passed == (behind == "the bias moves")
    if behind == "nothing moves":
        assert {f.kind for row in report.layers for f in row.findings} >= {"bias", "weight"}


def test_a_layer_whose_arithmetic_was_not_judged_leaves_the_comparison_incomplete(monkeypatch):
    assert whole("w8a8").complete
    judge = LayerChecks.arithmetic
    monkeypatch.setattr(
        LayerChecks, "arithmetic", lambda checks, layer, *of: None if layer.op.index == 3 else judge(checks, layer, *of)
    )
    assert not verify_layers(file_of("w8a8"), folder_of("w8a8")).complete


@pytest.mark.parametrize("scheme", ALL)
def test_every_operator_that_computes_is_a_row_in_the_order_of_execution(scheme):
    graph = read_graph(file_of(scheme))
    computing = [o for o in graph.ops if o.name != "PAD" and not (o.name == "DEQUANTIZE" and scheme == "fp16")]
    assert [row.index for row in whole(scheme).layers] == [o.index for o in computing]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_in_its_layer(fault, tmp_path):
    scheme, change, module, kind = FAULTS[fault]
    report = verify_layers(planted(scheme, change, tmp_path), folder_of(scheme))
    first = report.first_divergence
    assert first is not None
    assert not report.passed
    assert (first.module, first.kind) == (module, kind), report.text()
    graph = read_graph(file_of(scheme))
    assert first.tensor == graph.tensors[op_of(graph, module).outputs[0]].name


@pytest.mark.parametrize(
    ("scheme", "corners"), [("fp32", False), ("fp16", True), ("w8_dynamic", False), ("w8a8", True)]
)
def test_a_resize_with_the_wrong_alignment_is_named_in_every_scheme(scheme, corners, tmp_path):
    (resize,) = (o for o in read_graph(file_of(scheme)).ops if o.name == "RESIZE_BILINEAR")

    def fault(model, graph):
        options = model.subgraphs[0].operators[resize.index].builtinOptions
        options.halfPixelCenters, options.alignCorners = False, corners

    first = verify_layers(planted(scheme, fault, tmp_path), folder_of(scheme)).first_divergence
    assert first is not None
    assert (first.op, first.index, first.kind) == ("RESIZE_BILINEAR", resize.index, "geometry")
    assert ("align_corners" if corners else "half_pixel_centers") in first.text


def test_layers_after_a_fault_look_bad_and_are_not_blamed(tmp_path):
    report = verify_layers(planted("fp32", channel_flipped("stem.0", 2), tmp_path), folder_of("fp32"))
    blamed = [row.module for row in report.layers if row.findings]
    after = [row for row in report.layers if row.module == "heads.0"]
    assert blamed == ["stem.0"]
    assert after[0].cumulative["xnnpack"].snr_db < 40 < after[0].alone.snr_db


def test_an_operator_of_another_kind_is_named_by_the_jump_of_the_error(tmp_path):
    (add,) = (o for o in read_graph(file_of("fp32")).ops if o.name == "ADD")

    def subtracts(model, graph):
        operator, code = model.subgraphs[0].operators[add.index], schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.SUB
        code.version, operator.opcodeIndex = 1, len(model.operatorCodes)
        options = schema.SubOptionsT()
        options.fusedActivationFunction = operator.builtinOptions.fusedActivationFunction
        operator.builtinOptions, operator.builtinOptionsType = options, schema.BuiltinOptions.SubOptions
        model.operatorCodes.append(code)

    report = verify_layers(planted("fp32", subtracts, tmp_path), folder_of("fp32"))
    first = report.first_divergence
    assert (first.op, first.index, first.kind) == ("SUB", add.index, "jump")
    assert len(report.layers) == len(whole("fp32").layers)  # what lies before it is found by module path


def test_a_file_that_the_runtime_refuses_is_judged_by_its_constants_and_grids(tmp_path):
    report = verify_layers(planted("w8a8", scale_doubled("stages.1.0"), tmp_path), folder_of("w8a8"))
    assert report.pictures == 0
    assert any("RESIZE_BILINEAR" in note for note in report.notes)
    assert all(not row.of_allowed for row in report.layers)


def test_a_flipped_channel_is_called_one(tmp_path):
    report = verify_layers(planted("w8a8", channel_flipped("lateral", 2), tmp_path), folder_of("w8a8"))
    assert "channel 2 has the opposite sign" in report.first_divergence.text
    assert "in 1 of 24 channels" in report.first_divergence.text


def test_sides_that_a_scheme_does_not_have_are_absent():
    assert whole("fp32").columns() == ["xnnpack", "reference", "half"]
    assert whole("w8_dynamic").columns() == ["xnnpack", "reference", "half", "float_xnnpack", "float_reference"]
    assert "mirror" in whole("w8a8").columns()
    assert whole("qat_w8a8").columns() == ["xnnpack", "reference", "mirror"]
    assert whole("qat_w8a8").reference == "fake_quant"


@pytest.mark.parametrize("scheme", ["w8a8", "qat_w8a8"])
def test_every_integer_of_every_layer_is_the_mirrors(scheme):
    rows = [row for row in whole(scheme).layers if row.mirror is not None]
    assert len(rows) == len(whole(scheme).layers)
    assert all(row.mirror.max_lsb == row.mirror_alone.max_lsb == 0 for row in rows)


def test_half_precision_after_every_layer_costs_more_than_half_precision_weights():
    rows = [r for r in whole("fp16").layers if r.module == "heads.0"]
    assert 30 < rows[0].cumulative["half"].snr_db < rows[0].cumulative["xnnpack"].snr_db < 100


@pytest.mark.parametrize("scheme", ALL)
def test_keeping_every_tensor_changes_no_bit_of_xnnpacks_arithmetic(scheme):
    """The same file cut so that its tensors are outputs of one piece of XNNPACK."""
    file = file_of(scheme)
    graph = read_graph(file)
    picture = smooth_pictures(1, side=graph.tensors[graph.inputs[0]].shape[1])[0]
    kept = FileValues(file, "xnnpack").run(picture)
    wanted = [row_op.outputs[0] for row_op in graph.ops if row_op.name != "DEQUANTIZE"]
    cut = plain_interpreter(Editor(read_bytes(file)).head(len(graph.ops), wanted))
    cut.set_tensor(graph.inputs[0], encode(picture, graph.tensors[graph.inputs[0]].dtype))
    cut.invoke()
    assert all(np.array_equal(kept[t], cut.get_tensor(t)) for t in wanted)
    assert len(wanted) > 5


def test_a_file_of_another_network_is_refused():
    with pytest.raises(ArtifactError, match="was not made from"):
        verify_layers(file_of("qat_w8a8"), exported_folder())


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(InputError, match="does not fit"):
        verify_layers(file_of("fp32"), exported_folder(), [np.zeros((8, 8, 3), np.uint8)])


def test_every_scheme_has_a_tolerance():
    assert set(LAYER_TOLERANCES) == set(SCHEMES)


def test_the_report_is_plain_json_and_infinite_ratios_are_null():
    report = whole("qat_w8a8")
    exact = next(i for i, row in enumerate(report.layers) if row.alone.snr_db == math.inf)
    document = report.to_json()
    assert document["layers"][exact]["alone"]["snr_db"] is None
    assert document["layers"][exact]["alone"]["cosine"] == 1.0
    assert document["first_divergence"] is None


def test_figures_follow_their_definitions():
    tally = MapTally()
    tally.add(np.array([[3.0, 4.0]]), np.array([[3.0, 4.5]]))
    tally.add(np.array([[0.0, -1.0]]), np.array([[0.0, -1.0]]))
    found = tally.figures()
    assert found.snr_db == pytest.approx(10 * math.log10(26 / 0.25))
    assert found.cosine == pytest.approx(28 / math.sqrt(26 * 30.25))
    assert found.max_of_range == pytest.approx(0.5 / 5)
    steps = StepTally()
    steps.add(np.array([1, 2, 3, 4], np.int8), np.array([1, 3, 3, -128], np.int8))
    assert (steps.figures().exact, steps.figures().within_1_lsb, steps.figures().max_lsb) == (0.5, 0.75, 132)


def test_a_map_that_is_not_finite_is_infinitely_wrong():
    tally = MapTally()
    tally.add(np.array([1.0, 2.0]), np.array([1.0, np.nan]))
    assert tally.figures().snr_db == -math.inf
    assert math.isnan(tally.figures().max_of_range)


def test_the_text_names_the_divergence_and_the_worst_layers(tmp_path):
    report = verify_layers(planted("w8a8", bias_moved("lateral", 4), tmp_path), folder_of("w8a8"))
    text = report.text()
    assert "first divergence at lateral" in text
    assert "channel 4" in text
    assert report.worst()[0].module in text
    assert "first divergence" not in replace(report, first_divergence=None).text()
