"""Gradients of depthwise convolutions taken in parts, against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from edge_seg.training.depthwise import How, _Depthwise, gradients
from edge_seg.training.kernels import FastKernels

CASES = {
    "7x7": ((7, 7), 1, 3, 1, (9, 11)),
    "5x5, smaller than its kernel": ((5, 5), 1, 2, 1, (3, 4)),
    "one row": ((1, 5), 1, (0, 2), 1, (5, 6)),
    "dilated, sides no multiple of it": ((3, 3), 1, 2, 2, (9, 10)),
    "dilated in columns": ((5, 4), 1, (2, 3), (1, 2), (9, 10)),
    "dilated unequally": ((3, 4), 1, (6, 3), (6, 2), (13, 10)),
    "dilated, no padding": ((3, 3), 1, 0, 2, (8, 7)),
    "padded more than same": ((5, 5), 1, 4, 1, (6, 7)),
}


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def made(case, dtype=torch.float64, channels=4):
    kernel, stride, padding, dilation, size = CASES[case]
    rng = torch.Generator().manual_seed(1)

    def noise(*shape):
        return torch.randn(*shape, dtype=dtype, generator=rng)

    how = How(pair(stride), pair(padding), pair(dilation))
    leaves = noise(2, channels, *size), noise(channels, 1, *kernel), noise(channels)
    return [leaf.requires_grad_() for leaf in leaves], how


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_pytorch(case):
    leaves, how = made(case)
    theirs = F.conv2d(*leaves, *how, leaves[0].shape[1])
    grad = torch.randn_like(theirs)
    ours = _Depthwise.apply(*leaves, how)
    assert torch.equal(ours, theirs)
    for one, other in zip(
        torch.autograd.grad(ours, leaves, grad), torch.autograd.grad(theirs, leaves, grad), strict=True
    ):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "side"),
    [((7, 7), 3, 1, 16), ((5, 5), 2, 1, 16), ((3, 3), 2, 2, 8), ((7, 3), (3, 2), (1, 2), 16), ((7, 7), 3, 1, 19)],
)
def test_in_float32_the_kernels_that_are_used_are_as_exact_as_pytorchs(kernel, padding, dilation, side):
    """oneDNN computes in float32 only, so the float64 cases never see its kernels."""
    rng = torch.Generator().manual_seed(2)
    x = torch.randn(2, 48, side, side, generator=rng).to(memory_format=torch.channels_last)
    weight = torch.randn(48, 1, *kernel, generator=rng)
    how = How((1, 1), pair(padding), pair(dilation))
    leaves = [x.double().requires_grad_(), weight.double().requires_grad_()]
    exact = F.conv2d(*leaves, None, *how, 48)
    grad = torch.randn(exact.shape, generator=rng)
    wanted = torch.autograd.grad(exact, leaves, grad.double())
    for one, other in zip(gradients(grad, x, weight, how), wanted, strict=True):
        assert (one.double() - other).abs().max() < 1e-5 * other.abs().max()


def test_by_hand():
    """A 1x5 kernel over one row of 3 cells, padding 2: the gradient of tap t is the sum of x[o + t - 2] over o."""
    x = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 1, 1, 3)
    weight = torch.arange(5.0).reshape(1, 1, 1, 5)
    of_x, of_weight = gradients(torch.ones(1, 1, 1, 3), x, weight, How((1, 1), (0, 2), (1, 1)))
    assert of_weight.flatten().tolist() == [1, 3, 7, 6, 4]
    assert of_x.flatten().tolist() == [3, 6, 9]


def test_what_is_not_wanted_is_not_made():
    (x, weight, _), how = made("7x7")
    grad = torch.ones(2, 4, 9, 11, dtype=torch.float64)
    of_x, of_weight = gradients(grad, x, weight, how, (False, True))
    assert of_x is None
    assert of_weight.shape == weight.shape
    of_x, of_weight = gradients(grad, x, weight, how, (True, False))
    assert of_x.shape == x.shape
    assert of_weight is None


def taken_over(out):
    return type(out.grad_fn).__name__ == "_DepthwiseBackward"


def test_the_mode_takes_over_what_is_slow_and_nothing_else():
    x = torch.randn(1, 4, 16, 16, requires_grad=True)
    weight = torch.randn(4, 1, 7, 7, requires_grad=True)
    with FastKernels():
        assert taken_over(F.conv2d(x, weight, None, 1, 3, 1, 4))
        assert taken_over(torch.nn.Conv2d(4, 4, 5, padding=2, groups=4)(x))
        assert taken_over(torch.nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4)(x))
        assert taken_over(F.conv2d(x, weight.detach(), groups=4))
        assert not taken_over(F.conv2d(x, weight, None, 2, 3, 1, 4)), "strided"
        assert not taken_over(F.conv2d(x, weight, None, 1, "same", 1, 4)), "padding by name"
        assert not taken_over(F.conv2d(x, weight[..., :3, :3], None, 1, 1, 1, 4)), "fast as it is"
        assert not taken_over(F.conv2d(x, weight[..., :3, :3], None, 1, 12, 12, 4)), "mostly padding"
        assert not taken_over(F.conv2d(x, weight[..., :2, :4], None, 1, (3, 3), (6, 2), 4)), "few taps"
        assert not taken_over(torch.nn.Conv2d(4, 8, 5, padding=2, groups=4)(x)), "two filters a channel"
        assert not taken_over(torch.nn.Conv2d(4, 4, 5, padding=2)(x)), "not depthwise"
        assert F.conv2d(x.detach(), weight.detach(), None, 1, 3, 1, 4).grad_fn is None
        with torch.no_grad():
            assert F.conv2d(x, weight, None, 1, 3, 1, 4).grad_fn is None
    assert not taken_over(F.conv2d(x, weight, None, 1, 3, 1, 4))


def test_a_picture_as_it_lies_in_memory_stays_so():
    x = torch.randn(2, 4, 12, 12).to(memory_format=torch.channels_last).requires_grad_()
    with FastKernels():
        torch.nn.Conv2d(4, 4, 7, padding=3, groups=4)(x).sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)
