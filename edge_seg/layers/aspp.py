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
    """A 1x1, dilated 3x3 and global mean branches, concatenated and merged by a 1x1 convolution.

    Args:
        in_channels: Channels of the stride-16 map.
        out_channels: Channels of the result.
        dilations: Dilations of the 3x3 branches (published: three).
        branch_channels: Channels of each branch; 0 takes `out_channels`, as published.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        dilations: tuple[int, ...] = (6, 12, 18),
        *,
        branch_channels: int = 0,
    ) -> None:
        super().__init__()
        branch = branch_channels or out_channels
        self.point = ConvBnAct(in_channels, branch, 1)
        self.dilated = nn.ModuleList([AsppBranch(in_channels, branch, d) for d in dilations])
        self.mean = GlobalMean()
        self.pooled = ConvBnAct(in_channels, branch, 1)
        self.spread = ResizeLike()
        self.concat = Concat()
        self.merge = ConvBnAct(branch * (2 + len(dilations)), out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in, h, w] to [N, out, h, w]."""
        pooled = self.spread(self.pooled(self.mean(x)), x)
        merged: Tensor = self.merge(self.concat(self.point(x), *[b(x) for b in self.dilated], pooled))
        return merged
