"""Targets and losses of BlendMask: focal classes, GIoU boxes, centerness, blended masks, semantic map.

Source: FCOS (arXiv 1904.01355), focal loss (arXiv 1708.02002), GIoU (arXiv 1902.09630), BlendMask (arXiv 2001.00309).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_seg.data.fcos_targets import ObjectTable, counted_cells, fcos_targets, object_masks, object_table
from edge_seg.data.transforms import TrainCrop
from edge_seg.errors import ConfigError, InputError
from edge_seg.layers.roi_align import roi_align
from edge_seg.models.focal import focal_loss
from edge_seg.models.reduce import ONE_PROCESS, Reduce

if TYPE_CHECKING:
    from edge_seg.models.base import Network

BASIS_STRIDE_PX = 4
SEMANTIC_STRIDE_PX = 8
IGNORED = -1
_SMALLEST_SUM = 1e-6


@dataclass(frozen=True)
class BlendMaskLossConfig:
    """Targets and losses.

    Attributes:
        max_objects: Object slots of a picture; the largest get them, cells of the others do not count.
        level_bounds_px: Largest box distance of each level but the last; empty takes the network's own (published:
            64, 128, ... px; mobile: input / 8, doubling).
        center_radius: Half-side of the positive square in strides (published: 1.5); 0 takes the whole box.
        mask_size: Side of a mask target; 0 takes the network's.
        max_mask_positives: Most positive cells of a picture that make a mask, drawn at random, so that memory stays
            bounded: 128 at mask size 28 hold about 2 MB per map. 0 is no bound (published).
        iou_smoothing: Added to intersection and union, in square strides (published: 1).
        mask_weight: Weight of the mask loss (published: 1).
        semantic_weight: Weight of the semantic loss, where the network has that head (published: 0.3).
    """

    max_objects: int = 50
    level_bounds_px: tuple[float, ...] = ()
    center_radius: float = 1.5
    mask_size: int = 0
    max_mask_positives: int = 128
    iou_smoothing: float = 1.0
    mask_weight: float = 1.0
    semantic_weight: float = 0.3

    def __post_init__(self) -> None:
        """Checks the ranges; raises ConfigError."""
        counts = (self.max_mask_positives, self.mask_size, self.center_radius, self.iou_smoothing)
        weights = (self.mask_weight, self.semantic_weight)
        if (
            self.max_objects < 1
            or min(*counts, *weights) < 0
            or list(self.level_bounds_px) != sorted(set(self.level_bounds_px))
        ):
            raise ConfigError(
                "The criterion's settings are out of range.",
                expected="max_objects 1 or more, rising level bounds, nothing negative",
                got=str(self),
            )


class BlendMaskCriterion:
    """Targets and losses.

    Args:
        config: Settings, with level bounds and mask size filled in.
        levels: Pyramid levels of the network.
        has_semantic: Whether the network has a semantic head.
    """

    def __init__(self, config: BlendMaskLossConfig, levels: tuple[int, ...], *, has_semantic: bool) -> None:
        self.config, self.levels = config, levels
        self.uses_semantic = has_semantic and config.semantic_weight > 0

    def targets(self, crop: TrainCrop, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Returns the target arrays of one picture; Q object slots, L cells of all levels.

        "class_index" [Q], "boxes_xyxy_px" [Q, 4], "masks_qhw" [Q, R, R], "object_of_cell" [L], "ltrb_units" [L, 4],
        "counted" [L], "makes_mask" [L] and, with a semantic head, "semantic_hw" [H / 8, W / 8].
        """
        config = self.config
        table = object_table(crop, config.max_objects)
        real = table.boxes_xyxy_px[table.class_index >= 0]
        height, width = crop.id_map_hw_i32.shape
        cells = fcos_targets(real, (height, width), self.levels, config.level_bounds_px, config.center_radius)
        positive = cells.object_of_cell >= 0
        arrays: dict[str, NDArray[Any]] = {
            "class_index": table.class_index,
            "boxes_xyxy_px": table.boxes_xyxy_px,
            "masks_qhw": object_masks(table, config.mask_size),
            "object_of_cell": cells.object_of_cell,
            "ltrb_units": cells.ltrb_units,
            "counted": counted_cells(table.counted_hw, self.levels) | positive,
            "makes_mask": _some(positive, config.max_mask_positives, rng),
        }
        if self.uses_semantic:
            arrays["semantic_hw"] = semantic_target(table)
        return arrays

    def losses(
        self, network: Network, image: Tensor, batch: Mapping[str, Tensor], *, reduce: Reduce = ONE_PROCESS
    ) -> dict[str, Tensor]:
        """Runs the body and returns "loss", "loss_class", "loss_box", "loss_center", "loss_mask" (, "loss_semantic").

        Args:
            network: A BlendMask network.
            image: [N, 3, H, W], 0..255.
            batch: Targets stacked over pictures.
            reduce: Sums over the processes that share the batch.
        """
        raw, finest = self._forward(network, image)
        cells = {kind: flat_cells(raw, kind, self.levels) for kind in ("class", "box", "center", "attention")}
        losses = dense_losses(cells, batch, self.config.iou_smoothing, reduce=reduce)
        losses["loss_mask"] = self._mask_loss(cells["attention"], raw["bases"], batch, reduce)
        total = losses["loss_class"] + losses["loss_box"] + losses["loss_center"]
        total = total + self.config.mask_weight * losses["loss_mask"]
        if finest is not None:
            losses["loss_semantic"] = semantic_loss(finest, batch["semantic_hw"], reduce=reduce)
            total = total + self.config.semantic_weight * losses["loss_semantic"]
        return {"loss": total, **losses}

    def _forward(self, network: Network, image: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Returns the raw maps and, with a semantic head, its logits: it looks at level 3, inside the body."""
        if not self.uses_semantic:
            return network.body(image), None
        seen: list[Tensor] = []
        finest = network.body.get_submodule(f"fpn.output.{self.levels[0]}")
        handle = finest.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            raw = network.body(image)
        finally:
            handle.remove()
        if not seen:
            raise InputError(
                f"{network.name} computes on integer grids: its semantic head cannot be reached.",
                expected="a float network, or no semantic loss",
                todo="set criterion.semantic_weight = 0",
            )
        head: nn.Module = network.get_submodule("semantic")
        return raw, head(seen[0])

    def _mask_loss(self, attention: Tensor, bases: Tensor, batch: Mapping[str, Tensor], reduce: Reduce) -> Tensor:
        picture, cell = torch.nonzero(batch["makes_mask"], as_tuple=True)
        row = batch["object_of_cell"][picture, cell]
        weight = centerness(batch["ltrb_units"][picture, cell])
        divisor = reduce.total(weight.sum()).clamp(min=_SMALLEST_SUM)
        size = self.config.mask_size
        pooled = _pooled(bases, batch, size)[_position(batch["class_index"] >= 0)[picture, row]]
        logits = blend(pooled, attention[picture, cell])
        truth = batch["masks_qhw"][picture, row]
        bce = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2))
        return (bce * weight).sum() / divisor + _zero(attention, bases)


def _zero(*values: Tensor) -> Tensor:
    """Returns 0 with a path to every value: each parameter gets a gradient, whatever the picture holds."""
    return torch.stack([v.sum() * 0 for v in values]).sum()


def _some(positive: NDArray[np.bool_], most: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Returns at most `most` of the positive cells (all for 0), drawn at random."""
    cells = np.flatnonzero(positive)
    if most and len(cells) > most:
        cells = rng.choice(cells, most, replace=False)
    chosen = np.zeros_like(positive)
    chosen[cells] = True
    return chosen


def semantic_target(table: ObjectTable) -> NDArray[np.int64]:
    """Returns the map at stride 8 (nearest, as published): 0 background, class + 1 on objects, -1 for ignored."""
    step = SEMANTIC_STRIDE_PX
    classes = np.append(table.class_index, -1) + 1
    target: NDArray[np.int64] = np.where(table.counted_hw, classes[table.slot_hw], IGNORED)[::step, ::step]
    return np.ascontiguousarray(target)


def flat_cells(raw: Mapping[str, Tensor], kind: str, levels: tuple[int, ...]) -> Tensor:
    """Returns one kind of map of all levels as [N, L, C], cells in the order of the targets."""
    return torch.cat([raw[f"{kind}_p{level}"].flatten(2).transpose(1, 2) for level in levels], 1)


def dense_losses(
    cells: Mapping[str, Tensor], batch: Mapping[str, Tensor], smoothing: float, *, reduce: Reduce = ONE_PROCESS
) -> dict[str, Tensor]:
    """Returns "loss_class" and "loss_center" (over the positives) and "loss_box" (weighted by centerness).

    Args:
        cells: "class" [N, L, C] logits, "box" [N, L, 4] in strides, "center" [N, L, 1] logits.
        batch: Targets.
        smoothing: Added to intersection and union.
        reduce: Sums over the processes that share the batch.
    """
    positive = batch["object_of_cell"] >= 0
    ltrb = batch["ltrb_units"][positive]
    quality = centerness(ltrb)
    counts = torch.stack([positive.sum().to(ltrb), quality.sum()])
    positives, quality_sum = reduce.total(counts)
    positives = positives.clamp(min=1)
    truth = _one_hot(batch, cells["class"].shape[-1])
    focal = (focal_loss(cells["class"], truth) * batch["counted"][..., None]).sum()
    overlap = giou(cells["box"][positive], ltrb, smoothing)
    center = F.binary_cross_entropy_with_logits(cells["center"][..., 0][positive], quality, reduction="sum")
    return {
        "loss_class": focal / positives,
        "loss_box": ((1 - overlap) * quality).sum() / quality_sum.clamp(min=_SMALLEST_SUM) + _zero(cells["box"]),
        "loss_center": center / positives + _zero(cells["center"]),
    }


def _one_hot(batch: Mapping[str, Tensor], classes: int) -> Tensor:
    rows = batch["object_of_cell"].clamp(min=0)
    found = torch.where(batch["object_of_cell"] >= 0, batch["class_index"].gather(1, rows), classes)
    return F.one_hot(found, classes + 1)[..., :classes].to(torch.float32)


def centerness(ltrb: Tensor) -> Tensor:
    """Returns the geometric mean of the two ratios of opposite distances, [N, 4] to [N]; 1 in the middle of a box."""
    x, y = ltrb[:, 0::2], ltrb[:, 1::2]
    return torch.sqrt(x.amin(1) / x.amax(1) * (y.amin(1) / y.amax(1)))


def giou(found: Tensor, truth: Tensor, smoothing: float) -> Tensor:
    """Returns the generalised IoU of boxes round the same points (arXiv 1902.09630).

    Args:
        found: [N, 4] distances to left, top, right, bottom, not negative.
        truth: [N, 4], positive.
        smoothing: Added to intersection and union of the IoU term; published code adds 1, whatever the unit.
    """
    inner, outer = _area(torch.minimum(found, truth)), _area(torch.maximum(found, truth))
    union = _area(found) + _area(truth) - inner
    return (inner + smoothing) / (union + smoothing) - (outer - union) / outer


def _area(ltrb: Tensor) -> Tensor:
    return (ltrb[:, 0] + ltrb[:, 2]) * (ltrb[:, 1] + ltrb[:, 3])


def _pooled(bases: Tensor, batch: Mapping[str, Tensor], size: int) -> Tensor:
    """Returns the bases inside the box of every real object, all pictures in order, [M, K, R, R]."""
    parts = []
    for maps, classes, boxes in zip(bases, batch["class_index"], batch["boxes_xyxy_px"], strict=True):
        parts.append(roi_align(maps, boxes[classes >= 0], size, BASIS_STRIDE_PX))
    return torch.cat(parts)


def _position(real: Tensor) -> Tensor:
    """Returns the place of every real slot among all real slots, [N, Q]."""
    return (real.flatten().cumsum(0) - 1).reshape(real.shape)


def blend(pooled: Tensor, attention: Tensor) -> Tensor:
    """Blends bases: attention is enlarged bilinearly, then a softmax over the bases weighs them.

    Args:
        pooled: [N, K, R, R].
        attention: [N, K * M * M], K slowest.

    Returns:
        Mask logits [N, R, R].
    """
    count, bases, size = pooled.shape[:3]
    side = round((attention.shape[1] / bases) ** 0.5)
    maps = attention.reshape(count, bases, side, side)
    if not count:  # interpolation takes no empty batch
        return (pooled * attention.sum()).sum(1)
    grown = F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)
    return (pooled * grown.softmax(1)).sum(1)


def semantic_loss(logits: Tensor, truth: Tensor, *, reduce: Reduce = ONE_PROCESS) -> Tensor:
    """Returns the mean cross-entropy over cells that count.

    Args:
        logits: [N, C + 1, h, w], channel 0 is background.
        truth: [N, h, w] int64, -1 where nothing counts.
        reduce: Sums over the processes that share the batch.
    """
    count = reduce.total((truth != IGNORED).sum().to(logits)).clamp(min=1)
    return F.cross_entropy(logits, truth, ignore_index=IGNORED, reduction="sum") / count
