"""BatchNorm over the batches of all processes, on any backend (PyTorch's own is for GPUs only).

Each process computes mean and centred sum of squares of its part; these are combined exactly (Chan, Golub and LeVeque
1983, "Algorithms for computing the sample variance", equation 2.1), never as a difference of large sums.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from edge_seg.errors import ConfigError
from edge_seg.training.distributed import World


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Stands for a `BatchNorm2d` while several processes train; parameters, buffers and their names are the same.

    Args:
        plain: The layer it stands for; its parameters and buffers are shared, not copied.
        world: The processes.
    """

    def __init__(self, plain: nn.BatchNorm2d, world: World) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum, device="meta")
        self.world = world
        _share(plain, self)

    def forward(self, input: Tensor) -> Tensor:
        """Returns [N, C, H, W], normalised over the pictures of all processes; in evaluation mode as usual."""
        if not self.training:
            return super().forward(input)
        mean, variance, count = _statistics(input.detach(), self.world)
        self._track(mean, variance * (count / (count - 1)))
        normalised: Tensor = _Normalise.apply(  # type: ignore[no-untyped-call]
            input, self.weight, self.bias, torch.stack([mean, variance]), (count, self.eps, self.world)
        )
        return normalised

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.mul_(1 - momentum).add_(new, alpha=momentum)


class _Normalise(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, where mean and variance depend on x in every process."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        moments: Tensor,
        about: tuple[float, float, World],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, moments)
        ctx.about = about
        return F.batch_norm(x, moments[0], moments[1], weight, bias, training=False, eps=about[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, (mean, variance) = ctx.saved_tensors
        count, eps, world = ctx.about
        dy = gradients[0]
        # dy * slope, and the sums over dy * normalised x and over dy in this process: what fixed statistics would give
        dx, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, mean, variance, None, None, False, eps, [True, True, True]
        )
        along, plain = world.add(torch.stack([d_weight, d_bias]), "batchnorm") / count
        slope = weight * (variance + eps).rsqrt()
        # normalised x * along + plain, times slope, in one pass
        dx -= F.batch_norm(x, mean, variance, along * slope, plain * slope, training=False, eps=eps)
        return dx, d_weight, d_bias, None, None


def _statistics(x: Tensor, world: World) -> tuple[Tensor, Tensor, float]:
    """Mean and (biased) variance of each channel over all processes, and how many values that is."""
    mean, variance = torch.batch_norm_update_stats(x, None, None, 0.0)
    count = x.numel() // x.shape[1]
    parts = world.stack(torch.cat([mean, variance, mean.new_tensor([float(count)])]), "batchnorm")
    channels = x.shape[1]
    means, variances, counts = parts[:, :channels], parts[:, channels:-1], parts[:, -1:]
    total = counts.sum()
    mean = (means * counts).sum(0) / total
    variance = ((variances + (means - mean).square()) * counts).sum(0) / total
    return mean, variance, float(total)


def synchronise(network: nn.Module, world: World) -> None:
    """Replaces the live BatchNorm layers of a network, in place; nothing to do for a process that is alone.

    Args:
        network: In training mode; layers in evaluation mode are frozen and stay.
        world: The processes.

    Raises:
        ConfigError: A live layer normalises over the batch in another way.
    """
    if world.size == 1:
        return
    for path, module in list(network.named_modules()):
        if not isinstance(module, _BatchNorm) or not module.training or isinstance(module, SyncBatchNorm2d):
            continue
        if type(module) is not nn.BatchNorm2d or not module.affine:
            raise ConfigError(
                f"{path} cannot be synchronised between processes.",
                expected="BatchNorm2d with weight and bias",
                got=type(module).__name__,
                todo='train with one process, or with optim.freeze_batchnorm = "backbone"',
            )
        network.set_submodule(path, SyncBatchNorm2d(module, world))


def separate(network: nn.Module) -> None:
    """Undoes `synchronise`, in place: what is evaluated, saved and exported has plain layers only."""
    for path, module in list(network.named_modules()):
        if isinstance(module, SyncBatchNorm2d):
            plain = nn.BatchNorm2d(module.num_features, module.eps, module.momentum, device="meta")
            _share(module, plain)
            network.set_submodule(path, plain)


def _share(source: nn.BatchNorm2d, target: nn.BatchNorm2d) -> None:
    """Gives `target` the parameters, the buffers and the mode of `source`."""
    target.affine, target.track_running_stats = source.affine, source.track_running_stats
    for name, parameter in source.named_parameters(recurse=False):
        target.register_parameter(name, parameter)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        target.register_buffer(name, getattr(source, name))
    target.training = source.training
