"""Normalisation by name, convolution + norm + activation, and weights shared over levels with a norm for each level.

GroupNorm has a form for export, of operations that every delegate takes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from edge_seg.errors import ConfigError
from edge_seg.layers.conv import activation

Norm = Literal["bn", "gn", "none"]
_GROUPS = 32
_EPS = 1e-5


def norm_layer(name: Norm, channels: int) -> nn.Module:
    """Returns a normalisation: "bn" (BatchNorm), "gn" (GroupNorm with 32 groups) or "none".

    Args:
        name: Its name.
        channels: Channels of the map.

    Raises:
        ConfigError: GroupNorm's groups do not divide the channels.
    """
    if name == "gn" and channels % _GROUPS:
        raise ConfigError(
            "GroupNorm does not fit the width.", expected=f"a multiple of {_GROUPS} channels", got=str(channels)
        )
    if name == "none":
        return nn.Identity()
    return nn.GroupNorm(_GROUPS, channels, eps=_EPS) if name == "gn" else nn.BatchNorm2d(channels, eps=_EPS)


class PooledGroupNorm(nn.Module):
    """GroupNorm of one picture whose statistics are maps of one cell; equal to `nn.GroupNorm` but for rounding.

    Group means are means of channel means, and mixing channels of one cell is a 1x1 convolution; those behind the
    variance hold epsilon and the scale, where a converter would put them. Converted as it is, `nn.GroupNorm` is a
    reshape to five axes and a BROADCAST_TO, which neither XNNPACK nor a GPU takes.

    Args:
        norm: The norm, with scale and offset.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        channels, groups = norm.num_channels, norm.num_groups
        member = torch.eye(groups).repeat_interleave(channels // groups, dim=1)[:, :, None, None]
        share, spread = member * (groups / channels), member.transpose(0, 1).contiguous()
        self.group_mean = _pointwise(share)
        self.mean = _pointwise(spread)
        self.group_variance = _pointwise(share, torch.full((groups,), norm.eps))
        self.scale = _pointwise(spread * norm.weight.detach()[:, None, None, None])
        self.offset = nn.Parameter(norm.bias.detach().clone().reshape(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalises [1, C, h, w]."""
        centred = x - self.mean(self.group_mean(x.mean((2, 3), keepdim=True)))
        variance = self.group_variance((centred * centred).mean((2, 3), keepdim=True))
        y: Tensor = centred * self.scale(torch.rsqrt(variance)) + self.offset
        return y


def _pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    conv = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
    conv.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return conv


def pooled_group_norms(module: nn.Module) -> nn.Module:
    """Replaces every GroupNorm by its form for export, in place, and returns the module."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.GroupNorm):
            setattr(module, name, PooledGroupNorm(child))
        else:
            pooled_group_norms(child)
    return module


class ConvNormAct(nn.Sequential):
    """Convolution, normalisation, activation; the convolution has a bias where no BatchNorm follows, or on demand.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        kernel: Side of the kernel; padding keeps the size.
        groups: Groups of the convolution.
        norm: Name of the normalisation.
        act: Name of the activation.
        bias: Whether the convolution has a bias; None decides by the norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        groups: int = 1,
        norm: Norm = "bn",
        act: str = "relu",
        bias: bool | None = None,
    ) -> None:
        super().__init__()
        with_bias = norm != "bn" if bias is None else bias
        conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, groups=groups, bias=with_bias)
        self.add_module("conv", conv)
        self.add_module("norm", norm_layer(norm, out_channels))
        self.add_module("act", activation(act))


class SeparableNormAct(nn.Sequential):
    """3x3 depthwise then 1x1 convolution, each with norm and activation.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        norm: Name of the normalisation.
        act: Name of the activation.
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm = "bn", act: str = "relu") -> None:
        super().__init__()
        self.add_module("dw", ConvNormAct(in_channels, in_channels, 3, groups=in_channels, norm=norm, act=act))
        self.add_module("pw", ConvNormAct(in_channels, out_channels, 1, norm=norm, act=act))


class LevelConv(nn.Module):
    """A convolution that all levels of a pyramid share, followed by each level's own BatchNorm (GroupNorm: shared).

    Levels differ in their statistics, so a shared BatchNorm would describe none of them. In a converted file the
    BatchNorm is folded: a norm of its own costs a level nothing.

    Args:
        conv: The shared convolution.
        levels: Number of levels.
        norm: "bn": one for each level; "gn" or "none": one for all.
        act: Name of the activation.
    """

    def __init__(self, conv: nn.Conv2d, levels: int, *, norm: Norm = "bn", act: str = "relu") -> None:
        super().__init__()
        self.conv = conv
        count = levels if norm == "bn" else 1
        self.norms = nn.ModuleList([norm_layer(norm, conv.out_channels) for _ in range(count)])
        self.act = activation(act)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Maps level number `level` (from 0), [N, in, h, w], to [N, out, h, w]."""
        y: Tensor = self.act(self.norms[level if len(self.norms) > 1 else 0](self.conv(x)))
        return y
