"""SOLOv2 (arXiv 2003.10152): objects by location, each cell of a grid with a class and the kernel of one mask.

A pyramid over the backbone, resized to five square grids; over each grid a category branch and a kernel branch, whose
weights all levels share; and one map of mask features at stride 4. The mask of a cell is the product of its kernel
with the mask features. The kernel branch and the coarsest input of the mask branch see coordinates.

The mobile form (separable, BatchNorm, grids that follow the input size) is ours; `solov2_light_mnv2` is built as the
light networks are published, GroupNorm included, over MobileNetV2.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_seg.backbones.base import PYRAMIDS, load_weights
from edge_seg.config import from_mapping
from edge_seg.contract import ClassInfo
from edge_seg.errors import ConfigError
from edge_seg.layers.coordinates import CoordinateConv, coordinate_map, fold_coordinates, resized_coordinates
from edge_seg.layers.fpn import Fpn, FpnOptions
from edge_seg.layers.norm import ConvNormAct, LevelConv, Norm, SeparableNormAct, pooled_group_norms
from edge_seg.layers.ops import Add, Normalize, Resize, Upsample
from edge_seg.layers.picture import fold_deviation
from edge_seg.models.base import (
    MEAN_RGB,
    MODELS,
    STD_RGB,
    ExportGraph,
    Network,
    OutputSpec,
    checked_input_px,
    checked_num_classes,
    conv_macs,
    plain_convolutions,
    split_convolutions,
)
from edge_seg.models.solov2_criterion import Solov2Criterion, Solov2LossConfig, scaled_ranges

LEVELS = 5
STRIDES_PX = (8, 8, 16, 32, 32)
"""Strides of the maps that become grids; the decoder drops masks of fewer cells than that."""
FEATURE_STRIDE_PX = 4
PUBLISHED_GRIDS = (40, 36, 24, 16, 12)
PUBLISHED_TOP_K = 500
MOBILE_TOP_K = 100
PUBLISHED_MEAN_RGB = (123.675, 116.28, 103.53)
PUBLISHED_STD_RGB = (58.395, 57.12, 57.375)
_CELLS_PX = (8, 9, 13, 20, 28)
_CATEGORY_PRIOR_BIAS = -4.595  # sigmoid gives 0.01, as published
_PUBLISHED_STD = 0.01
_PUBLISHED_TAPS = 256 * 9  # of the predictions for which that deviation was chosen


@dataclass(frozen=True)
class Solov2Options:
    """What varies between SOLOv2 networks.

    Attributes:
        width: Channels of the pyramid and of both branches.
        kernel_channels: Length of a mask kernel, which is the number of mask features.
        mask_width: Channels inside the mask branch.
        convs: Convolutions (or separable pairs) of each branch before its prediction.
        grids: Cells per side: "scaled" (the input divided by 8, 9, 13, 20, 28 pixels, at most the published numbers)
            or "official" (40, 36, 24, 16, 12, whatever the input).
        separable: Whether convolutions are 3x3 depthwise + 1x1 and predictions 1x1; else all are 3x3.
        norm: "bn" (each level has its own) or "gn".
        p6: Coarsest level of the pyramid: "half" (level 5 at half its size), "conv" (3x3 of stride 2 on level 5)
            or "max_pool" (every second cell of level 5).
        upsample: Enlargement in the pyramid.
        pixels: What the backbone sees: "half" (-1..1) or "published" (ImageNet's mean colour and deviation).
    """

    width: int = 96
    kernel_channels: int = 64
    mask_width: int = 64
    convs: int = 2
    grids: Literal["scaled", "official"] = "scaled"
    separable: bool = True
    norm: Norm = "bn"
    p6: Literal["half", "conv", "max_pool"] = "half"
    upsample: Literal["bilinear", "nearest"] = "bilinear"
    pixels: Literal["half", "published"] = "half"


@dataclass(frozen=True)
class Solov2DecoderConfig:
    """Decoder settings of a recipe; they become the contract's parameters.

    Attributes:
        score_threshold: Lowest category score of a cell.
        pre_nms_top_k: Cells whose masks are computed; 0 takes 100, or 500 in the published form.
        mask_threshold: Lowest probability of a mask's pixel.
        nms: Decay of Matrix NMS.
        nms_sigma: Its sharpness, for "gaussian".
        update_threshold: Lowest score after the decay.
        max_instances: Most objects kept.
        class_aware: Whether only masks of one class compete.
        overlap_threshold: Share of its mask an object must keep when objects are laid over each other.
        show_threshold: Lowest score of an object that is laid.
    """

    score_threshold: float = 0.1
    pre_nms_top_k: int = 0
    mask_threshold: float = 0.5
    nms: Literal["gaussian", "linear"] = "gaussian"
    nms_sigma: float = 2.0
    update_threshold: float = 0.05
    max_instances: int = 100
    class_aware: bool = True
    overlap_threshold: float = 0.5
    show_threshold: float = 0.3


def grid_sides(input_px: int, grids: Literal["scaled", "official"]) -> tuple[int, ...]:
    """Returns the cells per side of the five grids, finest first.

    Args:
        input_px: Side of the input.
        grids: As in `Solov2Options`. The published grids would enlarge every map of a small input.
    """
    if grids == "official":
        return PUBLISHED_GRIDS
    pairs = zip(_CELLS_PX, PUBLISHED_GRIDS, strict=True)
    return tuple(max(1, min(most, round(input_px / px))) for px, most in pairs)


def resized(source_px: int, target_px: int) -> nn.Module:
    """Returns the resize of a square map, or nothing where the size is right."""
    return nn.Identity() if source_px == target_px else Resize((target_px, target_px))


class Grids(nn.Module):
    """Pyramid levels 2 to 6 (6 missing for `p6 = "half"`) to the five maps that lie on the grids.

    Level 2 is first halved and level 6 enlarged to the size of level 5, as published.

    Args:
        input_px: Side of the input.
        sides: Cells per side of each grid.
        p6: As in `Solov2Options`.
    """

    def __init__(self, input_px: int, sides: Sequence[int], p6: str) -> None:
        super().__init__()
        cells = [input_px // stride for stride in STRIDES_PX]
        coarsest = (cells[4] + 1) // 2
        if p6 == "half":
            self.coarsest, cells[4] = resized(cells[4], coarsest), coarsest
        else:
            self.coarsest = resized(coarsest, cells[4])
        self.finest = Resize((cells[0], cells[0]))
        self.to_grid = nn.ModuleList([resized(a, b) for a, b in zip(cells, sides, strict=True)])
        pairs = list(zip(cells, sides, strict=True))
        self.coordinates: list[Tensor] = [resized_coordinates((a, a), (b, b)) for a, b in pairs]

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Maps levels 2 to 6, or 2 to 5, to five [N, width, S, S]."""
        maps = [self.finest(pyramid[0]), *pyramid[1:4], self.coarsest(pyramid[-1])]
        return [resize(m) for resize, m in zip(self.to_grid, maps, strict=True)]


class SharedPair(nn.Module):
    """A 3x3 convolution, or a separable pair, whose weights all levels share.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        separable: Which of the two.
        norm: Name of the norm.
    """

    def __init__(self, in_channels: int, out_channels: int, *, separable: bool, norm: Norm) -> None:
        super().__init__()
        self.dw: LevelConv | None = None
        if separable:
            depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
            self.dw = LevelConv(depthwise, LEVELS, norm=norm)
        kernel = 1 if separable else 3
        mix = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.mix = LevelConv(mix, LEVELS, norm=norm)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Maps level number `level` (from 0), [N, in, h, w], to [N, out, h, w]."""
        y: Tensor = self.mix(x if self.dw is None else self.dw(x, level), level)
        return y


class Branch(nn.Module):
    """Category or kernel branch: shared convolutions, then the prediction.

    Args:
        channels: Channels of the maps on the grids, without coordinates.
        out_channels: Channels of the prediction.
        options: Form.
        coordinates: Coordinate map of each grid; without them the branch sees none.
    """

    def __init__(
        self, channels: int, out_channels: int, options: Solov2Options, coordinates: Sequence[Tensor] = ()
    ) -> None:
        super().__init__()
        form: dict[str, Any] = {"separable": options.separable, "norm": options.norm}
        width = options.width
        convs: list[nn.Module] = [SharedPair(width, width, **form) for _ in range(options.convs - 1)]
        first = (
            CoordinateConv(channels, width, coordinates, **form) if coordinates else SharedPair(channels, width, **form)
        )
        self.convs = nn.ModuleList([first, *convs])
        kernel = 1 if options.separable else 3
        self.predict: nn.Module = nn.Conv2d(width, out_channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Maps level number `level` (from 0), [N, channels, S, S], to [N, out, S, S]."""
        for conv in self.convs:
            x = conv(x, level)
        prediction: Tensor = self.predict(x)
        return prediction


class MaskBranch(nn.Module):
    """Pyramid levels 2 to 5 to mask features at stride 4, which are not negative.

    Args:
        input_px: Side of the input.
        options: Form.
    """

    def __init__(self, input_px: int, options: Solov2Options) -> None:
        super().__init__()
        width, side = options.mask_width, input_px // 32
        self.level = nn.ModuleDict({str(n): self._convs(n, options) for n in (2, 3, 4)})
        self.coarsest = CoordinateConv(
            options.width, width, [coordinate_map((side, side))], separable=options.separable, norm=options.norm
        )
        self.rest = nn.Sequential(Upsample(2), *self._steps(width, 2, options))
        self.add = nn.ModuleList([Add() for _ in range(3)])
        self.predict = ConvNormAct(width, options.kernel_channels, 1, norm=options.norm, bias=False)

    def _convs(self, level: int, options: Solov2Options) -> nn.Sequential:
        """The first convolution from the pyramid's width; behind all but level 2's an enlargement."""
        first = _conv(options.width, options.mask_width, options)
        if level == 2:
            return nn.Sequential(first)
        return nn.Sequential(first, Upsample(2), *self._steps(options.mask_width, level - 3, options))

    def _steps(self, width: int, count: int, options: Solov2Options) -> list[nn.Module]:
        return [m for _ in range(count) for m in (_conv(width, width, options), Upsample(2))]

    def forward(self, p2: Tensor, p3: Tensor, p4: Tensor, p5: Tensor) -> Tensor:
        """Maps the pyramid to [N, kernel_channels, H / 4, W / 4]."""
        y = self.level["2"](p2)
        parts = (self.level["3"](p3), self.level["4"](p4), self.rest(self.coarsest(p5, 0)))
        for add, part in zip(self.add, parts, strict=True):
            y = add(y, part)
        features: Tensor = self.predict(y)
        return features


def _conv(in_channels: int, out_channels: int, options: Solov2Options) -> nn.Module:
    if options.separable:
        return SeparableNormAct(in_channels, out_channels, norm=options.norm)
    return ConvNormAct(in_channels, out_channels, 3, norm=options.norm, bias=False)


class Solov2Body(nn.Module):
    """The exported part: image in 0..255 to categories and kernels on five grids, and mask features.

    Args:
        backbone: Registered pyramid backbone.
        input_px: Side of the square input; resizes and coordinates are constant.
        num_classes: Channels of the categories.
        options: Form.
    """

    def __init__(self, backbone: str, input_px: int, num_classes: int, options: Solov2Options) -> None:
        super().__init__()
        self.normalize = Normalize(*_pixels(options))
        self.backbone = PYRAMIDS[backbone]()
        self.fpn = Fpn(self.backbone.channels, _fpn_options(options))
        self.to_grids = Grids(input_px, grid_sides(input_px, options.grids), options.p6)
        self.category = Branch(options.width, num_classes, options)
        self.kernel = Branch(options.width, options.kernel_channels, options, self.to_grids.coordinates)
        self.mask = MaskBranch(input_px, options)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Maps [N, 3, H, W] in 0..255 to `category_l` (logits), `kernel_l` (l = 0 to 4) and `mask_features`."""
        return self.features(self.normalize(image))

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Like `forward`, for an image that is already normalised."""
        pyramid = self.fpn(*self.backbone(x))
        cells = self.to_grids(pyramid)
        outputs = {f"category_{level}": self.category(cells[level], level) for level in range(LEVELS)}
        outputs.update({f"kernel_{level}": self.kernel(cells[level], level) for level in range(LEVELS)})
        outputs["mask_features"] = self.mask(*pyramid[:4])
        return outputs


def _pixels(options: Solov2Options) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation of the colours, RGB."""
    published = options.pixels == "published"
    return (PUBLISHED_MEAN_RGB, PUBLISHED_STD_RGB) if published else (MEAN_RGB, STD_RGB)


def _fpn_options(options: Solov2Options) -> FpnOptions:
    return FpnOptions(
        width=options.width,
        finest=2,
        coarsest=5 if options.p6 == "half" else 6,
        separable=options.separable,
        norm="bn" if options.norm == "bn" else "none",
        upsample=options.upsample,
        extra="max_pool" if options.p6 == "max_pool" else "conv",
    )


class Solov2(Network):
    """SOLOv2 of one variant; nothing of it runs outside the graph but the mask product and the last kernel layer.

    Args:
        name: Registered name.
        backbone: Registered pyramid backbone.
        input_px: Side of the square input, a multiple of 32.
        num_classes: Number of classes, all things.
        options: What varies.
    """

    family = "solov2"
    task = "instance"
    decoder_name = "solov2"
    body: Solov2Body

    def __init__(self, name: str, backbone: str, input_px: int, num_classes: int, options: Solov2Options) -> None:
        super().__init__()
        self.name, self.input_px = name, checked_input_px(input_px)
        self.num_classes = checked_num_classes(num_classes)
        self.options = _checked(options)
        self.mean_rgb, self.std_rgb = _pixels(options)
        self.body = Solov2Body(backbone, input_px, num_classes, options)
        self._initialise()

    @property
    def sides(self) -> tuple[int, ...]:
        """Cells per side of the five grids, finest first."""
        return grid_sides(self.input_px, self.options.grids)

    @property
    def top_k(self) -> int:
        """Cells whose masks the decoder computes unless a recipe says otherwise."""
        return MOBILE_TOP_K if self.options.separable else PUBLISHED_TOP_K

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan = module.weight[0].numel() if module.groups > 1 else module.weight[:, 0].numel()
                nn.init.normal_(module.weight, std=(2.0 / fan) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        category, kernel = _conv2d(self.body.category.predict), _conv2d(self.body.kernel.predict)
        for predict in (category, kernel):  # as wide a spread of the outputs as published
            nn.init.normal_(predict.weight, std=_PUBLISHED_STD * (_PUBLISHED_TAPS / predict.weight[0].numel()) ** 0.5)
        nn.init.constant_(category.get_parameter("bias"), _CATEGORY_PRIOR_BIAS)

    def load_backbone(self, weights: str) -> None:
        """Fills the backbone from a safetensors file with timm's names, strictly."""
        load_weights(self.body.backbone, Path(weights))

    def criterion(self, settings: Mapping[str, Any], classes: Sequence[ClassInfo]) -> Solov2Criterion:
        """Returns the criterion; unknown settings raise ConfigError."""
        config = from_mapping(Solov2LossConfig, settings, where="criterion")
        return Solov2Criterion(config, self.sides, scaled_ranges(config, self.input_px), len(classes))

    def decoder_params(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the decoder's parameters: the recipe's settings over the defaults."""
        config = from_mapping(Solov2DecoderConfig, settings, where="decoder")
        return {**asdict(config), "pre_nms_top_k": config.pre_nms_top_k or self.top_k}

    def export_graph(self, *, fold: bool = True, split_7x7: bool = True) -> ExportGraph:
        """Returns the body to export and the decoder's constants.

        Args:
            fold: Whether the kernel branch's last convolution runs at kept cells only, and coordinates become
                constant maps; exact.
            split_7x7: Whether 7x7 depthwise convolutions run as sums of three smaller ones (the family has none).
        """
        body = copy.deepcopy(self.body).eval()
        constants: dict[str, NDArray[np.float32]] = {}
        if fold:
            last = _conv2d(body.kernel.predict)
            constants = {"kernel.weight": _array(last.weight), "kernel.bias": _array(last.get_parameter("bias"))}
            body.kernel.predict = nn.Identity()
            fold_coordinates(body)
        plain = plain_convolutions(pooled_group_norms(fold_deviation(body)))
        return ExportGraph(split_convolutions(plain) if split_7x7 else plain, _outputs(fold=fold), constants)

    def macs(self) -> dict[str, int]:
        """Returns `macs` (everything, dense kernels), `macs_graph` of the folded export, `macs_decoder` outside it.

        The decoder's count is that of the products for `top_k` masks.
        """
        masks, cells = self.top_k, (self.input_px // FEATURE_STRIDE_PX) ** 2
        products = masks * cells * self.options.kernel_channels
        return {
            "macs": sum(conv_macs(self.body, self.input_px).values()) + products,
            "macs_graph": sum(conv_macs(self.export_graph().body, self.input_px).values()),
            "macs_decoder": products + masks * _conv2d(self.body.kernel.predict).weight.numel(),
        }


def _outputs(*, fold: bool) -> tuple[OutputSpec, ...]:
    activations = {"category": "logit", "kernel": "relu" if fold else "none"}
    grids = [
        OutputSpec(f"{role}_{level}", role, STRIDES_PX[level], act, level)
        for role, act in activations.items()
        for level in range(LEVELS)
    ]
    return (*grids, OutputSpec("mask_features", "mask_features", FEATURE_STRIDE_PX, "relu"))


def _checked(options: Solov2Options) -> Solov2Options:
    sizes = (options.width, options.kernel_channels, options.mask_width, options.convs)
    if min(sizes) < 1:
        raise ConfigError("The sizes of the network are out of range.", expected="1 or more", got=str(sizes))
    if options.norm == "none" or (options.separable and options.norm != "bn"):
        raise ConfigError(
            "The norm does not fit the convolutions.",
            expected='"bn", or "gn" without separable convolutions',
            got=f"norm {options.norm!r}, separable {options.separable}",
        )
    return options


def _conv2d(module: nn.Module) -> nn.Conv2d:
    if not isinstance(module, nn.Conv2d):
        raise TypeError("the kernel branch was folded already")
    return module


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().to(torch.float32).cpu().numpy().copy()


def _variant(name: str, backbone: str, default_px: int, **fixed: Any) -> None:
    def make(num_classes: int = 80, input_px: int = 0, **options: Any) -> Solov2:
        chosen = from_mapping(Solov2Options, {**fixed, **options}, where="model.options")
        return Solov2(name, backbone, input_px or default_px, num_classes, chosen)

    make.__doc__ = f"SOLOv2 with {backbone}, {default_px} px."
    MODELS.register(name)(make)


for _px in (256, 320, 448, 512):
    _variant(f"solov2_mobile_{_px}", "mobilenet_v2", _px)
_variant("solov2_mobile_mnv4s_256", "mobilenet_v4_conv_small", 256)
_variant(
    "solov2_light_mnv2",
    "mobilenet_v2_symmetric",
    448,
    width=256,
    kernel_channels=128,
    mask_width=128,
    grids="official",
    separable=False,
    norm="gn",
    p6="conv",
    upsample="nearest",
    pixels="published",
)
