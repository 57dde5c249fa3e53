"""Backbones: names, shapes, counts from the published tables, and a loader that refuses what does not fit."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from edge_seg.backbones.base import BACKBONES, load_weights
from edge_seg.errors import ArtifactError, InputError
from edge_seg.layers.conv import SameConv2d

# MobileNetV2 (arXiv 1801.04381, table 2): expand, channels, repeats
V2_ROWS = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


def timm_names_and_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of timm's `mobilenetv2_100` without its tail, from the published table."""
    shapes: dict[str, tuple[int, ...]] = {"conv_stem.weight": (32, 3, 3, 3)}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    norm("bn1", 32)
    channels = 32
    for stage, (expand, out, repeats) in enumerate(V2_ROWS):
        for repeat in range(repeats):
            at, middle = f"blocks.{stage}.{repeat}", channels * expand
            if expand == 1:
                convs = {"conv_dw": (middle, 1, 3, 3), "conv_pw": (out, middle, 1, 1)}
            else:
                convs = {
                    "conv_pw": (middle, channels, 1, 1),
                    "conv_dw": (middle, 1, 3, 3),
                    "conv_pwl": (out, middle, 1, 1),
                }
            for number, (name, shape) in enumerate(convs.items(), 1):
                shapes[f"{at}.{name}.weight"] = shape
                norm(f"{at}.bn{number}", shape[0])
            channels = out
    return shapes


@pytest.fixture(scope="module")
def v2():
    return BACKBONES["mobilenet_v2"]()


def test_mobilenet_v2_has_the_tensor_names_and_shapes_of_timm(v2):
    assert {k: tuple(v.shape) for k, v in v2.state_dict().items()} == timm_names_and_shapes()


def test_mobilenet_v2_is_dilated_after_stride_16_as_timm_does_it(v2):
    depthwise = {k: m for k, m in v2.named_modules() if k.endswith("conv_dw")}
    strided = {k for k, m in depthwise.items() if isinstance(m, SameConv2d)}
    assert strided == {"blocks.1.0.conv_dw", "blocks.2.0.conv_dw", "blocks.3.0.conv_dw"}
    dilated = {k for k, m in depthwise.items() if m.dilation == (2, 2)}
    assert dilated == {"blocks.5.1.conv_dw", "blocks.5.2.conv_dw", "blocks.6.0.conv_dw"}
    assert {m.eps for m in v2.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}
    assert not any(isinstance(m, nn.ReLU) for m in v2.modules())


def test_residual_sums_are_where_shapes_allow(v2):
    with_add = {k for k, m in v2.named_modules() if type(m).__name__ == "InvertedResidual" and m.add is not None}
    truth = {f"blocks.{s}.{r}" for s, (e, _, n) in enumerate(V2_ROWS) for r in range(1, n) if e > 1}
    assert with_add == truth


@pytest.mark.parametrize("name", BACKBONES.names())
def test_stages_tell_the_channels_and_strides_that_come_out(name):
    backbone = BACKBONES[name]().eval()
    seen: dict[str, torch.Size] = {}
    for stage in backbone.stages:
        module = backbone.get_submodule(stage.path)
        module.register_forward_hook(lambda _m, _i, out, path=stage.path: seen.update({path: out.shape}))
    with torch.inference_mode():
        skip, top = backbone(torch.zeros(1, 3, 96, 64))
    for stage in backbone.stages:
        assert seen[stage.path] == (1, stage.channels, 96 // stage.stride_px, 64 // stage.stride_px), stage.path
    assert skip.shape == (1, backbone.skip_channels, 12, 8)
    assert top.shape == (1, backbone.top_channels, 6, 4)


@pytest.mark.parametrize("name", BACKBONES.names())
def test_frozen_paths_cover_the_leading_stages_and_nothing_else(name):
    backbone = BACKBONES[name]()
    assert backbone.frozen_paths(0) == ()
    names = [n for n, _ in backbone.named_parameters()]
    frozen = [any(n.startswith(path + ".") for path in backbone.frozen_paths(3)) for n in names]
    count = frozen.count(True)
    assert 0 < count < len(names)
    assert frozen == [True] * count + [False] * (len(names) - count)
    assert all(any(n.startswith(path + ".") for path in backbone.frozen_paths(99)) for n in names)


def test_the_multi_hardware_backbone_has_the_published_size_and_cost():
    """Published table of 1a: 1.634 M parameters, 3.818 GMAC at 640, 0.611 at 256; counted here from shapes."""
    backbone = BACKBONES["mobilenet_mh"]().eval()
    params_m = sum(p.numel() for p in backbone.parameters()) / 1e6
    assert round(params_m, 3) == 1.634
    total = [0]

    def count(conv, _inputs, out):
        total[0] += out[0].numel() * conv.weight[0].numel()

    for conv in (m for m in backbone.modules() if isinstance(m, nn.Conv2d)):
        conv.register_forward_hook(count)
    backbone.to("meta")(torch.zeros(1, 3, 640, 640, device="meta"))
    assert round(total[0] / 1e9, 3) == 3.818
    assert round(total[0] * (256 / 640) ** 2 / 1e9, 3) == 0.611


def test_the_multi_hardware_backbone_has_the_published_blocks():
    """Kernel, expand ratio, channels, dilation of rows 1-16 of table 1a; ReLU, eps 1e-3."""
    rows = (
        "3 2 1 3 32,3 1 1 2 32,5 2 1 5 64,3 1 1 3 64,3 1 1 2 64,3 1 1 3 64,5 2 1 6 128,3 1 1 3 128,3 1 1 3 128,"
        "3 1 1 3 128,3 1 1 6 160,3 1 1 4 160,3 1 2 6 192,5 1 2 2 96,5 1 2 4 96,5 1 2 4 96"
    )
    backbone = BACKBONES["mobilenet_mh"]()
    found = []
    for block in backbone.blocks:
        dw, project = block.depthwise.conv, block.project.conv
        expand = dw.in_channels // block.expand.conv.in_channels
        numbers = (dw.kernel_size[0], dw.stride[0], dw.dilation[0], expand, project.out_channels)
        found.append(" ".join(map(str, numbers)))
    assert ",".join(found) == rows
    assert {m.eps for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    kinds = {type(m) for m in backbone.modules() if not list(m.children())}
    assert nn.ReLU in kinds
    assert not kinds & {nn.ReLU6, nn.Hardswish, nn.SiLU}
    assert [b.add is not None for b in backbone.blocks] == [n in (1, 3, 4, 5, 7, 8, 9, 11, 14, 15) for n in range(16)]


def random_state(backbone):
    return {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in backbone.state_dict().items()}


def test_weights_load_by_name_and_half_precision_is_widened(tmp_path, v2):
    state = random_state(v2)
    tail = {"conv_head.weight": torch.ones(2), "bn2.bias": torch.ones(2), "classifier.weight": torch.ones(2)}
    save_file({k: v.half() if v.is_floating_point() else v for k, v in {**state, **tail}.items()}, tmp_path / "w")
    fresh = BACKBONES["mobilenet_v2"]()
    load_weights(fresh, tmp_path / "w")
    for key, value in fresh.state_dict().items():
        expected = state[key].half().to(state[key].dtype) if state[key].is_floating_point() else state[key]
        assert value.dtype == expected.dtype
        assert torch.equal(value, expected), key


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("blocks.3.1.conv_dw.weight"), "blocks.3.1.conv_dw.weight"),
        (lambda s: s.update({"blocks.9.0.bn1.bias": torch.ones(1)}), "blocks.9.0.bn1.bias"),
        (lambda s: s.update({"conv_stem.weight": torch.ones(16, 3, 3, 3)}), "conv_stem.weight"),
        (lambda s: s.update({"conv_header.weight": torch.ones(1)}), "conv_header.weight"),
    ],
    ids=["missing", "surplus", "other shape", "name that only looks like the tail"],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_change_nothing(tmp_path, v2, change, said):
    state = random_state(v2)
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    before = {k: v.clone() for k, v in v2.state_dict().items()}
    with pytest.raises(ArtifactError, match=said.replace(".", r"\.")):
        load_weights(v2, tmp_path / "w.safetensors")
    assert all(torch.equal(before[k], v) for k, v in v2.state_dict().items())


@pytest.mark.parametrize("keep", [0, 4, 100, -100])
def test_a_truncated_weights_file_is_refused(tmp_path, v2, keep):
    save_file(random_state(v2), tmp_path / "w")
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        load_weights(v2, tmp_path / "w")


def test_missing_weights_and_an_unknown_backbone_say_so(tmp_path, v2):
    with pytest.raises(InputError, match="no weights"):
        load_weights(v2, tmp_path / "nothing")
    with pytest.raises(InputError, match="mobilenet_v2"):
        BACKBONES["mobilenetv2"]


@pytest.mark.shared
@pytest.mark.parametrize("file", ["mobilenetv2_100_imagenet", "mobilenetv2_100_ade20k_backbone"])
def test_both_weight_files_at_hand_load(shared_dir, v2, file):
    path = shared_dir / "data" / "weights" / f"{file}.safetensors"
    load_weights(v2, path)
    assert torch.equal(v2.blocks[6][0].conv_pwl.weight, load_file(path)["blocks.6.0.conv_pwl.weight"].float())


# rows of the 1000 ImageNet classes, by their published order
ANIMALS = {
    "bear": {294, 295, 296, 297},
    "elephant": {101, 385, 386},
    "otter": {360},
    "tiger": {282, 292},
    "turtle": {33, 34, 35, 36, 37},
}


def photos_of_one_animal(folder, count):
    document = json.loads((folder / "instances_val.json").read_text())
    names = {c["id"]: c["name"] for c in document["categories"]}
    kinds: dict[int, set[str]] = {}
    for annotation in document["annotations"]:
        kinds.setdefault(annotation["image_id"], set()).add(names[annotation["category_id"]])
    for image in document["images"]:
        kind = kinds.get(image["id"], set())
        if len(kind) == 1 and kind <= set(ANIMALS) and count:
            count -= 1
            yield kind.pop(), Image.open(folder / "val" / image["file_name"]).convert("RGB")


@pytest.mark.shared
def test_the_imagenet_weights_recognise_animals_in_photos(shared_dir):
    """The classifier is rebuilt from the file's tail: padding, order of layers and normalisation must be right."""
    path = shared_dir / "data" / "weights" / "mobilenetv2_100_imagenet.safetensors"
    backbone = BACKBONES["mobilenet_v2"]().eval()
    load_weights(backbone, path)
    tail = {k: v.float() for k, v in load_file(path).items()}
    right = []
    for kind, picture in photos_of_one_animal(shared_dir / "data" / "animals", 24):
        pixels = np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR))
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            y = F.conv2d(backbone(x)[1], tail["conv_head.weight"])
            y = F.batch_norm(y, *[tail[f"bn2.{k}"] for k in ("running_mean", "running_var", "weight", "bias")])
            scores = F.linear(F.relu6(y).mean((2, 3)), tail["classifier.weight"], tail["classifier.bias"])[0]
        right.append(int(scores[-1000:].argmax()) in ANIMALS[kind])
    assert len(right) == 24
    assert sum(right) >= 18, right
