"""Gradients of depthwise convolutions on a CPU: the same sums in a fraction of the time.

oneDNN has fast kernels for them only where the convolution is at most three columns wide, of stride 1 and not
dilated; others take ten times as long (weights of 7x7, 256 channels, 32x32 cells, 8 pictures: 21 ms against 1.6 of
7x3). But each is made of such parts, so that the sums are taken in another order and are no others:

* a dilated one works on interleaved pictures, each for itself: they become a batch;
* a wide one is cut into groups of three columns, each with the picture shifted.

Source: edge_seg measurement, torch 2.13 with oneDNN 3.12; `tests/test_training_depthwise.py` holds it to PyTorch's own
gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Pair = tuple[int, int]
Wants = tuple[bool, bool]
Size = int | Sequence[int]
_FAST_COLUMNS = 3
_MOST_GROWTH = 2.0
_FEWEST_TAPS = 9


class How(NamedTuple):
    """How a kernel goes over a picture, (rows, columns) each."""

    stride: Pair
    padding: Pair
    dilation: Pair

    def padded_size(self, x: Tensor) -> Pair:
        """Returns rows and columns of the picture with its padding, made a multiple of the dilation."""
        sizes = zip(x.shape[2:], self.padding, self.dilation, strict=True)
        rows, columns = (-(-(size + 2 * padding) // step) * step for size, padding, step in sizes)
        return rows, columns


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """`torch.conv2d`, with the arguments it has and, where they are faster, the gradients of this module."""
    stride, padding, dilation, groups = _arguments(*args, **kwargs)
    wanted = torch.is_grad_enabled() and (input.requires_grad or weight.requires_grad)
    if wanted and input.device.type == "cpu" and not isinstance(padding, str):
        how = How(_pair(stride), _pair(padding), _pair(dilation))
        if groups == input.shape[-3] == weight.shape[0] and input.ndim == 4 and _worth_it(input, weight, how):
            out: Tensor = _Depthwise.apply(input, weight, bias, how)  # type: ignore[no-untyped-call]
            return out
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _arguments(
    stride: Size = 1, padding: Size | str = 0, dilation: Size = 1, groups: int = 1
) -> tuple[Size, Size | str, Size, int]:
    return stride, padding, dilation, groups


def _pair(value: Size) -> Pair:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[-1]))


def _worth_it(x: Tensor, weight: Tensor, how: How) -> bool:
    """Whether PyTorch's own gradients are slow and interleaving does not blow the picture up (few cells, far taps)."""
    slow = weight.shape[3] > _FAST_COLUMNS or how.dilation != (1, 1)
    if not slow or how.stride != (1, 1) or weight[0].numel() < _FEWEST_TAPS:
        return False
    rows, columns = how.padded_size(x)
    return rows * columns <= _MOST_GROWTH * x.shape[2] * x.shape[3]


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution, [N, C, H, W] with [C, 1, kh, kw], whose gradients are taken part by part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, how: How) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = how
        return torch.conv2d(x, weight, bias, how.stride, how.padding, how.dilation, weight.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        grad_x, grad_weight = gradients(grad, x, weight, ctx.how, (wants_x, wants_weight))
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if wants_bias else None, None


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, how: How, wants: Wants = (True, True)
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the gradients of a depthwise convolution for its input and its weight.

    Args:
        grad: Gradient of the output, [N, C, h, w].
        x: Input, [N, C, H, W].
        weight: [C, 1, kh, kw].
        how: Padding and dilation; the stride is 1.
        wants: Which of the two are wanted; the other is None.
    """
    (top, left), (height, width) = how.padding, x.shape[2:]
    rows, columns = how.padded_size(x)
    padded = F.pad(x, (left, columns - left - width, top, rows - top - height))
    of_padded, of_weight = _dilated(grad, padded, weight, how, wants)
    if of_padded is None:
        return None, of_weight
    return _packed(of_padded[:, :, top : top + height, left : left + width]), of_weight


def _dilated(grad: Tensor, padded: Tensor, weight: Tensor, how: How, wants: Wants) -> tuple[Tensor | None, ...]:
    """Gradients of stride 1 and no padding; output that the longer picture adds has no gradient."""
    rows, columns = (
        size - step * (taps - 1)
        for size, step, taps in zip(padded.shape[2:], how.dilation, weight.shape[2:], strict=True)
    )
    grad = F.pad(grad, (0, columns - grad.shape[3], 0, rows - grad.shape[2]))
    of_parts, of_weight = _plain(_interleaved(grad, how.dilation), _interleaved(padded, how.dilation), weight, wants)
    return None if of_parts is None else _joined(of_parts, how.dilation), of_weight


def _plain(grad: Tensor, x: Tensor, weight: Tensor, wants: Wants) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of stride 1, no dilation and no padding, of the weight three columns at a time."""
    grad, of_weight = _packed(grad), []
    of_x = _gradient(grad, x, weight, of_input=True) if wants[0] else None
    for first in range(0, weight.shape[3], _FAST_COLUMNS) if wants[1] else ():
        taps = weight[:, :, :, first : first + _FAST_COLUMNS]
        seen = _packed(x[:, :, :, first : first + grad.shape[3] + taps.shape[3] - 1])
        of_weight.append(_gradient(grad, seen, taps, of_input=False))
    return of_x, torch.cat(of_weight, 3) if of_weight else None


def _gradient(grad: Tensor, x: Tensor, weight: Tensor, *, of_input: bool) -> Tensor:
    one, none = (1, 1), (0, 0)
    mask = (of_input, not of_input, False)
    both = torch.ops.aten.convolution_backward(
        grad, x, weight, None, one, none, one, False, none, weight.shape[0], mask
    )
    found: Tensor = both[0 if of_input else 1]
    return found


def _interleaved(x: Tensor, steps: Pair) -> Tensor:
    """[N, C, a H, b W] as a batch of the a b pictures of every a-th row and b-th column, [a b N, C, H, W]."""
    (down, right), (n, c, rows, columns) = steps, x.shape
    cells = x.permute(0, 2, 3, 1).reshape(n, rows // down, down, columns // right, right, c)
    batch = cells.permute(2, 4, 0, 1, 3, 5).reshape(-1, rows // down, columns // right, c)
    return batch.permute(0, 3, 1, 2)


def _joined(batch: Tensor, steps: Pair) -> Tensor:
    """The inverse of `_interleaved`."""
    (down, right), (_, c, rows, columns) = steps, batch.shape
    cells = batch.permute(0, 2, 3, 1).reshape(down, right, -1, rows, columns, c)
    return cells.permute(2, 3, 0, 4, 1, 5).reshape(-1, rows * down, columns * right, c).permute(0, 3, 1, 2)


def _packed(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
