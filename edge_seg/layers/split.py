"""Depthwise 7x7 convolution as a sum of three smaller ones, exact in real numbers.

TFLite's CPU kernels (XNNPACK) have fast depthwise code for 9 and for 25 taps at most, and a convolution with fewer
costs as much; 49 taps fall back to a grouped convolution that is more than ten times slower. The square of taps is cut
by columns: the three even ones (7x3, every other column), five rows of the four odd ones (5x4), and the first and the
last row of those (2x4). That is the price of 25 + 25 + 9 taps; a 5x5 centre with two strips around it would be 3 x 25.
All three are centred, so 'same' padding serves each of them and nothing is padded or sliced.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_seg.layers.ops import Add

SIDE = 7


def is_depthwise_7x7(module: nn.Module) -> bool:
    """Returns whether a module is a 7x7 depthwise convolution of stride 1 that keeps the size of its map."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (SIDE, SIDE)
        and module.in_channels == module.out_channels == module.groups
        and (module.stride, module.padding, module.dilation) == ((1, 1), (3, 3), (1, 1))
        and module.padding_mode == "zeros"
    )


class SplitDepthwise7x7(nn.Module):
    """Sum of a 7x3, a 5x4 and a 2x4 depthwise convolution, all dilated: the 49 taps of a 7x7, each once.

    Args:
        weight: 7x7 depthwise kernel, [C, 1, 7, 7].
        bias: [C]; it goes to the even columns, so that it is added once.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.even = _depthwise(weight[:, :, :, 1::2], dilation=(1, 2), bias=bias)
        self.odd = _depthwise(weight[:, :, 1:-1, ::2], dilation=(1, 2))
        self.rim = _depthwise(weight[:, :, :: SIDE - 1, ::2], dilation=(SIDE - 1, 2))
        self.add_odd = Add()
        self.add_rim = Add()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, h, w] to [N, C, h, w]."""
        y: Tensor = self.add_rim(self.add_odd(self.even(x), self.odd(x)), self.rim(x))
        return y


def _depthwise(weight: Tensor, *, dilation: tuple[int, int], bias: Tensor | None = None) -> nn.Conv2d:
    """A depthwise convolution with these taps, padded so that the map keeps its size."""
    channels, _, height, width = weight.shape
    padding = ((height - 1) * dilation[0] // 2, (width - 1) * dilation[1] // 2)
    conv = nn.Conv2d(
        channels, channels, (height, width), padding=padding, dilation=dilation, groups=channels, bias=bias is not None
    ).to(device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        conv.weight.copy_(weight)
        if bias is not None:
            conv.get_parameter("bias").copy_(bias)
    return conv


def split_7x7(conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None) -> SplitDepthwise7x7:
    """Returns the split form of a 7x7 depthwise convolution, with the BatchNorm after it folded in.

    The fold is needed because a converter folds BatchNorm only into a convolution directly before it, not into a sum.
    It is computed in float64.

    Args:
        conv: A convolution for which `is_depthwise_7x7` holds.
        norm: Its BatchNorm, taken in evaluation mode.
    """
    weight = conv.weight.detach().double()
    bias = torch.zeros_like(weight[:, 0, 0, 0]) if conv.bias is None else conv.bias.detach().double()
    if norm is not None:
        scale, shift = _scale_shift(norm)
        weight, bias = weight * scale[:, None, None, None], bias * scale + shift
    dtype = conv.weight.dtype
    return SplitDepthwise7x7(weight.to(dtype), bias.to(dtype))


def is_foldable(module: nn.Module) -> bool:
    """Returns whether a module is a BatchNorm with running statistics, which is affine in evaluation mode."""
    return isinstance(module, nn.BatchNorm2d) and module.affine and module.track_running_stats


def _scale_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    mean, variance = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
    scale = norm.weight.detach().double() / torch.sqrt(variance + norm.eps)
    return scale, norm.bias.detach().double() - mean * scale
