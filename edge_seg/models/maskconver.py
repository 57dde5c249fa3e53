"""MaskConver-Mobile (arXiv 2312.06052): panoptic segmentation as centre points with one mask kernel each.

A single-scale network: MobileNet, ASPP at stride 16, three light heads at stride 8 (centre heat map, centre embedding,
mask features). Each kept centre's embedding is combined with its class embedding and sent through an MLP; the result
is the kernel of one binary mask. Beyond the paper, off with `relative_position = false`: the kernel also weighs
cosines and sines of the distance to the centre, without which repeated objects cannot be told apart.
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

from edge_seg.backbones.base import BACKBONES, load_weights
from edge_seg.config import from_mapping
from edge_seg.contract import ClassInfo
from edge_seg.errors import ConfigError
from edge_seg.layers.aspp import Aspp
from edge_seg.layers.conv import ConvBnAct, SeparableConv
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
from edge_seg.models.maskconver_criterion import MaskConverCriterion, MaskConverLossConfig

STRIDE_PX = 8
PUBLISHED_TOP_K = 50
HEAD_CONVS = 2
HEAT_PRIOR_BIAS = -2.19  # sigmoid gives about 0.1, as published
WAVELENGTHS_CELLS = (4.0, 8.0, 16.0, 32.0, 64.0)


@dataclass(frozen=True)
class MaskConverOptions:
    """What varies between MaskConver networks.

    Attributes:
        class_embedding: "multiply" (published mobile code) or "add" (the paper's text).
        relative_position: Whether the mask kernel sees the distance to its centre (ours; not published).
        head_kernel: Side of the heads' depthwise kernels.
        width: Channels of the context map, heads and embeddings.
        aspp: Context at stride 16: "full" (published: a 1x1, dilations 6, 12, 18, global mean), "light" (without
            dilations 12 and 18, which sample mostly padding on a map of 16 x 16 cells) or "none" (one 1x1).
        aspp_width: Channels of each ASPP branch; 0 takes `width`, as published.
        shared_trunk: What the three heads share: "none" (published), "sum" (skip 1x1 and sum with the context) or
            "conv" (also the first separable convolution). Each head keeps at least one of its own, so that no raw
            output is used inside the graph.
        backbone: Registered name; empty takes the one of the network's name.
    """

    class_embedding: Literal["multiply", "add"] = "multiply"
    relative_position: bool = True
    head_kernel: int = 7
    width: int = 256
    aspp: Literal["full", "light", "none"] = "full"
    aspp_width: int = 0
    shared_trunk: Literal["none", "sum", "conv"] = "none"
    backbone: str = ""


@dataclass(frozen=True)
class MaskConverDecoderConfig:
    """Decoder settings of a recipe; they become the contract's parameters.

    Attributes:
        top_k: Centres kept.
        score_threshold: Lowest centre score.
        score_exponent: The arg-max compares score ** exponent * mask probability (published: 1).
        overlap_threshold: Share of its own mask a segment must keep.
        min_area_share: Smallest segment as a share of the picture (published: 256 of 640 x 640 pixels).
        mask_threshold: Lowest winning probability of a pixel; below it the pixel is void (published: 0).
        one_peak_per_stuff_class: Whether a stuff class keeps only its best cell.
        reassign_rejected: Whether pixels of a rejected segment go to the next mask instead of void.
    """

    top_k: int = PUBLISHED_TOP_K
    score_threshold: float = 0.05
    score_exponent: float = 0.3
    overlap_threshold: float = 0.5
    min_area_share: float = 0.0002
    mask_threshold: float = 0.5
    one_peak_per_stuff_class: bool = True
    reassign_rejected: bool = False


class Trunk(nn.Module):
    """Skip 1x1, sum with the enlarged context map, then separable convolutions.

    Args:
        skip_channels: Channels of the stride-8 map.
        width: Channels inside and of the result.
        kernel: Side of the depthwise kernels.
        convs: Number of separable convolutions.
    """

    def __init__(self, skip_channels: int, width: int, kernel: int, convs: int) -> None:
        super().__init__()
        self.skip = ConvBnAct(skip_channels, width, 1)
        self.add = Add()
        self.convs = nn.Sequential(*[SeparableConv(width, width, kernel) for _ in range(convs)])

    def forward(self, skip: Tensor, context: Tensor) -> Tensor:
        """Maps stride-8 maps [N, skip, h, w] and [N, width, h, w] to [N, width, h, w]."""
        y: Tensor = self.convs(self.add(self.skip(skip), context))
        return y


class LightHead(Trunk):
    """A trunk of its own with two separable convolutions, then the 1x1 prediction (as published).

    Args:
        skip_channels: Channels of the stride-8 map.
        width: Channels inside the head.
        out_channels: Channels of the prediction.
        kernel: Side of the depthwise kernels.
    """

    def __init__(self, skip_channels: int, width: int, out_channels: int, kernel: int) -> None:
        super().__init__(skip_channels, width, kernel, HEAD_CONVS)
        self.predict: nn.Module = nn.Conv2d(width, out_channels, 1)

    def forward(self, skip: Tensor, context: Tensor) -> Tensor:
        """Maps stride-8 maps [N, skip, h, w] and [N, width, h, w] to [N, out, h, w]."""
        prediction: Tensor = self.predict(super().forward(skip, context))
        return prediction


class SharedHead(nn.Module):
    """What a head keeps behind a shared trunk: separable convolutions and the 1x1 prediction.

    Args:
        width: Channels inside the head.
        out_channels: Channels of the prediction.
        kernel: Side of the depthwise kernels.
        convs: Number of separable convolutions, at least one.
    """

    def __init__(self, width: int, out_channels: int, kernel: int, convs: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*[SeparableConv(width, width, kernel) for _ in range(convs)])
        self.predict: nn.Module = nn.Conv2d(width, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the trunk's [N, width, h, w] to [N, out, h, w]."""
        prediction: Tensor = self.predict(self.convs(x))
        return prediction


Head = LightHead | SharedHead


class MaskConverBody(nn.Module):
    """The exported part: image in 0..255 to heat map, embedding and mask features at stride 8.

    Args:
        backbone: Registered name.
        num_classes: Channels of the heat map.
        options: Context and head settings.
    """

    def __init__(self, backbone: str, num_classes: int, options: MaskConverOptions) -> None:
        super().__init__()
        self.normalize = Normalize(MEAN_RGB, STD_RGB)
        self.backbone = BACKBONES[backbone]()
        self.aspp = _context(self.backbone.top_channels, options)
        self.enlarge = Upsample(2)
        self.trunk = _trunk(self.backbone.skip_channels, options)
        self.heat_head = _head(self.backbone.skip_channels, num_classes, options)
        self.embedding_head = _head(self.backbone.skip_channels, options.width, options)
        self.mask_head = _head(self.backbone.skip_channels, options.width, options)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Maps [N, 3, H, W] in 0..255 to `heatmap` (logits), `embedding`, `mask_features`, each at H/8, W/8."""
        return self.features(self.normalize(image))

    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Like `forward`, for an image that is already normalised."""
        skip, top = self.backbone(x)
        context = self.enlarge(self.aspp(top))
        maps = (skip, context) if self.trunk is None else (self.trunk(skip, context),)
        return {
            "heatmap": self.heat_head(*maps),
            "embedding": self.embedding_head(*maps),
            "mask_features": self.mask_head(*maps),
        }


def _context(top_channels: int, options: MaskConverOptions) -> nn.Module:
    if options.aspp == "none":
        return ConvBnAct(top_channels, options.width, 1)
    dilations = (6, 12, 18) if options.aspp == "full" else (6,)
    return Aspp(top_channels, options.width, dilations, branch_channels=options.aspp_width)


def _shared_convs(options: MaskConverOptions) -> int:
    return 1 if options.shared_trunk == "conv" else 0


def _trunk(skip_channels: int, options: MaskConverOptions) -> Trunk | None:
    if options.shared_trunk == "none":
        return None
    return Trunk(skip_channels, options.width, options.head_kernel, _shared_convs(options))


def _head(skip_channels: int, out_channels: int, options: MaskConverOptions) -> Head:
    if options.shared_trunk == "none":
        return LightHead(skip_channels, options.width, out_channels, options.head_kernel)
    return SharedHead(options.width, out_channels, options.head_kernel, HEAD_CONVS - _shared_convs(options))


class MaskEmbedding(nn.Module):
    """Centre embedding and class to the kernel of one mask; runs at the kept centres only, outside the graph.

    Args:
        num_classes: Rows of the class embedding.
        options: Combination and position terms.
    """

    def __init__(self, num_classes: int, options: MaskConverOptions) -> None:
        super().__init__()
        self.multiply = options.class_embedding == "multiply"
        self.wavelengths_cells = WAVELENGTHS_CELLS if options.relative_position else ()
        width = options.width
        self.class_embedding = nn.Embedding(num_classes, width)
        nn.init.uniform_(self.class_embedding.weight, -0.05, 0.05)
        self.fc1 = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.act = nn.ReLU()
        self.fc2 = nn.Linear(width, width + 4 * len(self.wavelengths_cells))

    def forward(self, embedding: Tensor, class_index: Tensor) -> Tensor:
        """Maps [..., width] and [...] int64 to kernels [..., width + 4 * wavelengths]."""
        c = self.class_embedding(class_index)
        z = embedding * c if self.multiply else embedding + c
        kernel: Tensor = self.fc2(self.act(self.norm(self.fc1(z))))
        return kernel


class MaskConver(Network):
    """Body and mask embedding of one variant.

    Args:
        name: Registered name.
        backbone: Registered backbone.
        input_px: Side of the square input, a multiple of 32.
        num_classes: Number of classes, things and stuff.
        options: What varies.
    """

    family = "maskconver"
    task = "panoptic"
    decoder_name = "maskconver"

    def __init__(self, name: str, backbone: str, input_px: int, num_classes: int, options: MaskConverOptions) -> None:
        super().__init__()
        self.name, self.input_px = name, checked_input_px(input_px)
        self.num_classes = checked_num_classes(num_classes)
        self.options = options
        self.body: MaskConverBody = MaskConverBody(backbone, num_classes, options)
        self.mask_embedding = MaskEmbedding(num_classes, options)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.groups > 1:  # a depthwise kernel has one input channel: scale by its taps
                    taps = float(module.weight[0].numel())
                    nn.init.normal_(module.weight, std=(2.0 / taps) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for head in (self.body.embedding_head, self.body.mask_head):
            nn.init.kaiming_normal_(_predict(head).weight, mode="fan_in", nonlinearity="linear")
        heat = _predict(self.body.heat_head)
        nn.init.trunc_normal_(heat.weight, std=0.01)
        nn.init.constant_(_bias(heat), HEAT_PRIOR_BIAS)

    def load_backbone(self, weights: str) -> None:
        """Fills the backbone from a safetensors file with timm's names, strictly."""
        load_weights(self.body.backbone, Path(weights))

    def criterion(self, settings: Mapping[str, Any], classes: Sequence[ClassInfo]) -> MaskConverCriterion:
        """Returns the criterion; unknown settings raise ConfigError."""
        config = from_mapping(MaskConverLossConfig, settings, where="criterion")
        if config.stride_px != STRIDE_PX or config.mask_stride_px not in (1, 2, 4, 8) or config.max_slots < 1:
            raise ConfigError(
                "The targets do not fit the network.",
                expected=f"stride_px {STRIDE_PX}, mask_stride_px 1, 2, 4 or 8, max_slots 1 or more",
                got=f"{config.stride_px}, {config.mask_stride_px}, {config.max_slots}",
            )
        return MaskConverCriterion(config, tuple(c.isthing for c in classes))

    def decoder_params(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the decoder's parameters: the recipe's settings plus what the network fixes."""
        config = from_mapping(MaskConverDecoderConfig, settings, where="decoder")
        return {
            **asdict(config),
            "class_embedding": self.options.class_embedding,
            "wavelengths_cells": list(self.mask_embedding.wavelengths_cells),
            "stride_px": STRIDE_PX,
        }

    def export_graph(
        self, *, fold: bool = True, split_7x7: bool = True, only: Literal["embedding", "mask", ""] = ""
    ) -> ExportGraph:
        """Returns the body to export and the decoder's constants.

        Args:
            fold: Whether the embedding head's last 1x1 runs at kept cells only, and the mask head's last 1x1 is
                folded into the kernels; exact.
            split_7x7: Whether 7x7 depthwise convolutions run as sums of three smaller ones; exact.
            only: Folds one of the two heads only.
        """
        lazy, folded = fold and only != "mask", fold and only != "embedding"
        body = copy.deepcopy(self.body).eval()
        constants = {k: _array(v) for k, v in self.mask_embedding.state_dict().items()}
        for enabled, head, prefix in (
            (lazy, body.embedding_head, "embedding_predict"),
            (folded, body.mask_head, "mask_predict"),
        ):
            if enabled:
                last = _predict(head)
                constants[f"{prefix}.weight"] = _array(last.weight[:, :, 0, 0])
                constants[f"{prefix}.bias"] = _array(_bias(last))
                head.predict = nn.Identity()
        outputs = (
            OutputSpec("heatmap", "heatmap", STRIDE_PX),
            OutputSpec("embedding", "embedding", STRIDE_PX, "relu" if lazy else "none"),
            OutputSpec("mask_features", "mask_features", STRIDE_PX, "relu" if folded else "none"),
        )
        plain = plain_convolutions(fold_deviation(body))
        return ExportGraph(split_convolutions(plain) if split_7x7 else plain, outputs, constants)

    def macs(self) -> dict[str, int]:
        """Returns `macs` as published (K = 50), `macs_graph` of the folded export, `macs_decoder` outside it."""
        width, cells = self.options.width, (self.input_px // STRIDE_PX) ** 2
        mlp = 2 * width * width + 4 * width * len(self.mask_embedding.wavelengths_cells)
        kernel = width + 4 * len(self.mask_embedding.wavelengths_cells)
        outside = PUBLISHED_TOP_K * (mlp + cells * kernel)
        return {
            "macs": sum(conv_macs(self.body, self.input_px).values()) + outside,
            "macs_graph": sum(conv_macs(self.export_graph().body, self.input_px).values()),
            "macs_decoder": outside + PUBLISHED_TOP_K * 2 * width * width,
        }


def _predict(head: Head) -> nn.Conv2d:
    if not isinstance(head.predict, nn.Conv2d):
        raise TypeError("the head was folded already")
    return head.predict


def _bias(conv: nn.Conv2d) -> Tensor:
    if conv.bias is None:
        raise TypeError("the prediction has no bias")
    return conv.bias


def _array(tensor: Tensor) -> NDArray[np.float32]:
    return tensor.detach().to(torch.float32).cpu().numpy().copy()


def _variant(name: str, backbone: str, default_px: int, **fixed: Any) -> None:
    def make(num_classes: int = 133, input_px: int = 0, **options: Any) -> MaskConver:
        chosen = from_mapping(MaskConverOptions, {**fixed, **options}, where="model.options")
        return MaskConver(name, chosen.backbone or backbone, input_px or default_px, num_classes, chosen)

    make.__doc__ = f"MaskConver with {backbone}, {default_px} px."
    MODELS.register(name)(make)


_variant("maskconver_mh_256", "mobilenet_mh", 256)
_variant("maskconver_mh_256_k5", "mobilenet_mh", 256, head_kernel=5)
_variant("maskconver_mh_640", "mobilenet_mh", 640)
_variant("maskconver_mnv2_256", "mobilenet_v2", 256)
_variant("maskconver_mnv2_256_k5", "mobilenet_v2", 256, head_kernel=5)
_variant("maskconver_mnv2_512", "mobilenet_v2", 512)
_variant("maskconver_mnv4s_256", "mobilenet_v4_conv_small", 256, head_kernel=5)
_variant(  # accuracy needs the width, not later blocks, ASPP or a trunk for each head (results/ablation, group lite)
    "maskconver_lite_256", "mobilenet_v2_96", 256, head_kernel=3, width=192, aspp="none", shared_trunk="conv"
)
_variant("maskconver_lite_mnv4s_256", "mobilenet_v4_conv_small_128", 256, head_kernel=5, width=160)
