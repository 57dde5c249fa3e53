"""Targets and losses of SOLOv2: focal categories, dice masks of the positive cells (arXiv 2003.10152)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from edge_seg.data.solo_targets import SoloTargetConfig, countable, crop_objects, solo_targets
from edge_seg.data.transforms import TrainCrop
from edge_seg.errors import ConfigError
from edge_seg.models.focal import focal_loss
from edge_seg.models.reduce import ONE_PROCESS, Reduce

if TYPE_CHECKING:
    from edge_seg.models.base import Network

PUBLISHED_RANGES_PX = ((1.0, 56.0), (28.0, 112.0), (56.0, 224.0), (112.0, 448.0), (224.0, 896.0))
"""Square roots of box areas of each level in the light networks, for an input of 448 pixels."""
_DICE_SMOOTHING = 0.001  # published, added to both sums of squares


@dataclass(frozen=True)
class Solov2LossConfig(SoloTargetConfig):
    """Targets plus loss settings.

    Attributes:
        range_px: Input side at which the published ranges of object sizes hold; they scale with the network's input.
        mask_weight: Weight of the dice loss (published: 3).
        category_weight: Weight of the focal loss (published: 1).
    """

    range_px: int = 448
    mask_weight: float = 3.0
    category_weight: float = 1.0


def scaled_ranges(config: Solov2LossConfig, input_px: int) -> tuple[tuple[float, float], ...]:
    """Returns the ranges of object sizes of each level for an input; raises ConfigError for settings out of range."""
    if min(config.range_px, config.max_objects, config.max_positives) < 1:
        raise ConfigError(
            "The targets do not fit.",
            expected="range_px, max_objects and max_positives of 1 or more",
            got=f"{config.range_px}, {config.max_objects}, {config.max_positives}",
        )
    factor = input_px / config.range_px
    return tuple((low * factor, high * factor) for low, high in PUBLISHED_RANGES_PX)


class Solov2Criterion:
    """Targets and losses.

    Args:
        config: Settings.
        sides: Cells per side of each grid.
        ranges_px: Object sizes of each grid.
        num_classes: Number of classes.
    """

    def __init__(
        self,
        config: Solov2LossConfig,
        sides: Sequence[int],
        ranges_px: Sequence[tuple[float, float]],
        num_classes: int,
    ) -> None:
        self.config, self.sides, self.ranges_px = config, tuple(sides), tuple(ranges_px)
        self.num_classes = num_classes

    def targets(self, crop: TrainCrop, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Returns the target arrays of one picture (see `SoloTargets`)."""
        objects = crop_objects(crop, self.config.max_objects)
        return solo_targets(objects, countable(crop), self.sides, self.ranges_px, self.config, rng).arrays()

    def losses(
        self, network: Network, image: Tensor, batch: Mapping[str, Tensor], *, reduce: Reduce = ONE_PROCESS
    ) -> dict[str, Tensor]:
        """Runs the body and returns "loss", "loss_category" and "loss_mask".

        Args:
            network: A SOLOv2 network.
            image: [N, 3, H, W], 0..255.
            batch: Targets stacked over pictures.
            reduce: Sums over the processes that share the batch.
        """
        raw = network.body(image)
        logits = _in_a_row(raw, "category", len(self.sides))
        category = category_loss(logits, batch["category"], batch["cell_weight"], reduce=reduce)
        mask = self._mask_loss(raw, batch, reduce)
        total = self.config.category_weight * category + self.config.mask_weight * mask
        return {"loss": total, "loss_category": category, "loss_mask": mask}

    def _mask_loss(self, raw: Mapping[str, Tensor], batch: Mapping[str, Tensor], reduce: Reduce) -> Tensor:
        kernels = _in_a_row(raw, "kernel", len(self.sides))
        positive = batch["positive_cell"] >= 0
        count = reduce.total(positive.sum().to(kernels.dtype)).clamp(min=1)
        losses = kernels.new_zeros(())
        for n, features in enumerate(raw["mask_features"]):
            kernel = kernels[n, batch["positive_cell"][n][positive[n]]]
            logits = torch.einsum("pe,ehw->phw", kernel, features)
            truth = batch["masks_qhw"][n, batch["positive_object"][n][positive[n]]].to(logits.dtype)
            losses = losses + dice_losses(logits, truth, batch["mask_weight_hw"][n]).sum()
        return losses / count


def _in_a_row(raw: Mapping[str, Tensor], role: str, levels: int) -> Tensor:
    """Returns the cells of all grids in the order of `SoloTargets`, [N, cells, C]."""
    return torch.cat([raw[f"{role}_{level}"].flatten(2) for level in range(levels)], dim=2).transpose(1, 2)


def dice_losses(logits: Tensor, truth: Tensor, weight_hw: Tensor) -> Tensor:
    """Returns the dice loss of each mask with squared denominators, [P].

    Args:
        logits: [P, h, w].
        truth: [P, h, w], 0 or 1.
        weight_hw: [h, w], share of each cell that counts.
    """
    p = torch.sigmoid(logits) * weight_hw
    g = truth * weight_hw
    overlap = 2 * (p * g).sum((1, 2))
    size = (p * p).sum((1, 2)) + (g * g).sum((1, 2)) + 2 * _DICE_SMOOTHING
    return 1 - overlap / size


def category_loss(logits: Tensor, category: Tensor, weight: Tensor, *, reduce: Reduce = ONE_PROCESS) -> Tensor:
    """Sigmoid focal loss (alpha 0.25, gamma 2), summed, over the number of cells with a category plus one.

    Args:
        logits: [N, cells, C].
        category: [N, cells] int64, -1 where there is none.
        weight: [N, cells].
        reduce: Sums over the processes that share the batch.
    """
    positive = category >= 0
    count = reduce.total(positive.sum().to(logits.dtype))
    truth = F.one_hot(category.clamp(min=0), logits.shape[2]).to(logits.dtype) * positive[..., None]
    loss: Tensor = (focal_loss(logits, truth) * weight[..., None]).sum()
    return loss / (count + 1)
