"""MobileNetV2 1.0 (arXiv 1801.04381), ReLU6, parameter names of timm's `mobilenetv2_100`, output stride 16 or 32."""

from __future__ import annotations

from torch import Tensor, nn

from edge_seg.backbones.base import BACKBONES, PYRAMIDS, Backbone, PyramidBackbone, Stage
from edge_seg.layers.conv import SameConv2d
from edge_seg.layers.ops import Add

# expand ratio, output channels, repeats, stride, dilation of the first block, dilation of the others
_STAGES = (
    (1, 16, 1, 1, 1, 1),
    (6, 24, 2, 2, 1, 1),
    (6, 32, 3, 2, 1, 1),
    (6, 64, 4, 2, 1, 1),
    (6, 96, 3, 1, 1, 1),
    (6, 160, 3, 1, 1, 2),
    (6, 320, 1, 1, 2, 2),
)
_STRIDES = (1, 2, 2, 2, 1, 2, 1)  # at output stride 32, where nothing is dilated
_EPS = 1e-5  # timm's BatchNorm epsilon: the weights were trained with it


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPS, momentum=0.01)


def _depthwise(channels: int, stride: int, dilation: int, *, symmetric: bool = False) -> nn.Conv2d:
    if stride == 2 and not symmetric:
        return SameConv2d(channels, channels, groups=channels)
    if stride == 2:
        return nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
    return nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False)


class DepthwiseSeparable(nn.Module):
    """First block: depthwise, then linear 1x1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(in_channels, 1, 1)
        self.bn1 = _norm(in_channels)
        self.act1 = nn.ReLU6()
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = _norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in, h, w] to [N, out, h, w]."""
        y: Tensor = self.bn2(self.conv_pw(self.act1(self.bn1(self.conv_dw(x)))))
        return y


class InvertedResidual(nn.Module):
    """1x1 expand, depthwise, linear 1x1 project, with a residual sum where shapes allow."""

    def __init__(
        self, in_channels: int, out_channels: int, expand: int, stride: int, dilation: int, *, symmetric: bool = False
    ) -> None:
        super().__init__()
        middle = in_channels * expand
        self.conv_pw = nn.Conv2d(in_channels, middle, 1, bias=False)
        self.bn1 = _norm(middle)
        self.act1 = nn.ReLU6()
        self.conv_dw = _depthwise(middle, stride, dilation, symmetric=symmetric)
        self.bn2 = _norm(middle)
        self.act2 = nn.ReLU6()
        self.conv_pwl = nn.Conv2d(middle, out_channels, 1, bias=False)
        self.bn3 = _norm(out_channels)
        self.add = Add() if stride == 1 and in_channels == out_channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in, h, w] to [N, out, h / stride, w / stride]."""
        y: Tensor = self.act1(self.bn1(self.conv_pw(x)))
        y = self.bn3(self.conv_pwl(self.act2(self.bn2(self.conv_dw(y)))))
        return y if self.add is None else self.add(x, y)


class MobileNetV2(Backbone):
    """MobileNetV2 without its classification tail; strides after 16 are dilated.

    Args:
        rows: How many rows of the paper's table are there; the last two (160 and 320 channels) are at stride 16 because
            they are dilated.
    """

    skip_channels = 32

    def __init__(self, *, rows: int = len(_STAGES)) -> None:
        super().__init__()
        self.conv_stem = SameConv2d(3, 32)
        self.bn1 = _norm(32)
        self.act1 = nn.ReLU6()
        channels, stride_px = 32, 2
        blocks, stages = [], [Stage("conv_stem", 32, 2)]
        for index, (expand, out, repeats, stride, first, rest) in enumerate(_STAGES[:rows]):
            row: list[nn.Module] = []
            for repeat in range(repeats):
                if expand == 1:
                    row.append(DepthwiseSeparable(channels, out))
                else:
                    step, dilation = (stride, first) if repeat == 0 else (1, rest)
                    row.append(InvertedResidual(channels, out, expand, step, dilation))
                channels = out
            stride_px *= stride
            blocks.append(nn.Sequential(*row))
            stages.append(Stage(f"blocks.{index}", out, stride_px))
        self.blocks = nn.ModuleList(blocks)
        self.stages, self.top_channels = tuple(stages), channels
        self.tail_keys = ("conv_head.", "bn2.", "classifier.", *(f"blocks.{i}." for i in range(rows, len(_STAGES))))

    def frozen_paths(self, stages: int) -> tuple[str, ...]:
        """Returns the module paths of the first `stages` stages; the stem's BatchNorm goes with the stem."""
        return ("bn1", *super().frozen_paths(stages)) if stages else ()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps a normalised image to ([N, 32, H/8, W/8], [N, 320, 160 or 96, H/16, W/16])."""
        x = self.act1(self.bn1(self.conv_stem(x)))
        for block in self.blocks[:3]:
            x = block(x)
        skip = x
        for block in self.blocks[3:]:
            x = block(x)
        return skip, x


class MobileNetV2Pyramid(PyramidBackbone):
    """MobileNetV2 without its classification tail, output stride 32, the last maps of four strides.

    Args:
        symmetric: Whether stride-2 convolutions are padded by one pixel on every side, as PyTorch projects do, and
            not as TensorFlow's 'same'.
    """

    channels = (24, 32, 96, 320)
    tail_keys = ("conv_head.", "bn2.", "classifier.")

    def __init__(self, *, symmetric: bool = False) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False) if symmetric else SameConv2d(3, 32)
        self.bn1 = _norm(32)
        self.act1 = nn.ReLU6()
        channels, stride_px = 32, 2
        blocks, stages = [], [Stage("conv_stem", 32, 2)]
        for index, (expand, out, repeats, *_) in enumerate(_STAGES):
            stride = _STRIDES[index]
            row: list[nn.Module] = []
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                row.append(
                    DepthwiseSeparable(channels, out)
                    if expand == 1
                    else InvertedResidual(channels, out, expand, step, 1, symmetric=symmetric)
                )
                channels = out
            stride_px *= stride
            blocks.append(nn.Sequential(*row))
            stages.append(Stage(f"blocks.{index}", out, stride_px))
        self.blocks = nn.ModuleList(blocks)
        self.stages = tuple(stages)

    def frozen_paths(self, stages: int) -> tuple[str, ...]:
        """Returns the module paths of the first `stages` stages; the stem's BatchNorm goes with the stem."""
        return ("bn1", *super().frozen_paths(stages)) if stages else ()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps a normalised image to maps of 24, 32, 96 and 320 channels at strides 4, 8, 16 and 32."""
        x = self.act1(self.bn1(self.conv_stem(x)))
        c2 = self.blocks[1](self.blocks[0](x))
        c3 = self.blocks[2](c2)
        c4 = self.blocks[4](self.blocks[3](c3))
        return c2, c3, c4, self.blocks[6](self.blocks[5](c4))


@PYRAMIDS.register("mobilenet_v2")
def mobilenet_v2_pyramid() -> PyramidBackbone:
    """MobileNetV2 1.0 at stride 32, timm names (`mobilenetv2_100`), TensorFlow 'same' padding."""
    return MobileNetV2Pyramid()


@PYRAMIDS.register("mobilenet_v2_symmetric")
def mobilenet_v2_symmetric() -> PyramidBackbone:
    """MobileNetV2 1.0 at stride 32 with symmetric padding, as PyTorch projects train it."""
    return MobileNetV2Pyramid(symmetric=True)


@BACKBONES.register("mobilenet_v2")
def mobilenet_v2() -> Backbone:
    """MobileNetV2 1.0, timm names (`mobilenetv2_100`)."""
    return MobileNetV2()


@BACKBONES.register("mobilenet_v2_160")
def mobilenet_v2_160() -> Backbone:
    """MobileNetV2 1.0 that ends before the 320-channel block, timm names (`mobilenetv2_100`)."""
    return MobileNetV2(rows=6)


@BACKBONES.register("mobilenet_v2_96")
def mobilenet_v2_96() -> Backbone:
    """MobileNetV2 1.0 that ends before the dilated blocks of 160 channels, timm names (`mobilenetv2_100`)."""
    return MobileNetV2(rows=5)
