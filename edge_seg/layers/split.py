"""Depthwise 7x7 convolution as a sum of three smaller ones, exact in real numbers.

TFLite's CPU kernels (XNNPACK) have fast depthwise code for at most 25 taps; 49 taps fall back to a grouped convolution
that is more than ten times slower. The square of taps is cut into its 5x5 centre, its outer rows (2x7, dilation 6
along the height) and what is left of its outer columns (5x2, dilation 6 along the width). All three are centred, so
'same' padding serves each of them and nothing is padded or sliced.
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
    """Sum of a 5x5, a dilated 2x7 and a dilated 5x2 depthwise convolution: the 49 taps of a 7x7, each once.

    Args:
        weight: 7x7 depthwise kernel, [C, 1, 7, 7].
        bias: [C]; it goes to the centre, so that it is added once.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        channels = weight.shape[0]
        self.center = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.rows = nn.Conv2d(
            channels, channels, (2, SIDE), padding=3, dilation=(SIDE - 1, 1), groups=channels, bias=False
        )
        self.columns = nn.Conv2d(
            channels, channels, (5, 2), padding=(2, 3), dilation=(1, SIDE - 1), groups=channels, bias=False
        )
        self.add_rows = Add()
        self.add_columns = Add()
        self.to(device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            self.center.weight.copy_(weight[:, :, 1:-1, 1:-1])
            self.center.get_parameter("bias").copy_(bias)
            self.rows.weight.copy_(weight[:, :, :: SIDE - 1, :])
            self.columns.weight.copy_(weight[:, :, 1:-1, :: SIDE - 1])

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, h, w] to [N, C, h, w]."""
        y: Tensor = self.add_columns(self.add_rows(self.center(x), self.rows(x)), self.columns(x))
        return y


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
