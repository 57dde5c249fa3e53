"""What is computed faster while a training runs, against PyTorch's own numbers."""

import contextlib

import numpy as np
import pytest
import torch

from edge_seg.quantization.grids import ActivationGrid, RangeOptions, update_ranges
from edge_seg.training import kernels
from edge_seg.training.kernels import FastKernels


def both(x, scale, zero_point):
    """Values and gradients of PyTorch's kernel and of ours."""
    scale, zero_point = torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    found = []
    for function in (torch.fake_quantize_per_tensor_affine, kernels.on_grid):
        leaf = x.clone().requires_grad_()
        y = function(leaf, scale, zero_point, -128, 127)
        found.append((y.detach(), *torch.autograd.grad(y, leaf, gradient)))
    return found


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("scale", "zero_point"), [(0.0235, -128), (0.0086, 46), (1e-5, 127), (3.7, 0)])
def test_a_grid_is_that_of_pytorch_bit_for_bit(scale, zero_point, memory):
    noise = scale * 200 * torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    halves = (torch.arange(-700, 701) * torch.tensor(scale) / 2).reshape(1, 1, 1, -1)  # steps, and just between them
    for x in (noise.to(memory_format=memory), halves):
        theirs, ours = both(x, scale, zero_point)
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_a_grid_by_hand():
    """Scale 0.5, zero point 100: steps reach from -228 to 27, so -114 to 13.5; halves go to the even step."""
    x = torch.tensor([-200.0, -114.0, -0.25, 0.25, 0.75, 13.5, 13.8, 99.0]).requires_grad_()
    y = kernels.on_grid(x, torch.tensor(0.5), torch.tensor(100), -128, 127)
    y.sum().backward()
    assert y.tolist() == [-114.0, -114.0, 0.0, 0.0, 1.0, 13.5, 13.5, 13.5]
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]


def test_while_entered_a_grid_is_ours_and_says_the_same(monkeypatch):
    grid = ActivationGrid(1, RangeOptions()).train()
    x = torch.randn(1, 3, 8, 8)
    grid(x)
    update_ranges(grid, World())
    plain, called = grid.eval()(3 * x), []
    monkeypatch.setitem(
        kernels._FASTER,
        torch.fake_quantize_per_tensor_affine,
        lambda *args: called.append(args) or kernels.on_grid(*args),
    )
    with FastKernels(), torch.no_grad():
        assert torch.equal(grid(3 * x), plain)
    assert len(called) == 1
    assert torch.equal(grid(3 * x), plain)
    assert len(called) == 1


class World:
    size = 1


def test_a_step_of_a_network_has_the_same_gradients():
    """7x7, 5x5, a dilated and a strided depthwise convolution with BatchNorm between them."""
    torch.manual_seed(0)
    layers = []
    for kernel, stride, dilation in ((7, 1, 1), (5, 1, 1), (3, 1, 2), (4, 2, 1)):
        padding = dilation * (kernel - 1) // 2
        convolution = torch.nn.Conv2d(8, 8, kernel, stride, padding, dilation, groups=8, bias=False)
        layers += [convolution, torch.nn.BatchNorm2d(8), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers).double()
    x = torch.randn(2, 8, 12, 12, dtype=torch.float64)
    seen = []
    for mode in (contextlib.nullcontext(), FastKernels()):
        network.zero_grad()
        with mode:
            network(x).square().sum().backward()
        seen.append(np.concatenate([p.grad.flatten().numpy() for p in network.parameters()]))
    assert np.abs(seen[0]).max() > 1e-3
    np.testing.assert_allclose(seen[1], seen[0], rtol=0, atol=1e-10)
