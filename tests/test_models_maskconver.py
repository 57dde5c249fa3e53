"""MaskConver: published sizes and costs, exact foldings, NumPy masks against the torch criterion."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from edge_seg.contract import ClassInfo
from edge_seg.data.sample import Segment
from edge_seg.data.transforms import TrainCrop
from edge_seg.decoders.maskconver import MaskConverDecoder, Proposals
from edge_seg.errors import ConfigError, InputError
from edge_seg.evaluation.predictor import Predictor
from edge_seg.models.base import MODELS, conv_macs
from edge_seg.models.torch_runner import TorchRunner, make_contract

CLASSES = tuple(ClassInfo(i + 1, f"c{i}", i < 4, (i, i, i)) for i in range(7))
OPTIONS = [
    {"class_embedding": "multiply", "relative_position": True},
    {"class_embedding": "multiply", "relative_position": False},
    {"class_embedding": "add", "relative_position": True},
    {"class_embedding": "add", "relative_position": False},
    {"class_embedding": "multiply", "relative_position": False, "shared_trunk": "conv", "aspp": "light"},
]


def published(num_classes: int, input_px: int) -> nn.Module:
    with torch.device("meta"):
        return MODELS["maskconver_mh_640"](num_classes, input_px, relative_position=False)


def params_m(*modules: nn.Module) -> float:
    return round(sum(p.numel() for m in modules for p in m.parameters()) / 1e6, 3)


def test_parts_have_the_published_number_of_parameters():
    net = published(201, 640)
    body = net.body
    assert params_m(body.backbone) == 1.634
    assert params_m(body.aspp) == 0.916
    assert params_m(body.heat_head, body.embedding_head, body.mask_head) == 0.709
    # class embedding 201 * 256, two 256 x 256 layers with bias, LayerNorm
    assert sum(p.numel() for p in net.mask_embedding.parameters()) == 201 * 256 + 2 * (65536 + 256) + 512


@pytest.mark.parametrize(("num_classes", "params"), [(201, 3_441_897), (133, 3_407_013)])
def test_totals_have_the_published_number_of_parameters(num_classes, params):
    assert sum(p.numel() for p in published(num_classes, 640).parameters()) == params


def head_params(skip: int, width: int, kernel: int, out: int, *, convs: int = 2, fused: bool = True) -> int:
    """By hand: skip 1x1, pairs of depthwise and 1x1, each with BatchNorm's two; a prediction with bias."""
    pair = kernel * kernel * width + 2 * width + width * width + 2 * width
    return fused * (skip * width + 2 * width) + convs * pair + width * out + out


def aspp_params(top: int, width: int, dilated: int, branch: int) -> int:
    return (2 + dilated) * (top * branch + 2 * branch) + dilated * 9 * top + (2 + dilated) * branch * width + 2 * width


def embedding_params(classes: int, width: int) -> int:
    """Class embedding, two layers, LayerNorm; 20 more outputs for the cosines and sines of five wavelengths."""
    return classes * width + (width * width + width) + 2 * width + (width + 1) * (width + 20)


BACKBONE_PARAMS = {  # the short ones without their last blocks: 1x1 wide, depthwise, 1x1 narrow, each with BatchNorm
    "mobilenet_mh": 1_633_504,  # published total of 3,407,013 less the parts counted here
    "mobilenet_v2": 3_504_872 - 1_281_000 - 1280 * 322,  # published, less classifier and last convolution
    "mobilenet_v4_conv_small": 1_261_664,  # counted in timm 1.0.31
    "mobilenet_v4_conv_small_128": 1_261_664 - 960 * (128 + 2),
    "mobilenet_v2_160": 1_811_712 - 960 * (160 + 2) - 960 * (9 + 2) - 320 * (960 + 2),
    "mobilenet_v2_96": 1_811_712
    - 960 * (160 + 2)
    - 960 * (9 + 2)
    - 320 * (960 + 2)
    - 2 * (960 * (160 + 2) + 960 * (9 + 2) + 160 * (960 + 2))
    - (576 * (96 + 2) + 576 * (9 + 2) + 160 * (576 + 2)),
}


@pytest.mark.parametrize(
    ("name", "backbone", "top", "skip", "width", "kernel"),
    [
        ("maskconver_mh_256", "mobilenet_mh", 448, 64, 256, 7),
        ("maskconver_mh_256_k5", "mobilenet_mh", 448, 64, 256, 5),
        ("maskconver_mnv2_256", "mobilenet_v2", 320, 32, 256, 7),
        ("maskconver_mnv2_256_k5", "mobilenet_v2", 320, 32, 256, 5),
        ("maskconver_mnv4s_256", "mobilenet_v4_conv_small", 960, 64, 256, 5),
        ("maskconver_lite_mnv4s_256", "mobilenet_v4_conv_small_128", 128, 64, 160, 5),
    ],
)
def test_every_variant_has_the_number_of_parameters_counted_by_hand(name, backbone, top, skip, width, kernel):
    with torch.device("meta"):
        net = MODELS[name](133)
    heads = sum(head_params(skip, width, kernel, out) for out in (133, width, width))
    truth = BACKBONE_PARAMS[backbone] + aspp_params(top, width, 3, width) + heads + embedding_params(133, width)
    assert sum(p.numel() for p in net.parameters()) == truth
    assert net.input_px == 256


def test_the_lite_network_has_the_number_of_parameters_counted_by_hand():
    """One 1x1 instead of ASPP, a trunk of one pair, and one pair in each head."""
    with torch.device("meta"):
        net = MODELS["maskconver_lite_256"](133)
    context, trunk = 96 * 192 + 2 * 192, head_params(32, 192, 3, 0, convs=1)
    heads = sum(head_params(0, 192, 3, out, convs=1, fused=False) for out in (133, 192, 192))
    truth = BACKBONE_PARAMS["mobilenet_v2_96"] + context + trunk + heads + embedding_params(133, 192)
    assert sum(p.numel() for p in net.parameters()) == truth
    assert net.input_px == 256


def test_five_by_five_heads_save_24_taps_in_each_of_six_layers():
    with torch.device("meta"):
        seven, five = (MODELS[n](133, relative_position=False) for n in ("maskconver_mh_256", "maskconver_mh_256_k5"))
    counts = [sum(p.numel() for p in net.parameters()) for net in (seven, five)]
    assert counts == [3_407_013, 3_407_013 - 6 * 24 * 256]
    assert conv_macs(seven.body, 256).keys() == conv_macs(five.body, 256).keys()


@pytest.mark.parametrize("name", [n for n in MODELS.names() if "lite" in n])
def test_a_lite_network_stays_within_its_budget(name):
    """At most 0.78 GMAC with 133 classes at 256 px, the 50 mask products included."""
    assert 0.5e9 < MODELS[name](133).macs()["macs"] <= 0.78e9


@pytest.mark.parametrize(
    ("options", "trunk", "own"), [({"shared_trunk": "sum"}, 0, 2), ({"shared_trunk": "conv"}, 1, 1)], ids=str
)
def test_a_shared_trunk_is_counted_once(options, trunk, own):
    """By hand, width 16 and 5x5: the trunk is a head without prediction; each head keeps its own pairs."""
    net = MODELS["maskconver_mnv2_256_k5"](7, 64, width=16, **options)
    heads = sum(head_params(0, 16, 5, out, convs=own, fused=False) for out in (7, 16, 16))
    parts = [net.body.trunk, net.body.heat_head, net.body.embedding_head, net.body.mask_head]
    assert sum(p.numel() for m in parts for p in m.parameters()) == head_params(32, 16, 5, 0, convs=trunk) + heads


@pytest.mark.parametrize(
    ("options", "dilated", "branch"), [({}, 3, 16), ({"aspp": "light"}, 1, 16), ({"aspp_width": 8}, 3, 8)], ids=str
)
def test_the_context_has_the_branches_asked_for(options, dilated, branch):
    net = MODELS["maskconver_mnv2_256"](7, 64, width=16, **options)
    assert sum(p.numel() for p in net.body.aspp.parameters()) == aspp_params(320, 16, dilated, branch)


def test_without_aspp_the_context_is_one_convolution():
    net = MODELS["maskconver_mnv2_256"](7, 64, width=16, aspp="none")
    assert sum(p.numel() for p in net.body.aspp.parameters()) == 320 * 16 + 2 * 16


@pytest.mark.parametrize(
    ("backbone", "top"), [("mobilenet_v2", 320), ("mobilenet_v2_160", 160), ("mobilenet_v2_96", 96)]
)
def test_an_option_takes_another_backbone_than_the_name_says(backbone, top):
    net = MODELS["maskconver_lite_256"](7, 64, width=16, aspp="none", backbone=backbone)
    assert sum(p.numel() for p in net.body.aspp.parameters()) == top * 16 + 2 * 16
    assert sum(p.numel() for p in net.body.backbone.parameters()) == BACKBONE_PARAMS[backbone]


def test_a_backbone_that_is_not_there_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match=r"(?s)mobilenet_v2_69.*did you mean mobilenet_v2_96"):
        MODELS["maskconver_lite_256"](7, 64, backbone="mobilenet_v2_69")


@pytest.mark.parametrize(
    ("input_px", "backbone", "aspp", "heads"), [(640, 3.818, 1.278, 4.481), (256, 0.611, 0.205, 0.717)]
)
def test_parts_cost_the_published_multiplications(input_px, backbone, aspp, heads):
    counts = conv_macs(MODELS["maskconver_mh_640"](201, relative_position=False).body, input_px)
    parts = {"backbone": 0, "aspp": 0, "head": 0}
    for path, count in counts.items():
        parts["head" if "_head." in path else path.split(".")[0]] += count
    assert {k: round(v / 1e9, 3) for k, v in parts.items()} == {"backbone": backbone, "aspp": aspp, "head": heads}


@pytest.mark.parametrize(
    ("num_classes", "input_px", "gmac"),
    [(201, 640, 9.666), (201, 256, 1.552), (133, 640, 9.554), (133, 256, 1.534)],
)
def test_totals_cost_the_published_multiplications(num_classes, input_px, gmac):
    net = MODELS["maskconver_mh_640"](num_classes, input_px, relative_position=False)
    assert round(net.macs()["macs"] / 1e9, 3) == gmac


@pytest.mark.parametrize("wavelengths", [0, 5])
def test_the_graph_saves_two_layers_and_the_decoder_pays_for_the_centres_only(wavelengths):
    """By hand: 50 centres, 32 x 32 cells, kernels of 256 plus 4 for each wavelength."""
    macs = MODELS["maskconver_mh_256"](7, relative_position=wavelengths > 0).macs()
    cells, k, kernel = 32 * 32, 50, 256 + 4 * wavelengths
    mlp, product = k * (256 * 256 + 256 * kernel), k * cells * kernel
    assert macs["macs_graph"] == macs["macs"] - (mlp + product) - 2 * cells * 256 * 256
    assert macs["macs_decoder"] == mlp + product + k * 2 * 256 * 256


def test_the_zeros_of_strided_kernels_are_no_multiplications():
    """MobileNetV2's four strided 3x3 convolutions are exported as 4x4 with zeros, which the converter cuts off."""
    macs = MODELS["maskconver_mnv2_256"](7, relative_position=False).macs()
    body_macs = sum(conv_macs(MODELS["maskconver_mnv2_256"](7, relative_position=False).body, 256).values())
    assert macs["macs_graph"] == body_macs - 2 * 32 * 32 * 256 * 256


def test_the_heat_map_starts_at_its_prior():
    torch.manual_seed(0)
    net = MODELS["maskconver_mnv2_256"](7, 64)
    heat = net.body.heat_head.predict
    assert torch.allclose(heat.bias, torch.full((7,), -2.19))
    assert 0.005 < heat.weight.std() < 0.015
    assert net.mask_embedding.class_embedding.weight.abs().max() <= 0.05
    assert net.mask_embedding.norm.eps == 1e-6


def trained(seed: int = 0, **options) -> nn.Module:
    """A network whose every tensor, also of BatchNorm and the prediction layers, says something."""
    torch.manual_seed(seed)
    net = MODELS["maskconver_mnv2_256"](len(CLASSES), 64, width=32, head_kernel=3, **options)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.2, 0.1)
    for name, parameter in net.named_parameters():
        if "predict" in name or "mask_embedding" in name:
            nn.init.normal_(parameter, 0.0, 0.3)
    return net.eval()


PROPOSALS = Proposals(
    np.array([0, 63, 9, 36, 36]), np.array([0, 6, 3, 2, 5]), np.array([0.9, 0.8, 0.7, 0.6, 0.5], np.float32)
)


def masks_by_numpy(net: nn.Module, image: np.ndarray, **fold: bool) -> np.ndarray:
    graph = net.export_graph(**fold)
    decoder = MaskConverDecoder(make_contract(net, graph, CLASSES, {}), graph.constants)
    with torch.inference_mode():
        raw = graph.body(torch.from_numpy(image)[None].permute(0, 3, 1, 2).float())
    return decoder.mask_logits({k: v.permute(0, 2, 3, 1).numpy() for k, v in raw.items()}, PROPOSALS)


@torch.no_grad()
def masks_by_hand(net: nn.Module, image: np.ndarray) -> np.ndarray:
    """The paper's product, one centre at a time, in float64 after the body."""
    raw = net.body(torch.from_numpy(image)[None].permute(0, 3, 1, 2).float())
    e, m = raw["embedding"][0].flatten(1).double(), raw["mask_features"][0].double()
    net = copy.deepcopy(net).double()
    emb, width, out = net.mask_embedding, 32, []
    for cell, class_index in zip(PROPOSALS.cell, PROPOSALS.class_index, strict=True):
        c = emb.class_embedding.weight[class_index]
        z = e[:, cell] * c if net.options.class_embedding == "multiply" else e[:, cell] + c
        z = emb.fc1.weight @ z + emb.fc1.bias
        z = (z - z.mean()) / torch.sqrt(z.var(unbiased=False) + 1e-6) * emb.norm.weight + emb.norm.bias
        z = emb.fc2.weight @ z.clamp(min=0) + emb.fc2.bias
        logits = torch.einsum("c,chw->hw", z[:width], m)
        if net.options.relative_position:
            y0, x0 = divmod(int(cell), 8)
            for index, wave in enumerate((4, 8, 16, 32, 64)):
                a = z[width + 4 * index :][:4]
                for y in range(8):
                    for x in range(8):
                        u, v = 2 * np.pi * (x - x0) / wave, 2 * np.pi * (y - y0) / wave
                        logits[y, x] += a[0] * np.cos(u) + a[1] * np.sin(u) + a[2] * np.cos(v) + a[3] * np.sin(v)
        out.append(logits.numpy())
    return np.stack(out)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_masks_are_the_papers_product_and_both_foldings_are_exact(options, image):
    net = trained(**options)
    truth = masks_by_hand(net, image)
    scale = np.abs(truth).max()
    assert scale > 0.5
    for folded in ({"fold": False}, {"only": "embedding"}, {"only": "mask"}, {}):
        got = masks_by_numpy(net, image, **folded)
        assert np.abs(got - truth).max() <= 1e-5 * scale, folded


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_decoder_masks_equal_the_criterion_masks(options, image):
    """Two implementations: NumPy after export, torch in training."""
    net = trained(seed=1, **options)
    criterion = net.criterion({"mask_stride_px": 8}, CLASSES)
    slots = {
        "class_index": torch.from_numpy(np.append(PROPOSALS.class_index, -1))[None],
        "cell": torch.from_numpy(np.append(PROPOSALS.cell, 0))[None],
    }
    with torch.inference_mode():
        raw = net.body(torch.from_numpy(image)[None].permute(0, 3, 1, 2).float())
        torch_logits, picture = criterion.mask_logits(net, raw, slots)
    numpy_logits = masks_by_numpy(net, image)
    assert picture.tolist() == [0] * 5
    assert np.abs(torch_logits.numpy() - numpy_logits).max() <= 1e-5 * np.abs(numpy_logits).max()


def test_masks_of_a_batch_belong_to_their_own_pictures():
    net = trained(seed=2)
    criterion = net.criterion({}, CLASSES)
    x = torch.rand(3, 3, 64, 64) * 255
    slots = {"class_index": torch.tensor([[1, 2], [-1, -1], [5, -1]]), "cell": torch.tensor([[7, 40], [0, 0], [3, 0]])}
    with torch.inference_mode():
        together, picture = criterion.mask_logits(net, net.body(x), slots)
        alone = []
        for n in range(3):
            one = {k: v[n : n + 1] for k, v in slots.items()}
            alone.append(criterion.mask_logits(net, net.body(x[n : n + 1]), one)[0])
    assert picture.tolist() == [0, 0, 2]
    assert together.shape == (3, 16, 16)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fold", [{}, {"only": "embedding"}, {"only": "mask"}])
def test_the_contract_tells_which_outputs_end_in_relu(fold, image):
    net = trained(seed=3)
    graph = net.export_graph(**fold)
    contract = make_contract(net, graph, CLASSES, {})
    with torch.inference_mode():
        raw = graph.body(torch.from_numpy(image)[None].permute(0, 3, 1, 2).float())
    for output in contract.outputs:
        n, h, w, c = output.shape
        assert raw[output.name].shape == (n, c, h, w)
        assert (output.activation == "relu") == bool((raw[output.name] >= 0).all()), output.name
    assert {c.name: c.shape for c in contract.decoder.constants} == {k: v.shape for k, v in graph.constants.items()}


def test_unknown_export_options_settings_and_values_are_refused():
    net = trained()
    with pytest.raises(TypeError, match="fold_masks"):
        net.export_graph(fold_masks=True)
    with pytest.raises(ConfigError, match="top_k"):
        net.decoder_params({"topk": 5})
    with pytest.raises(ConfigError, match="dice"):
        net.criterion({"dices": "adaptive"}, CLASSES)
    with pytest.raises(ConfigError, match="class_embedding"):
        MODELS["maskconver_mnv2_256"](3, 64, class_embedding="concat")


@pytest.mark.parametrize("settings", [{"stride_px": 4}, {"mask_stride_px": 3}, {"mask_stride_px": 0}, {"max_slots": 0}])
def test_targets_that_do_not_fit_the_network_are_refused(settings):
    with pytest.raises(ConfigError, match="do not fit"):
        trained().criterion(settings, CLASSES)


@pytest.mark.parametrize("stride_px", [1, 2, 4, 8])
def test_masks_and_their_targets_have_one_size_at_every_stride(stride_px, image):
    net = trained()
    criterion = net.criterion({"mask_stride_px": stride_px}, CLASSES)
    ids = np.zeros((64, 64), np.int32)
    ids[8:30, 8:30] = 1
    crop = TrainCrop(image, ids, np.ones((64, 64), bool), (Segment(1, 0),))
    batch = {k: torch.from_numpy(v)[None] for k, v in criterion.targets(crop, np.random.default_rng(0)).items()}
    losses = criterion.losses(net, torch.from_numpy(image)[None].permute(0, 3, 1, 2).float(), batch)
    assert batch["masks_qhw"].shape[-2:] == (64 // stride_px, 64 // stride_px)
    assert torch.isfinite(losses["loss"])


def test_decoder_parameters_come_from_the_recipe_and_the_network():
    params = trained(class_embedding="add").decoder_params({"top_k": 7, "score_threshold": 0.25})
    assert (params["top_k"], params["score_threshold"]) == (7, 0.25)
    assert (params["class_embedding"], params["stride_px"]) == ("add", 8)
    assert params["wavelengths_cells"] == [4.0, 8.0, 16.0, 32.0, 64.0]
    assert trained(relative_position=False).decoder_params({})["wavelengths_cells"] == []


def test_the_torch_runner_decodes_alike_with_and_without_foldings(image):
    net = trained(seed=4)
    nn.init.normal_(net.body.heat_head.predict.weight, 0.0, 0.03)
    keep_all = {"overlap_threshold": 0.0, "min_area_share": 0.0}
    plain = Predictor(TorchRunner(net, CLASSES, keep_all)).predict(image)
    folded = Predictor(TorchRunner(net, CLASSES, keep_all, fold=True)).predict(image)
    assert len(plain.result.segments) > 2
    assert np.array_equal(plain.result.id_map_hw_i32, folded.result.id_map_hw_i32)
    for a, b in zip(plain.result.segments, folded.result.segments, strict=True):
        assert abs(a.score - b.score) < 1e-6
        assert dataclasses.replace(a, score=0) == dataclasses.replace(b, score=0)
