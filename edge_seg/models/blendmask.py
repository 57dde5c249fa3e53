"""BlendMask (arXiv 2001.00309): FCOS boxes, four shared bases, and per object a small attention map that blends them.

Two forms of one network. *Mobile* is ours: MobileNetV2, separable convolutions 96 wide, BatchNorm, ReLU6, bilinear
resizes, 7x7 attention, bounded boxes. *Published* is BlendMask-RT (and the base layout) on MobileNetV2: 3x3
convolutions 256 wide, nearest top-down, a semantic head that only training uses.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from edge_seg.layers.fpn import Fpn, FpnOptions
from edge_seg.layers.norm import ConvNormAct, LevelConv, Norm, SeparableNormAct, pooled_group_norms
from edge_seg.layers.ops import Add, Normalize, Upsample
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
from edge_seg.models.blendmask_criterion import BlendMaskCriterion, BlendMaskLossConfig

FINEST_LEVEL = 3
PUBLISHED_MEAN_RGB = (123.675, 116.28, 103.53)
PUBLISHED_STD_RGB = (1.0, 1.0, 1.0)
CLASS_PRIOR = 0.01
PUBLISHED_BOUNDS_PX = {3: (64.0, 128.0), 4: (64.0, 128.0, 256.0), 5: (64.0, 128.0, 256.0, 512.0)}
_RELU6_TOP = 6.0
_BOX_START = 2.0  # of ReLU6's 0..6: a third of the largest distance, far from both dead ends
_BLEND_MACS = 9  # per base and mask pixel: 4 taps of the bases, 4 of the attention, 1 product


@dataclass(frozen=True)
class BlendMaskOptions:
    """What varies between BlendMask networks; the defaults are the mobile form.

    Attributes:
        form: "mobile" (separable, ReLU6, bilinear, bounded boxes) or "published" (3x3, ReLU, nearest, open boxes).
        width: Channels of pyramid and towers.
        basis_width: Channels of the basis branch.
        bases: Number of bases, K.
        attention_size: Side M of an object's attention map.
        mask_size: Side R of a mask inside its box.
        coarsest: Last pyramid level (5, 6 or 7); the first is 3.
        shared_convs: Convolutions that all predictions share.
        branch_convs: Convolutions each for the class and for the box branch (attention hangs on the box branch).
        basis_convs: Convolutions of the basis branch at stride 8; one more follows at stride 4.
        norm: Norm of the towers: "bn" (one per level) or "gn".
        semantic: Whether a semantic head on level 3 helps training; it is never exported.
        box_limit_share: Mobile: largest box distance of a level that can be predicted, as a multiple of the largest it
            is trained on (the last level: of the input's side).
        pixels: What the backbone sees: "half" (-1..1) or "published" (minus the mean colour).
    """

    form: Literal["mobile", "published"] = "mobile"
    width: int = 96
    basis_width: int = 64
    bases: int = 4
    attention_size: int = 7
    mask_size: int = 28
    coarsest: int = 5
    shared_convs: int = 2
    branch_convs: int = 0
    basis_convs: int = 2
    norm: Norm = "bn"
    semantic: bool = False
    box_limit_share: float = 1.2
    pixels: Literal["half", "published"] = "half"

    @property
    def act(self) -> str:
        """Activation of every convolution outside the backbone."""
        return "relu6" if self.form == "mobile" else "relu"

    @property
    def levels(self) -> tuple[int, ...]:
        """Pyramid levels, finest first."""
        return tuple(range(FINEST_LEVEL, self.coarsest + 1))


@dataclass(frozen=True)
class BlendMaskDecoderConfig:
    """Decoder settings of a recipe; they become the contract's parameters.

    Attributes:
        score_threshold: Lowest class probability (times centerness, if `threshold_with_centerness`).
        threshold_with_centerness: Whether the threshold looks at class times centerness.
        score: What an object is ranked by: "sqrt" of class times centerness, or the "product" itself.
        pre_nms_top_k: Candidates before suppression, over all levels; 0 takes 300 (mobile) or 1000 (published: of each
            level).
        nms_iou: Box overlap at which the weaker one goes.
        class_aware: Whether only boxes of one class suppress each other.
        max_instances: Objects kept.
        mask_threshold: Lowest probability of a mask pixel.
        mask_size: Side of a mask inside its box; 0 takes the network's.
        merge: How bases become masks.
        overlap_threshold: Share of its mask an object must keep in a panoptic picture.
        show_threshold: Lowest score in a panoptic picture.
    """

    score_threshold: float = 0.05
    threshold_with_centerness: bool = True
    score: Literal["sqrt", "product"] = "sqrt"
    pre_nms_top_k: int = 0
    nms_iou: float = 0.6
    class_aware: bool = True
    max_instances: int = 100
    mask_threshold: float = 0.5
    mask_size: int = 0
    merge: Literal["blend", "yolact", "fcis"] = "blend"
    overlap_threshold: float = 0.5
    show_threshold: float = 0.3


class Tower(nn.Module):
    """Convolutions shared by all levels, each with a norm per level.

    Args:
        convs: Number of 3x3 convolutions (mobile: of pairs 3x3 depthwise + 1x1).
        options: Width, norm, form.
        depthwise_last: Mobile: one more depthwise convolution at the end, the first half of a separable prediction.
    """

    def __init__(self, convs: int, options: BlendMaskOptions, *, depthwise_last: bool = False) -> None:
        super().__init__()
        kernels = ["dw", "pw"] * convs if options.form == "mobile" else ["3x3"] * convs
        kernels += ["dw"] if depthwise_last and options.form == "mobile" else []
        self.convs = nn.ModuleList([_level_conv(kernel, options) for kernel in kernels])

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Maps level number `level` (from 0), [N, width, h, w], to the same shape."""
        for conv in self.convs:
            x = conv(x, level)
        return x


def _level_conv(kernel: str, options: BlendMaskOptions) -> LevelConv:
    width, mobile = options.width, options.form == "mobile"
    conv = nn.Conv2d(
        width,
        width,
        1 if kernel == "pw" else 3,
        padding=0 if kernel == "pw" else 1,
        groups=width if kernel == "dw" else 1,
        bias=not mobile,  # the published towers keep a bias in front of their norm
    )
    return LevelConv(conv, len(options.levels), norm=options.norm, act=options.act)


class BoxLimit(nn.Module):
    """Makes box distances non-negative; in the mobile form also bounded, so that int8 steps are small.

    Bounded: ReLU6 times limit / 6, the factor as a fixed 1x1 depthwise convolution. Every runtime has both as they
    are; a clamp at another value becomes MINIMUM, which costs int8 a partition of its own.

    Args:
        limit_units: Largest distance in strides; infinity for none.
    """

    def __init__(self, limit_units: float) -> None:
        super().__init__()
        bounded = math.isfinite(limit_units)
        self.act: nn.Module = nn.ReLU6() if bounded else nn.ReLU()
        self.scale: nn.Module = nn.Identity()
        if bounded:
            self.scale = nn.Conv2d(4, 4, 1, groups=4, bias=False)
            nn.init.constant_(self.scale.weight, limit_units / _RELU6_TOP)
            self.scale.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, 4, h, w] to distances in strides."""
        y: Tensor = self.scale(self.act(x))
        return y


class FcosHead(nn.Module):
    """Class, box, centerness and attention of every cell; all weights are shared by the levels.

    In the mobile form each prediction is separable. The attention's depthwise half is its own, so that the map handed
    to the decoder (when the attention's 1x1 is left to it) is used nowhere else in the graph.

    Args:
        num_classes: Classes.
        options: Towers, attention.
        limits_units: Largest box distance of every level.
    """

    def __init__(self, num_classes: int, options: BlendMaskOptions, limits_units: Sequence[float]) -> None:
        super().__init__()
        width, kernel = options.width, 1 if options.form == "mobile" else 3
        self.shared = Tower(options.shared_convs, options)
        self.class_tower = Tower(options.branch_convs, options, depthwise_last=True)
        self.box_tower = Tower(options.branch_convs, options)
        self.box_last = Tower(0, options, depthwise_last=True)
        self.attention_last = Tower(0, options, depthwise_last=True)
        self.class_predict = nn.Conv2d(width, num_classes, kernel, padding=kernel // 2)
        self.box_predict = nn.Conv2d(width, 4, kernel, padding=kernel // 2)
        self.center_predict = nn.Conv2d(width, 1, kernel, padding=kernel // 2)
        size = options.bases * options.attention_size**2
        self.attention: nn.Module = nn.Conv2d(width, size, kernel, padding=kernel // 2)
        self.limits = nn.ModuleList([BoxLimit(limit) for limit in limits_units])

    def forward(self, x: Tensor, level: int) -> dict[str, Tensor]:
        """Maps level number `level` (from 0), [N, width, h, w], to "class", "box", "center" and "attention"."""
        x = self.shared(x, level)
        box = self.box_tower(x, level)
        last = self.box_last(box, level)
        return {
            "class": self.class_predict(self.class_tower(x, level)),
            "box": self.limits[level](self.box_predict(last)),
            "center": self.center_predict(last),
            "attention": self.attention(self.attention_last(box, level)),
        }


class BasisBranch(nn.Module):
    """Levels 3, 4, 5 summed at stride 8, convolved, enlarged to stride 4: the K bases.

    Args:
        options: Widths and convolutions.
    """

    def __init__(self, options: BlendMaskOptions) -> None:
        super().__init__()
        width = options.basis_width
        self.refine = nn.ModuleList([_plain_conv(options.width, width, options) for _ in range(3)])
        self.up = nn.ModuleList([Upsample(2), Upsample(4)])
        self.add = nn.ModuleList([Add(), Add()])
        self.convs = nn.Sequential(*[_plain_conv(width, width, options) for _ in range(options.basis_convs)])
        self.up_last = Upsample(2)
        self.last = _plain_conv(width, width, options)
        self.predict = nn.Conv2d(width, options.bases, 1)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> Tensor:
        """Maps the pyramid's first levels to [N, K, H / 4, W / 4], no activation."""
        y = self.refine[0](p3)
        for number, level in enumerate((p4, p5)):
            y = self.add[number](y, self.up[number](self.refine[number + 1](level)))
        bases: Tensor = self.predict(self.last(self.up_last(self.convs(y))))
        return bases


def _plain_conv(in_channels: int, out_channels: int, options: BlendMaskOptions) -> nn.Module:
    if options.form == "mobile":
        return SeparableNormAct(in_channels, out_channels, act=options.act)
    return ConvNormAct(in_channels, out_channels, 3, act=options.act)


class BlendMaskBody(nn.Module):
    """The exported part: image in 0..255 to dense predictions of every level and the bases.

    Args:
        backbone: Registered pyramid backbone.
        num_classes: Classes.
        options: Form.
        limits_units: Largest box distance of every level.
    """

    def __init__(
        self, backbone: str, num_classes: int, options: BlendMaskOptions, limits_units: Sequence[float]
    ) -> None:
        super().__init__()
        published = options.pixels == "published"
        mean, std = (PUBLISHED_MEAN_RGB, PUBLISHED_STD_RGB) if published else (MEAN_RGB, STD_RGB)
        self.normalize = Normalize(mean, std)
        self.backbone = PYRAMIDS[backbone]()
        self.fpn = Fpn(self.backbone.channels, _fpn_options(options))
        self.head = FcosHead(num_classes, options, limits_units)
        self.basis = BasisBranch(options)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Maps [N, 3, H, W] in 0..255 to raw maps by name."""
        return self.features(self.normalize(image))

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Maps a normalised image to `class_pL`, `box_pL`, `center_pL`, `attention_pL` of every level L and `bases`."""
        pyramid = self.fpn(*self.backbone(x))
        raw: dict[str, Tensor] = {}
        for index, level in enumerate(self.fpn.levels):
            found = self.head(pyramid[index], index)
            raw.update({f"{kind}_p{level}": value for kind, value in found.items()})
        raw["bases"] = self.basis(*pyramid[:3])
        return raw


def _fpn_options(options: BlendMaskOptions) -> FpnOptions:
    published = FpnOptions(options.width, FINEST_LEVEL, options.coarsest)
    if options.form == "published":
        return published
    return replace(published, separable=True, norm="bn", act=options.act, upsample="bilinear")


def _semantic_head(num_classes: int, options: BlendMaskOptions) -> nn.Sequential:
    """Two convolutions and a 1x1 to background (channel 0) and the classes, at stride 8."""
    width = options.basis_width
    return nn.Sequential(
        _plain_conv(options.width, width, options),
        _plain_conv(width, width, options),
        nn.Conv2d(width, num_classes + 1, 1),
    )


class BlendMask(Network):
    """Body and training-only semantic head of one variant.

    Args:
        name: Registered name.
        backbone: Registered pyramid backbone.
        input_px: Side of the square input, a multiple of 32 (of 64 with level 6, 128 with level 7).
        num_classes: Number of classes, all of them things.
        options: What varies.

    Attributes:
        mean_rgb: Mean colour that the body subtracts.
        std_rgb: Deviation that it divides by.
        semantic: The semantic head, or None.
    """

    family = "blendmask"
    task = "instance"
    decoder_name = "blendmask"

    def __init__(self, name: str, backbone: str, input_px: int, num_classes: int, options: BlendMaskOptions) -> None:
        super().__init__()
        _check(options)
        self.name, self.input_px = name, checked_input_px(input_px)
        self.num_classes, self.options = checked_num_classes(num_classes), options
        published = options.pixels == "published"
        self.mean_rgb, self.std_rgb = (PUBLISHED_MEAN_RGB, PUBLISHED_STD_RGB) if published else (MEAN_RGB, STD_RGB)
        self.body: BlendMaskBody = BlendMaskBody(backbone, num_classes, options, self.box_limits_units())
        self.semantic = _semantic_head(num_classes, options) if options.semantic else None
        self._initialise()

    def level_bounds_px(self) -> tuple[float, ...]:
        """Returns the largest box distance that each level but the last is trained on.

        Published: 64, 128, ... pixels, for pictures with a short side of 512 and more. Mobile: input / 8 and
        doubling, the same share of a 512 px picture.
        """
        count = len(self.options.levels)
        if self.options.form == "published":
            return PUBLISHED_BOUNDS_PX[count]
        return tuple(self.input_px / 8 * 2**i for i in range(count - 1))

    def box_limits_units(self) -> tuple[float, ...]:
        """Returns the largest distance that each level can predict, in its strides; infinite in the published form."""
        if self.options.form == "published":
            return (math.inf,) * len(self.options.levels)
        reach_px = (*self.level_bounds_px(), float(self.input_px))
        share = self.options.box_limit_share
        return tuple(share * px / 2**level for px, level in zip(reach_px, self.options.levels, strict=True))

    def _initialise(self) -> None:
        fixed = [limit.scale for limit in self.body.head.limits]
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and not any(module is f for f in fixed):
                taps = float(module.weight[0].numel()) if module.groups > 1 else 0.0
                if taps:  # a depthwise kernel has one input channel: scale by its taps
                    nn.init.normal_(module.weight, std=(2.0 / taps) ** 0.5)
                else:
                    nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        head = self.body.head
        for predict in (head.class_predict, head.box_predict, head.center_predict, head.attention):
            nn.init.normal_(predict.get_parameter("weight"), std=0.01)
        nn.init.constant_(head.class_predict.get_parameter("bias"), -math.log(1 / CLASS_PRIOR - 1))
        if self.options.form == "mobile":
            nn.init.constant_(head.box_predict.get_parameter("bias"), _BOX_START)

    def load_backbone(self, weights: str) -> None:
        """Fills the backbone from a safetensors file with timm's names, strictly."""
        load_weights(self.body.backbone, Path(weights))

    def criterion(self, settings: Mapping[str, Any], classes: Sequence[ClassInfo]) -> BlendMaskCriterion:
        """Returns the criterion; unknown settings or unreachable targets raise ConfigError."""
        config = from_mapping(BlendMaskLossConfig, settings, where="criterion")
        config = replace(
            config,
            level_bounds_px=config.level_bounds_px or self.level_bounds_px(),
            mask_size=config.mask_size or self.options.mask_size,
        )
        reach_px = [limit * 2**level for limit, level in zip(self.box_limits_units(), self.options.levels, strict=True)]
        bounds_px = (*config.level_bounds_px, 0.0)
        if len(bounds_px) != len(reach_px) or any(b > r for b, r in zip(bounds_px, reach_px, strict=True)):
            raise ConfigError(
                "The level bounds do not fit the network.",
                expected=f"{len(reach_px) - 1} bounds, at most {[round(r, 1) for r in reach_px[:-1]]} px",
                got=str(list(config.level_bounds_px)),
                todo="change level_bounds_px, or the option box_limit_share",
            )
        if len(classes) != self.num_classes:
            raise ConfigError("The classes do not fit.", expected=str(self.num_classes), got=str(len(classes)))
        return BlendMaskCriterion(config, self.options.levels, has_semantic=self.semantic is not None)

    def decoder_params(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the decoder's parameters: the recipe's settings plus what the network fixes."""
        config = from_mapping(BlendMaskDecoderConfig, settings, where="decoder")
        top_k = 300 if self.options.form == "mobile" else 1000
        return {
            **asdict(config),
            "pre_nms_top_k": config.pre_nms_top_k or top_k,
            "mask_size": config.mask_size or self.options.mask_size,
            "attention_size": self.options.attention_size,
            "bases": self.options.bases,
            "box_quality": "centerness",
        }

    def export_graph(self, *, fold: bool = True, split_7x7: bool = True) -> ExportGraph:
        """Returns the body to export and the decoder's constants.

        Args:
            fold: Whether the attention convolution runs in the decoder, at kept cells only; exact.
            split_7x7: Has no effect: the family has no 7x7 convolutions.
        """
        body = copy.deepcopy(self.body).eval()
        constants: dict[str, NDArray[np.float32]] = {}
        if fold:
            attention = body.get_submodule("head.attention")
            constants["attention.weight"] = _array(attention.get_parameter("weight"))
            constants["attention.bias"] = _array(attention.get_parameter("bias"))
            body.set_submodule("head.attention", nn.Identity())
        plain = plain_convolutions(pooled_group_norms(fold_deviation(body)))
        return ExportGraph(split_convolutions(plain) if split_7x7 else plain, self._outputs(lazy=fold), constants)

    def _outputs(self, *, lazy: bool) -> tuple[OutputSpec, ...]:
        kinds = (
            ("class", "class_logit", "logit"),
            ("box", "box_ltrb", "relu"),
            ("center", "centerness", "logit"),
            ("attention", "attention", "relu" if lazy else "none"),
        )
        specs = [
            OutputSpec(f"{kind}_p{level}", role, 2**level, activation, level)
            for level in self.options.levels
            for kind, role, activation in kinds
        ]
        return (*specs, OutputSpec("bases", "bases", 4, "none"))

    def macs(self) -> dict[str, int]:
        """Returns `macs` as published, `macs_graph` of the folded export, `macs_decoder` outside it for 100 objects."""
        options, objects = self.options, BlendMaskDecoderConfig.max_instances
        attention = self.body.get_submodule("head.attention").get_parameter("weight").numel()
        blend = _BLEND_MACS * options.bases * options.mask_size**2
        return {
            "macs": sum(conv_macs(self.body, self.input_px).values()),
            "macs_graph": sum(conv_macs(self.export_graph().body, self.input_px).values()),
            "macs_decoder": objects * (attention + blend),
        }


def _check(options: BlendMaskOptions) -> None:
    sizes = (options.width, options.basis_width, options.bases, options.attention_size, options.mask_size)
    if options.coarsest not in (5, 6, 7) or min(sizes) < 1 or options.norm == "none" or options.box_limit_share < 1:
        raise ConfigError(
            "The options do not make a BlendMask network.",
            expected="coarsest 5, 6 or 7, positive sizes, norm bn or gn, box_limit_share 1 or more",
            got=str(options),
        )
    if options.form == "mobile" and options.norm != "bn":
        raise ConfigError("The mobile form has BatchNorm only.", expected="norm bn", got=options.norm)


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().to(torch.float32).cpu().numpy().copy()


_PUBLISHED: Mapping[str, Any] = {
    "form": "published",
    "pixels": "published",
    "width": 256,
    "basis_width": 128,
    "attention_size": 14,
    "mask_size": 56,
    "shared_convs": 3,
    "semantic": True,
}


def _variant(name: str, backbone: str, default_px: int, default_classes: int = 80, **fixed: Any) -> None:
    def make(num_classes: int = default_classes, input_px: int = 0, **options: Any) -> BlendMask:
        chosen = from_mapping(BlendMaskOptions, {**fixed, **options}, where="model.options")
        return BlendMask(name, backbone, input_px or default_px, num_classes, chosen)

    make.__doc__ = f"BlendMask with {backbone}, {default_px} px."
    MODELS.register(name)(make)


_variant("blendmask_mobile_256", "mobilenet_v2", 256)
_variant("blendmask_mobile_mnv4s_256", "mobilenet_v4_conv_small", 256)
_variant("blendmask_mobile_320", "mobilenet_v2", 320)
_variant("blendmask_mobile_512", "mobilenet_v2", 512)
_variant("blendmask_rt_mnv2", "mobilenet_v2_symmetric", 512, **_PUBLISHED)
_variant("blendmask_rt_mnv2_gn_m7", "mobilenet_v2_symmetric", 512, **{**_PUBLISHED, "norm": "gn", "attention_size": 7})
_variant(
    "blendmask_base_mnv2",
    "mobilenet_v2_symmetric",
    768,
    **{**_PUBLISHED, "norm": "gn", "coarsest": 7, "shared_convs": 0, "branch_convs": 4, "basis_convs": 3},
)
