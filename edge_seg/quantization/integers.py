"""Prepared body -> the form that is exported: grids as quantize and dequantize operations, weights and biases snapped.

The converter folds these operations into integers; scales, zero points, weights and biases arrive unchanged. They are
the operations of torch's own quantisation (`quantized_decomposed`), which torch.export keeps.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers the operations
import torch.nn.functional as F
from torch import Tensor, fx, nn

from edge_seg.errors import ArtifactError
from edge_seg.quantization.convolutions import QuantConv2d, QuantNormalize
from edge_seg.quantization.grids import HIGH, LOW, WEIGHT_HIGH, ActivationGrid
from edge_seg.quantization.prepare import is_prepared, unobserved
from edge_seg.schemes import Grid

_OPS = torch.ops.quantized_decomposed


class ExportGrid(nn.Module):
    """Quantize and dequantize with constants.

    Args:
        grid: The trained grid.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor, _site: int = 0) -> Tensor:
        """Returns `x` on the grid."""
        if x.dtype is torch.float64:  # the export measures float32 against float64; torch's operations are float32
            steps = torch.round(x / self.grid.scale) + self.grid.zero_point
            return (steps.clamp(LOW, HIGH) - self.grid.zero_point) * self.grid.scale
        numbers = (self.grid.scale, self.grid.zero_point, LOW, HIGH, torch.int8)
        on_grid: Tensor = _OPS.dequantize_per_tensor.default(_OPS.quantize_per_tensor.default(x, *numbers), *numbers)
        return on_grid


class ExportConv(nn.Module):
    """A convolution with snapped weights and biases behind per-channel quantize and dequantize operations.

    Args:
        conv: The trained convolution.
        input_scale: Scale of the grid its input lies on.
    """

    def __init__(self, conv: QuantConv2d | QuantNormalize, input_scale: float) -> None:
        super().__init__()
        with torch.no_grad():
            weight, bias = conv.folded()
            scales = conv.grid.scales(weight)
            integers = torch.round(conv.grid(weight) / scales.reshape(-1, 1, 1, 1))  # ties fall as in training
            bias_scales = torch.tensor(input_scale, dtype=torch.float64) * scales.double()
            steps = torch.round(bias.double() / bias_scales).clamp(-(2.0**31), 2.0**31 - 1)
        self.weight = nn.Parameter(integers * scales.reshape(-1, 1, 1, 1), requires_grad=False)
        self.bias = nn.Parameter((steps * bias_scales).to(bias.dtype), requires_grad=False)
        self.register_buffer("scales", scales.clone())
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64))
        self.how: Any = (conv.stride, conv.padding, conv.dilation, conv.groups)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, in, H, W] to [N, out, h, w]."""
        if self.weight.dtype is torch.float64:  # snapped already
            return F.conv2d(x, self.weight, self.bias, *self.how)
        grid = (self.get_buffer("scales"), self.get_buffer("zeros"), 0, -WEIGHT_HIGH, WEIGHT_HIGH, torch.int8)
        integers = _OPS.quantize_per_channel.default(self.weight, *grid)
        weight = _OPS.dequantize_per_channel.default(integers, *grid)
        return F.conv2d(x, weight, self.bias, *self.how)


def integer_form(body: nn.Module) -> nn.Module:
    """Returns a prepared body in the form that is exported; any other body as it is.

    Args:
        body: A body in evaluation mode, after the export's rewrites.

    Raises:
        ArtifactError: A grid has never seen data.
    """
    if not is_prepared(body):
        return body
    blank = unobserved(body)
    if blank:
        raise ArtifactError(
            f"{len(blank)} tensors of this network have no range yet.",
            expected="a network retrained for at least one step",
            got=", ".join(blank[:3]),
            todo="edge-seg qat",
        )
    module: Any = copy.deepcopy(body)
    for node in module.graph.nodes:
        if node.op == "call_module":
            _replace(module, node)
    form: nn.Module = module
    return form


def _replace(module: nn.Module, node: fx.Node) -> None:
    path = str(node.target)
    child: Any = module.get_submodule(path)
    if isinstance(child, ActivationGrid):
        module.set_submodule(path, ExportGrid(child.grid()))
    elif isinstance(child, QuantConv2d | QuantNormalize):
        source = node.all_input_nodes[0]
        module.set_submodule(path, ExportConv(child, _scale(module, source)))


def _scale(module: nn.Module, source: fx.Node) -> float:
    """Returns the scale of the grid that a node puts its value on."""
    grid: Any = module.get_submodule(str(source.target))
    trained: Grid = grid.grid if isinstance(grid, ExportGrid) else grid.grid()
    return trained.scale
