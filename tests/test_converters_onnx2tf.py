"""A second route and a second interpreter: what they agree on with the first ones, and what is said when they differ.

What needs a side environment is skipped where `edge-seg doctor --setup` has not made it; `make test` never does.
"""

from __future__ import annotations

import functools
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_converters_tinynet import (
    CLASSES,
    SIDE,
    ZEROED_CHANNEL,
    Nhwc,
    _root,
    converted_files,
    exported_folder,
    save_program,
    smooth_pictures,
    tiny_contract,
)
from torch import nn

from edge_seg.artifact import read_manifest, write_bytes
from edge_seg.contract import Contract, OutputTensor
from edge_seg.converters import metadata, workers
from edge_seg.converters.compare_routes import compare_routes
from edge_seg.converters.convert import convert_many
from edge_seg.converters.environments import find_environment
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.routes import ROUTES
from edge_seg.converters.second_interpreter import SecondInterpreter
from edge_seg.converters.tensor_names import module_of
from edge_seg.converters.verify import verify
from edge_seg.errors import ArtifactError, EdgeSegError, InputError, MissingHere

AGREES = 1e-5  # of an output's range: what two correct float conversions may differ by


def _needs(name):
    try:
        find_environment(name)
    except EdgeSegError as error:
        pytest.skip(str(error).replace("\n", ";"))


@pytest.fixture(autouse=True)
def _side_environment(request):
    for name in ("onnx2tf", "tflite_runtime"):
        if request.node.get_closest_marker(name):
            _needs(name)


@functools.cache
def second_files():
    """The tiny network by the second route, converted once; read only."""
    made = convert_many(
        exported_folder(),
        ["fp32", "w8a8"],
        out=_root()[1] / "onnx2tf",
        route="onnx2tf",
        calibration=smooth_pictures(8, seed=1),
    )
    return {c.scheme: c for c in made}


@pytest.mark.onnx2tf
@pytest.mark.slow
def test_both_routes_compute_the_same_in_float():
    report = compare_routes(converted_files()["fp32"].file, second_files()["fp32"].file, smooth_pictures(4, seed=7))
    assert [o.name for o in report.outputs] == ["semantic", "features"]
    assert max(o.max_of_range for o in report.outputs) <= AGREES
    assert report.passed
    assert (report.a.route, report.b.route) == ("litert", "onnx2tf")
    assert report.a.sha256 != report.b.sha256


@pytest.mark.onnx2tf
@pytest.mark.slow
def test_the_second_route_agrees_with_pytorch():
    assert verify(second_files()["fp32"].file, exported_folder()).passed
    assert verify(second_files()["w8a8"].file, exported_folder()).passed


@pytest.mark.onnx2tf
@pytest.mark.slow
def test_the_second_route_writes_channels_last_without_a_transpose():
    made = second_files()["fp32"]
    assert made.transposes == 0
    assert made.ops["CONV_2D"] + made.ops["DEPTHWISE_CONV_2D"] == 7  # as many as the network has


@pytest.mark.onnx2tf
@pytest.mark.slow
def test_a_file_of_the_second_route_carries_contract_labels_and_constants():
    made = second_files()["fp32"]
    contract = metadata.read_contract(made.file)
    assert contract.model.route == "onnx2tf"
    assert contract == Contract.load(made.contract_path)
    assert metadata.read_constants(made.file)["embedding"].shape == (CLASSES, 8)
    signature = read_graph(made.file).signatures[0]
    assert (set(signature.inputs), set(signature.outputs)) == ({"image"}, {"semantic", "features"})
    assert "onnx2tf:" in read_manifest(made.file).config["route_tools"]


@pytest.mark.onnx2tf
@pytest.mark.slow
def test_no_tensor_of_the_second_route_is_taken_for_a_module():
    graph = read_graph(second_files()["fp32"].file)
    assert {module_of(t.name) for t in graph.tensors} == {""}


@pytest.mark.onnx2tf
@pytest.mark.slow
def test_int8_of_the_second_route_is_integers_throughout_on_the_input_grid_of_all_files():
    contract = Contract.load(second_files()["w8a8"].contract_path)
    assert (contract.input.quantization.scale, contract.input.quantization.zero_point) == (1.0, -128)
    graph = read_graph(second_files()["w8a8"].file)
    assert {t.dtype for t in graph.tensors} == {"int8", "int32"}


@pytest.mark.onnx2tf
@pytest.mark.slow
def test_both_routes_store_the_same_int8_weights():
    weights = []
    for made in (converted_files()["w8a8"], second_files()["w8a8"]):
        graph = read_graph(made.file)
        index = next(t.index for t in graph.tensors if t.constant and t.shape == (16, 4, 4, 3))
        weights.append((graph.constant(index).astype(int), np.array(graph.tensors[index].scale)))
    assert np.abs(weights[0][0] - weights[1][0]).max() <= 1  # a tie may be rounded either way
    live = np.arange(16) != ZEROED_CHANNEL  # the scale of a channel without weights is anybody's choice
    np.testing.assert_allclose(weights[0][1][live], weights[1][1][live], rtol=1e-6)


class Swapped(nn.Module):
    """Two outputs of one shape; the one that is listed first is computed last."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, image):
        first = torch.relu(self.one(self.stem(image / 255)))
        return self.two(first) - 5.0, first


@pytest.mark.onnx2tf
@pytest.mark.slow
def test_outputs_of_one_shape_keep_their_names_whatever_the_order_they_are_computed_in(tmp_path):
    torch.manual_seed(0)
    net = Nhwc(Swapped()).eval()
    save_program(net, tmp_path / "model.pt2", 4)  # height, width and channels are all 4: shapes tell nothing
    contract = tiny_contract()
    names = ("last one", "first/one")  # neither is a name that ONNX or TensorFlow would take
    contract = replace(
        contract,
        input=replace(contract.input, shape=(1, 4, 4, 3)),
        outputs=tuple(OutputTensor(n, "features", (1, 4, 4, 4), 1) for n in names),
    )
    write_bytes(tmp_path / "bare.tflite", ROUTES["onnx2tf"](tmp_path / "model.pt2", contract))
    graph = read_graph(tmp_path / "bare.tflite")
    picture = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype(np.float32)
    with torch.inference_mode():
        wanted = dict(zip(names, (o.numpy() for o in net(torch.from_numpy(picture))), strict=True))
    found = _run_bare(tmp_path / "bare.tflite", picture, graph.signatures[0].outputs)
    for name in names:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


def _run_bare(file, picture, outputs):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], picture)
    interpreter.invoke()
    return {name: interpreter.get_tensor(index) for name, index in outputs.items()}


@pytest.mark.onnx2tf
def test_a_network_trained_quantisation_aware_is_refused_by_the_second_route(tmp_path):
    import torch.ao.quantization.fx._decomposed

    class Grid(nn.Module):
        def forward(self, x):
            ops, grid = torch.ops.quantized_decomposed, (1.0, -128, -128, 127, torch.int8)
            return ops.dequantize_per_tensor.default(ops.quantize_per_tensor.default(x, *grid), *grid)

    save_program(Nhwc(Grid()).eval(), tmp_path / "model.pt2")
    with pytest.raises(InputError, match="drops silently"):
        ROUTES["onnx2tf"](tmp_path / "model.pt2", tiny_contract())


@pytest.mark.onnx2tf
def test_a_contract_of_another_network_is_refused_by_the_second_route(tmp_path):
    save_program(Nhwc(nn.Conv2d(3, 4, 1)).eval(), tmp_path / "model.pt2", 8)
    contract = tiny_contract()
    contract = replace(
        contract,
        input=replace(contract.input, shape=(1, 8, 8, 3)),
        outputs=(OutputTensor("only", "features", (1, 8, 8, 5), 1),),
    )
    with pytest.raises(ArtifactError, match="does not fit the contract"):
        ROUTES["onnx2tf"](tmp_path / "model.pt2", contract)


@pytest.mark.onnx2tf
def test_an_operation_that_the_second_route_cannot_convert_is_an_input_error(tmp_path):
    class Median(nn.Module):
        def forward(self, x):
            return x - x.median()

    save_program(Nhwc(Median()).eval(), tmp_path / "model.pt2")
    with pytest.raises(InputError, match=r"cannot (export|convert) 'tiny'"):
        ROUTES["onnx2tf"](tmp_path / "model.pt2", tiny_contract())


def test_without_its_environment_the_second_route_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_SEG_ENVS", str(tmp_path))
    with pytest.raises(MissingHere, match="edge-seg doctor --setup onnx2tf"):
        convert_many(exported_folder(), ["fp32"], out=tmp_path / "out", route="onnx2tf")
    assert not (tmp_path / "out").exists()


def test_without_its_environment_the_second_interpreter_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_SEG_ENVS", str(tmp_path))
    with pytest.raises(MissingHere, match="edge-seg doctor --setup tflite_runtime"):
        SecondInterpreter(converted_files()["fp32"].file)


@pytest.mark.tflite_runtime
@pytest.mark.parametrize(("scheme", "of_range"), [("fp32", AGREES), ("fp16", AGREES)])
def test_both_interpreters_compute_the_same_in_float(scheme, of_range):
    file = converted_files()[scheme].file
    report = compare_routes(file, file, smooth_pictures(3, seed=5), second_interpreter=True)
    assert max(o.max_of_range for o in report.outputs) <= of_range
    assert (report.a.runtime["name"], report.b.runtime["name"]) == ("ai-edge-litert", "tflite-runtime")


@pytest.mark.tflite_runtime
def test_both_interpreters_differ_by_few_steps_in_int8():
    file = converted_files()["w8a8"].file
    report = compare_routes(file, file, smooth_pictures(3, seed=5), second_interpreter=True)
    assert report.passed
    assert max(o.max_lsb for o in report.outputs) <= 4
    assert min(o.within_1_lsb for o in report.outputs) >= 0.95


@pytest.mark.tflite_runtime
def test_the_second_interpreter_returns_one_row_per_picture_in_order():
    pictures = smooth_pictures(3, seed=5)
    second = SecondInterpreter(converted_files()["fp32"].file)
    together = second.outputs(pictures)
    assert together["semantic"].shape == (3, SIDE // 2, SIDE // 2, CLASSES)
    first = TfliteRunner(converted_files()["fp32"].file)(pictures[1])["semantic"]
    np.testing.assert_allclose(together["semantic"][1:2], first, atol=1e-5 * np.ptp(first))
    assert np.abs(together["semantic"][0] - together["semantic"][1]).max() > 0.01


@pytest.mark.tflite_runtime
@pytest.mark.parametrize("pictures", [[], [np.zeros((SIDE, SIDE + 1, 3), np.uint8)]])
def test_the_second_interpreter_refuses_what_it_cannot_run_on(pictures):
    with pytest.raises(InputError):
        SecondInterpreter(converted_files()["fp32"].file).raw_outputs(pictures)


def test_a_file_agrees_with_itself_exactly():
    file = converted_files()["w8a8"].file
    report = compare_routes(file, file, smooth_pictures(2))
    assert report.passed
    assert [(o.exact, o.within_1_lsb, o.max_lsb, o.max_abs) for o in report.outputs] == [(1.0, 1.0, 0, 0.0)] * 2
    assert report.ops_differing == {}
    assert json.loads(json.dumps(report.to_json()))["outputs"][0]["snr_db"] is None


def test_the_figures_are_those_of_a_straightforward_computation():
    files = [converted_files()[s].file for s in ("fp32", "w8a8")]
    pictures = smooth_pictures(3, seed=9)
    a, b = (np.stack([TfliteRunner(f)(p)["semantic"] for p in pictures]).astype(float) for f in files)
    found = compare_routes(*files, pictures).outputs[0]
    assert found.max_of_range == pytest.approx(np.abs(a - b).max() / (a.max() - a.min()), rel=1e-4)
    assert found.snr_db == pytest.approx(10 * math.log10((a**2).mean() / ((a - b) ** 2).mean()), abs=1e-3)
    assert (found.exact, found.grid_a) == (None, None)
    assert found.grid_b is not None


def test_the_coarser_scheme_decides_what_two_files_may_differ_by():
    fp32, w8a8 = (converted_files()[s].file for s in ("fp32", "w8a8"))
    assert compare_routes(fp32, w8a8).tolerance == compare_routes(w8a8, fp32).tolerance
    assert compare_routes(fp32, w8a8).tolerance == compare_routes(w8a8, w8a8).tolerance
    assert compare_routes(fp32, w8a8).passed


def test_operators_that_only_one_file_has_are_listed():
    report = compare_routes(converted_files()["fp32"].file, converted_files()["fp16"].file)
    assert report.ops_differing["DEQUANTIZE"][0] == 0
    assert report.ops_differing["DEQUANTIZE"][1] > 0
    assert "DEQUANTIZE: 0 against" in report.text()


def test_one_weight_of_another_sign_is_seen(tmp_path):
    source, file = converted_files()["fp32"].file, tmp_path / "changed.tflite"
    _with_one_sign_changed(source, file)
    report = compare_routes(source, file)
    assert not report.passed
    assert "FAIL" in report.text()


def _with_one_sign_changed(source, target):
    """Copies a file; in the copy the largest number of the biggest weight has the other sign."""
    data = bytearray(source.read_bytes())
    graph = read_graph(source)
    index = max((t for t in graph.tensors if t.constant and t.dtype == "float32"), key=lambda t: np.prod(t.shape)).index
    weights = graph.constant(index)
    place = bytes(data).find(weights.tobytes())
    largest = int(np.abs(weights).argmax())
    data[place + 4 * largest + 3] ^= 0x80
    target.write_bytes(bytes(data))


def test_files_of_different_networks_are_not_compared(tmp_path):
    source = converted_files()["fp32"].file
    contract = metadata.read_contract(source)
    other = replace(contract, model=replace(contract.model, parents={"exported_sha256": "0" * 64}))
    file = tmp_path / "other.tflite"
    order = [o.name for o in contract.outputs]
    constants = metadata.read_member(source, metadata.CONSTANTS)
    write_bytes(file, metadata.embed(source.read_bytes(), other, constants=constants, outputs=order))
    with pytest.raises(ArtifactError, match="not made from the same exported network"):
        compare_routes(source, file)


def test_verify_compares_two_files_from_the_command_line(edge_seg, tmp_path):
    a, b = (converted_files()[s].file for s in ("fp32", "fp16"))
    done = edge_seg("verify", a, "--against", b, "--json")
    assert done.code == 0
    assert [done.json()[side]["scheme"] for side in "ab"] == ["fp32", "fp16"]
    changed = tmp_path / "changed.tflite"
    _with_one_sign_changed(a, changed)
    assert edge_seg("verify", a, "--against", changed).code == 1


def test_a_second_interpreter_needs_a_file_to_run(edge_seg):
    done = edge_seg("verify", converted_files()["fp32"].file, "--against", exported_folder(), "--second-interpreter")
    assert done.code == 2
    assert "--against FILE" in done.err


def test_the_scripts_of_side_environments_need_nothing_of_ours_to_be_read():
    scripts = sorted(Path(workers.__file__).parent.glob("*_worker.py"))
    assert len(scripts) == 3
    for script in scripts:
        done = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True, check=False)
        assert "missing" in done.stderr  # an argument is missing, and no module
        assert "ModuleNotFoundError" not in done.stderr
