"""Layers: exact forms against plain PyTorch, resizes against bilinear interpolation written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edge_seg.layers.aspp import Aspp
from edge_seg.layers.conv import ConvBnAct, SameConv2d, SeparableConv
from edge_seg.layers.ops import Add, Concat, GlobalMean, Normalize, ResizeLike, Upsample


@pytest.mark.parametrize("side_px", [2, 8, 10, 64])
@pytest.mark.parametrize("groups", [1, 6])
def test_the_strided_convolution_pads_like_tensorflow_same_on_even_sizes(side_px, groups):
    """TensorFlow pads an even size at stride 2 by one pixel at the bottom and at the right."""
    torch.manual_seed(1)
    conv = SameConv2d(6, 12, groups=groups)
    x = torch.randn(2, 6, side_px, side_px)
    truth = F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, None, 2, 0, 1, groups)
    assert conv.weight.shape == (12, 6 // groups, 3, 3)
    torch.testing.assert_close(conv(x), truth, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(conv.as_plain()(x), truth, rtol=1e-6, atol=1e-6)
    assert type(conv.as_plain()) is nn.Conv2d


def test_same_padding_is_exact_in_whole_numbers():
    conv = SameConv2d(1, 1)
    conv.weight.data = torch.arange(9.0).reshape(1, 1, 3, 3)
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    # by hand: the last output sees rows 2..4 and columns 2..4, of which row 4 and column 4 are padding
    last = 10 * 0 + 11 * 1 + 14 * 3 + 15 * 4
    first = sum(k * v for k, v in enumerate([0, 1, 2, 4, 5, 6, 8, 9, 10]))
    for form in (conv, conv.as_plain()):
        y = form(x)
        assert y.shape == (1, 1, 2, 2)
        assert (y[0, 0, 0, 0].item(), y[0, 0, 1, 1].item()) == (first, last)


def test_symmetric_padding_would_not_be_the_same():
    conv = SameConv2d(1, 1)
    x = torch.randn(1, 1, 8, 8)
    assert not torch.allclose(conv(x), F.conv2d(x, conv.weight, None, 2, 1), atol=1e-3)


def test_normalisation_maps_bytes_to_minus_one_and_one():
    x = torch.tensor([0.0, 127.5, 255.0]).reshape(1, 1, 1, 3).expand(1, 3, 1, 3)
    y = Normalize((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))(x)
    assert torch.allclose(y, torch.tensor([-1.0, 0.0, 1.0]).expand(1, 3, 1, 3), atol=1e-6)
    colours = Normalize((10.0, 20.0, 30.0), (2.0, 4.0, 5.0))(torch.full((1, 3, 1, 1), 40.0))
    assert torch.allclose(colours.flatten(), torch.tensor([15.0, 5.0, 2.0]))


def bilinear(row: list[float], size: int) -> list[float]:
    """Half-pixel centres, clamped at the border, one axis, written out."""
    values = []
    for i in range(size):
        place = min(max((i + 0.5) * len(row) / size - 0.5, 0), len(row) - 1)
        left = min(int(place), len(row) - 1)
        right = min(left + 1, len(row) - 1)
        values.append(row[left] + (place - left) * (row[right] - row[left]))
    return values


def test_resizes_are_bilinear_with_half_pixel_centres():
    row = [3.0, -1.0, 4.0, 10.0]
    x = torch.tensor(row).reshape(1, 1, 1, 4).expand(1, 2, 4, 4)
    wide = torch.tensor(bilinear(row, 8)).expand(1, 2, 8, 8)
    assert wide[0, 0, 0, :4].tolist() == [3.0, 2.0, 0.0, 0.25]  # by hand
    torch.testing.assert_close(Upsample(2)(x), wide)
    torch.testing.assert_close(ResizeLike()(x, torch.zeros(5, 7, 8, 8)), wide)
    one = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(ResizeLike()(one, torch.zeros(1, 1, 4, 6)), one.expand(1, 3, 4, 6))


def test_add_concat_and_mean_do_what_their_names_say():
    a, b = torch.tensor([[1.0, 2.0]]).reshape(1, 2, 1, 1), torch.tensor([[10.0, 20.0]]).reshape(1, 2, 1, 1)
    assert Add()(a, b).flatten().tolist() == [11.0, 22.0]
    assert Concat()(a, b, a).flatten().tolist() == [1.0, 2.0, 10.0, 20.0, 1.0, 2.0]
    assert GlobalMean()(torch.arange(8.0).reshape(1, 2, 2, 2)).flatten().tolist() == [1.5, 5.5]


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_odd_kernels_keep_the_size(kernel, dilation):
    block = ConvBnAct(4, 8, kernel, dilation=dilation).eval()
    assert block(torch.zeros(1, 4, 9, 11)).shape == (1, 8, 9, 11)
    assert block.conv.bias is None
    assert (block.bn.eps, block.bn.momentum) == (1e-3, 0.01)


def test_the_separable_pair_has_norm_and_relu_after_both_convolutions():
    pair = SeparableConv(8, 16, 7)
    kinds = [type(m) for m in pair.modules() if not list(m.children())]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2
    assert (pair.dw.conv.groups, pair.dw.conv.kernel_size, pair.pw.conv.kernel_size) == (8, (7, 7), (1, 1))


def test_aspp_equals_its_published_form_written_out():
    """Five branches; no norm or activation between the dilated depthwise and its 1x1."""
    torch.manual_seed(0)
    aspp = Aspp(6, 4).eval()
    for norm in (m for m in aspp.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        norm.weight.data.normal_()

    def block(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        n = module.bn
        y = F.conv2d(x, module.conv.weight)
        return F.relu(F.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, False, 0.0, 1e-3))

    x = torch.randn(2, 6, 20, 20)
    parts = [block(aspp.point, x)]
    for branch, dilation in zip(aspp.dilated, (6, 12, 18), strict=True):
        parts.append(block(branch.pw, F.conv2d(x, branch.dw.weight, None, 1, dilation, dilation, 6)))
    parts.append(block(aspp.pooled, x.mean((2, 3), keepdim=True)).expand(2, 4, 20, 20))
    torch.testing.assert_close(aspp(x), block(aspp.merge, torch.cat(parts, 1)), rtol=1e-5, atol=1e-5)
