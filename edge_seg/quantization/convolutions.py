"""Convolutions with weights on an integer grid, the BatchNorm after them folded in."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_seg.layers.ops import Normalize
from edge_seg.quantization.grids import RangeOptions, WeightGrid


class FrozenNorm(nn.Module):
    """BatchNorm with fixed statistics and trained scale and shift, applied to a kernel instead of a map.

    Args:
        norm: The BatchNorm it replaces.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight.detach().clone())
        self.bias = nn.Parameter(norm.bias.detach().clone())
        self.register_buffer("mean", norm.get_buffer("running_mean").clone())
        self.register_buffer("deviation", torch.sqrt(norm.get_buffer("running_var") + norm.eps))

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns kernel [out, in, kh, kw] and bias [out] with the norm folded in; gradients flow through the fold."""
        factor = self.weight / self.get_buffer("deviation")
        mean = self.get_buffer("mean")
        shifted = -mean if bias is None else bias - mean
        return weight * factor.reshape(-1, 1, 1, 1), self.bias + shifted * factor


class QuantConv2d(nn.Conv2d):
    """A convolution that computes with its folded weights on their grid.

    Args:
        conv: The float convolution; its parameters are taken over, shared where it is used twice.
        norm: The BatchNorm after it, if there is one.
        options: How ranges come about.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, options: RangeOptions) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=False,
            device="meta",
        )
        self.weight = conv.weight
        bias = None if conv.bias is None else conv.get_parameter("bias")
        if bias is None and norm is None:  # an int8 kernel has a bias anyway; it starts at zero and is trained
            bias = nn.Parameter(torch.zeros_like(conv.weight[:, 0, 0, 0]).detach())
        self.register_parameter("bias", bias)
        self.norm = None if norm is None else FrozenNorm(norm)
        self.grid = WeightGrid(conv.out_channels, options)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Returns the kernel [out, in, kh, kw] and bias [out] that a converted file holds, before rounding."""
        if self.norm is not None:
            folded: tuple[Tensor, Tensor] = self.norm(self.weight, self.bias)
            return folded
        return self.weight, self.get_parameter("bias")

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in, H, W] to [N, out, h, w]."""
        weight, bias = self.folded()
        return F.conv2d(x, self.grid(weight), bias, self.stride, self.padding, self.dilation, self.groups)


class QuantNormalize(nn.Module):
    """The normalisation of the picture with its weights on their grid; nothing in it is trained.

    Args:
        normalize: The float module.
    """

    def __init__(self, normalize: Normalize) -> None:
        super().__init__()
        self.register_buffer("weight", normalize.get_buffer("weight").clone(), persistent=False)
        self.register_buffer("bias", normalize.get_buffer("bias").clone(), persistent=False)
        self.grid = WeightGrid(3, RangeOptions())
        self.stride, self.padding, self.dilation, self.groups = (1, 1), (0, 0), (1, 1), 3

    def folded(self) -> tuple[Tensor, Tensor]:
        """Returns kernel [3, 1, 1, 1] and bias [3]."""
        return self.get_buffer("weight"), self.get_buffer("bias")

    def forward(self, x: Tensor) -> Tensor:
        """Maps an image in 0..255 to the range the backbone was trained on."""
        weight, bias = self.folded()
        return F.conv2d(x, self.grid(weight), bias, groups=self.groups)
