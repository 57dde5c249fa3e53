"""Atrous spatial pyramid pooling as MaskConver's mobile variant uses it (DeepLabV3, arXiv 1706.05587)."""

from __future__ import annotations

from torch import Tensor, nn

from edge_seg.layers.conv import ConvBnAct
from edge_seg.layers.ops import Concat, GlobalMean, ResizeLike


class AsppBranch(nn.Sequential):
    """Dilated 3x3 depthwise convolution (no norm after it), then 1x1 + BatchNorm + ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int) -> None:
        super().__init__()
        depthwise = nn.Conv2d(
            in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False
        )
        self.add_module("dw", depthwise)
        self.add_module("pw", ConvBnAct(in_channels, out_channels, 1))


class Aspp(nn.Module):
    """Five branches (1x1, three dilations, global mean), concatenated and merged by a 1x1 convolution.

    Args:
        in_channels: Channels of the stride-16 map.
        out_channels: Channels of each branch and of the result.
        dilations: Dilations of the three 3x3 branches.
    """

    def __init__(self, in_channels: int, out_channels: int = 256, dilations: tuple[int, ...] = (6, 12, 18)) -> None:
        super().__init__()
        self.point = ConvBnAct(in_channels, out_channels, 1)
        self.dilated = nn.ModuleList([AsppBranch(in_channels, out_channels, d) for d in dilations])
        self.mean = GlobalMean()
        self.pooled = ConvBnAct(in_channels, out_channels, 1)
        self.spread = ResizeLike()
        self.concat = Concat()
        self.merge = ConvBnAct(out_channels * (2 + len(dilations)), out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in, h, w] to [N, out, h, w]."""
        pooled = self.spread(self.pooled(self.mean(x)), x)
        merged: Tensor = self.merge(self.concat(self.point(x), *[b(x) for b in self.dilated], pooled))
        return merged
