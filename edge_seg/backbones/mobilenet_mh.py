"""MobileNet multi-hardware AVG for segmentation (arXiv 2008.08178), the backbone of MaskConver's mobile variant.

ReLU everywhere, no squeeze-and-excite; the pooled 1280-channel tail of the classifier is left out, it feeds nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from edge_seg.backbones.base import BACKBONES, Backbone, Stage
from edge_seg.layers.conv import ConvBnAct
from edge_seg.layers.ops import Add


class _Row(NamedTuple):
    kernel: int
    stride: int
    dilation: int
    expand: int
    channels: int


_ROWS = (
    _Row(3, 2, 1, 3, 32),
    _Row(3, 1, 1, 2, 32),
    _Row(5, 2, 1, 5, 64),
    _Row(3, 1, 1, 3, 64),
    _Row(3, 1, 1, 2, 64),
    _Row(3, 1, 1, 3, 64),
    _Row(5, 2, 1, 6, 128),
    _Row(3, 1, 1, 3, 128),
    _Row(3, 1, 1, 3, 128),
    _Row(3, 1, 1, 3, 128),
    _Row(3, 1, 1, 6, 160),
    _Row(3, 1, 1, 4, 160),
    _Row(3, 1, 2, 6, 192),  # stride 2 removed for output stride 16; already dilated, as published
    _Row(5, 1, 2, 2, 96),
    _Row(5, 1, 2, 4, 96),
    _Row(5, 1, 2, 4, 96),
)
_SKIP_ROWS = 6


class InvertedBottleneck(nn.Module):
    """1x1 expand, depthwise, linear 1x1 project, with a residual sum where shapes allow."""

    def __init__(self, in_channels: int, row: _Row) -> None:
        super().__init__()
        middle = in_channels * row.expand
        self.expand = ConvBnAct(in_channels, middle, 1)
        self.depthwise = ConvBnAct(middle, middle, row.kernel, stride=row.stride, dilation=row.dilation, groups=middle)
        self.project = ConvBnAct(middle, row.channels, 1, act="none")
        self.add = Add() if row.stride == 1 and in_channels == row.channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in, h, w] to [N, out, h / stride, w / stride]."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return y if self.add is None else self.add(x, y)


class MobileNetMultiAvgSeg(Backbone):
    """`MobileNetMultiAVGSeg`, filter scale 1, output stride 16."""

    skip_channels = 64
    top_channels = 448

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBnAct(3, 32, 3, stride=2)
        channels, stride_px = 32, 2
        blocks, stages = [], [Stage("stem", 32, 2)]
        for index, row in enumerate(_ROWS):
            blocks.append(InvertedBottleneck(channels, row))
            channels, stride_px = row.channels, stride_px * row.stride
            stages.append(Stage(f"blocks.{index}", channels, stride_px))
        self.blocks = nn.ModuleList(blocks)
        self.top = ConvBnAct(channels, self.top_channels, 1)
        self.stages = (*stages, Stage("top", self.top_channels, stride_px))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps a normalised image to ([N, 64, H/8, W/8], [N, 448, H/16, W/16])."""
        x = self.stem(x)
        for block in self.blocks[:_SKIP_ROWS]:
            x = block(x)
        skip = x
        for block in self.blocks[_SKIP_ROWS:]:
            x = block(x)
        return skip, self.top(x)


@BACKBONES.register("mobilenet_mh")
def mobilenet_mh() -> Backbone:
    """MobileNet multi-hardware AVG, segmentation form."""
    return MobileNetMultiAvgSeg()
