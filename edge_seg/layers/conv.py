"""Convolution blocks: convolution + BatchNorm + activation, separable pairs, TensorFlow 'same' at stride 2."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class SameConv2d(nn.Conv2d):
    """3x3 convolution of stride 2 with TensorFlow's 'same' padding (bottom and right on even sizes).

    Written as a 4x4 kernel whose first row and column are zero, with symmetric padding 1: the same numbers, but no
    PAD and no TRANSPOSE in the converted graph, where the zeros are cut off again (`converters.zero_taps`). The stored
    weight stays 3x3, under its usual name.
    Source: edge_seg measurement; TensorFlow `SAME` definition.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        groups: Groups of the convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, 3, stride=2, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, out, H / 2, W / 2]."""
        return F.conv2d(x, self.kernel_4x4(), None, 2, 1, 1, self.groups)

    def kernel_4x4(self) -> Tensor:
        """Returns the weight with a zero first row and column, [out, in / groups, 4, 4]."""
        return F.pad(self.weight, (1, 0, 1, 0))

    def as_plain(self) -> nn.Conv2d:
        """Returns an ordinary convolution with the 4x4 kernel, for export and retraining; its zeros stay."""
        plain = nn.Conv2d(self.in_channels, self.out_channels, 4, stride=2, padding=1, groups=self.groups, bias=False)
        plain.weight.data.copy_(self.kernel_4x4().data)
        plain.taps = 9  # type: ignore[assignment]
        plain.weight.register_hook(_without_zeros)  # type: ignore[no-untyped-call]
        return plain


def _without_zeros(gradient: Tensor) -> Tensor:
    return F.pad(gradient[..., 1:, 1:], (1, 0, 1, 0))


def activation(name: str) -> nn.Module:
    """Returns the module of an activation: "relu", "relu6" or "none"."""
    return {"relu": nn.ReLU, "relu6": nn.ReLU6, "none": nn.Identity}[name]()


class ConvBnAct(nn.Sequential):
    """Convolution without bias, BatchNorm, activation.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel: Side of the kernel.
        stride: Stride.
        dilation: Dilation; padding keeps the size at stride 1.
        groups: Groups of the convolution.
        act: Name of the activation.
        eps: BatchNorm epsilon.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: str = "relu",
        eps: float = 1e-3,
    ) -> None:
        padding = dilation * (kernel // 2)
        super().__init__()
        self.add_module(
            "conv",
            nn.Conv2d(
                in_channels,
                out_channels,
                kernel,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                bias=False,
            ),
        )
        self.add_module("bn", nn.BatchNorm2d(out_channels, eps=eps, momentum=0.01))
        self.add_module("act", activation(act))


class SeparableConv(nn.Sequential):
    """Depthwise then 1x1 convolution, each with BatchNorm and ReLU (the light head's pair).

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel: Side of the depthwise kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.add_module("dw", ConvBnAct(in_channels, in_channels, kernel, groups=in_channels))
        self.add_module("pw", ConvBnAct(in_channels, out_channels, 1))
