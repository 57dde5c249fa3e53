"""SOLOv2: published sizes and costs, the maps behind the grids, exact foldings, integer grids."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from edge_seg.contract import ClassInfo
from edge_seg.errors import ConfigError, InputError
from edge_seg.evaluation.predictor import Predictor
from edge_seg.layers.coordinates import AppendCoordinates
from edge_seg.layers.ops import Concat, ConstantMap
from edge_seg.models.base import MODELS, conv_macs
from edge_seg.models.solov2 import PUBLISHED_GRIDS, STRIDES_PX, Grids, grid_sides
from edge_seg.models.torch_runner import TorchRunner, make_contract
from edge_seg.quantization.grids import ActivationGrid, RangeOptions, update_ranges
from edge_seg.quantization.integers import ExportGrid, integer_form
from edge_seg.quantization.prepare import prepare
from edge_seg.training.distributed import World

MOBILE = [n for n in MODELS.names() if n.startswith("solov2_mobile")]
CLASSES = tuple(ClassInfo(i + 1, f"c{i}", True, (i, i, i)) for i in range(5))
NAMES = [f"{role}_{level}" for role in ("category", "kernel") for level in range(5)] + ["mask_features"]


def on_meta(name, **options):
    with torch.device("meta"):
        return MODELS[name](80, **options)


def params(net):
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("p6", "count"), [("conv", 9_372_112), ("max_pool", 8_782_032)])
def test_the_light_network_has_the_published_number_of_parameters(p6, count):
    assert params(on_meta("solov2_light_mnv2", p6=p6)) == count


def test_the_light_network_has_the_published_cost():
    """28.2 GMAC at 448 pixels, counted layer by layer for the published heads over MobileNetV2."""
    net = on_meta("solov2_light_mnv2")
    assert net.input_px == 448
    assert net.sides == PUBLISHED_GRIDS
    assert sum(conv_macs(net.body, 448).values()) == pytest.approx(28.2e9, rel=0.005)


@pytest.mark.parametrize(("px", "gmac"), [(256, 0.72), (320, 1.00), (512, 2.23)])
def test_the_mobile_network_has_the_cost_it_was_designed_for(px, gmac):
    net = on_meta(f"solov2_mobile_{px}", grids="official")
    assert sum(conv_macs(net.body, px).values()) == pytest.approx(gmac * 1e9, rel=0.03)


def test_the_mobile_network_has_the_number_of_parameters_counted_by_hand():
    def pair(a, b, levels=1):  # depthwise and 1x1, each with a BatchNorm for each level
        return 9 * a + 2 * levels * a + a * b + 2 * levels * b

    backbone = 3_504_872 - 1_281_000 - 1280 * 322  # published, less classifier and last convolution
    fpn = (24 + 32 + 96 + 320) * 96 + 4 * 2 * 96 + 4 * pair(96, 96)
    category = 2 * pair(96, 96, 5) + 97 * 80
    kernel = pair(98, 96, 5) + pair(96, 96, 5) + 97 * 64
    mask = 3 * pair(96, 64) + pair(98, 64) + 3 * pair(64, 64) + 64 * 64 + 2 * 64
    assert params(on_meta("solov2_mobile_320")) == backbone + fpn + category + kernel + mask


@pytest.mark.parametrize(
    ("px", "sides"),
    [(256, (32, 28, 20, 13, 9)), (320, (40, 36, 24, 16, 11)), (448, PUBLISHED_GRIDS), (512, PUBLISHED_GRIDS)],
)
def test_grids_follow_the_input_up_to_the_published_ones(px, sides):
    assert grid_sides(px, "scaled") == sides
    assert grid_sides(px, "official") == PUBLISHED_GRIDS


def small(name="solov2_mobile_256", px=64, **options):
    """A network whose BatchNorms have statistics of their own."""
    torch.manual_seed(2)
    narrow = {"width": 64, "kernel_channels": 32, "mask_width": 32} if "light" in name else {}
    net = MODELS[name](len(CLASSES), px, **{**narrow, **options})
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.mark.parametrize("px", [32, 96, 160])
@pytest.mark.parametrize("name", ["solov2_mobile_256", "solov2_light_mnv2"])
def test_outputs_have_the_size_of_their_grids(name, px):
    net = small(name, px)
    with torch.inference_mode():
        raw = net.body(torch.zeros(2, 3, px, px))
    assert list(raw) == NAMES
    kernel = net.options.kernel_channels
    for level, side in enumerate(net.sides):
        assert raw[f"category_{level}"].shape == (2, 5, side, side)
        assert raw[f"kernel_{level}"].shape == (2, kernel, side, side)
    assert raw["mask_features"].shape == (2, kernel, px // 4, px // 4)
    assert raw["mask_features"].min() >= 0


def bilinear(x, side):
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("p6", ["half", "conv"])
def test_levels_reach_their_grids_as_published(p6):
    """Level 2 halved, level 6 enlarged to level 5's size, then each to its grid; ours halves level 5 for level 6."""
    sides = (30, 20, 9, 6, 3)
    sizes = (64, 32, 16, 8) + ((4,) if p6 == "conv" else ())
    pyramid = [torch.rand(1, 2, s, s) for s in sizes]
    maps = Grids(256, sides, p6)(pyramid)
    last = bilinear(pyramid[4], 8) if p6 == "conv" else bilinear(pyramid[3], 4)
    wanted = [F.avg_pool2d(pyramid[0], 2), *pyramid[1:4], last]
    for found, source, side in zip(maps, wanted, sides, strict=True):
        torch.testing.assert_close(found, bilinear(source, side))


@pytest.mark.parametrize("px", [64, 160])
@pytest.mark.parametrize("name", ["solov2_mobile_256", "solov2_light_mnv2"])
def test_the_folded_graph_and_its_constants_are_the_network(name, px):
    """Coordinates as constant maps, and the kernel branch's last convolution at any cell, zero padding included."""
    net = small(name, px).double()
    image = torch.rand(1, 3, px, px, dtype=torch.float64) * 255
    graph = net.export_graph()
    weight, bias = (torch.from_numpy(graph.constants[f"kernel.{n}"]).double() for n in ("weight", "bias"))
    with torch.inference_mode():
        wanted, found = net.body(image), dict(graph.body.double()(image))
    for level in range(5):
        found[f"kernel_{level}"] = F.conv2d(found[f"kernel_{level}"], weight, bias, padding=weight.shape[-1] // 2)
    for key, values in wanted.items():  # constants and 4x4 kernels are stored in float32
        assert (values - found[key]).abs().max() <= 2e-6 * values.abs().max(), key


def test_the_folded_graph_has_no_concatenation_and_no_coordinates():
    net = small()
    kinds = [type(m) for m in net.export_graph().body.modules()]
    assert AppendCoordinates not in kinds
    assert Concat not in kinds
    assert kinds.count(ConstantMap) == 6 + 1  # of the grids and the mask branch, and the mean of the picture
    assert [type(m) for m in net.export_graph(fold=False).body.modules()].count(AppendCoordinates) == 6


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("name", ["solov2_mobile_256", "solov2_light_mnv2"])
def test_no_output_is_used_inside_the_graph(name, fold):
    body = small(name).export_graph(fold=fold).body
    traced = fx.symbolic_trace(body)
    (output,) = (n for n in traced.graph.nodes if n.op == "output")
    nodes = list(output.args[0].values())
    assert len(set(nodes)) == 11
    assert all(list(n.users) == [output] for n in nodes)
    image = torch.rand(1, 3, 64, 64) * 255
    with torch.inference_mode():
        assert all(torch.equal(v, traced(image)[k]) for k, v in body(image).items())


def test_a_batch_equals_its_pictures_one_by_one():
    net, images = small(), torch.rand(3, 3, 64, 64) * 255
    with torch.inference_mode():
        together, alone = net.body(images), [net.body(images[n : n + 1]) for n in range(3)]
    for key, value in together.items():
        torch.testing.assert_close(value, torch.cat([a[key] for a in alone]), rtol=1e-3, atol=1e-4)


def test_levels_share_weights_and_have_norms_of_their_own():
    net = small()
    modules = dict(net.body.named_modules())
    convs = [n for n, m in modules.items() if n.startswith("category.") and isinstance(m, nn.Conv2d)]
    norms = [n for n, m in modules.items() if n.startswith("category.") and isinstance(m, nn.BatchNorm2d)]
    assert len(convs) == 5  # two pairs and the prediction
    assert len(norms) == 5 * 4
    before = net.body(torch.full((1, 3, 64, 64), 90.0))
    nn.init.constant_(modules["category.convs.1.mix.norms.2"].bias, 3.0)
    after = net.body(torch.full((1, 3, 64, 64), 90.0))
    changed = [k for k in NAMES if not torch.equal(before[k], after[k])]
    assert changed == ["category_2"]


def test_the_contract_tells_strides_levels_and_activations():
    net = small()
    contract = make_contract(net, net.export_graph(), CLASSES, {"pre_nms_top_k": 7})
    outputs = {o.name: o for o in contract.outputs}
    assert [outputs[f"kernel_{n}"].stride_px for n in range(5)] == list(STRIDES_PX)
    assert [outputs[f"category_{n}"].level for n in range(5)] == [0, 1, 2, 3, 4]
    assert (outputs["kernel_0"].activation, outputs["category_0"].activation) == ("relu", "logit")
    assert outputs["mask_features"].stride_px == 4
    constants = {c.name: c.shape for c in contract.decoder.constants}
    assert constants == {"kernel.weight": (64, 96, 1, 1), "kernel.bias": (64,)}
    assert contract.decoder.params["pre_nms_top_k"] == 7
    assert contract.decoder.params["nms_sigma"] == 2.0
    assert net.decoder_params({})["pre_nms_top_k"] == 100
    assert on_meta("solov2_light_mnv2").decoder_params({})["pre_nms_top_k"] == 500


def test_decoded_objects_are_the_same_with_and_without_foldings():
    net = small(px=96)
    nn.init.constant_(net.body.category.predict.bias, -1.0)
    nn.init.normal_(net.body.kernel.predict.weight, 0.0, 0.2)
    coarse = np.random.default_rng(3).integers(0, 256, (10, 12, 3), np.uint8)
    image = np.kron(coarse, np.ones((12, 12, 1), np.uint8))
    settings = {"update_threshold": 0.01, "pre_nms_top_k": 40}
    plain, folded = (
        Predictor(TorchRunner(net, CLASSES, settings, fold=f)).predict(image).result for f in (False, True)
    )
    assert len(plain.instances) == len(folded.instances) > 3
    for one, other in zip(plain.instances, folded.instances, strict=True):
        assert (one.class_index, one.box_xyxy_px) == (other.class_index, other.box_xyxy_px)
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert np.array_equal(one.mask.mask(), other.mask.mask())


def test_at_the_start_a_cell_has_a_class_with_a_probability_of_one_percent():
    torch.manual_seed(0)
    net = MODELS["solov2_mobile_256"](5, 64)
    with torch.inference_mode():
        raw = net.body(torch.rand(2, 3, 64, 64) * 255)
    assert raw["category_1"].sigmoid().mean().item() == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"norm": "none"}, ConfigError),
        ({"norm": "gn"}, ConfigError),
        ({"convs": 0}, ConfigError),
        ({"grids": "small"}, ConfigError),
        ({"input_px": 100}, InputError),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(options, error):
    with pytest.raises(error):
        MODELS["solov2_mobile_256"](5, **options)


def test_macs_of_the_graph_leave_the_kernels_last_layer_to_the_decoder():
    macs = MODELS["solov2_mobile_320"](80).macs()
    cells, products = sum(s * s for s in grid_sides(320, "scaled")), 100 * 80 * 80 * 64
    coordinates = (cells * 2 + 100 * 2) * 9 + cells * 2 * 96 + 100 * 2 * 64  # depthwise and 1x1 over two channels
    assert macs["macs"] - products - macs["macs_graph"] == cells * 96 * 64 + coordinates
    assert macs["macs_decoder"] == products + 100 * 96 * 64


@pytest.fixture(scope="module")
def quantised():
    """A small network on integer grids that has seen two batches."""
    source = small(width=16, kernel_channels=8, mask_width=8)
    net = prepare(copy.deepcopy(source), RangeOptions(observe_steps=1)).train()
    with torch.no_grad():
        net.body(torch.rand(2, 3, 64, 64) * 255)
    update_ranges(net, World(torch.device("cpu")))
    return source, net.eval()


def test_without_rounding_a_network_on_grids_is_the_float_network(quantised):
    source, net = (copy.deepcopy(n).double() for n in quantised)
    for path, module in list(net.body.named_modules()):
        if isinstance(module, ActivationGrid) or path.endswith(".grid"):
            net.body.set_submodule(path, Through())
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64) * 255
    with torch.inference_mode():
        wanted, found = source.body(image), net.body(image)
    for key, values in wanted.items():
        assert (values - found[key]).abs().max() <= 1e-6 * values.abs().max(), key


class Through(nn.Module):
    """A grid that rounds nothing."""

    def forward(self, x, _site=0):
        return x


def test_constant_maps_have_grids_of_their_own_range(quantised):
    _, net = quantised
    body = net.body
    maps = [
        n for n in body.graph.nodes if n.op == "call_module" and isinstance(body.get_submodule(n.target), ConstantMap)
    ]
    assert len(maps) == 6 + 1
    for node in maps:
        value = body.get_submodule(node.target).value
        assert value.requires_grad is (value.numel() > 1)  # the mean of the picture is not trained
        (user,) = node.users
        low, high = body.get_submodule(user.target).grid().range
        step = (high - low) / 255
        assert low <= min(0, value.min().item()) + step
        assert high >= max(0, value.max().item()) - step


def test_every_grid_of_the_exported_form_is_the_trained_one(quantised):
    _, net = quantised
    graph = net.export_graph()
    form = dict(integer_form(graph.body).named_modules())
    grids = {n: m for n, m in graph.body.named_modules() if isinstance(m, ActivationGrid)}
    assert len(grids) > 100
    values = torch.linspace(-40, 300, 999)
    for name, grid in grids.items():
        assert isinstance(form[name], ExportGrid)
        assert torch.equal(form[name](values), grid(values)), name


def test_every_parameter_of_a_retrained_network_is_trained_once(quantised):
    from edge_seg.training.optim import parameter_groups
    from edge_seg.training.settings import OptimSettings

    _, net = quantised
    trained = [p for g in parameter_groups(net, OptimSettings()) for p in g["params"]]
    assert len(trained) == len({id(p) for p in trained}) == len(list(net.parameters()))
