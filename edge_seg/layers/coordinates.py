"""Coordinate channels (CoordConv, arXiv 1807.03247), and their exact replacement by constant maps.

A convolution over (features, coordinates) is the convolution over the features plus a map that depends on no picture,
zero padding included. An export that adds this map has no concatenation, whose parts would share one int8 grid.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edge_seg.layers.norm import LevelConv, Norm
from edge_seg.layers.ops import Add, ConstantMap

COORDINATES = 2


def coordinate_map(size_hw: tuple[int, int]) -> Tensor:
    """Returns x, then y of every cell, each evenly from -1 to 1 (first to last cell), [1, 2, h, w]."""
    height, width = size_hw
    y = torch.linspace(-1, 1, height)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width)[None, :].expand(height, width)
    return torch.stack([x, y])[None]


def resized_coordinates(size_hw: tuple[int, int], target_hw: tuple[int, int]) -> Tensor:
    """Returns the coordinates of a map of `size_hw` after a bilinear resize, [1, 2, *target_hw].

    A resize treats every channel for itself: coordinates appended before it are these, appended after it.
    """
    return F.interpolate(coordinate_map(size_hw), size=target_hw, mode="bilinear", align_corners=False)


class AppendCoordinates(nn.Module):
    """Appends a constant coordinate map to the channels of a map.

    Args:
        coordinates: [1, 2, h, w].
    """

    def __init__(self, coordinates: Tensor) -> None:
        super().__init__()
        self.register_buffer("coordinates", coordinates.clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, h, w] to [N, C + 2, h, w]."""
        return torch.cat([x, self.get_buffer("coordinates").expand_as(x[:, :COORDINATES])], dim=1)


class CoordinateConv(nn.Module):
    """Coordinates appended, then a 3x3 convolution or a separable pair whose weights all levels share.

    Args:
        in_channels: Channels of the map, without coordinates.
        out_channels: Output channels.
        coordinates: Coordinate map of each level, [1, 2, h, w].
        separable: Whether the convolution is 3x3 depthwise + norm + ReLU, then 1x1; else one 3x3.
        norm: Name of the norm: BatchNorm is each level's own, GroupNorm is shared.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        coordinates: Sequence[Tensor],
        *,
        separable: bool,
        norm: Norm,
    ) -> None:
        super().__init__()
        channels, levels = in_channels + COORDINATES, len(coordinates)
        self.append = nn.ModuleList([AppendCoordinates(c) for c in coordinates])
        self.dw: LevelConv | None = None
        if separable:
            depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
            self.dw = LevelConv(depthwise, levels, norm=norm)
        kernel = 1 if separable else 3
        mix = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.mix = LevelConv(mix, levels, norm=norm)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Maps level number `level` (from 0), [N, in, h, w], to [N, out, h, w]."""
        y = self.append[level](x)
        if self.dw is not None:
            y = self.dw(y, level)
        mixed: Tensor = self.mix(y, level)
        return mixed


class FoldedCoordinateConv(nn.Module):
    """What a `CoordinateConv` in evaluation mode computes, with a constant map per level instead of coordinates.

    Behind a BatchNorm, which is affine, the map is added after it, so that the norm still follows its convolution;
    a GroupNorm measures the sum, so there the map is added before it. Computed in float64.

    Args:
        source: The trained form; it is copied.
    """

    def __init__(self, source: CoordinateConv) -> None:
        super().__init__()
        constants = [_constant(source, level) for level in range(len(source.append))]
        self.dw = None if source.dw is None else _first_channels(source.dw)
        mix = copy.deepcopy(source.mix)
        mix.conv = _without_coordinates(mix.conv)
        before_norm = not isinstance(mix.norms[0], nn.BatchNorm2d)
        self.norm = mix.norms[0] if before_norm else nn.Identity()
        if before_norm:
            mix.norms = nn.ModuleList([nn.Identity()])
        self.act, mix.act = mix.act, nn.Identity()
        self.mix = mix
        dtype = mix.conv.weight.dtype
        self.constant = nn.ModuleList([ConstantMap(c.to(dtype)) for c in constants])
        self.add = nn.ModuleList([Add() for _ in constants])

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Maps level number `level` (from 0), [N, in, h, w], to [N, out, h, w]."""
        y = x if self.dw is None else self.dw(x, level)
        total: Tensor = self.add[level](self.mix(y, level), self.constant[level]())
        folded: Tensor = self.act(self.norm(total))
        return folded


def fold_coordinates(module: nn.Module) -> nn.Module:
    """Replaces every `CoordinateConv` by its folded form, in place, and returns the module (export only).

    Exact for a module in evaluation mode; done before calibration and before quantisation-aware retraining, because
    in int8 the sum is rounded for itself.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, CoordinateConv):
            setattr(module, name, FoldedCoordinateConv(child))
        else:
            fold_coordinates(child)
    return module


@torch.no_grad()
def _constant(source: CoordinateConv, level: int) -> Tensor:
    """The part of one level's result that comes from its coordinates, [1, out, h, w] float64."""
    own = copy.deepcopy(source).double().eval()
    y = own.append[level].get_buffer("coordinates")
    if own.dw is not None:
        y = _last_channels(own.dw)(y, level)
    constant = F.conv2d(y, own.mix.conv.weight[:, -COORDINATES:], padding=own.mix.conv.kernel_size[0] // 2)
    norm = own.mix.norms[level if len(own.mix.norms) > 1 else 0]
    if isinstance(norm, nn.BatchNorm2d):
        scale = norm.weight / torch.sqrt(norm.get_buffer("running_var") + norm.eps)
        constant = constant * scale.reshape(1, -1, 1, 1)
    return constant


def _without_coordinates(conv: nn.Conv2d) -> nn.Conv2d:
    """The convolution over the features alone."""
    kernel, padding = conv.kernel_size[0], conv.padding[0]
    plain = nn.Conv2d(
        conv.in_channels - COORDINATES, conv.out_channels, kernel, padding=int(padding), bias=conv.bias is not None
    )
    plain = plain.to(device=conv.weight.device, dtype=conv.weight.dtype)
    with torch.no_grad():
        plain.weight.copy_(conv.weight[:, :-COORDINATES])
        if conv.bias is not None:
            plain.get_parameter("bias").copy_(conv.bias)
    return plain


def _first_channels(depthwise: LevelConv) -> LevelConv:
    return _some_channels(depthwise, slice(None, -COORDINATES))


def _last_channels(depthwise: LevelConv) -> LevelConv:
    return _some_channels(depthwise, slice(-COORDINATES, None))


@torch.no_grad()
def _some_channels(depthwise: LevelConv, part: slice) -> LevelConv:
    """A depthwise convolution and its BatchNorms over some of their channels."""
    old = depthwise.conv
    weight = old.weight[part]
    conv = nn.Conv2d(len(weight), len(weight), 3, padding=1, groups=len(weight), bias=False)
    conv = conv.to(device=weight.device, dtype=weight.dtype)
    conv.weight.copy_(weight)
    chosen = copy.deepcopy(depthwise)
    chosen.conv = conv
    for norm in chosen.norms:
        if not isinstance(norm, nn.BatchNorm2d):
            raise TypeError("a separable convolution with coordinates needs BatchNorm")
        norm.num_features = len(weight)
        norm.weight, norm.bias = nn.Parameter(norm.weight[part].clone()), nn.Parameter(norm.bias[part].clone())
        norm.running_mean = norm.get_buffer("running_mean")[part].clone()
        norm.running_var = norm.get_buffer("running_var")[part].clone()
    return chosen
