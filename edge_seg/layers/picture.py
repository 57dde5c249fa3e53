"""The picture's way into an exported body: one sum, the deviation folded into the norm behind the first convolution.

`Normalize` is a depthwise convolution of three channels, which fill no vector, so that it is slow. Where mean and
deviation are the same for all colours, subtracting the mean is a sum with one number, and dividing by the deviation can
wait until the BatchNorm behind the first convolution. Zero padding stays the mean colour.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edge_seg.layers.ops import Add, ConstantMap, Normalize


class CenteredPicture(nn.Module):
    """The picture less its mean colour, which is one number.

    Args:
        mean: Mean of every colour, 0..255.
    """

    def __init__(self, mean: float) -> None:
        super().__init__()
        self.shift = ConstantMap(torch.full((1, 1, 1, 1), -mean), trained=False)
        self.add = Add()

    def forward(self, x: Tensor) -> Tensor:
        """Maps an image in 0..255, [N, 3, H, W], to -mean..255 - mean."""
        centered: Tensor = self.add(x, self.shift())
        return centered


def fold_deviation(body: nn.Module) -> nn.Module:
    """Replaces a body's `normalize` by a `CenteredPicture` where that is exact, in place, and returns the body.

    The statistics of the first BatchNorm change, no trained parameter does. For a body in evaluation mode; done before
    calibration and before quantisation-aware retraining. A body whose colours differ in mean or deviation, or whose
    first convolution has a bias or no BatchNorm behind it, stays as it is.
    """
    normalize, backbone = getattr(body, "normalize", None), getattr(body, "backbone", None)
    if not isinstance(normalize, Normalize) or not isinstance(backbone, nn.Module):
        return body
    stem = next((m for m in backbone.modules() if isinstance(m, nn.Conv2d)), None)
    norm = next((m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)), None)
    mean, deviation = _one(normalize.mean), _one(normalize.std)
    if mean is None or deviation is None or stem is None or norm is None:
        return body
    if stem.bias is not None or (stem.in_channels, stem.out_channels) != (3, norm.num_features):
        return body
    body.normalize = CenteredPicture(mean)
    norm.get_buffer("running_mean").mul_(deviation)
    norm.get_buffer("running_var").mul_(deviation**2)
    norm.eps *= deviation**2
    return body


def _one(values: tuple[float, float, float]) -> float | None:
    return values[0] if len(set(values)) == 1 else None
