"""Where a tensor is put on its integer grid during retraining: observed or learned ranges, straight-through gradients.

The grid itself is that of `edge_seg.schemes`, so that what is trained is what a converted file computes with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from edge_seg.schemes import SMALLEST_SCALE, Grid, activation_grid

LOW, HIGH = -128, 127
WEIGHT_HIGH = 127
ON_ITS_GRID = -1
"""Site of a tensor that an operation leaves on the grid of its input: nothing to observe there."""


@dataclass(frozen=True)
class RangeOptions:
    """How ranges come about.

    Attributes:
        observe_steps: Steps over which ranges follow the data; then they stay.
        momentum: Weight of a step's range in the running range.
        ranges: "observed", or "learned": once observed, steps of activations and weights are trained as well
            (learned step size quantisation, arXiv 1902.08153), as logarithms.
    """

    observe_steps: int = 200
    momentum: float = 0.1
    ranges: Literal["observed", "learned"] = "observed"


class ActivationGrid(nn.Module):
    """Puts an activation on an asymmetric int8 grid and back, with straight-through gradients.

    Tensors that must share a grid (the parts of a concatenation) pass through one module, each at a site of its own;
    the range is the union over sites. A step only notes its ranges; `update_ranges` takes them over after the step,
    so that several processes can agree first. Until then an unobserved grid lets everything through.

    Args:
        sites: Number of tensors that are observed.
        options: How the range comes about.

    Attributes:
        low: Running minimum of each site, [sites].
        high: Running maximum of each site, [sites].
        steps: Number of steps observed.
        log_step: Logarithm of the factor by which a learned grid is wider than the observed one.
    """

    def __init__(self, sites: int, options: RangeOptions) -> None:
        super().__init__()
        self.options = options
        self.register_buffer("low", torch.zeros(sites, dtype=torch.float32))
        self.register_buffer("high", torch.zeros(sites, dtype=torch.float32))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.log_step = nn.Parameter(torch.zeros(())) if options.ranges == "learned" else None
        self.seen: dict[int, Tensor] = {}

    def forward(self, x: Tensor, site: int = 0) -> Tensor:
        """Returns `x` on the grid; same shape and dtype."""
        if x.is_meta:
            return x
        if self.training and site != ON_ITS_GRID and self.following():
            self._note(x.detach(), site)
        if not self.observed():
            return x
        scale, zero_point = self._grid()
        if self.log_step is not None and not self.following():
            return _LearnedGrid.apply(x, scale * self.log_step.exp(), zero_point)  # type: ignore[no-any-return,no-untyped-call]
        on_grid: Tensor = torch.fake_quantize_per_tensor_affine(x, scale, zero_point, LOW, HIGH)
        return on_grid

    def observed(self) -> bool:
        """Whether the range is known."""
        return bool(self.get_buffer("steps") > 0)

    def following(self) -> bool:
        """Whether the range still follows the data."""
        return int(self.get_buffer("steps")) < self.options.observe_steps

    def grid(self) -> Grid:
        """Returns the trained grid, as the file will have it."""
        grid = activation_grid(float(self.get_buffer("low").min()), float(self.get_buffer("high").max()))
        if self.log_step is None:
            return grid
        wider = float(torch.tensor(grid.scale) * self.log_step.detach().cpu().exp())
        return Grid(max(wider, SMALLEST_SCALE), grid.zero_point)

    def _note(self, x: Tensor, site: int) -> None:
        low, high = torch.aminmax(x.movedim(1, -1) if x.ndim == 4 else x)  # as it lies in memory, or it is copied first
        if site in self.seen:  # called twice in a step
            low, high = torch.minimum(low, self.seen[site][0]), torch.maximum(high, self.seen[site][1])
        self.seen[site] = torch.stack([low, high]).float()

    def _grid(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point as tensors; the numbers of `schemes.activation_grid`."""
        low = self.get_buffer("low").min().clamp(max=0).double()
        high = self.get_buffer("high").max().clamp(min=0).double()
        scale = ((high - low) / (HIGH - LOW)).clamp(min=SMALLEST_SCALE).float()
        zero_point = torch.round(LOW - low / scale.double()).clamp(LOW, HIGH)
        return scale, zero_point.to(torch.int32)


class Exchange(Protocol):
    """Agreement between processes, as `update_ranges` needs it."""

    size: int

    def stack(self, value: Tensor, activity: Literal["agreement"]) -> Tensor:
        """Returns the values of all processes, [size, ...]."""


@torch.no_grad()
def update_ranges(network: nn.Module, world: Exchange) -> None:
    """Takes over the ranges that the last step noted, over all processes with one exchange.

    Args:
        network: In training mode; a network without grids is left as it is.
        world: The processes; each must have run the same step.
    """
    grids = [m for m in network.modules() if isinstance(m, ActivationGrid) and m.seen]
    if not grids:
        return
    noted = torch.stack([grid.seen[site] for grid in grids for site in sorted(grid.seen)])
    if world.size > 1:
        every = world.stack(noted, "agreement")
        noted = torch.stack([every[..., 0].amin(0), every[..., 1].amax(0)], dim=1)
    rows = iter(noted)
    for grid in grids:
        _take_over(grid, [(site, next(rows)) for site in sorted(grid.seen)])
        grid.seen.clear()


def _take_over(grid: ActivationGrid, noted: Sequence[tuple[int, Tensor]]) -> None:
    low, high, steps = grid.get_buffer("low"), grid.get_buffer("high"), grid.get_buffer("steps")
    weight = grid.options.momentum if grid.observed() else 1.0
    for site, range_ in noted:
        low[site].lerp_(range_[0].to(low), weight)
        high[site].lerp_(range_[1].to(high), weight)
    steps += 1


class WeightGrid(nn.Module):
    """Puts weights on symmetric int8 grids, one per output channel, with straight-through gradients.

    Args:
        channels: Output channels.
        options: Whether steps are learned: then each channel has a factor on its largest weight / 127.
    """

    def __init__(self, channels: int, options: RangeOptions) -> None:
        super().__init__()
        self.log_step = nn.Parameter(torch.zeros(channels)) if options.ranges == "learned" else None
        self.register_buffer("zero", torch.zeros(channels, dtype=torch.int32), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns weights [out, in, kh, kw] on their grids."""
        if weight.is_meta:
            return weight
        scales = self.scales(weight)
        if self.log_step is not None:
            return _LearnedWeights.apply(weight, scales)  # type: ignore[no-any-return,no-untyped-call]
        zero = self.get_buffer("zero")
        on_grid: Tensor = torch.fake_quantize_per_channel_affine(weight, scales, zero, 0, -WEIGHT_HIGH, WEIGHT_HIGH)
        return on_grid

    def scales(self, weight: Tensor) -> Tensor:
        """Returns the scale of each channel, float32 [out]; an all-zero channel has SMALLEST_SCALE."""
        largest = weight.detach().abs().amax((1, 2, 3))
        scales = (largest / WEIGHT_HIGH).clamp(min=SMALLEST_SCALE).float()
        return scales if self.log_step is None else scales * self.log_step.exp()


class _LearnedGrid(torch.autograd.Function):
    """Affine grid whose scale gets a gradient (arXiv 1902.08153, equations 1 to 3 and section 2.2)."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        steps = x / scale
        rounded = torch.round(steps)
        low, high = LOW - zero_point, HIGH - zero_point
        kept = rounded.clamp(low, high)
        inside = (rounded >= low) & (rounded <= high)
        ctx.save_for_backward(torch.where(inside, kept - steps, kept), inside)
        ctx.size = x.numel()  # type: ignore[attr-defined]
        return kept * scale

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        slope, inside = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        fairness: float = (ctx.size * HIGH) ** -0.5  # type: ignore[attr-defined]
        return gradient * inside, (gradient * slope).sum() * fairness, None


class _LearnedWeights(torch.autograd.Function):
    """The same for weights, symmetric, one scale per output channel."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor, scales: Tensor) -> Tensor:
        per_channel = scales.reshape(-1, 1, 1, 1)
        steps = weight / per_channel
        kept = torch.round(steps).clamp(-WEIGHT_HIGH, WEIGHT_HIGH)
        inside = steps.abs() <= WEIGHT_HIGH
        ctx.save_for_backward(torch.where(inside, kept - steps, kept), inside)
        return kept * per_channel

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        slope, inside = ctx.saved_tensors  # type: ignore[attr-defined]
        (gradient,) = gradients
        fairness = (slope[0].numel() * WEIGHT_HIGH) ** -0.5
        return gradient * inside, (gradient * slope).sum((1, 2, 3)) * fairness
