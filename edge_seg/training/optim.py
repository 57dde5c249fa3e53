"""Optimiser groups, learning-rate schedule, averaged weights and frozen parts."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from edge_seg.backbones.base import Backbone, PyramidBackbone
from edge_seg.models.base import Network
from edge_seg.training.settings import OptimSettings


def parameter_groups(network: Network, settings: OptimSettings) -> list[dict[str, Any]]:
    """Splits parameters by learning rate and decay.

    Kernels of convolutions and linear layers and the class embedding decay; norms, biases and depthwise kernels do
    not (the published recipe). A parameter that several modules share is in one group, once.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    seen: set[nn.Parameter] = set()
    for path, module in network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
            kernel = isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding) and name == "weight"
            backbone = path.startswith("body.backbone")
            groups.setdefault((backbone, kernel and not depthwise), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": settings.backbone_lr_scale if backbone else 1.0,
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for (backbone, decays), parameters in groups.items()
    ]


def make_optimizer(network: Network, settings: OptimSettings) -> torch.optim.Optimizer:
    """Returns AdamW or SGD with momentum 0.9 over `parameter_groups`; AdamW in one pass over the weights."""
    groups = parameter_groups(network, settings)
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def learning_rate(step: int, total: int, settings: OptimSettings) -> float:
    """Returns the rate of a step: linear warm-up, then cosine to zero.

    Args:
        step: 0 for the first.
        total: Number of steps.
        settings: Peak and warm-up.
    """
    warmup = min(settings.warmup_steps, total // 2)
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class Average:
    """Exponential moving average of a network's weights; buffers are copied.

    Args:
        network: The network that is trained.
        decay: Decay once warmed up; the first steps use (1 + step) / (10 + step).
    """

    def __init__(self, network: Network, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: Network, step: int) -> None:
        """Moves the average towards `network` after a step."""
        keep = min(self.decay, (1 + step) / (10 + step))
        own: list[Tensor] = [p.detach() for p in self.network.parameters()]
        torch._foreach_lerp_(own, [p.detach() for p in network.parameters()], 1 - keep)
        for mine, theirs in zip(self.network.buffers(), network.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the averaged weights."""
        return self.network.state_dict()


def freeze(network: Network, settings: OptimSettings) -> None:
    """Freezes the leading backbone stages and sets the momentum of live BatchNorm layers."""
    backbone = network.body.get_submodule("backbone")
    for path in _frozen_paths(backbone, settings):
        backbone.get_submodule(path).requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = settings.batchnorm_momentum


def _frozen_paths(backbone: nn.Module, settings: OptimSettings) -> tuple[str, ...]:
    return backbone.frozen_paths(settings.freeze_stages) if isinstance(backbone, Backbone | PyramidBackbone) else ()


def train_mode(network: Network, settings: OptimSettings) -> None:
    """Puts the network into training mode, except the parts whose BatchNorm statistics are frozen."""
    network.train()
    backbone = network.body.get_submodule("backbone")
    if settings.freeze_batchnorm == "backbone":
        backbone.eval()
    for path in _frozen_paths(backbone, settings):
        backbone.get_submodule(path).eval()
