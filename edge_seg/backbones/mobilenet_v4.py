"""MobileNetV4-Conv-S (arXiv 2404.10518, table 8), ReLU, parameter names of timm's `mobilenetv4_conv_small`.

At stride 16 for MaskConver, at stride 32 with the last maps of four strides for instance networks.

Padding is symmetric at every stride, as timm pads this network (its public weights were trained so). The file has a PAD
in front of each stride; 4x4 kernels with zeros, which need none, were slower in XNNPACK.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from edge_seg.backbones.base import BACKBONES, PYRAMIDS, Backbone, PyramidBackbone, Stage
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


_Row = _Conv | _Uib

_STAGES: tuple[tuple[_Row, ...], ...] = (
    (_Conv(3, 2, 32), _Conv(1, 1, 32)),
    (_Conv(3, 2, 96), _Conv(1, 1, 64)),
    (_Uib(5, 5, 2, 3, 96), *[_Uib(0, 3, 1, 2, 96)] * 4, _Uib(3, 0, 1, 4, 96)),
    (
        _Uib(3, 3, 2, 6, 128),
        _Uib(5, 5, 1, 4, 128),
        _Uib(0, 5, 1, 4, 128),
        _Uib(0, 5, 1, 3, 128),
        *[_Uib(0, 3, 1, 4, 128)] * 2,
    ),
    (_Conv(1, 1, 960),),
)
_TAIL_KEYS = ("conv_head.", "norm_head.", "classifier.")
_SKIP_STAGES = 2
_DILATED_STAGE = 3  # at output stride 16 it loses its stride, and the blocks after its first are dilated, as in timm


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


def _at_stride_16(index: int, row: _Row, place: int) -> _Row:
    if index != _DILATED_STAGE or isinstance(row, _Conv):
        return row
    return row._replace(stride=1, dilation=2 if place else 1)


def _blocks(rows: Sequence[Sequence[_Row]]) -> tuple[nn.ModuleList, tuple[Stage, ...]]:
    """Returns the modules of all stages after the stem, and what is known after the stem and after each."""
    channels, stride_px = 32, 2
    blocks, stages = [], [Stage("conv_stem", 32, 2)]
    for index, stage in enumerate(rows):
        parts: list[nn.Module] = []
        for row in stage:
            parts.append(ConvBlock(channels, row) if isinstance(row, _Conv) else UniversalBottleneck(channels, row))
            channels, stride_px = row.channels, stride_px * row.stride
        blocks.append(nn.Sequential(*parts))
        stages.append(Stage(f"blocks.{index}", channels, stride_px))
    return nn.ModuleList(blocks), tuple(stages)


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
        dilated = [[_at_stride_16(i, row, place) for place, row in enumerate(stage)] for i, stage in enumerate(rows)]
        self.blocks, self.stages = _blocks(dilated)
        self.top_channels = self.stages[-1].channels
        self.tail_keys = (*_TAIL_KEYS, *(() if expanded else ("blocks.4.",)))

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


class MobileNetV4Pyramid(PyramidBackbone):
    """MobileNetV4-Conv-S up to its last 128 channels, output stride 32, the last maps of four strides.

    Its first stages are plain convolutions where MobileNetV2 has depthwise ones on many channels.
    """

    channels = (32, 64, 96, 128)
    tail_keys = (*_TAIL_KEYS, "blocks.4.")

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32, eps=_EPS, momentum=0.01)
        self.act1 = nn.ReLU()
        self.blocks, self.stages = _blocks(_STAGES[:-1])

    def frozen_paths(self, stages: int) -> tuple[str, ...]:
        """Returns the module paths of the first `stages` stages; the stem's BatchNorm goes with the stem."""
        return ("bn1", *super().frozen_paths(stages)) if stages else ()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps a normalised image to maps of 32, 64, 96 and 128 channels at strides 4, 8, 16 and 32."""
        c2 = self.blocks[0](self.act1(self.bn1(self.conv_stem(x))))
        c3 = self.blocks[1](c2)
        c4 = self.blocks[2](c3)
        return c2, c3, c4, self.blocks[3](c4)


@PYRAMIDS.register("mobilenet_v4_conv_small")
def mobilenet_v4_pyramid() -> PyramidBackbone:
    """MobileNetV4-Conv-S at stride 32, timm names (`mobilenetv4_conv_small`)."""
    return MobileNetV4Pyramid()


@BACKBONES.register("mobilenet_v4_conv_small")
def mobilenet_v4_conv_small() -> Backbone:
    """MobileNetV4-Conv-S with its 960-channel map, timm names (`mobilenetv4_conv_small`)."""
    return MobileNetV4ConvSmall()


@BACKBONES.register("mobilenet_v4_conv_small_128")
def mobilenet_v4_conv_small_128() -> Backbone:
    """MobileNetV4-Conv-S that ends before the 960-channel convolution, timm names (`mobilenetv4_conv_small`)."""
    return MobileNetV4ConvSmall(expanded=False)
