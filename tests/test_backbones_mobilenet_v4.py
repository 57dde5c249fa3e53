"""MobileNetV4-Conv-S: names, shapes and numbers of timm 1.0.31's `mobilenetv4_conv_small`, recorded once."""

import hashlib
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edge_seg.backbones.base import BACKBONES, PYRAMIDS, load_weights
from edge_seg.errors import ArtifactError
from edge_seg.layers.conv import ConvBnAct

TENSORS = 270
DIGEST = "05e21eb8b138a735f6fb14cfcac12258adee6980d6a2d8f477c79239b5335334"

# arXiv 2404.10518, table 8 (Conv-S): kernels of the two depthwise convolutions, expansion, channels
UIB_ROWS = {
    2: ((5, 5, 3, 96), (0, 3, 2, 96), (0, 3, 2, 96), (0, 3, 2, 96), (0, 3, 2, 96), (3, 0, 4, 96)),
    3: ((3, 3, 6, 128), (5, 5, 4, 128), (0, 5, 4, 128), (0, 5, 3, 128), (0, 3, 4, 128), (0, 3, 4, 128)),
}


@pytest.fixture(scope="module")
def v4():
    return BACKBONES["mobilenet_v4_conv_small"]().eval()


def test_it_has_the_tensor_names_and_shapes_of_timm(v4):
    """The digest is over the sorted lines `name:shape` of timm's network without conv_head, norm_head, classifier."""
    lines = sorted(f"{k}:{'x'.join(map(str, v.shape))}" for k, v in v4.state_dict().items())
    assert len(lines) == TENSORS
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == DIGEST


def test_the_bottlenecks_are_those_of_the_paper(v4):
    channels = 64
    for stage, rows in UIB_ROWS.items():
        found = []
        for block in v4.blocks[stage]:
            kernels = [c.conv.kernel_size[0] if isinstance(c, ConvBnAct) else 0 for c in (block.dw_start, block.dw_mid)]
            wide, out = block.pw_exp.conv.out_channels, block.pw_proj.conv.out_channels
            found.append((*kernels, wide // channels, out))
            assert isinstance(block.pw_proj.act, nn.Identity)
            assert isinstance(block.pw_exp.act, nn.ReLU)
            assert (block.add is not None) == (channels == out)
            channels = out
        assert tuple(found) == rows


def test_it_is_dilated_after_stride_16_and_padded_symmetrically_as_timm_does_it(v4):
    convs = {k: m for k, m in v4.named_modules() if isinstance(m, nn.Conv2d)}
    strided = {k for k, m in convs.items() if m.stride == (2, 2)}
    assert strided == {"conv_stem", "blocks.0.0.conv", "blocks.1.0.conv", "blocks.2.0.dw_mid.conv"}
    dilated = {k.removesuffix(".conv") for k, m in convs.items() if m.dilation == (2, 2)}
    assert dilated == {"blocks.3.1.dw_start", *(f"blocks.3.{n}.dw_mid" for n in range(1, 6))}
    for conv in convs.values():
        assert conv.padding == tuple(d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    assert {m.eps for m in v4.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}


def wave(shape: torch.Size | tuple[int, ...], phase: float) -> Tensor:
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.37 * steps + phase).reshape(shape)


def fill_with_waves(net: nn.Module) -> nn.Module:
    """Every tensor from a formula, so that a few recorded numbers stand for the whole network."""
    state = net.double().state_dict()
    for k, (name, value) in enumerate(sorted(state.items())):
        if value.dim() == 4:
            state[name] = wave(value.shape, k) * 2 / value[0].numel() ** 0.5
        elif name.endswith("running_var"):
            state[name] = 1 + 0.5 * wave(value.shape, k)
        elif name.endswith(("running_mean", "bias")):
            state[name] = 0.2 * wave(value.shape, k)
        elif value.dim() == 1:
            state[name] = 1 + 0.3 * wave(value.shape, k)
    net.load_state_dict(state)
    return net


def test_it_computes_what_timm_computes():
    """Recorded from timm's features at strides 8 and 16 (output_stride=16), float64: mean, deviation, three cells."""
    net = fill_with_waves(BACKBONES["mobilenet_v4_conv_small"]().eval())
    with torch.inference_mode():
        maps = net(wave((1, 3, 64, 96), 0.5) + wave((1, 3, 64, 96), 0.1).flip(3))
    recorded = (
        [0.732142847, 0.944560847, 0, 2.34546578, 1.70840704],
        [479.575232, 648.947547, 564.444031, 1226.77884, 1756.43258],
    )
    for got, truth in zip(maps, recorded, strict=True):
        cells = [got.mean(), got.std(), got[0, 1, 2, 3], got[0, -1, -1, -1], got[0, 5, 0, 0]]
        assert [c.item() for c in cells] == pytest.approx(truth, rel=1e-8, abs=1e-9)


def test_the_pyramid_computes_what_timm_computes():
    """Recorded from the stages of timm 1.0.31 at stride 32, float64: mean, deviation, three cells of each map."""
    net = fill_with_waves(PYRAMIDS["mobilenet_v4_conv_small"]().eval())
    with torch.inference_mode():
        maps = net(wave((1, 3, 64, 96), 0.5) + wave((1, 3, 64, 96), 0.1).flip(3))
    recorded = (
        [0.517224409, 0.825511869, 0.0, 0.0, 0.0340414441],
        [0.737525636, 0.954361467, 0.0, 2.36927754, 1.63880206],
        [1.1643094, 75.1563775, -6.62673894, 106.721464, -72.623476],
        [68.5779802, 4493.62422, 4398.04805, 4607.17925, -24.8915884],
    )
    assert [tuple(m.shape) for m in maps] == [(1, 32, 16, 24), (1, 64, 8, 12), (1, 96, 4, 6), (1, 128, 2, 3)]
    assert net.channels == tuple(m.shape[1] for m in maps)
    for got, truth in zip(maps, recorded, strict=True):
        cells = [got.mean(), got.std(), got[0, 1, 1, 2], got[0, -1, -1, -1], got[0, 5, 0, 0]]
        assert [c.item() for c in cells] == pytest.approx(truth, rel=1e-8, abs=1e-9)


def test_the_short_form_is_the_long_one_without_its_last_convolution(v4):
    short = BACKBONES["mobilenet_v4_conv_small_128"]().eval()
    state = v4.state_dict()
    short.load_state_dict({k: v for k, v in state.items() if not k.startswith("blocks.4.")})
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        (skip_a, top_a), (skip_b, top_b) = v4(x), short(x)
        assert torch.equal(skip_a, skip_b)
        assert torch.equal(v4.blocks[4](top_b), top_a)
    assert (v4.top_channels, short.top_channels) == (960, 128)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("mobilenet_v4_conv_small_128", "blocks.4."),
        ("mobilenet_v2_160", "blocks.6."),
        ("mobilenet_v2_96", ("blocks.5.", "blocks.6.")),
    ],
)
def test_weights_of_the_whole_network_load_into_the_short_form(tmp_path, name, last):
    short = BACKBONES[name]()
    whole = BACKBONES["mobilenet_v4_conv_small" if "v4" in name else "mobilenet_v2"]()
    state = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in whole.state_dict().items()}
    save_file({**state, "classifier.bias": torch.ones(3)}, tmp_path / "w")
    load_weights(short, tmp_path / "w")
    loaded = short.state_dict()
    assert set(state) - set(loaded) == {k for k in state if k.startswith(last)} != set()
    assert all(torch.equal(v, state[k]) for k, v in loaded.items())


def test_weights_of_another_width_are_refused(tmp_path, v4):
    state = {**v4.state_dict(), "blocks.2.0.dw_start.conv.weight": torch.zeros(32, 1, 5, 5)}
    save_file(state, tmp_path / "w")
    with pytest.raises(ArtifactError, match=r"dw_start\.conv\.weight"):
        load_weights(v4, tmp_path / "w")
