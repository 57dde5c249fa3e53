"""The feature pyramid: levels, a sum computed by hand, parameter counts of the published form, bad options."""

import pytest
import torch
from torch import nn

from edge_seg.errors import ConfigError
from edge_seg.layers.fpn import Fpn, FpnOptions
from edge_seg.layers.norm import LevelConv, norm_layer

CHANNELS = (24, 32, 96, 320)


def maps(side_px=128):
    torch.manual_seed(0)
    sides = [side_px // 2**level for level in range(2, 6)]
    return [torch.rand(1, c, side, side) for c, side in zip(CHANNELS, sides, strict=True)]


@pytest.mark.parametrize(("finest", "coarsest"), [(3, 5), (2, 5), (2, 6), (3, 7), (2, 4), (5, 5), (5, 7)])
@pytest.mark.parametrize("extra", ["conv", "max_pool"])
def test_each_level_has_the_size_of_its_stride(finest, coarsest, extra):
    fpn = Fpn(CHANNELS, FpnOptions(16, finest, coarsest, extra=extra)).eval()
    assert fpn.levels == tuple(range(finest, coarsest + 1))
    found = fpn(*maps())
    assert [tuple(y.shape) for y in found] == [(1, 16, 128 // 2**v, 128 // 2**v) for v in fpn.levels]


def test_the_published_pyramid_on_mobilenet_has_the_count_of_its_layers():
    """Laterals (32 + 96 + 320) * 256 + 3 * 256, outputs 3 * (9 * 256 * 256 + 256)."""
    fpn = Fpn(CHANNELS, FpnOptions())
    assert sum(p.numel() for p in fpn.parameters()) == 448 * 256 + 3 * 256 + 3 * (9 * 256 * 256 + 256) == 1_885_696


def ones(fpn):
    """All kernels copy: every channel of a level is the sum of its input's first channel and what comes from above."""
    for module in fpn.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
            centre = module.kernel_size[0] // 2
            module.weight.data[:, 0, centre, centre] = 1
    return fpn


@pytest.mark.parametrize(("upsample", "row"), [("nearest", [0.0, 0, 1, 1]), ("bilinear", [0.0, 0.25, 0.75, 1.0])])
def test_a_level_adds_the_enlarged_level_above(upsample, row):
    fpn = ones(Fpn(CHANNELS, FpnOptions(4, 4, 5, upsample=upsample)))
    c4, c5 = torch.zeros(1, 96, 4, 4), torch.zeros(1, 320, 2, 2)
    c5[0, 0] = torch.tensor([[0.0, 1], [0, 1]])
    c4[0, 0] = 10
    p4, p5 = fpn(torch.zeros(1, 24, 16, 16), torch.zeros(1, 32, 8, 8), c4, c5)
    assert torch.equal(p5[0, 3], c5[0, 0])
    torch.testing.assert_close(p4[0, 2], torch.tensor([row] * 4) + 10)


def test_level_6_by_pooling_takes_every_second_cell_and_level_7_by_convolution_has_a_relu_before():
    pooled = Fpn(CHANNELS, FpnOptions(8, 5, 6, extra="max_pool"))
    p5, p6 = pooled(*maps())
    assert torch.equal(p6, p5[:, :, ::2, ::2])
    fpn = ones(Fpn(CHANNELS, FpnOptions(8, 5, 7)))
    c5 = -torch.rand(1, 320, 4, 4)
    p5, p6, p7 = fpn(*maps()[:3], c5)
    assert (p6 < 0).all()
    assert (p7 == 0).all()


def test_the_mobile_pyramid_has_no_bias_before_a_norm_and_ends_in_relu6():
    fpn = Fpn(CHANNELS, FpnOptions(16, separable=True, norm="bn", act="relu6", upsample="bilinear")).eval()
    assert all(m.bias is None for m in fpn.modules() if isinstance(m, nn.Conv2d))
    assert all(isinstance(fpn.output[level][-1].act, nn.ReLU6) for level in ("3", "4", "5"))


@pytest.mark.parametrize("options", [{"finest": 1}, {"finest": 6}, {"coarsest": 8}, {"finest": 4, "coarsest": 3}])
def test_levels_that_do_not_exist_are_refused(options):
    with pytest.raises(ConfigError, match="level"):
        Fpn(CHANNELS, FpnOptions(**options))


def test_a_shared_convolution_has_a_batchnorm_for_each_level_and_one_groupnorm_for_all():
    conv = nn.Conv2d(32, 32, 1)
    normed = LevelConv(conv, 3)
    assert len(normed.norms) == 3
    assert len(LevelConv(conv, 3, norm="gn").norms) == 1
    nn.init.constant_(normed.norms[2].bias, 7.0)
    x = torch.rand(1, 32, 2, 2)
    normed.eval()
    assert torch.equal(normed(x, 0), normed(x, 1))
    torch.testing.assert_close(conv(x) / (1 + 1e-5) ** 0.5 + 7, normed(x, 2))


def test_groupnorm_refuses_channels_its_groups_do_not_divide():
    with pytest.raises(ConfigError, match="multiple of 32"):
        norm_layer("gn", 48)
