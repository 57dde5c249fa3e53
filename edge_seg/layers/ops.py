"""Elementary operations as modules: add, concatenate, resize, mean, normalise.

A body never calls these as bare functions: quantisation-aware retraining attaches its observers to modules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Add(nn.Module):
    """Element-wise sum of two tensors of one shape."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Returns `a + b`."""
        return a + b


class Concat(nn.Module):
    """Concatenation along channels."""

    def forward(self, *parts: Tensor) -> Tensor:
        """Returns [N, sum of channels, H, W]."""
        return torch.cat(parts, dim=1)


class GlobalMean(nn.Module):
    """Mean over height and width, kept as a 1x1 map."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, C, 1, 1]."""
        return x.mean(dim=(2, 3), keepdim=True)


class Upsample(nn.Module):
    """Bilinear enlargement by a whole factor, half-pixel centres (the form the GPU and int8 kernels take).

    Args:
        factor: Enlargement of both sides.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, C, H * factor, W * factor]."""
        return F.interpolate(x, scale_factor=float(self.factor), mode="bilinear", align_corners=False)


class ResizeLike(nn.Module):
    """Bilinear resize to the height and width of a second tensor."""

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """Returns `x` at the size of `like`."""
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class Resize(nn.Module):
    """Bilinear resize to a constant size, half-pixel centres.

    Args:
        size_hw: Height and width of the result.
    """

    def __init__(self, size_hw: tuple[int, int]) -> None:
        super().__init__()
        self.size_hw = size_hw

    def forward(self, x: Tensor) -> Tensor:
        """Returns [N, C, *size_hw]."""
        return F.interpolate(x, size=self.size_hw, mode="bilinear", align_corners=False)


class ConstantMap(nn.Module):
    """A map that does not depend on the picture, as an input of `Add`: quantisation gives it a grid of its own.

    Args:
        value: [1, C, h, w], or [1, 1, 1, 1] for one number.
        trained: Whether retraining may change it; if not, it is no part of a checkpoint either.
    """

    value: Tensor

    def __init__(self, value: Tensor, *, trained: bool = True) -> None:
        super().__init__()
        if trained:
            self.value = nn.Parameter(value)
        else:
            self.register_buffer("value", value, persistent=False)

    def forward(self) -> Tensor:
        """Returns [1, C, h, w]."""
        return self.value


class Normalize(nn.Module):
    """(x - mean) / std as one 1x1 depthwise convolution, the first operation of a body.

    Folding it into the first convolution would be wrong at the borders, where zero padding is not the mean; the
    deviation alone can be folded (`layers.picture`).

    Args:
        mean: Mean colour, RGB, 0..255.
        std: Deviation, RGB, same unit.
    """

    def __init__(self, mean: tuple[float, float, float], std: tuple[float, float, float]) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        scale = 1.0 / torch.tensor(std)
        self.register_buffer("weight", scale.reshape(3, 1, 1, 1), persistent=False)
        self.register_buffer("bias", -torch.tensor(mean) * scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps an image in 0..255, [N, 3, H, W], to the range the backbone was trained on."""
        return F.conv2d(x, self.get_buffer("weight"), self.get_buffer("bias"), groups=3)
