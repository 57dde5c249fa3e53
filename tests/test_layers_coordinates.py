"""Coordinate channels by hand, and the folded form against the concatenation written out with PyTorch's functions."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edge_seg.layers.coordinates import (
    AppendCoordinates,
    CoordinateConv,
    FoldedCoordinateConv,
    coordinate_map,
    fold_coordinates,
    resized_coordinates,
)
from edge_seg.layers.ops import ConstantMap

SIZES = [((12, 12), (9, 9)), ((6, 6), (6, 6)), ((4, 4), (7, 7)), ((1, 1), (2, 2))]


def test_coordinates_run_from_minus_one_to_one_x_first():
    found = coordinate_map((2, 3))
    assert found.tolist() == [[[[-1, 0, 1], [-1, 0, 1]], [[-1, -1, -1], [1, 1, 1]]]]


@pytest.mark.parametrize(("size_hw", "target_hw"), SIZES)
def test_appending_after_a_resize_is_appending_before_it(size_hw, target_hw):
    x = torch.rand(2, 3, *size_hw)
    before = torch.cat([x, coordinate_map(size_hw).expand(2, -1, -1, -1)], 1)
    wanted = F.interpolate(before, size=target_hw, mode="bilinear", align_corners=False)
    small = F.interpolate(x, size=target_hw, mode="bilinear", align_corners=False)
    torch.testing.assert_close(AppendCoordinates(resized_coordinates(size_hw, target_hw))(small), wanted)


def randomised(module, seed=0):
    torch.manual_seed(seed)
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(child.weight, 1, 0.3)
            nn.init.normal_(child.bias, 0, 0.5)
        if isinstance(child, nn.BatchNorm2d):
            child.running_mean.normal_(0, 0.5)
            child.running_var.uniform_(0.3, 2)
    return module.double().eval()


def unit(*, separable, norm):
    maps = [resized_coordinates(*sizes) for sizes in SIZES]
    return randomised(CoordinateConv(32, 64, maps, separable=separable, norm=norm))


def batch_norm(x, norm):
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


FORMS = [
    {"separable": True, "norm": "bn"},
    {"separable": False, "norm": "bn"},
    {"separable": False, "norm": "gn"},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("level", range(len(SIZES)))
def test_the_folded_form_is_the_published_order_of_operations(form, level):
    """Concatenate, resize, convolve with zero padding, normalise, activate; in float64."""
    source = unit(**form)
    size_hw, target_hw = SIZES[level]
    x = torch.rand(2, 32, *size_hw, dtype=torch.float64) - 0.3
    y = torch.cat([x, coordinate_map(size_hw).double().expand(2, -1, -1, -1)], 1)
    y = F.interpolate(y, size=target_hw, mode="bilinear", align_corners=False)
    if form["separable"]:
        y = F.relu(batch_norm(F.conv2d(y, source.dw.conv.weight, padding=1, groups=34), source.dw.norms[level]))
        y = F.relu(batch_norm(F.conv2d(y, source.mix.conv.weight), source.mix.norms[level]))
    else:
        y = F.conv2d(y, source.mix.conv.weight, padding=1)
        if form["norm"] == "bn":
            y = F.relu(batch_norm(y, source.mix.norms[level]))
        else:
            y = F.relu(F.group_norm(y, 32, source.mix.norms[0].weight, source.mix.norms[0].bias, eps=1e-5))
    small = F.interpolate(x, size=target_hw, mode="bilinear", align_corners=False)
    with torch.inference_mode():
        folded = FoldedCoordinateConv(source).double()
        found, kept = folded(small, level), source(small, level)
    # maps are stored in float64 here: what is left is the order of additions, and coordinates made in float32
    torch.testing.assert_close(found, kept, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_zero_padding_makes_the_border_of_the_map_differ_from_a_plane(form):
    """A fold that forgot the padding would add a plane; a plane's second differences vanish everywhere."""
    (constant,) = [m for n, m in FoldedCoordinateConv(unit(**form)).named_modules() if n == "constant.1"]
    second = constant().diff(n=2, dim=-1).abs().amax((0, 1, 2))
    if not form["separable"]:  # the separable form has a ReLU before the sum, so its inside is no plane either
        assert second[1:-1].max() < 1e-5  # coordinates are float32
    assert second[0] > 1e-3


def test_folding_replaces_every_unit_and_leaves_the_source_alone():
    source = nn.ModuleDict(
        {"a": unit(separable=True, norm="bn"), "b": nn.ModuleList([unit(separable=False, norm="bn")])}
    )
    before = copy.deepcopy(source.state_dict())
    folded = fold_coordinates(copy.deepcopy(source))
    kinds = [type(m) for m in folded.modules()]
    assert AppendCoordinates not in kinds
    assert kinds.count(FoldedCoordinateConv) == 2
    assert kinds.count(ConstantMap) == 2 * len(SIZES)
    assert all(torch.equal(v, before[k]) for k, v in source.state_dict().items())
    assert not any("coordinates" in k for k in before)  # constants are no weights


def test_a_separable_unit_with_group_norm_is_not_folded():
    source = CoordinateConv(30, 64, [coordinate_map((4, 4))], separable=True, norm="gn")
    with pytest.raises(TypeError, match="BatchNorm"):
        FoldedCoordinateConv(source)
