"""Networks with random trained grids, exported as quantisation-aware training leaves them; the mirror's tests share it.

The grids are not those of the maps' ranges, on purpose: scales that look learned, odd zero points, a range that clips.
"""

from __future__ import annotations

import functools
import json

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed
from test_converters_tinynet import Nhwc, _root, save_program, smooth_pictures, tiny_contract
from torch import nn

from edge_seg.artifact import write_bytes, write_manifest
from edge_seg.converters.convert import convert
from edge_seg.converters.exported import open_exported
from edge_seg.layers.ops import Add, Concat, ConstantMap, GlobalMean, ResizeLike, Upsample
from edge_seg.layers.split import SplitDepthwise7x7

SIDE = 32
OPS = torch.ops.quantized_decomposed


class OnGrid(nn.Module):
    """Puts a map on a grid and back, in operations a converter knows."""

    def __init__(self, scale, zero_point):
        super().__init__()
        self.grid = (float(np.float32(scale)), zero_point, -128, 127, torch.int8)

    def forward(self, x):
        return OPS.dequantize_per_tensor.default(OPS.quantize_per_tensor.default(x, *self.grid), *self.grid)


class Then(nn.Module):
    """An elementary operation and the grid of its result."""

    def __init__(self, op, grid):
        super().__init__()
        self.op, self.grid = op, grid

    def forward(self, *inputs):
        return self.grid(self.op(*inputs))


class GridConv(nn.Module):
    """A convolution with weights and bias on their grids, an activation, and the grid of its result."""

    def __init__(self, conv, scale_in, grid, act=None):
        super().__init__()
        self.conv, self.grid, self.act = conv, grid, act or nn.Identity()
        with torch.no_grad():
            largest = conv.weight.abs().amax((1, 2, 3))
            scale = (largest * (0.8 + 0.2 * torch.rand(len(largest))) / 127).clamp_min(1e-6)  # some weights clip
            self.register_buffer("scale", scale)
            self.register_buffer("zero", torch.zeros(len(largest), dtype=torch.int64))
            if conv.bias is not None:
                step = scale * scale_in
                conv.bias.copy_(torch.round((torch.rand(len(largest)) - 0.4) / step) * step)

    def forward(self, x):
        limits = (self.scale, self.zero, 0, -127, 127, torch.int8)
        integers = OPS.quantize_per_channel.default(self.conv.weight, *limits)
        weight, conv = OPS.dequantize_per_channel.default(integers, *limits), self.conv
        y = nn.functional.conv2d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        return self.grid(self.act(y))


class GridSplit(nn.Module):
    """The split form of a 7x7 depthwise convolution with a grid behind each part and each sum."""

    def __init__(self, channels, scale_in):
        super().__init__()
        split = SplitDepthwise7x7(torch.randn(channels, 1, 7, 7) * 0.2, torch.randn(channels) * 0.1)
        self.even = GridConv(split.even, scale_in, OnGrid(0.021, -4))
        self.odd = GridConv(split.odd, scale_in, OnGrid(0.013, 11))
        self.rim = GridConv(split.rim, scale_in, OnGrid(0.017, -3))
        self.add_odd = Then(Add(), OnGrid(0.024, 5))
        self.add_rim = Then(Add(), OnGrid(0.029, -7))

    def forward(self, x):
        return self.add_rim(self.add_odd(self.even(x), self.odd(x)), self.rim(x))


class Everything(nn.Module):
    """Every operation that a body of ours has, once at least: see the names."""

    def __init__(self):
        super().__init__()
        relu, relu6 = nn.ReLU, nn.ReLU6
        self.input = OnGrid(1.0, -128)
        norm = nn.Conv2d(3, 3, 1, groups=3)
        nn.init.constant_(norm.weight, 1 / 127.5)
        self.normalise = GridConv(norm, 1.0, OnGrid(1 / 127.5, 0))
        self.normalise.scale.fill_(1 / 127.5 / 127)
        norm.bias.data.copy_(torch.round(-1.0 / self.normalise.scale) * self.normalise.scale)
        self.stem = GridConv(nn.Conv2d(3, 16, 4, 2, 1, bias=True), 1 / 127.5, OnGrid(0.0117, -128), relu())
        self.depthwise = GridConv(nn.Conv2d(16, 16, 3, 1, 1, groups=16), 0.0117, OnGrid(0.0053, -128), relu6())
        self.wide = GridConv(nn.Conv2d(16, 16, 5, 2, 2, groups=16), 0.0053, OnGrid(0.0061, -101), relu6())
        self.point = GridConv(nn.Conv2d(16, 24, 1), 0.0061, OnGrid(0.0103, 9))
        self.dilated = GridConv(nn.Conv2d(24, 24, 3, 1, 2, 2), 0.0103, OnGrid(0.0087, -33))
        self.grouped = GridConv(nn.Conv2d(24, 24, 3, 1, 1, groups=3), 0.0087, OnGrid(0.0079, 17), relu())
        self.add = Then(Add(), OnGrid(0.0149, -21))
        self.split = GridSplit(24, 0.0161)
        shared = (0.0311, -12)
        self.deep = GridConv(nn.Conv2d(24, 32, 4, 2, 1), 0.029, OnGrid(*shared), relu())
        self.mean = Then(GlobalMean(), OnGrid(0.0133, -40))
        self.pooled = GridConv(nn.Conv2d(32, 8, 1), 0.0133, OnGrid(*shared), relu())
        self.spread = Then(ResizeLike(), OnGrid(*shared))
        self.skip = GridConv(nn.Conv2d(32, 12, 1, bias=False), shared[0], OnGrid(*shared))
        self.concat = Then(Concat(), OnGrid(*shared))
        self.up = Then(Upsample(2), OnGrid(*shared))
        self.logits = GridConv(nn.Conv2d(52, 5, 3, padding=1), shared[0], OnGrid(0.019, 23))
        self.features = GridConv(nn.Conv2d(32, 8, 1), shared[0], OnGrid(0.016, -128), relu())
        self.here = Then(ConstantMap(torch.randn(1, 24, SIDE // 4, SIDE // 4) * 0.4), OnGrid(0.0091, 6))
        self.place = Then(Add(), OnGrid(0.0161, -17))

    def forward(self, image):
        x = self.wide(self.depthwise(self.stem(self.normalise(self.input(image)))))
        x = self.dilated(self.point(x))
        x = self.split(self.place(self.add(x, self.grouped(x)), self.here()))
        deep = self.deep(x)
        pooled = self.spread(self.pooled(self.mean(deep)), deep)
        joined = self.concat(deep, self.skip(deep), pooled)
        return self.logits(self.up(joined)), self.features(deep)


def export_folder(net, folder, *, side=SIDE):
    """Writes an exported folder of a trained network; its outputs get the tiny contract's names."""
    folder.mkdir()
    wrapped = Nhwc(net).eval()
    save_program(wrapped, folder / "model.pt2", side)
    inputs = smooth_pictures(2, side=side)
    with torch.no_grad():
        outputs = [o.numpy() for o in wrapped(torch.from_numpy(inputs).float())]
    document = tiny_contract().to_json()
    document["input"]["shape"] = [1, side, side, 3]
    given = [{**document["outputs"][i], "shape": [1, *o.shape[1:]]} for i, o in enumerate(outputs)]
    document["outputs"], document["decoder"]["constants"] = given, []
    (folder / "contract.json").write_text(json.dumps(document))
    from safetensors.numpy import save

    write_bytes(folder / "decoder.safetensors", save({}))
    arrays = {o["name"]: outputs[i] for i, o in enumerate(given)}
    np.savez(folder / "reference.npz", inputs_nhwc_u8=inputs, float32_error_of_range=np.zeros(len(given)), **arrays)
    for name in ("model.pt2", "contract.json", "decoder.safetensors", "reference.npz"):
        write_manifest(folder / name, kind="exported", step="export", config={})
    return folder


@functools.cache
def everything_folder():
    """The exported folder of `Everything`, made once for the whole test run."""
    torch.manual_seed(5)
    return export_folder(Everything(), _root()[1] / "everything")


@functools.cache
def everything_exported():
    """What `open_exported` says about it."""
    return open_exported(everything_folder())


@functools.cache
def everything_file():
    """Its file, converted once for the whole test run; read only."""
    return convert(everything_folder(), scheme="qat_w8a8", out=_root()[1] / "everything_out").file
