"""MobileNetV4-Conv-S (arXiv 2404.10518, table 8), ReLU, parameter names of timm's `mobilenetv4_conv_small`, stride 16.

Padding is symmetric at every stride, as timm pads this network (its public weights were trained so).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from edge_seg.backbones.base import BACKBONES, Backbone, Stage
from edge_seg.layers.conv import ConvBnAct
from edge_seg.layers.ops import Add

_EPS = 1e-5  # timm's BatchNorm epsilon: the weights were trained with it


class _Conv(NamedTuple):
    kernel: int
    stride: int
    channels: int


class _Uib(NamedTuple):
    start: int  # kernel of the depthwise convolution before the expansion, 0 for none
    middle: int  # kernel of the one after it, 0 for none; it takes the stride
    stride: int
    expand: int
    channels: int
    dilation: int = 1


_STAGES: tuple[tuple[_Conv | _Uib, ...], ...] = (
    (_Conv(3, 2, 32), _Conv(1, 1, 32)),
    (_Conv(3, 2, 96), _Conv(1, 1, 64)),
    (_Uib(5, 5, 2, 3, 96), *[_Uib(0, 3, 1, 2, 96)] * 4, _Uib(3, 0, 1, 4, 96)),
    (  # stride 2 removed for output stride 16; the blocks after the first are dilated, as timm does it
        _Uib(3, 3, 1, 6, 128),
        _Uib(5, 5, 1, 4, 128, 2),
        _Uib(0, 5, 1, 4, 128, 2),
        _Uib(0, 5, 1, 3, 128, 2),
        *[_Uib(0, 3, 1, 4, 128, 2)] * 2,
    ),
    (_Conv(1, 1, 960),),
)
_SKIP_STAGES = 2


class ConvBlock(nn.Module):
    """Convolution, BatchNorm, ReLU under timm's names."""

    def __init__(self, in_channels: int, row: _Conv) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, row.channels, row.kernel, stride=row.stride, padding=row.kernel // 2, bias=False
        )
        self.bn1 = nn.BatchNorm2d(row.channels, eps=_EPS, momentum=0.01)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in, h, w] to [N, out, h / stride, w / stride]."""
        y: Tensor = self.act(self.bn1(self.conv(x)))
        return y


class UniversalBottleneck(nn.Module):
    """Universal inverted bottleneck: [depthwise], 1x1 expansion, [depthwise], linear 1x1, residual sum."""

    def __init__(self, in_channels: int, row: _Uib) -> None:
        super().__init__()
        wide = in_channels * row.expand
        self.dw_start = _depthwise(in_channels, row.start, 1, row.dilation, act="none")
        self.pw_exp = ConvBnAct(in_channels, wide, 1, eps=_EPS)
        self.dw_mid = _depthwise(wide, row.middle, row.stride, row.dilation, act="relu")
        self.pw_proj = ConvBnAct(wide, row.channels, 1, act="none", eps=_EPS)
        self.add = Add() if row.stride == 1 and in_channels == row.channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in, h, w] to [N, out, h / stride, w / stride]."""
        y: Tensor = self.pw_proj(self.dw_mid(self.pw_exp(self.dw_start(x))))
        return y if self.add is None else self.add(x, y)


def _depthwise(channels: int, kernel: int, stride: int, dilation: int, *, act: str) -> nn.Module:
    if not kernel:
        return nn.Identity()
    return ConvBnAct(channels, channels, kernel, stride=stride, dilation=dilation, groups=channels, act=act, eps=_EPS)


class MobileNetV4ConvSmall(Backbone):
    """MobileNetV4-Conv-S without its classification tail; strides after 16 are dilated.

    Args:
        expanded: Whether the map ends in the 960 channels that the classifier pools, or in the 128 before them.
    """

    skip_channels = 64

    def __init__(self, *, expanded: bool = True) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32, eps=_EPS, momentum=0.01)
        self.act1 = nn.ReLU()
        rows = _STAGES if expanded else _STAGES[:-1]
        channels, stride_px = 32, 2
        blocks, stages = [], [Stage("conv_stem", 32, 2)]
        for index, stage in enumerate(rows):
            parts: list[nn.Module] = []
            for row in stage:
                parts.append(ConvBlock(channels, row) if isinstance(row, _Conv) else UniversalBottleneck(channels, row))
                channels, stride_px = row.channels, stride_px * row.stride
            blocks.append(nn.Sequential(*parts))
            stages.append(Stage(f"blocks.{index}", channels, stride_px))
        self.blocks = nn.ModuleList(blocks)
        self.stages, self.top_channels = tuple(stages), channels
        self.tail_keys = ("conv_head.", "norm_head.", "classifier.", *(() if expanded else ("blocks.4.",)))

    def frozen_paths(self, stages: int) -> tuple[str, ...]:
        """Returns the module paths of the first `stages` stages; the stem's BatchNorm goes with the stem."""
        return ("bn1", *super().frozen_paths(stages)) if stages else ()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps a normalised image to ([N, 64, H/8, W/8], [N, 960 or 128, H/16, W/16])."""
        x = self.act1(self.bn1(self.conv_stem(x)))
        for block in self.blocks[:_SKIP_STAGES]:
            x = block(x)
        skip = x
        for block in self.blocks[_SKIP_STAGES:]:
            x = block(x)
        return skip, x


@BACKBONES.register("mobilenet_v4_conv_small")
def mobilenet_v4_conv_small() -> Backbone:
    """MobileNetV4-Conv-S with its 960-channel map, timm names (`mobilenetv4_conv_small`)."""
    return MobileNetV4ConvSmall()


@BACKBONES.register("mobilenet_v4_conv_small_128")
def mobilenet_v4_conv_small_128() -> Backbone:
    """MobileNetV4-Conv-S that ends before the 960-channel convolution, timm names (`mobilenetv4_conv_small`)."""
    return MobileNetV4ConvSmall(expanded=False)
