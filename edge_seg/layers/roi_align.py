"""Pooling of boxes from a map, bilinear, aligned, one sample per bin; differentiable in the map, for losses only.

Bilinear sampling on a grid of rows and columns is separable: rows and columns become two small matrices per box and
pooling two matrix products, whose gradient is deterministic on every device.
Source: RoIAlign (arXiv 1703.06870, section 3), with the half-pixel shift that detectron2 calls `aligned`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_align(features: Tensor, boxes_xyxy_px: Tensor, size: int, stride_px: float) -> Tensor:
    """Pools every box to a square.

    Args:
        features: [K, H, W].
        boxes_xyxy_px: [N, 4] left, top, right, bottom in pixels.
        size: Side R of the result.
        stride_px: Pixels per cell of the map.

    Returns:
        [N, K, R, R]; samples more than one cell outside the map are 0.
    """
    height, width = features.shape[-2:]
    boxes = boxes_xyxy_px.to(features) / stride_px - 0.5
    rows = sampling_matrix(boxes[:, 1], boxes[:, 3], size, height)
    columns = sampling_matrix(boxes[:, 0], boxes[:, 2], size, width)
    by_row = torch.einsum("nrh,khw->nkrw", rows, features)
    return torch.einsum("nkrw,nsw->nkrs", by_row, columns)


def sampling_matrix(start: Tensor, stop: Tensor, size: int, length: int) -> Tensor:
    """Returns the weights of linear interpolation at the centres of `size` equal bins.

    Args:
        start: [N] start in cells, where the first cell's centre is 0.
        stop: [N] end in cells.
        size: Number of bins.
        length: Number of cells.

    Returns:
        [N, size, length].
    """
    steps = (torch.arange(size, device=start.device, dtype=start.dtype) + 0.5) / size
    place = start[:, None] + (stop - start)[:, None] * steps
    inside = (place >= -1) & (place <= length)
    cells = torch.arange(length, device=start.device, dtype=start.dtype)
    weight = (1 - (place.clamp(0, length - 1)[..., None] - cells).abs()).clamp(min=0)
    return weight * inside[..., None]
