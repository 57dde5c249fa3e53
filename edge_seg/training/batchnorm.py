"""BatchNorm statistics measured anew for averaged weights ("precise BatchNorm", arXiv 2105.07576, section 3).

The running statistics of a training describe the weights of each step; the averaged weights are others, and score
less with statistics that are not their own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from edge_seg.models.base import Network


def remeasured(
    network: Network, images: Iterable[Tensor], set_mode: Callable[[Network], None], device: torch.device
) -> Network:
    """Returns a copy whose live BatchNorm layers hold the mean statistics of `images`; in evaluation mode.

    Args:
        network: Left untouched.
        images: Batches [N, 3, H, W], 0..255; with none of them the statistics stay as they are.
        set_mode: Puts a network into training mode; layers it leaves in evaluation mode keep their statistics.
        device: Where to run.
    """
    copied = copy.deepcopy(network).to(device)
    set_mode(copied)
    live = [m for m in copied.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    momentum = [m.momentum for m in live]
    with torch.no_grad():
        for number, image in enumerate(images if live else ()):
            for module in live:
                module.momentum = 1 / (number + 1)  # the mean over all batches so far
            copied.body(image.to(device, memory_format=torch.channels_last))
    for module, before in zip(live, momentum, strict=True):
        module.momentum = before
    return copied.eval()
