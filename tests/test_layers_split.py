"""The split of 7x7 depthwise convolutions: equal numbers, module paths, and what a converted file makes of it."""

import copy
import functools
import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import save
from test_converters_tinynet import Nhwc, _root, save_program, smooth_pictures, tiny_contract
from torch import fx, nn

from edge_seg.artifact import write_bytes, write_manifest
from edge_seg.converters.convert import convert_many
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.layers.conv import ConvBnAct, SeparableConv
from edge_seg.layers.ops import Add
from edge_seg.layers.split import SplitDepthwise7x7, is_depthwise_7x7, split_7x7
from edge_seg.models.base import conv_macs, split_convolutions

SIDE = 24
SIZES_HW = [(1, 1), (1, 9), (2, 3), (3, 2), (5, 4), (6, 6), (7, 7), (8, 13), (32, 31)]


def depthwise(channels: int = 5, *, bias: bool = False) -> nn.Conv2d:
    torch.manual_seed(channels)
    return nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=bias)


def say_something(norm: nn.BatchNorm2d) -> None:
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.1, 3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)


@pytest.mark.parametrize("hw", SIZES_HW, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_the_three_parts_sum_to_the_7x7_convolution(hw, dtype, tolerance):
    """Truth: PyTorch's own 7x7 kernel in float64, also for maps smaller than the kernel."""
    conv = depthwise(bias=True).to(dtype)
    x = torch.randn(2, 5, *hw, dtype=dtype)
    truth = F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), 1, 3, 1, 5)
    got = split_7x7(conv)(x)
    assert got.dtype == dtype
    assert (got - truth).abs().max() <= tolerance * truth.abs().max()


def test_the_split_is_exact_in_whole_numbers():
    conv = depthwise(3)
    conv.weight.data = torch.randint(-9, 10, (3, 1, 7, 7)).float()
    x = torch.randint(-9, 10, (1, 3, 11, 8)).float()
    assert torch.equal(split_7x7(conv)(x), conv(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_batchnorm_is_folded_with_its_shift_once(dtype):
    """Truth: the two layers one after the other, in float64."""
    conv, norm = depthwise(bias=True), nn.BatchNorm2d(5, eps=1e-3)
    say_something(norm)
    x = torch.randn(2, 5, 9, 12, dtype=dtype)
    pair = nn.Sequential(conv, norm).eval()
    truth = copy.deepcopy(pair).double()(x.double())
    got = split_7x7(conv.to(dtype), norm.to(dtype))(x)
    assert (got - truth).abs().max() <= (1e-12 if dtype == torch.float64 else 1e-6) * truth.abs().max()


def test_each_of_the_49_taps_occurs_once():
    conv = depthwise(1)
    conv.weight.data = torch.arange(1.0, 50.0).reshape(1, 1, 7, 7)
    parts = split_7x7(conv)
    taps = torch.cat([c.weight.flatten() for c in (parts.even, parts.odd, parts.rim)])
    assert sorted(taps.tolist()) == list(range(1, 50))
    assert parts.even.bias.tolist() == [0.0]
    assert parts.odd.bias is None
    assert parts.rim.bias is None


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 7, padding=3),
        nn.Conv2d(4, 8, 7, padding=3, groups=4),
        nn.Conv2d(4, 4, 7, padding=3, groups=4, stride=2),
        nn.Conv2d(4, 4, 7, padding=6, groups=4, dilation=2),
        nn.Conv2d(4, 4, 7, groups=4),
        nn.Conv2d(4, 4, 5, padding=2, groups=4),
        nn.Conv2d(4, 4, 3, padding=6, groups=4, dilation=6),
        nn.Conv2d(4, 4, 7, padding=3, groups=4, padding_mode="circular"),
    ],
    ids=["dense", "multiplier 2", "stride", "dilation", "no padding", "5x5", "dilated 3x3", "circular"],
)
def test_every_other_convolution_stays_as_it_is(conv):
    assert not is_depthwise_7x7(conv)
    block = nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))
    before = list(block)
    assert list(split_convolutions(block)) == before


class Loose(nn.Module):
    """Not a sequence: the rewrite cannot know what runs after the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(5)
        self.conv = depthwise()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize(
    "make",
    [
        lambda: SeparableConv(5, 6, 7),
        lambda: nn.Sequential(depthwise(), nn.ReLU(), nn.BatchNorm2d(5)),
        lambda: nn.Sequential(depthwise(), nn.BatchNorm2d(5, affine=False)),
        lambda: nn.Sequential(depthwise(bias=True)),
        lambda: nn.ModuleDict({"a": nn.ModuleList([ConvBnAct(5, 5, 7, groups=5)])})["a"][0],
        Loose,
    ],
    ids=["norm after", "activation between", "norm without weight", "alone", "deep", "not a sequence"],
)
def test_a_rewritten_module_computes_the_same_and_can_be_traced(make):
    torch.manual_seed(1)
    module = make().eval()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d) and m.affine):
        say_something(norm)
    x = torch.randn(1, 5, 10, 10)
    with torch.no_grad():
        truth = copy.deepcopy(module).double()(x.double())
        split = split_convolutions(copy.deepcopy(module))
        assert (split(x) - truth).abs().max() <= 1e-6 * truth.abs().max()
        assert torch.equal(fx.symbolic_trace(split)(x), split(x))
    assert any(isinstance(m, SplitDepthwise7x7) for m in split.modules())
    assert not any(is_depthwise_7x7(m) for m in split.modules())


def test_the_folded_batchnorm_is_gone_and_the_other_paths_stay():
    pair = split_convolutions(SeparableConv(5, 6, 7).eval())
    assert [type(m).__name__ for m in pair.dw] == ["SplitDepthwise7x7", "Identity", "ReLU"]
    assert [type(m).__name__ for m in pair.pw] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert [n for n, m in pair.named_modules() if isinstance(m, Add)] == ["dw.conv.add_odd", "dw.conv.add_rim"]


def test_the_split_has_as_many_multiplications_as_the_whole():
    whole = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 7, padding=3, groups=8))
    counts = conv_macs(split_convolutions(copy.deepcopy(whole)), 20)
    assert sum(counts.values()) == sum(conv_macs(whole, 20).values()) == 400 * (24 + 8 * 49)
    assert {k: v // 3200 for k, v in counts.items() if v > 9600} == {"1.even": 21, "1.odd": 20, "1.rim": 8}


# ---- converted files ---------------------------------------------------------------------------------------------


def block(*, split: bool) -> nn.Module:
    """A 1x1 to eight channels, the light head's pair with 7x7, a 1x1."""
    torch.manual_seed(4)
    layers = {"stem": nn.Conv2d(3, 8, 1), "pair": SeparableConv(8, 8, 7), "last": nn.Conv2d(8, 4, 1)}
    module = nn.Sequential(OrderedDict(layers)).eval()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        say_something(norm)
    return split_convolutions(module) if split else module


@functools.cache
def split_folder():
    """An exported folder of the split block: one output [1, 24, 24, 4]."""
    folder = _root()[1] / "split"
    folder.mkdir()
    wrapped = Nhwc(block(split=True)).eval()
    save_program(wrapped, folder / "model.pt2", SIDE)
    document = tiny_contract().to_json()
    document["input"]["shape"] = [1, SIDE, SIDE, 3]
    document["outputs"] = [{**document["outputs"][0], "shape": [1, SIDE, SIDE, 4]}]
    document["decoder"]["constants"] = []
    (folder / "contract.json").write_text(json.dumps(document))
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
def split_files():
    made = convert_many(
        split_folder(), ["fp32", "w8a8"], out=_root()[1] / "split_out", calibration=smooth_pictures(4, 1, SIDE)
    )
    return {c.scheme: c.file for c in made}


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_the_converted_split_is_three_depthwise_convolutions_and_two_sums(scheme):
    """No PAD, SLICE, TRANSPOSE or SPACE_TO_BATCH: the dilations are attributes, the ReLU is in the last sum."""
    graph = read_graph(split_files()[scheme])
    assert graph.op_histogram == {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "ADD": 2}
    depthwise_ops = [op for op in graph.ops if op.name == "DEPTHWISE_CONV_2D"]
    found = {
        tuple(graph.tensors[op.inputs[1]].shape[1:3]): (
            op.options["dilation_h_factor"],
            op.options["dilation_w_factor"],
        )
        for op in depthwise_ops
    }
    assert found == {(7, 3): (1, 2), (5, 4): (1, 2), (2, 4): (6, 2)}
    assert {op.options["padding"] for op in depthwise_ops} == {"SAME"}
    activations = [op.options["fused_activation_function"] for op in graph.ops if op.name == "ADD"]
    assert sorted(activations) == ["NONE", "RELU"]


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_module_paths_of_the_parts_survive_conversion(scheme):
    graph = read_graph(split_files()[scheme])
    parts = {"pair.dw.conv.even", "pair.dw.conv.odd", "pair.dw.conv.rim", "pair.dw.conv.add_odd"}
    assert {graph.source(op) for op in graph.ops} >= parts


@pytest.mark.parametrize("scheme", ["fp32", "w8a8"])
def test_the_converted_split_runs_in_one_xnnpack_partition(scheme):
    told = TfliteRunner(split_files()[scheme]).xnnpack_partitions()
    assert (told.partitions, told.nodes_delegated, told.outside) == (1, told.nodes_total, ())


def test_the_converted_split_computes_the_7x7_convolution():
    picture = smooth_pictures(4, 1, SIDE)[0]  # one that the calibration saw
    with torch.no_grad():
        truth = block(split=False).double()(torch.from_numpy(picture)[None].permute(0, 3, 1, 2).double())
    truth = truth.permute(0, 2, 3, 1).numpy()
    for scheme, share in (("fp32", 1e-6), ("w8a8", 0.05)):
        got = TfliteRunner(split_files()[scheme])(picture)["semantic"]
        assert np.abs(got - truth).max() <= share * np.ptp(truth), scheme
