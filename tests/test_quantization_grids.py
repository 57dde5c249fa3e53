"""Grids of retraining: the numbers of the table of schemes, straight-through gradients, ranges over sites and steps."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from edge_seg.layers.ops import Normalize
from edge_seg.quantization.convolutions import FrozenNorm, QuantConv2d, QuantNormalize
from edge_seg.quantization.grids import ON_ITS_GRID, ActivationGrid, RangeOptions, WeightGrid, update_ranges
from edge_seg.quantization.prepare import fixed_grid
from edge_seg.schemes import activation_grid, weight_scales


@dataclass
class Alone:
    """One process."""

    size: int = 1


class Together:
    """Two processes, of which the other one saw `other`."""

    size = 2

    def __init__(self, other):
        self.other = torch.tensor(other)

    def stack(self, value, activity):
        return torch.stack([value, self.other])


def observed(*batches, sites=1, **options):
    grid = ActivationGrid(sites, RangeOptions(**options)).train()
    for batch in batches:
        for site, values in enumerate(batch if sites > 1 else [batch]):
            grid(torch.tensor(values), site)
        update_ranges(grid, Alone())
    return grid


def test_a_grid_lets_everything_through_until_the_first_step_is_over():
    grid = ActivationGrid(1, RangeOptions()).train()
    x = torch.tensor([0.123456, -7.0])
    assert torch.equal(grid(x), x)
    assert not grid.observed()
    update_ranges(grid, Alone())
    assert grid.observed()
    assert not torch.equal(grid(x), x)


@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-1.5, 0.7), (-3.0, -1.0), (2.0, 5.0), (0.0, 0.0)])
def test_the_trained_numbers_are_those_of_the_table_of_schemes(low, high):
    grid = observed([low, high]).eval()
    wanted = activation_grid(low, high)
    assert grid.grid() == wanted
    x = np.linspace(low - 1, high + 1, 1001, dtype=np.float32)
    assert np.array_equal(grid(torch.from_numpy(x)).numpy(), wanted.real(wanted.integers(x)))


def test_ranges_follow_the_data_and_then_stay():
    grid = observed([0.0, 4.0], [0.0, 8.0], [-100.0, 100.0], observe_steps=2, momentum=0.25)
    assert grid.high.item() == pytest.approx(4 + 0.25 * 4)
    assert grid.low.item() == 0
    assert grid.steps.item() == 2


def test_sites_share_the_union_of_their_ranges():
    grid = observed([[0.0, 1.0], [-2.0, 0.5]], sites=2).eval()
    assert grid.grid() == activation_grid(-2.0, 1.0)
    grid.train()(torch.tensor([50.0]), ON_ITS_GRID)
    assert not grid.seen


def test_two_processes_agree_on_the_wider_range():
    grid = ActivationGrid(1, RangeOptions()).train()
    grid(torch.tensor([-1.0, 2.0]))
    update_ranges(grid, Together([[-0.5, 3.0]]))
    assert (grid.low.item(), grid.high.item()) == (-1.0, 3.0)


def test_gradients_pass_inside_the_range_and_stop_outside():
    grid = observed([-1.0, 1.0]).eval()
    x = torch.tensor([-3.0, -0.5, 0.3, 2.0], requires_grad=True)
    grid(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_a_picture_goes_through_its_grid_unchanged():
    picture = torch.arange(256.0).reshape(1, 1, 16, 16)
    grid = fixed_grid(0.0, 255.0).train()
    assert torch.equal(grid(picture), picture)
    grid(picture * 3)
    update_ranges(grid, Alone())
    assert torch.equal(grid(picture), picture)
    assert (grid.grid().scale, grid.grid().zero_point) == (1.0, -128)


def test_the_gradient_of_a_learned_step_is_that_of_the_paper():
    """arXiv 1902.08153, equation 3, by hand: step 0.1, values 0.13 (inside), 20 (above)."""
    grid = observed([-12.8, 12.7], observe_steps=1, ranges="learned")
    x = torch.tensor([0.13, 20.0], requires_grad=True)
    y = grid(x)
    assert y.tolist() == pytest.approx([0.1, 12.7], rel=1e-5)
    y.sum().backward()
    by_step = (1 - 1.3) + 127
    assert grid.log_step.grad.item() == pytest.approx(0.1 * by_step / math.sqrt(2 * 127), rel=1e-4)
    assert x.grad.tolist() == [1.0, 0.0]
    with torch.no_grad():
        grid.log_step += math.log(2)
    assert grid.grid().scale == pytest.approx(0.2, rel=1e-6)


def test_learned_weight_steps_have_a_gradient_of_their_own_channel():
    grid = WeightGrid(2, RangeOptions(ranges="learned"))
    weight = torch.tensor([1.27, 0.5, -0.4, 0.2]).reshape(2, 2, 1, 1).requires_grad_()
    grid(weight).square().sum().backward()
    assert grid.log_step.grad.shape == (2,)
    assert weight.grad.abs().min() > 0
    with torch.no_grad():
        grid.log_step[0] -= math.log(2)
    assert grid(weight)[0, 0].item() == pytest.approx(1.27 / 2, rel=1e-5)  # clipped
    assert grid(weight)[1, 0].item() == pytest.approx(-0.4, rel=1e-5)


def test_weights_lie_on_the_grid_of_the_table_of_schemes():
    torch.manual_seed(0)
    weight = torch.randn(4, 3, 3, 3)
    weight[2] = 0
    grid = WeightGrid(4, RangeOptions())
    scales = weight_scales(weight.numpy())
    assert np.array_equal(grid.scales(weight).numpy(), scales)
    assert scales[2] == np.float32(1e-6)
    integers = np.clip(np.rint(weight.numpy() / scales[:, None, None, None]), -127, 127)
    np.testing.assert_allclose(grid(weight).numpy(), integers * scales[:, None, None, None], rtol=1e-6)


def test_folding_gives_the_outputs_and_the_gradients_of_the_norm():
    torch.manual_seed(1)
    conv = nn.Conv2d(3, 5, 3, bias=False).double()
    norm = nn.BatchNorm2d(5).double().eval()
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
        tensor.uniform_(0.5, 2)
    folded = FrozenNorm(norm)
    x = torch.randn(2, 3, 8, 8).double()
    wanted = norm(conv(x))
    wanted.square().sum().backward()
    expected = [conv.weight.grad.clone(), norm.weight.grad, norm.bias.grad]
    conv.weight.grad = None
    found = nn.functional.conv2d(x, *folded(conv.weight, None))
    found.square().sum().backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close([conv.weight.grad, folded.weight.grad, folded.bias.grad], expected)


def test_a_convolution_without_bias_or_norm_gets_one_that_is_zero():
    conv = QuantConv2d(nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), None, RangeOptions())
    assert torch.equal(conv.bias, torch.zeros(6))
    assert conv.bias.requires_grad
    assert conv(torch.zeros(1, 4, 5, 5)).shape == (1, 6, 5, 5)


def test_the_normalisation_is_not_trained():
    normalize = QuantNormalize(Normalize((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)))
    assert not list(normalize.parameters())
    image = torch.tensor([0.0, 127.5, 255.0]).reshape(1, 1, 1, 3).expand(1, 3, 1, 3)
    torch.testing.assert_close(normalize(image)[0, 0, 0], torch.tensor([-1.0, 0.0, 1.0]), atol=1e-6, rtol=0)
