"""Losses against scalar loops and values worked out by hand."""

import math

import numpy as np
import pytest
import torch

from edge_seg.contract import ClassInfo
from edge_seg.data.center_targets import CenterTargetConfig, center_targets
from edge_seg.data.sample import Segment
from edge_seg.data.transforms import TrainCrop
from edge_seg.models.base import MODELS
from edge_seg.models.maskconver_criterion import center_loss, mask_losses, position_logits

CLASSES = tuple(ClassInfo(i + 1, f"c{i}", i < 2, (i, i, i)) for i in range(4))


def test_the_centre_loss_equals_the_published_formula_in_a_scalar_loop():
    """Focal loss of CenterNet, alpha 2, beta 4, clipped at 1e-4, per picture divided by slots + 1."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (2, 3, 4, 5))
    logits[0, 0, 0, 0], logits[0, 0, 0, 1] = 40, -40  # beyond the clip
    heat = rng.random((2, 3, 4, 5)) * 0.99
    heat[rng.random(heat.shape) < 0.1] = 1
    weight, count = rng.random(heat.shape), [3, 0]
    pictures = []
    for n in range(2):
        total = 0.0
        for x, y, w in zip(logits[n].ravel(), heat[n].ravel(), weight[n].ravel(), strict=True):
            p = min(max(1 / (1 + math.exp(-x)), 1e-4), 1 - 1e-4)
            if y == 1:
                total -= w * (1 - p) ** 2 * math.log(p)
            else:
                total -= w * (1 - y) ** 4 * p**2 * math.log(1 - p)
        pictures.append(total / (count[n] + 1))
    tensors = [torch.from_numpy(a) for a in (logits, heat, weight)]
    assert center_loss(*tensors, torch.tensor(count)).item() == pytest.approx(np.mean(pictures), rel=1e-6)


def logit(p):
    return math.log(p / (1 - p))


def test_cross_entropy_and_dice_by_hand():
    """Two masks of two pixels, the second pixel of the second counts half."""
    logits = torch.tensor([[[logit(0.8), logit(0.4)]], [[logit(0.5), logit(0.1)]]])
    truth = torch.tensor([[[1.0, 0.0]], [[1.0, 0.5]]])
    weight = torch.tensor([[[1.0, 1.0]], [[1.0, 0.5]]])
    half = 0.5 * (0.5 * -math.log(0.1) + 0.5 * -math.log(0.9))
    bce = (-math.log(0.8) - math.log(0.6) - math.log(0.5) + half) / (3.5 + 1)
    first = 1 - (2 * 0.8 + 1) / (0.8 + 0.4 + 1 + 1)
    second = 1 - (2 * (0.5 * 1 + 0.05 * 0.25) + 1) / (0.55 + 1.25 + 1)
    got_bce, got_dice = mask_losses(logits, truth, weight, adaptive=False)
    assert got_bce.item() == pytest.approx(bce, rel=1e-5)
    assert got_dice.item() == pytest.approx((first + second) / 2, rel=1e-5)


@pytest.mark.parametrize(("d", "loss"), [(0.25, 0.471), (0.5, 0.176), (0.75, 0.037), (0.9, 0.005)])
def test_the_adaptive_dice_has_its_published_values(d, loss):
    """Constant probability p on a full mask has d = 2p / (p + 1); one d over all masks and pixels."""
    p = d / (2 - d)
    logits = torch.full((3, 4, 4), logit(p))
    _, dice = mask_losses(logits, torch.ones(3, 4, 4), torch.ones(3, 4, 4), adaptive=True)
    assert dice.item() == pytest.approx(loss, abs=6e-4)


def test_the_adaptive_dice_is_one_over_everything_and_the_other_a_mean_over_masks():
    logits = torch.stack([torch.full((8, 8), 30.0), torch.full((8, 8), -30.0)])
    truth = torch.stack([torch.ones(8, 8), torch.zeros(8, 8)])
    truth[1, 0, 0] = 1  # a small mask that was missed
    one = torch.ones(2, 8, 8)
    assert mask_losses(logits, truth, one, adaptive=False)[1].item() == pytest.approx((0 + 0.5) / 2, abs=1e-4)
    d = 2 * 64 / (64 + 65)
    assert mask_losses(logits, truth, one, adaptive=True)[1].item() == pytest.approx(1 - d * math.exp(1 - d), abs=1e-4)


def test_position_terms_are_sines_of_the_distance_in_a_scalar_loop():
    torch.manual_seed(0)
    amplitude, cell, waves = torch.randn(3, 8), torch.tensor([0, 7, 14]), (4.0, 10.0)
    got = position_logits(amplitude, cell, (3, 5), waves)
    for m in range(3):
        y0, x0 = divmod(int(cell[m]), 5)
        for y in range(3):
            for x in range(5):
                total = 0.0
                for k, wave in enumerate(waves):
                    a = amplitude[m, 4 * k : 4 * k + 4].tolist()
                    u, v = 2 * math.pi * (x - x0) / wave, 2 * math.pi * (y - y0) / wave
                    total += a[0] * math.cos(u) + a[1] * math.sin(u) + a[2] * math.cos(v) + a[3] * math.sin(v)
                assert got[m, y, x].item() == pytest.approx(total, abs=1e-5)


def scene(things=True):
    ids = np.full((64, 64), 9, np.int32)
    segments = [Segment(9, 3)]
    if things:
        ids[8:40, 8:40], ids[40:60, 32:60] = 1, 2
        segments += [Segment(1, 0), Segment(2, 1)]
    else:
        ids, segments = np.zeros((64, 64), np.int32), []
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    return TrainCrop(image, ids, np.ones((64, 64), bool), tuple(segments))


def batch_of(crops, criterion):
    items = [criterion.targets(c, np.random.default_rng(0)) for c in crops]
    image = torch.from_numpy(np.stack([c.image_hwc_u8 for c in crops])).permute(0, 3, 1, 2).float()
    return image, {k: torch.from_numpy(np.stack([i[k] for i in items])) for k in items[0]}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return MODELS["maskconver_mnv2_256"](4, 64, width=16, head_kernel=3)


@pytest.mark.parametrize("dice", ["per_mask", "adaptive"])
def test_every_gradient_is_finite_and_every_part_learns(network, dice):
    criterion = network.criterion({"dice": dice}, CLASSES)
    image, batch = batch_of([scene(), scene(things=False)], criterion)
    network.zero_grad()
    losses = criterion.losses(network.train(), image, batch)
    losses["loss"].backward()
    expected = losses["loss_center"] + 5 * (losses["loss_bce"] + losses["loss_dice"])
    assert losses["loss"].item() == pytest.approx(expected.item())
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    learned = {n.split(".")[1 if n.startswith("body") else 0] for n, p in network.named_parameters() if p.grad.any()}
    assert learned == {"backbone", "aspp", "heat_head", "embedding_head", "mask_head", "mask_embedding"}


@pytest.mark.parametrize("dice", ["per_mask", "adaptive"])
def test_a_batch_without_any_slot_still_trains_the_heat_map(network, dice):
    criterion = network.criterion({"dice": dice}, CLASSES)
    image, batch = batch_of([scene(things=False)] * 2, criterion)
    network.zero_grad()
    losses = criterion.losses(network.train(), image, batch)
    losses["loss"].backward()
    assert losses["loss_bce"].item() == 0
    assert losses["loss_center"].item() > 0
    assert network.body.heat_head.predict.weight.grad.abs().sum() > 0
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_a_perfect_prediction_costs_nothing():
    crop = scene()
    config = CenterTargetConfig(stuff_min_area_share=0.0)
    t = center_targets(crop, [c.isthing for c in CLASSES], config, np.random.default_rng(0))
    heat = torch.from_numpy(t.heat_chw)[None]
    perfect = torch.where(heat == 1, 20.0, -20.0)
    assert center_loss(perfect, heat, torch.from_numpy(t.heat_weight_chw)[None], torch.tensor([3])).item() < 1e-4
    truth = torch.from_numpy(t.masks_qhw[:3])
    bce, dice = mask_losses((truth - 0.5) * 60, truth, torch.ones_like(truth), adaptive=False)
    assert set(np.unique(truth)) == {0.0, 1.0}
    assert bce.item() < 1e-4
    assert dice.item() < 1e-4
    _, adaptive = mask_losses((truth - 0.5) * 60, truth, torch.ones_like(truth), adaptive=True)
    assert adaptive.item() < 1e-4


def test_losses_see_nothing_in_the_padding():
    rng = np.random.default_rng(0)
    heat = torch.from_numpy(rng.random((1, 2, 4, 4)))
    weight = torch.ones(1, 2, 4, 4)
    weight[..., 2:] = 0
    logits = torch.from_numpy(rng.normal(size=(1, 2, 4, 4)))
    other = logits.clone()
    other[..., 2:] += 7
    count = torch.tensor([1])
    assert center_loss(logits, heat, weight, count) == center_loss(other, heat, weight, count)
    truth = (heat[0] > 0.5).double()
    for adaptive in (False, True):
        a = mask_losses(logits[0], truth, weight[0], adaptive=adaptive)
        b = mask_losses(other[0], truth, weight[0], adaptive=adaptive)
        assert [v.item() for v in a] == [v.item() for v in b]


class Total:
    """Stands for several processes: first notes what each part hands in, then answers with the sums."""

    def __init__(self, size):
        self.size, self.noted, self.number = size, [], 0

    def total(self, value):
        self.number += 1
        if len(self.noted) < self.number:
            self.noted.append([])
        if len(self.noted[self.number - 1]) < self.size:
            self.noted[self.number - 1].append(value)
            return value
        return sum(self.noted[self.number - 1])

    def rounds(self, parts, function):
        for part in parts:
            self.number = 0
            function(part)
        results = []
        for part in parts:
            self.number = 0
            results.append(function(part))
        return results


@pytest.mark.parametrize("parts", [[[0, 1], [2]], [[0], [1], [2]]], ids=str)
def test_centre_losses_of_parts_add_up_to_that_of_the_whole_batch(parts):
    rng = np.random.default_rng(0)
    logits, heat, weight = (torch.from_numpy(rng.random((3, 2, 4, 4))) for _ in range(3))
    count, total = torch.tensor([3, 0, 9]), Total(len(parts))
    found = total.rounds(parts, lambda p: center_loss(logits[p], heat[p], weight[p], count[p], reduce=total))
    assert sum(found).item() == pytest.approx(center_loss(logits, heat, weight, count).item(), rel=1e-12)


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3], [4]], [[0, 1, 2, 3, 4], []]], ids=str)
@pytest.mark.parametrize("adaptive", [False, True])
def test_mask_losses_of_parts_add_up_to_those_of_the_whole_batch(parts, adaptive):
    """Also when a process has no mask at all. A mean of the parts' means would differ."""
    rng = np.random.default_rng(0)
    logits, truth, weight = (torch.from_numpy(rng.random((5, 4, 4))) for _ in range(3))
    parts, total = [torch.tensor(p, dtype=torch.long) for p in parts], Total(len(parts))
    found = total.rounds(
        parts, lambda p: torch.stack(mask_losses(logits[p], truth[p], weight[p], adaptive=adaptive, reduce=total))
    )
    whole = torch.stack(mask_losses(logits, truth, weight, adaptive=adaptive))
    torch.testing.assert_close(sum(found), whole, rtol=1e-12, atol=0)
    means = sum(torch.stack(mask_losses(logits[p], truth[p], weight[p], adaptive=adaptive)) for p in parts) / 2
    assert not torch.allclose(means, whole, rtol=1e-3)


def test_the_loss_falls_when_a_network_is_trained_on_one_picture(network):
    criterion = network.criterion({}, CLASSES)
    image, batch = batch_of([scene()] * 2, criterion)
    torch.manual_seed(0)
    net = MODELS["maskconver_mnv2_256"](4, 64, width=16, head_kernel=3).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    seen = []
    for _ in range(12):
        losses = criterion.losses(net, image, batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        seen.append(losses["loss"].item())
    assert seen[-1] < 0.75 * seen[0]
