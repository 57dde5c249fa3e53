"""BlendMask networks: published counts, exported graphs, the lazy attention, bounded boxes, published names."""

import numpy as np
import pytest
import torch
from conftest import warm_up_batchnorm
from torch import fx, nn

from edge_seg.errors import ArtifactError, ConfigError, InputError
from edge_seg.models.base import MODELS
from edge_seg.models.blendmask import BoxLimit
from edge_seg.models.blendmask_names import from_adelaidet, published_names
from edge_seg.quantization.grids import RangeOptions, update_ranges
from edge_seg.quantization.prepare import grids_of, prepare, unobserved
from edge_seg.training.distributed import World

MOBILE = ("blendmask_mobile_256", "blendmask_mobile_320", "blendmask_mobile_512")
PUBLISHED = ("blendmask_rt_mnv2", "blendmask_rt_mnv2_gn_m7", "blendmask_base_mnv2")


def small(name="blendmask_mobile_256", side_px=64, **options):
    torch.manual_seed(5)
    return MODELS[name](num_classes=5, input_px=side_px, **options).eval()


def thin(name, **options):
    """A published layout that tests can afford: fewer channels, the same levels, towers and norms."""
    return small(name, 128, width=64, basis_width=8, attention_size=3, **options)


def picture(side_px, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, 3, side_px, side_px))).float()


@pytest.mark.parametrize(
    ("name", "parameters"), [("blendmask_rt_mnv2", 9_257_786), ("blendmask_rt_mnv2_gn_m7", 7_899_374)]
)
def test_the_published_layouts_have_the_published_count_of_parameters(name, parameters):
    """Semantic head included, 81 channels; 80 classes."""
    with torch.device("meta"):
        network = MODELS[name]()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.semantic[-1].out_channels == 81


@pytest.mark.parametrize(
    ("name", "gmac"), [*zip(MOBILE, (0.49, 0.77, 1.96), strict=True), ("blendmask_rt_mnv2", 30.20)]
)
def test_the_cost_is_the_counted_one(name, gmac):
    macs = MODELS[name]().macs()
    assert macs["macs"] / 1e9 == pytest.approx(gmac, rel=0.03)
    assert macs["macs_graph"] < macs["macs"]


def test_the_decoder_makes_the_attention_of_100_objects_only():
    macs = small(side_px=256).macs()
    assert macs["macs_decoder"] == 100 * (96 * 196 + 9 * 4 * 28 * 28)


@pytest.mark.parametrize("name", [*MOBILE, *PUBLISHED])
def test_outputs_are_named_by_level_with_role_stride_and_shape(name):
    network = small(name, 128) if name in MOBILE else thin(name)
    levels = range(3, 8 if "base" in name else 6)
    values = 4 * network.options.attention_size**2
    graph = network.export_graph(fold=False)
    with torch.inference_mode():
        shapes = {k: tuple(v.shape[1:]) for k, v in graph.body(picture(128)).items()}
    channels = (("class", "class_logit", 5), ("box", "box_ltrb", 4), ("center", "centerness", 1))
    for level in levels:
        for kind, role, count in (*channels, ("attention", "attention", values)):
            (spec,) = (o for o in graph.outputs if o.name == f"{kind}_p{level}")
            assert (spec.role, spec.level, spec.stride_px) == (role, level, 2**level)
            assert shapes[spec.name] == (count, 128 // 2**level, 128 // 2**level)
    assert shapes["bases"] == (4, 32, 32)
    assert [o.name for o in graph.outputs] == list(shapes)
    assert (graph.outputs[-1].role, graph.outputs[-1].level, graph.outputs[-1].stride_px) == ("bases", 0, 4)


def gathered(features_chw, weight, bias, y, x):
    """The attention convolution at one cell, in NumPy: its neighbourhood, zeros outside."""
    reach = weight.shape[-1] // 2
    padded = np.pad(features_chw, ((0, 0), (reach, reach), (reach, reach)))
    patch = padded[:, y : y + 2 * reach + 1, x : x + 2 * reach + 1]
    return np.einsum("ocij,cij->o", weight.astype(np.float64), patch.astype(np.float64)) + bias


@pytest.mark.parametrize("name", ["blendmask_mobile_256", "blendmask_rt_mnv2", "blendmask_rt_mnv2_gn_m7"])
def test_the_lazy_attention_gathered_at_a_cell_is_the_dense_one(name):
    network = small(name, 128) if name in MOBILE else thin(name)
    warm_up_batchnorm(network, 128)
    nn.init.normal_(network.body.head.attention.weight)
    nn.init.normal_(network.body.head.attention.bias)
    dense, lazy = network.export_graph(fold=False), network.export_graph()
    weight, bias = lazy.constants["attention.weight"], lazy.constants["attention.bias"]
    with torch.inference_mode():
        a, b = dense.body(picture(128)), lazy.body(picture(128))
    assert all(torch.equal(a[k], b[k]) for k in a if not k.startswith("attention"))
    for level, cells in ((3, ((0, 0), (15, 7), (8, 9))), (5, ((0, 3), (3, 3), (2, 1)))):
        wanted, features = a[f"attention_p{level}"][0].numpy(), b[f"attention_p{level}"][0].numpy()
        for y, x in cells:
            found = gathered(features, weight, bias, y, x)
            np.testing.assert_allclose(found, wanted[:, y, x], atol=2e-5 * np.abs(wanted).max())


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, m, module_qualified_name):
        return not list(m.children())


@pytest.mark.parametrize("fold", [True, False])
def test_no_output_of_the_mobile_form_is_used_inside_the_exported_graph(fold):
    body = small().export_graph(fold=fold).body
    (output,) = (n for n in LeafTracer().trace(body).nodes if n.op == "output")
    for node in output.args[0].values():
        while isinstance(body.get_submodule(node.target), nn.Identity):
            (node,) = node.all_input_nodes
        assert len(node.users) == 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_semantic_head_is_trained_but_not_exported(name):
    network = thin(name)
    own = {p for p, _ in network.named_parameters() if p.startswith("semantic.")}
    assert own
    exported, whole, semantic = (
        sum(p.numel() for path, p in module.named_parameters() if ".norm" not in path)  # their export has other weights
        for module in (network.export_graph(fold=False).body, network, nn.ModuleDict({"semantic": network.semantic}))
    )
    assert exported == whole - semantic


def test_a_mobile_box_is_bounded_by_the_level_and_a_published_one_is_not():
    network = small(side_px=320)
    assert network.level_bounds_px() == (40, 80)
    assert network.box_limits_units() == pytest.approx((6, 6, 12))
    nn.init.constant_(network.body.head.box_predict.bias, 1e4)
    with torch.inference_mode():
        raw = network.body(picture(320))
    assert [raw[f"box_p{level}"].max().item() for level in (3, 4, 5)] == pytest.approx([6, 6, 12])
    x = torch.tensor([-3.0, 0.5, 5.0, 99.0]).reshape(1, 4, 1, 1)
    assert BoxLimit(float("inf"))(x).flatten().tolist() == [0, 0.5, 5, 99]
    assert BoxLimit(12.0)(x).flatten().tolist() == [0, 1, 10, 12]


def test_the_first_boxes_are_off_both_ends_of_the_clamp_and_the_first_scores_are_low():
    network = small()
    warm_up_batchnorm(network, 64)
    with torch.inference_mode():
        raw = network.body(picture(64))
    for limit, level in zip(network.box_limits_units(), (3, 4, 5), strict=True):
        box = raw[f"box_p{level}"] / limit
        assert 0.05 < box.min() < box.max() < 0.95
        assert torch.sigmoid(raw[f"class_p{level}"]).max() < 0.1


def test_all_levels_share_the_heads_convolutions_and_have_a_batchnorm_of_their_own():
    head = small().body.head
    convs = [m for m in head.modules() if isinstance(m, nn.Conv2d) and m not in [v.scale for v in head.limits]]
    assert len(convs) == 2 * 2 + 3 + 4  # two separable pairs, the depthwise halves of three predictions, predictions
    norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 3 * 7


@pytest.mark.parametrize("name", ["blendmask_mobile_256", "blendmask_rt_mnv2"])
def test_a_body_can_be_traced(name):
    network = small(name) if name in MOBILE else thin(name)
    x = picture(128)
    with torch.inference_mode():
        expected, got = network.body(x), fx.symbolic_trace(network.body)(x)
    assert all(torch.equal(expected[k], got[k]) for k in expected)


def test_the_mobile_body_can_be_put_on_integer_grids_and_still_exports_lazily():
    network = small()
    warm_up_batchnorm(network, 64)
    with torch.inference_mode():
        floating = network.export_graph().body(picture(64))
    prepare(network, RangeOptions(observe_steps=4))
    network.train()
    for seed in range(4):
        network.body(picture(64, seed))
        update_ranges(network, World(torch.device("cpu")))
    network.eval()
    assert not unobserved(network)
    assert grids_of(network)
    graph = network.export_graph()
    assert set(graph.constants) == {"attention.weight", "attention.bias"}
    with torch.inference_mode():
        on_grids = graph.body(picture(64))
    assert floating.keys() == on_grids.keys()
    assert all(floating[k].shape == on_grids[k].shape for k in floating)
    for level in (3, 4, 5):
        box = on_grids[f"box_p{level}"]
        assert torch.unique(box).numel() < 256
        assert box.max() <= 1.01 * network.box_limits_units()[level - 3]
    sum(v.sum() for v in network.body(picture(64)).values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "options", [{"coarsest": 8}, {"norm": "none"}, {"norm": "gn"}, {"bases": 0}, {"box_limit_share": 0.5}]
)
def test_options_that_make_no_network_are_refused(options):
    with pytest.raises(ConfigError):
        small(**options)


def test_the_decoder_gets_what_the_network_fixes():
    params = small().decoder_params({"nms_iou": 0.5})
    fixed = {"attention_size": 7, "bases": 4, "mask_size": 28, "pre_nms_top_k": 300, "box_quality": "centerness"}
    assert params | fixed | {"nms_iou": 0.5} == params
    published = thin("blendmask_rt_mnv2").decoder_params({})
    assert (published["mask_size"], published["pre_nms_top_k"], published["attention_size"]) == (56, 1000, 3)
    with pytest.raises(ConfigError, match="nms_iou"):
        small().decoder_params({"nms_iuo": 0.5})


def checkpoint_of(network):
    """What the published project would have saved: its names, and a stem for blue, green, red."""
    state = network.state_dict()
    made = {theirs: state[own].clone() for own, theirs in published_names(network).items()}
    made["backbone.bottom_up.features.0.0.weight"] = made["backbone.bottom_up.features.0.0.weight"][:, [2, 1, 0]]
    return made


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_gives_the_same_numbers(name):
    source, target = thin(name), thin(name)
    warm_up_batchnorm(source, 128)
    for parameter in target.parameters():
        nn.init.zeros_(parameter)
    state = checkpoint_of(source)
    extra = {"pixel_mean": torch.zeros(3, 1, 1), "backbone.bottom_up.classifier.1.weight": torch.zeros(2, 2)}
    target.load_state_dict(from_adelaidet({**state, **extra}, target), strict=True)
    x = (picture(128) - 110) / 1.0
    with torch.inference_mode():
        a, b = source.body.features(x), target.body.features(x)
        finest = torch.rand(1, 64, 4, 4)
        assert torch.equal(source.semantic(finest), target.semantic(finest))
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-4 * float(a[key].abs().max()))


def test_published_names_are_those_of_the_project():
    """Read off the project's name list, not off our code."""
    names = set(published_names(thin("blendmask_rt_mnv2")).values())
    expected = (
        "backbone.bottom_up.features.0.0.weight",
        "backbone.bottom_up.features.0.1.running_mean",
        "backbone.bottom_up.features.1.conv.3.weight",
        "backbone.bottom_up.features.1.conv.4.bias",
        "backbone.bottom_up.features.17.conv.7.running_var",
        "backbone.fpn_lateral3.bias",
        "backbone.fpn_output5.weight",
        "proposal_generator.fcos_head.share_tower.6.bias",
        "proposal_generator.fcos_head.share_tower.7.2.running_mean",
        "proposal_generator.fcos_head.ctrness.weight",
        "basis_module.refine.2.1.running_var",
        "basis_module.tower.1.0.weight",
        "basis_module.tower.3.1.weight",
        "basis_module.tower.4.bias",
        "basis_module.seg_head.4.weight",
        "basis_module.seg_head.6.bias",
        "top_layer.weight",
    )
    assert names >= set(expected)
    base = set(published_names(thin("blendmask_base_mnv2")).values())
    assert {"backbone.top_block.p7.weight", "proposal_generator.fcos_head.bbox_tower.10.weight"} <= base
    assert {"basis_module.tower.4.0.weight", "basis_module.tower.5.weight"} <= base


def test_the_map_turns_red_and_blue_of_the_stem_only():
    network = thin("blendmask_rt_mnv2")
    state = checkpoint_of(network)
    made = from_adelaidet(state, network)
    stem = "body.backbone.conv_stem.weight"
    assert torch.equal(made[stem][:, 0], state["backbone.bottom_up.features.0.0.weight"][:, 2])
    names = published_names(network)
    assert all(torch.equal(made[own], state[theirs]) for own, theirs in names.items() if own != stem)
    assert network.body.normalize(torch.zeros(1, 3, 1, 1)).flatten().tolist() == pytest.approx(
        [-123.675, -116.28, -103.53]
    )


def test_missing_surplus_and_misshapen_tensors_are_named():
    network = thin("blendmask_rt_mnv2")
    state = checkpoint_of(network)
    old = {k.replace("ctrness", "centerness"): v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert from_adelaidet(old, network).keys() == network.state_dict().keys()
    with pytest.raises(ArtifactError, match=r"missing \['top_layer.bias'\] \(1\)"):
        from_adelaidet({k: v for k, v in state.items() if k != "top_layer.bias"}, network)
    with pytest.raises(ArtifactError, match=r"without a place \['roi_heads.x'\] \(1\)"):
        from_adelaidet({**state, "roi_heads.x": torch.zeros(1)}, network)
    with pytest.raises(ArtifactError, match=r"'top_layer\.bias' has another shape"):
        from_adelaidet({**state, "top_layer.bias": torch.zeros(7)}, network)


def test_a_mobile_network_has_no_published_names():
    with pytest.raises(InputError, match="no published counterpart"):
        published_names(small())
