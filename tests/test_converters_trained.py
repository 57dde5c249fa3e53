"""A network trained quantisation-aware: its scales, zero points and integers must arrive as they were trained."""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from test_converters_tinynet import Nhwc, _root, exported_folder, save_program, smooth_pictures, tiny_contract
from torch import nn

from edge_seg.artifact import write_bytes, write_manifest
from edge_seg.contract import Contract
from edge_seg.converters.convert import SCHEMES, convert
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.verify import verify
from edge_seg.errors import InputError

SIDE = 32
OPS = torch.ops.quantized_decomposed


class Grid(nn.Module):
    """Puts a map on an int8 grid and back."""

    def __init__(self, scale, zero_point):
        super().__init__()
        self.grid = (scale, zero_point, -128, 127, torch.int8)

    def forward(self, x):
        return OPS.dequantize_per_tensor.default(OPS.quantize_per_tensor.default(x, *self.grid), *self.grid)


class GridConv(nn.Module):
    """A convolution with weights on an int8 grid of its own choice per channel."""

    def __init__(self, conv, out, *, relu):
        super().__init__()
        self.conv, self.out, self.relu = conv, out, relu
        largest = conv.weight.detach().abs().amax((1, 2, 3))
        self.register_buffer("scale", 0.83 * largest.clamp_min(1e-6) / 127)  # not min/max: as if learned
        self.register_buffer("zero", torch.zeros(len(largest), dtype=torch.int64))

    def integers(self):
        return OPS.quantize_per_channel.default(self.conv.weight, self.scale, self.zero, 0, -127, 127, torch.int8)

    def forward(self, x):
        weight = OPS.dequantize_per_channel.default(self.integers(), self.scale, self.zero, 0, -127, 127, torch.int8)
        conv = self.conv
        y = nn.functional.conv2d(x, weight, conv.bias, conv.stride, conv.padding, 1, conv.groups)
        return self.out(torch.relu(y) if self.relu else y)


class TrainedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.input = Grid(1.0, -128)
        norm = nn.Conv2d(3, 3, 1, groups=3)
        nn.init.constant_(norm.weight, 1 / 127.5)
        nn.init.constant_(norm.bias, -1.0)
        self.normalise = GridConv(norm, Grid(1 / 127.5, 0), relu=False)
        self.normalise.scale.fill_(1 / 127.5 / 127)
        self.stem = GridConv(nn.Conv2d(3, 8, 4, 2, 1), Grid(0.011, -128), relu=True)
        self.head = GridConv(nn.Conv2d(8, 5, 3, padding=1), Grid(0.017, 3), relu=False)

    def forward(self, image):
        return self.head(self.stem(self.normalise(self.input(image))))


@functools.cache
def net():
    torch.manual_seed(3)
    return TrainedNet().eval()


@functools.cache
def trained_folder():
    folder = _root()[1] / "trained"
    folder.mkdir()
    wrapped = Nhwc(net()).eval()
    save_program(wrapped, folder / "model.pt2", SIDE)
    document = tiny_contract().to_json()
    document["model"]["name"] = "trained"
    document["input"]["shape"] = [1, SIDE, SIDE, 3]
    document["outputs"] = [{**document["outputs"][0], "shape": [1, SIDE // 2, SIDE // 2, 5]}]
    document["decoder"]["constants"] = []
    (folder / "contract.json").write_text(json.dumps(document))
    from safetensors.numpy import save

    write_bytes(folder / "decoder.safetensors", save({}))
    inputs = smooth_pictures(2, side=SIDE)
    with torch.no_grad():
        (semantic,) = wrapped(torch.from_numpy(inputs).float())
    arrays = {"semantic": semantic.numpy(), "float32_error_of_range": np.full(1, 1e-7)}
    np.savez(folder / "reference.npz", inputs_nhwc_u8=inputs, **arrays)
    for name in ("model.pt2", "contract.json", "decoder.safetensors", "reference.npz"):
        write_manifest(folder / name, kind="exported", step="export", config={})
    return folder


@functools.cache
def trained_file():
    return convert(trained_folder(), scheme="qat_w8a8", out=_root()[1] / "trained_out")


def test_a_trained_network_becomes_integers_from_input_to_output():
    made = trained_file()
    assert made.file.name == "trained_qat_w8a8.tflite"
    assert made.ops == {"CONV_2D": 2, "DEPTHWISE_CONV_2D": 1}
    contract = Contract.load(made.contract_path)
    assert contract.model.scheme == "qat_w8a8"
    grid = contract.input.quantization
    assert (contract.input.dtype, grid.scale, grid.zero_point) == ("int8", 1.0, -128)


@pytest.mark.parametrize("name", ["stem", "head"])
def test_scales_zero_points_and_weights_arrive_as_trained(name):
    graph = read_graph(trained_file().file)
    op = next(o for o in graph.ops if graph.source(o).split(".")[0] == name)
    module = getattr(net(), name)
    weights, output = graph.tensors[op.inputs[1]], graph.tensors[op.outputs[0]]
    np.testing.assert_allclose(weights.scale, module.scale.numpy(), rtol=1e-6)
    assert output.scale[0] == pytest.approx(module.out.grid[0], rel=1e-6)
    assert output.zero_point[0] == module.out.grid[1]
    wanted = module.integers().numpy().transpose(0, 2, 3, 1)
    assert np.array_equal(graph.constant(op.inputs[1]), wanted)


def test_the_file_stays_within_one_step_of_the_trained_network():
    report = verify(trained_file().file, trained_folder())
    assert report.passed
    (output,) = report.outputs
    assert output.within_1_lsb == 1.0
    assert output.exact > 0.9


def test_it_runs_in_one_xnnpack_partition():
    told = TfliteRunner(trained_file().file).xnnpack_partitions()
    assert (told.partitions, told.outside) == (1, ())


@pytest.mark.parametrize("scheme", SCHEMES[:2])
def test_a_trained_network_is_not_converted_to_a_float_scheme(tmp_path, monkeypatch, scheme):
    from edge_seg.converters.routes import ROUTES

    monkeypatch.setitem(ROUTES._entries, "litert", lambda *args: trained_file().file.read_bytes())
    with pytest.raises(InputError, match="--scheme qat_w8a8"):
        convert(trained_folder(), scheme=scheme, out=tmp_path / "out")


def test_a_float_network_is_not_converted_to_the_trained_scheme(tmp_path, monkeypatch):
    from test_converters_tinynet import converted_files

    from edge_seg.converters.routes import ROUTES

    data = converted_files()["fp32"].file.read_bytes()
    monkeypatch.setitem(ROUTES._entries, "litert", lambda *args: data)
    with pytest.raises(InputError, match="not trained quantisation-aware"):
        convert(exported_folder(), scheme="qat_w8a8", out=tmp_path / "out")
