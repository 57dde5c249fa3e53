"""Every registered network: graph rules that keep it quantisable and exportable, from the registry."""

import copy
from collections import Counter

import pytest
import torch
from torch import fx, nn

from edge_seg.backbones.base import BACKBONES
from edge_seg.errors import ConfigError, InputError
from edge_seg.layers import aspp, conv, coordinates, ops
from edge_seg.layers.norm import PooledGroupNorm
from edge_seg.layers.split import SplitDepthwise7x7, is_depthwise_7x7
from edge_seg.models.base import MODELS, plain_convolutions

ELEMENTS = (
    PooledGroupNorm,
    ops.Add,
    ops.Concat,
    ops.GlobalMean,
    ops.Upsample,
    ops.ResizeLike,
    ops.Resize,
    ops.ConstantMap,
    coordinates.AppendCoordinates,
    ops.Normalize,
    conv.SameConv2d,
)
NAMES = MODELS.names()
MASKCONVER = [name for name in NAMES if name.startswith("maskconver")]
PUBLISHED = {"blendmask_rt_mnv2", "blendmask_rt_mnv2_gn_m7", "blendmask_base_mnv2", "solov2_light_mnv2"}
"""Layouts as their papers have them, for comparison and imported weights: not built for int8."""


class ElementTracer(fx.Tracer):
    """Stops at PyTorch's own layers and at the elementary operations; everything else is looked into."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ELEMENTS) or (type(m).__module__.startswith("torch.nn.modules") and not list(m.children()))


def small(name: str, **options) -> nn.Module:
    torch.manual_seed(3)
    return MODELS[name](num_classes=5, input_px=64, **options).eval()


@pytest.fixture(scope="module", params=NAMES)
def network(request):
    return small(request.param)


def traced(body: nn.Module) -> fx.Graph:
    return ElementTracer().trace(body)


def test_every_body_can_be_traced_and_the_trace_computes_the_same(network):
    module = fx.symbolic_trace(network.body)
    x = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        expected, got = network.body(x), module(x)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[k], got[k]) for k in expected)


@pytest.mark.parametrize("name", BACKBONES.names())
def test_every_backbone_can_be_traced(name):
    assert len(fx.symbolic_trace(BACKBONES[name]()).graph.nodes) > 20


def test_a_body_consists_of_modules_only(network):
    """No bare add, cat, slice, resize, mean or activation: quantisation would not see it."""
    bare = [n for n in traced(network.body).nodes if n.op in ("call_function", "call_method", "get_attr")]
    assert bare == []


def test_no_output_is_used_inside_and_no_output_is_the_input(network):
    graph = traced(network.body)
    (output,) = (n for n in graph.nodes if n.op == "output")
    nodes = list(output.args[0].values())
    assert len(nodes) == len(set(nodes))
    assert all(list(node.users) == [output] and node.op == "call_module" for node in nodes)


def test_a_module_is_called_once_or_once_for_every_level_of_a_pyramid(network):
    """Retraining copies what the levels share; anything else shared could not carry the ranges of two places."""
    counts = Counter(n.target for n in traced(network.body).nodes if n.op == "call_module")
    levels = len({o.level for o in network.export_graph().outputs if o.role in ("class_logit", "category")})
    assert set(counts.values()) <= {1, levels or 1}


@pytest.mark.parametrize("name", ["maskconver_mh_256", "maskconver_mnv2_256"])
def test_resizes_are_bilinear_with_half_pixel_centres_in_the_exported_graph(name):
    network = small(name, width=16)
    names = {o.name for o in network.export_graph().outputs}
    program = torch.export.export(network.export_graph().body, (torch.zeros(1, 3, 64, 64),))
    called = [n for n in program.graph.nodes if n.op == "call_function"]
    assert {type(n.target).__name__ for n in called} <= {"OpOverload"}
    ops_called = {str(n.target) for n in called}
    assert any("upsample_bilinear2d" in op for op in ops_called)
    for op in ops_called:
        assert not any(word in op for word in ("nearest", "bicubic", "slice", "select", "split", "topk", "pad."))
    resizes = [n for n in called if "upsample" in str(n.target)]
    assert all(n.args[2] is False for n in resizes)  # align_corners
    assert names == {"heatmap", "embedding", "mask_features"}
    shapes = [tuple(n.meta["val"].shape) for n in called if n.op == "call_function"]
    assert all(isinstance(side, int) for shape in shapes for side in shape)


@pytest.mark.parametrize("side_px", [32, 96, 160])
def test_any_multiple_of_32_works_and_the_stride_is_8(side_px):
    for name in MASKCONVER:
        net = MODELS[name](num_classes=3, input_px=side_px, width=16, head_kernel=3).eval()
        with torch.inference_mode():
            out = net.body(torch.zeros(2, 3, side_px, side_px))
        cells = side_px // 8
        assert {k: tuple(v.shape) for k, v in out.items()} == {
            "heatmap": (2, 3, cells, cells),
            "embedding": (2, 16, cells, cells),
            "mask_features": (2, 16, cells, cells),
        }


@pytest.mark.parametrize("side_px", [-32, 1, 31, 33, 250])
def test_other_sizes_are_refused_with_the_nearest_that_works(side_px):
    with pytest.raises(InputError, match="multiple of 32"):
        MODELS["maskconver_mnv2_256"](num_classes=3, input_px=side_px)


def test_a_batch_equals_its_pictures_one_by_one(network):
    x = torch.rand(3, 3, 64, 64) * 255
    with torch.inference_mode():
        together = network.body(x)
        alone = [network.body(x[n : n + 1]) for n in range(3)]
    for key, value in together.items():
        one_by_one = torch.cat([a[key] for a in alone])
        assert (value - one_by_one).abs().max() <= 2e-5 * one_by_one.abs().max(), key


def test_training_and_evaluation_differ_in_batchnorm_only(network):
    """No branch on `self.training`: with every BatchNorm in evaluation mode the two agree."""
    clone = copy.deepcopy(network).train()
    for norm in (m for m in clone.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.eval()
    x = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        a, b = clone.body(x), network.body(x)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_exported_body_is_a_copy_without_special_convolutions(network):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    graph = network.export_graph()
    assert not any(isinstance(m, conv.SameConv2d) for m in graph.body.modules())
    for parameter in graph.body.parameters():
        parameter.data.zero_()
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_the_exported_body_can_be_traced_and_consists_of_modules_only(network):
    """Quantisation-aware retraining starts from it, after the rewrites."""
    body = network.export_graph().body
    assert [n for n in traced(body).nodes if n.op in ("call_function", "call_method", "get_attr")] == []
    x = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        expected, got = body(x), fx.symbolic_trace(body)(x)
    assert all(torch.equal(expected[k], got[k]) for k in expected)


def count(module: nn.Module, kind) -> int:
    return sum(kind(m) for m in module.modules())


def test_the_7x7_convolutions_are_split_unless_asked_otherwise_and_compute_the_same(network):
    whole = network.export_graph(fold=False, split_7x7=False).body
    split = network.export_graph(fold=False).body
    heads = 6 if getattr(network.options, "head_kernel", 0) == 7 else 0
    assert count(whole, is_depthwise_7x7) == count(network.body, is_depthwise_7x7) == heads
    assert count(split, is_depthwise_7x7) == count(whole, lambda m: isinstance(m, SplitDepthwise7x7)) == 0
    assert count(split, lambda m: isinstance(m, SplitDepthwise7x7)) == heads
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64) * 255
    with torch.inference_mode():
        a, b = network.body.double()(x), split.double()(x)
    network.float()
    for key in a:  # the folded kernels are stored in float32
        assert (a[key] - b[key]).abs().max() <= 1e-6 * a[key].abs().max()


def test_plain_convolutions_change_no_number(network):
    x = torch.rand(2, 3, 64, 64) * 255
    plain = plain_convolutions(copy.deepcopy(network.body))
    with torch.inference_mode():
        a, b = network.body(x), plain(x)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-5)


def test_no_quantisation_hostile_layer_is_used(network):
    forbidden = [nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.SiLU, nn.LayerNorm, nn.Dropout]
    forbidden += [] if network.name in PUBLISHED else [nn.GroupNorm]
    assert not [m for m in network.body.modules() if isinstance(m, tuple(forbidden))]
    if network.family == "maskconver":
        context = network.options.aspp != "none"
        assert any(isinstance(m, aspp.Aspp) for m in network.body.modules()) is context


def test_a_miss_names_the_nearest_network_and_an_unknown_option_the_nearest_option():
    with pytest.raises(InputError, match="maskconver_mnv2_256"):
        MODELS["maskconver_mnv2_265"]
    with pytest.raises(ConfigError, match="head_kernel"):
        MODELS["maskconver_mnv2_256"](num_classes=2, head_kernal=5)
