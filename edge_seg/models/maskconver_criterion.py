"""Targets and losses of MaskConver: focal centres, mask cross-entropy, dice (arXiv 2312.06052, published recipe)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edge_seg.data.center_targets import CenterTargetConfig, center_targets
from edge_seg.data.transforms import TrainCrop
from edge_seg.models.reduce import ONE_PROCESS, Reduce

if TYPE_CHECKING:
    from edge_seg.models.base import Network
    from edge_seg.models.maskconver import MaskEmbedding

_CLIP = 1e-4  # published: heat probabilities are clipped before the logarithm


@dataclass(frozen=True)
class MaskConverLossConfig(CenterTargetConfig):
    """Targets plus loss settings.

    Attributes:
        dice: "per_mask" (mean over masks, default) or "adaptive" (one dice d per step, 1 - d e^(1 - d), published).
        mask_weight: Weight of cross-entropy + dice against the centre loss (published: 5).
    """

    dice: Literal["per_mask", "adaptive"] = "per_mask"
    mask_weight: float = 5.0


class MaskConverCriterion:
    """Targets and losses.

    Args:
        config: Settings.
        isthing: Thing or stuff, per class.
    """

    def __init__(self, config: MaskConverLossConfig, isthing: tuple[bool, ...]) -> None:
        self.config, self.isthing = config, isthing
        names = [f.name for f in fields(CenterTargetConfig)]
        self._target_config = CenterTargetConfig(**{n: getattr(config, n) for n in names})

    def targets(self, crop: TrainCrop, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Returns the target arrays of one picture (see `CenterTargets`)."""
        return center_targets(crop, self.isthing, self._target_config, rng).arrays()

    def losses(
        self, network: Network, image: Tensor, batch: Mapping[str, Tensor], *, reduce: Reduce = ONE_PROCESS
    ) -> dict[str, Tensor]:
        """Runs the body and returns "loss", "loss_center", "loss_bce" and "loss_dice".

        Args:
            network: A MaskConver network.
            image: [N, 3, H, W], 0..255.
            batch: Targets stacked over pictures.
            reduce: Sums over the processes that share the batch.
        """
        raw = network.body(image)
        count = (batch["class_index"] >= 0).sum(dim=1)
        center = center_loss(raw["heatmap"], batch["heat_chw"], batch["heat_weight_chw"], count, reduce=reduce)
        logits, picture = self.mask_logits(network, raw, batch)
        truth = batch["masks_qhw"][batch["class_index"] >= 0]
        weight = batch["mask_weight_hw"][picture]
        bce, dice = mask_losses(logits, truth, weight, adaptive=self.config.dice == "adaptive", reduce=reduce)
        total = center + self.config.mask_weight * (bce + dice)
        return {"loss": total, "loss_center": center, "loss_bce": bce, "loss_dice": dice}

    def mask_logits(
        self, network: Network, raw: Mapping[str, Tensor], batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Returns the mask logits of all real slots, [M, H/s, W/s], and the picture each belongs to, [M]."""
        picture, slot = torch.nonzero(batch["class_index"] >= 0, as_tuple=True)
        cell, class_index = batch["cell"][picture, slot], batch["class_index"][picture, slot]
        height, width = raw["embedding"].shape[-2:]
        dense = raw["embedding"].flatten(2).transpose(1, 2)
        embedding = dense[picture, cell]
        mask_embedding = cast("MaskEmbedding", network.get_submodule("mask_embedding"))
        kernel: Tensor = mask_embedding(embedding, class_index)
        channels = raw["mask_features"].shape[1]
        logits = _product(kernel[:, :channels], raw["mask_features"], picture)
        wavelengths = mask_embedding.wavelengths_cells
        if wavelengths:
            logits = logits + position_logits(kernel[:, channels:], cell, (height, width), wavelengths)
        factor = self.config.stride_px // self.config.mask_stride_px
        grown = F.interpolate(logits[:, None], scale_factor=float(factor), mode="bilinear", align_corners=False)
        return grown[:, 0], picture


def _product(kernel: Tensor, features: Tensor, picture: Tensor) -> Tensor:
    """Multiplies each kernel [M, C] with the features of its picture [N, C, h, w]; returns [M, h, w]."""
    parts = [torch.einsum("mc,chw->mhw", kernel[picture == n], features[n]) for n in range(features.shape[0])]
    return torch.cat(parts)


def position_logits(
    amplitude: Tensor, cell: Tensor, size_hw: tuple[int, int], wavelengths_cells: tuple[float, ...]
) -> Tensor:
    """Weighs cosines and sines of the distance to each mask's cell; a sum of a row term and a column term.

    Args:
        amplitude: [M, 4 * wavelengths]; for each wavelength cos x, sin x, cos y, sin y.
        cell: [M] flat cell indices.
        size_hw: Rows and columns of the map.
        wavelengths_cells: Wavelengths in cells.

    Returns:
        [M, h, w].
    """
    height, width = size_hw
    angles = 2 * torch.pi / torch.tensor(wavelengths_cells, device=cell.device)
    a = amplitude.reshape(len(cell), len(wavelengths_cells), 4)
    dx = (torch.arange(width, device=cell.device)[None] - (cell % width)[:, None])[:, None] * angles[:, None]
    dy = (torch.arange(height, device=cell.device)[None] - (cell // width)[:, None])[:, None] * angles[:, None]
    columns = (a[:, :, 0, None] * dx.cos() + a[:, :, 1, None] * dx.sin()).sum(1)
    rows = (a[:, :, 2, None] * dy.cos() + a[:, :, 3, None] * dy.sin()).sum(1)
    logits: Tensor = rows[:, :, None] + columns[:, None, :]
    return logits


def center_loss(logits: Tensor, heat: Tensor, weight: Tensor, count: Tensor, *, reduce: Reduce = ONE_PROCESS) -> Tensor:
    """Penalty-reduced focal loss, alpha 2, beta 4 (CenterNet); per picture divided by its slots + 1, then the mean.

    Args:
        logits: [N, C, h, w].
        heat: Target, exactly 1 at positives.
        weight: Weight of each cell and class.
        count: [N] slots in use.
        reduce: Sums over the processes that share the batch.
    """
    p = torch.sigmoid(logits).clamp(_CLIP, 1 - _CLIP)
    positive = (1 - p) ** 2 * torch.log(p)
    negative = (1 - heat) ** 4 * p**2 * torch.log(1 - p)
    per_cell = -torch.where(heat >= 1, positive, negative) * weight
    pictures = reduce.total(logits.new_tensor(float(len(logits))))
    return (per_cell.flatten(1).sum(1) / (count + 1)).sum() / pictures


def mask_losses(
    logits: Tensor, truth: Tensor, weight: Tensor, *, adaptive: bool, reduce: Reduce = ONE_PROCESS
) -> tuple[Tensor, Tensor]:
    """Returns cross-entropy (mean over counted pixels of all masks) and dice.

    Args:
        logits: [M, h, w].
        truth: [M, h, w], covered share.
        weight: [M, h, w], share of each cell that counts.
        adaptive: The published form: one dice over everything, 1 - d e^(1 - d).
        reduce: Sums over the processes that share the batch.
    """
    counted_px, masks = reduce.total(torch.stack([weight.sum(), weight.new_tensor(float(len(weight)))]))
    bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    bce = (bce * weight).sum() / (counted_px + 1)
    p = torch.sigmoid(logits) * weight
    g = truth * weight
    if adaptive:
        return bce, _adaptive_dice(p, g, reduce)
    overlap = 2 * (p * g).sum((1, 2)) + 1
    size = p.sum((1, 2)) + g.sum((1, 2)) + 1
    return bce, (1 - overlap / size).sum() / masks.clamp(min=1)


def _adaptive_dice(p: Tensor, g: Tensor, reduce: Reduce) -> Tensor:
    """One dice over all masks of all processes. It is no sum over masks: each process returns its even share of it."""
    overlap, size = reduce.total(torch.stack([2 * (p * g).sum(), p.sum() + g.sum()]))
    d = overlap / (size + 1e-6)
    loss: Tensor = 1 - d * torch.exp(1 - d)
    return loss / reduce.size
