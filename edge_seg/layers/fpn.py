"""Feature pyramid (arXiv 1612.03144): 1x1 laterals, top-down sum, one output convolution for each level.

One class for all instance families: mobile (separable, BatchNorm, bilinear) and as published (3x3 with bias, nearest).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from edge_seg.errors import ConfigError
from edge_seg.layers.norm import ConvNormAct, Norm, SeparableNormAct
from edge_seg.layers.ops import Add, Upsample

BACKBONE_LEVELS = (2, 3, 4, 5)
LAST_LEVEL = 7


@dataclass(frozen=True)
class FpnOptions:
    """Form of a feature pyramid; the defaults are the published one.

    Attributes:
        width: Channels of every level.
        finest: First level returned, 2 to 5 (stride 2 ** level).
        coarsest: Last level returned, `finest` to 7.
        separable: Whether the output convolutions are 3x3 depthwise + 1x1; else one 3x3.
        norm: Norm behind laterals and outputs; "none" gives the convolutions biases.
        act: Activation behind the outputs ("none", "relu", "relu6"); laterals are summed and have none.
        upsample: Enlargement from level to level. int8 kernels and GPUs take "bilinear"; projects publish "nearest".
        extra: Levels 6 and 7: "conv" (3x3 of stride 2 on level 5; level 7 on ReLU of level 6) or "max_pool" (every
            second cell of the level before).
    """

    width: int = 256
    finest: int = 3
    coarsest: int = 5
    separable: bool = False
    norm: Norm = "none"
    act: str = "none"
    upsample: Literal["bilinear", "nearest"] = "nearest"
    extra: Literal["conv", "max_pool"] = "conv"


class Fpn(nn.Module):
    """Top-down pyramid over the backbone's maps.

    Args:
        channels: Channels of C2, C3, C4, C5.
        options: Form.

    Raises:
        ConfigError: The levels are not contiguous levels between 2 and 7 with the finest at most 5.
    """

    def __init__(self, channels: Sequence[int], options: FpnOptions) -> None:
        super().__init__()
        _check(channels, options)
        self.options = options
        inner = [level for level in BACKBONE_LEVELS if level >= options.finest]
        by_level = dict(zip(BACKBONE_LEVELS, channels, strict=True))
        lateral = {
            str(level): ConvNormAct(by_level[level], options.width, 1, norm=options.norm, act="none") for level in inner
        }
        kept = [level for level in inner if level <= options.coarsest]
        self.lateral = nn.ModuleDict(lateral)
        self.up = nn.ModuleDict({str(level): _upsample(options) for level in inner[:-1]})
        self.add = nn.ModuleDict({str(level): Add() for level in inner[:-1]})
        self.output = nn.ModuleDict({str(level): _output(options) for level in kept})
        self.extra = nn.ModuleDict({str(level): _extra(options, level) for level in range(6, options.coarsest + 1)})

    @property
    def levels(self) -> tuple[int, ...]:
        """The levels returned, finest first."""
        return tuple(range(self.options.finest, self.options.coarsest + 1))

    def forward(self, c2: Tensor, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, ...]:
        """Maps C2 to C5 to one [N, width, H / 2^level, W / 2^level] for each of `levels`."""
        sources = {"2": c2, "3": c3, "4": c4, "5": c5}
        y: Tensor = self.lateral["5"](c5)
        outputs: list[Tensor] = [self.output["5"](y)] if "5" in self.output else []
        for level in reversed(list(self.up)):
            y = self.add[level](self.lateral[level](sources[level]), self.up[level](y))
            if level in self.output:
                outputs.insert(0, self.output[level](y))
        for step in self.extra.values():
            outputs.append(step(outputs[-1]))
        return tuple(outputs)


def _upsample(options: FpnOptions) -> nn.Module:
    return Upsample(2) if options.upsample == "bilinear" else nn.Upsample(scale_factor=2.0, mode="nearest")


def _output(options: FpnOptions) -> nn.Module:
    kind = SeparableNormAct(options.width, options.width, norm=options.norm, act=options.act)
    return (
        kind if options.separable else ConvNormAct(options.width, options.width, 3, norm=options.norm, act=options.act)
    )


def _extra(options: FpnOptions, level: int) -> nn.Module:
    if options.extra == "max_pool":
        return nn.MaxPool2d(1, stride=2)
    conv = nn.Conv2d(options.width, options.width, 3, stride=2, padding=1)
    return conv if level == 6 else nn.Sequential(nn.ReLU(), conv)


def _check(channels: Sequence[int], options: FpnOptions) -> None:
    first, last = BACKBONE_LEVELS[0], BACKBONE_LEVELS[-1]
    if len(channels) != len(BACKBONE_LEVELS) or not first <= options.finest <= last:
        raise ConfigError(
            "The pyramid does not fit the backbone.",
            expected=f"channels of C{first} to C{last}, finest level {first} to {last}",
            got=f"{len(channels)} maps, finest {options.finest}",
        )
    if not options.finest <= options.coarsest <= LAST_LEVEL or options.width < 1:
        raise ConfigError(
            "The pyramid's levels or width are out of range.",
            expected=f"coarsest level {options.finest} to {LAST_LEVEL}, a positive width",
            got=f"{options.coarsest}, width {options.width}",
        )
