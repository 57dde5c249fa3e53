"""Published names of SOLOv2: a state under those names alone, run with PyTorch's functions, is our network."""

import pytest
import torch
import torch.nn.functional as F

from edge_seg.errors import ArtifactError, InputError
from edge_seg.models.base import MODELS
from edge_seg.models.foreign import FOREIGN
from edge_seg.models.solov2_names import LABEL_OF_FIRST_CLASS, from_published, published_names

PX, CLASSES, GRIDS = 64, 4, (40, 36, 24, 16, 12)


def light(**options):
    return MODELS["solov2_light_mnv2"](CLASSES, PX, **{"p6": "max_pool", **options}).eval()


def heads_state(seed=0):
    """The heads' tensors by AdelaiDet's names and published shapes, written down here."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def conv(name, out, cin, kernel, bias=True):
        state[f"{name}.weight"] = torch.randn(out, cin, kernel, kernel, generator=generator) * (cin * kernel**2) ** -0.5
        if bias:
            state[f"{name}.bias"] = torch.randn(out, generator=generator) * 0.1

    def norm(name, channels):
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(channels, generator=generator)
        state[f"{name}.bias"] = 0.2 * torch.randn(channels, generator=generator)

    for level, channels in zip((2, 3, 4, 5), (24, 32, 96, 320), strict=True):
        conv(f"backbone.fpn_lateral{level}", 256, channels, 1)
        conv(f"backbone.fpn_output{level}", 256, 256, 3)
    for tower, first in (("cate", 256), ("kernel", 258)):
        for i, cin in enumerate((first, 256)):
            conv(f"ins_head.{tower}_tower.{3 * i}", 256, cin, 3, bias=False)
            norm(f"ins_head.{tower}_tower.{3 * i + 1}", 256)
    conv("ins_head.cate_pred", CLASSES, 256, 3)
    conv("ins_head.kernel_pred", 128, 256, 3)
    for level in range(4):
        for j in range(max(1, level)):
            cin = 128 if j else 258 if level == 3 else 256
            conv(f"mask_head.convs_all_levels.{level}.conv{j}.0", 128, cin, 3, bias=False)
            norm(f"mask_head.convs_all_levels.{level}.conv{j}.1", 128)
    conv("mask_head.conv_pred.0", 128, 128, 1, bias=False)
    norm("mask_head.conv_pred.1", 128)
    return state


def unit(state, x, conv, norm, padding=1):
    y = F.conv2d(x, state[f"{conv}.weight"], padding=padding)
    return F.relu(F.group_norm(y, 32, state[f"{norm}.weight"], state[f"{norm}.bias"]))


def with_coordinates(x):
    n, _, h, w = x.shape
    y, x_ = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    return torch.cat([x, x_.expand(n, 1, h, w), y.expand(n, 1, h, w)], 1)


def bilinear(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def published(state, backbone_maps):
    """The published light heads over a backbone's four maps, in functions."""
    inner, pyramid = None, []
    for level in (5, 4, 3, 2):
        name = f"backbone.fpn_lateral{level}"
        y = F.conv2d(backbone_maps[level - 2], state[f"{name}.weight"], state[f"{name}.bias"])
        inner = y if inner is None else y + F.interpolate(inner, scale_factor=2, mode="nearest")
        name = f"backbone.fpn_output{level}"
        pyramid.insert(0, F.conv2d(inner, state[f"{name}.weight"], state[f"{name}.bias"], padding=1))
    p2, p3, p4, p5 = pyramid
    p6 = F.max_pool2d(p5, 1, 2)
    levels = [F.interpolate(p2, scale_factor=0.5, mode="bilinear"), p3, p4, p5, bilinear(p6, p5.shape[-2:])]
    outputs = {}
    for level, (x, side) in enumerate(zip(levels, GRIDS, strict=True)):
        kernel = bilinear(with_coordinates(x), (side, side))
        category = kernel[:, :-2]
        for i in (0, 3):
            kernel = unit(state, kernel, f"ins_head.kernel_tower.{i}", f"ins_head.kernel_tower.{i + 1}")
            category = unit(state, category, f"ins_head.cate_tower.{i}", f"ins_head.cate_tower.{i + 1}")
        for key, y, name in (("category", category, "cate_pred"), ("kernel", kernel, "kernel_pred")):
            weight, bias = state[f"ins_head.{name}.weight"], state[f"ins_head.{name}.bias"]
            outputs[f"{key}_{level}"] = F.conv2d(y, weight, bias, padding=1)
    total = 0
    for level, x in enumerate((p2, p3, p4, with_coordinates(p5))):
        for j in range(max(1, level)):
            name = f"mask_head.convs_all_levels.{level}.conv{j}"
            x = unit(state, x, f"{name}.0", f"{name}.1")
            x = F.interpolate(x, scale_factor=2, mode="bilinear") if level else x
        total = total + x
    outputs["mask_features"] = unit(state, total, "mask_head.conv_pred.0", "mask_head.conv_pred.1", padding=0)
    return outputs


def renamed(state):
    """From AdelaiDet's names to those of the SOLO project, by its rules, written down here."""
    found = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[1] == "bottom_up":
            new = key.replace("bottom_up.", "")
        elif parts[0] == "backbone":
            kind = "lateral_convs" if "lateral" in parts[1] else "fpn_convs"
            new = f"neck.{kind}.{int(parts[1][-1]) - 2}.conv.{parts[2]}"
        elif "tower" in parts[1]:
            i, branch = int(parts[2]), parts[1].split("_")[0]
            new = f"bbox_head.{branch}_convs.{i // 3}.{'gn' if i % 3 else 'conv'}.{parts[3]}"
        elif parts[0] == "ins_head":
            new = f"bbox_head.solo_{parts[1].split('_')[0]}.{parts[2]}"
        elif parts[1] == "conv_pred":
            new = f"mask_feat_head.conv_pred.0.{('conv', 'gn')[int(parts[2])]}.{parts[3]}"
        else:
            new = f"mask_feat_head.{'.'.join(parts[1:4])}.{('conv', 'gn')[int(parts[4])]}.{parts[5]}"
        found[new] = value
    return found


def backbone_state(net):
    """The network's backbone under the published names, its stem turned back to blue, green, red without deviation."""
    names, own = published_names(net, "adelaidet"), net.state_dict()
    state = {theirs: own[ours] for ours, theirs in names.items() if theirs.startswith("backbone.bottom_up.")}
    stem = "backbone.bottom_up.features.0.0.weight"
    deviation = torch.tensor([58.395, 57.12, 57.375]).reshape(1, 3, 1, 1)
    return state, {**state, stem: (state[stem] / deviation).flip(1)}


@pytest.mark.parametrize("project", ["adelaidet", "solo"])
def test_a_published_state_gives_the_published_numbers(project):
    net, state = light(), heads_state()
    rgb, bgr = backbone_state(net)
    given = (
        {**state, **bgr, "pixel_mean": torch.zeros(3, 1, 1)} if project == "adelaidet" else renamed({**state, **rgb})
    )
    given = {k: v for k, v in given.items() if not k.endswith("num_batches_tracked")}
    other = light()
    foreign = FOREIGN[f"{project}/solov2"]
    assert "non-commercial" in foreign.licence
    other.load_state_dict(foreign.state(other, given), strict=True)
    assert set(foreign.names(other).values()) >= set(given) - {"pixel_mean"}
    x = torch.randn(1, 3, PX, PX, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, wanted = other.body.features(x), published(state, net.body.backbone(x))
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        torch.testing.assert_close(found[key], values, rtol=1e-4, atol=1e-4)


def test_pixels_are_those_of_the_project():
    """The network takes red, green, blue bytes; AdelaiDet's stem blue, green, red minus the mean."""
    net = light()
    _, bgr = backbone_state(net)
    image = torch.rand(1, 3, 32, 32) * 255
    mean_bgr = torch.tensor([103.53, 116.28, 123.675]).reshape(1, 3, 1, 1)
    theirs = F.conv2d(image.flip(1) - mean_bgr, bgr["backbone.bottom_up.features.0.0.weight"], stride=2, padding=1)
    with torch.inference_mode():
        ours = net.body.backbone.conv_stem(net.body.normalize(image))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_tensor_has_one_name_and_every_name_one_tensor():
    net = light()
    names = published_names(net, "adelaidet")
    assert set(names) == set(net.state_dict())
    assert len(set(names.values())) == len(names)
    assert {n for n in names.values() if "bottom_up" not in n} == set(heads_state())
    theirs = set(published_names(net, "solo").values())
    assert {n for n in theirs if not n.startswith("backbone.")} == set(renamed(heads_state()))


def test_the_backbone_has_the_shapes_of_its_published_places():
    """MobileNetV2 as a list of features: a stem, then blocks of expansion, depthwise, projection."""
    state, _ = backbone_state(light())
    start = "backbone.bottom_up.features"
    assert state[f"{start}.0.0.weight"].shape == (32, 3, 3, 3)
    assert state[f"{start}.1.conv.0.weight"].shape == (32, 1, 3, 3)
    assert state[f"{start}.1.conv.3.weight"].shape == (16, 32, 1, 1)
    outs = (24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
    before = 16
    for number, out in enumerate(outs, start=2):
        assert state[f"{start}.{number}.conv.0.weight"].shape == (6 * before, before, 1, 1)
        assert state[f"{start}.{number}.conv.3.weight"].shape == (6 * before, 1, 3, 3)
        assert state[f"{start}.{number}.conv.6.weight"].shape == (out, 6 * before, 1, 1)
        assert state[f"{start}.{number}.conv.7.running_mean"].shape == (out,)
        before = out
    assert f"{start}.18.conv.0.weight" not in state


@pytest.mark.parametrize("change", ["missing", "surplus", "shape"])
def test_a_state_that_does_not_fit_is_refused(change):
    net = light()
    state = renamed({**heads_state(), **backbone_state(net)[0]})
    if change == "missing":
        del state["bbox_head.solo_cate.bias"]
    elif change == "surplus":
        state["backbone.layer1.0.conv1.weight"] = torch.zeros(1)
    else:
        state["bbox_head.solo_cate.bias"] = torch.zeros(CLASSES + 1)
    with pytest.raises(ArtifactError, match="do not fit"):
        from_published(net, state, "solo")


def test_networks_without_a_published_counterpart_are_refused():
    for net in (light(p6="conv"), MODELS["solov2_mobile_256"](CLASSES, PX)):
        with pytest.raises(InputError, match="no published counterpart"):
            published_names(net, "solo")


def test_labels_start_at_one_where_the_background_is_zero():
    assert LABEL_OF_FIRST_CLASS == {"adelaidet": 0, "solo": 1}
