"""SOLOv2's losses: published values, scalar loops, sharing a batch, and a few steps of training."""

import math

import numpy as np
import pytest
import torch

from edge_seg.contract import ClassInfo
from edge_seg.data.sample import Segment
from edge_seg.data.transforms import TrainCrop
from edge_seg.errors import ConfigError
from edge_seg.layers.ops import ConstantMap
from edge_seg.models.base import MODELS
from edge_seg.models.solov2_criterion import (
    PUBLISHED_RANGES_PX,
    Solov2LossConfig,
    category_loss,
    dice_losses,
    scaled_ranges,
)
from edge_seg.quantization.grids import RangeOptions, update_ranges
from edge_seg.quantization.prepare import prepare
from edge_seg.training.distributed import World

CLASSES = tuple(ClassInfo(i + 1, f"c{i}", True, (i, i, i)) for i in range(3))


def test_dice_has_its_published_value():
    p = torch.tensor([[[0.9, 0.8, 0.1, 0.2]]], dtype=torch.float64)
    truth = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]], dtype=torch.float64)
    assert dice_losses(torch.logit(p), truth, torch.ones(1, 4)).item() == pytest.approx(0.0291262, abs=5e-8)


def test_dice_leaves_out_what_does_not_count():
    p, truth = torch.tensor([[[0.9, 0.8, 0.7]]]), torch.tensor([[[1.0, 1.0, 0.0]]])
    found = dice_losses(torch.logit(p), truth, torch.tensor([[1.0, 1.0, 0.0]]))
    wanted = dice_losses(torch.logit(p[..., :2]), truth[..., :2], torch.ones(1, 2))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)


def test_the_category_loss_equals_the_focal_loss_in_a_scalar_loop():
    rng = np.random.default_rng(0)
    logits, weight = rng.normal(0, 3, (2, 7, 3)), rng.random((2, 7))
    category = np.array([[-1, 0, 2, -1, -1, 1, -1], [-1] * 7])
    total = 0.0
    for n, cell, c in np.ndindex(2, 7, 3):
        p = 1 / (1 + math.exp(-logits[n, cell, c]))
        right = category[n, cell] == c
        one = -0.25 * (1 - p) ** 2 * math.log(p) if right else -0.75 * p**2 * math.log(1 - p)
        total += weight[n, cell] * one
    found = category_loss(torch.from_numpy(logits), torch.from_numpy(category), torch.from_numpy(weight))
    assert found.item() == pytest.approx(total / (3 + 1), rel=1e-9)


@pytest.mark.parametrize(("input_px", "factor"), [(448, 1.0), (256, 256 / 448), (320, 320 / 448)])
def test_ranges_scale_with_the_input(input_px, factor):
    scaled = scaled_ranges(Solov2LossConfig(), input_px)
    np.testing.assert_allclose(scaled, np.array(PUBLISHED_RANGES_PX) * factor)


@pytest.mark.parametrize("settings", [{"max_objects": 0}, {"max_positives": 0}, {"range_px": 0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ConfigError, match="do not fit"):
        network().criterion(settings, CLASSES)


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match="mask_weight"):
        network().criterion({"mask_wieght": 1}, CLASSES)


def network(**options):
    torch.manual_seed(1)
    return MODELS["solov2_mobile_256"](len(CLASSES), 64, width=16, kernel_channels=8, mask_width=8, **options)


def pictures(count, *, empty=()):
    rng = np.random.default_rng(4)
    for n in range(count):
        ids, image = np.zeros((64, 64), np.int32), np.full((64, 64, 3), 60, np.uint8)
        segments = []
        for number in range(0 if n in empty else 2):
            y, x, side = (int(v) for v in (*rng.integers(0, 36, 2), rng.integers(14, 28)))
            ids[y : y + side, x : x + side] = number + 1
            image[y : y + side, x : x + side] = 0
            image[y : y + side, x : x + side, number] = 220
            segments.append(Segment(number + 1, number))
        present = set(np.unique(ids).tolist())
        yield TrainCrop(image, ids, np.ones((64, 64), bool), tuple(s for s in segments if s.id in present))


def batch_of(net, crops):
    criterion = net.criterion({"max_objects": 4, "max_positives": 64, "range_px": 64}, CLASSES)
    targets = [criterion.targets(c, np.random.default_rng(0)) for c in crops]
    batch = {k: torch.from_numpy(np.stack([t[k] for t in targets])) for k in targets[0]}
    image = torch.from_numpy(np.stack([c.image_hwc_u8 for c in crops])).permute(0, 3, 1, 2).float()
    return criterion, image, batch


def test_a_few_steps_lower_both_losses():
    net = network().train()
    criterion, image, batch = batch_of(net, list(pictures(4)))
    assert (batch["positive_cell"] >= 0).sum() > 10
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    history = []
    for _ in range(25):
        losses = criterion.losses(net, image, batch)
        optimizer.zero_grad()
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        history.append({k: v.item() for k, v in losses.items()})
    for key in ("loss_category", "loss_mask"):
        assert np.mean([h[key] for h in history[-3:]]) < 0.7 * history[0][key]


def test_a_batch_without_objects_has_finite_gradients_everywhere():
    net = network().train()
    criterion, image, batch = batch_of(net, list(pictures(2, empty=(0, 1))))
    losses = criterion.losses(net, image, batch)
    losses["loss"].backward()
    assert losses["loss_mask"].item() == 0
    assert losses["loss_category"].item() > 0
    gradients = [p.grad for p in net.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)


def test_a_network_on_integer_grids_is_trained_constant_maps_included():
    net = prepare(network().eval(), RangeOptions(observe_steps=1)).train()
    criterion, image, batch = batch_of(net, list(pictures(2)))
    for _ in range(2):  # the first step observes ranges, the second computes on them
        losses = criterion.losses(net, image, batch)
        update_ranges(net, World(torch.device("cpu")))
    losses["loss"].backward()
    maps = [m.value for m in net.modules() if isinstance(m, ConstantMap) and m.value.requires_grad]
    assert len(maps) == 6  # the mean of the picture is not trained
    assert any(m.grad.abs().max() > 0 for m in maps)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_masks_come_from_the_kernel_of_the_cell_and_the_features_of_the_picture():
    net = network().eval()
    crops = list(pictures(3, empty=(1,)))
    criterion, image, batch = batch_of(net, crops)
    with torch.inference_mode():
        raw = net.body(image)
        total, count = 0.0, 0
        for n in range(3):
            for cell, row in zip(batch["positive_cell"][n].tolist(), batch["positive_object"][n].tolist(), strict=True):
                level, inside = 0, cell
                while cell >= 0 and inside >= net.sides[level] ** 2:
                    inside -= net.sides[level] ** 2
                    level += 1
                if cell >= 0:
                    y, x = divmod(inside, net.sides[level])
                    logits = (raw[f"kernel_{level}"][n, :, y, x, None, None] * raw["mask_features"][n]).sum(0)
                    p, g = logits.sigmoid(), batch["masks_qhw"][n, row].float()
                    total += 1 - (2 * (p * g).sum() / ((p * p).sum() + (g * g).sum() + 0.002)).item()
                    count += 1
        losses = criterion.losses(net, image, batch)
    assert losses["loss_mask"].item() == pytest.approx(total / count, rel=1e-4)


class Sharing:
    """Stands for processes that share a batch: what one asks to sum is answered with the sum over all."""

    def __init__(self, totals):
        self.size, self.totals, self.asked = 2, totals, []

    def total(self, value):
        self.asked.append(value)
        return self.totals[len(self.asked) - 1] if self.totals else value


def test_the_losses_of_two_processes_add_up_to_those_of_one():
    net = network().eval()
    crops = list(pictures(3))
    with torch.inference_mode():
        criterion, image, batch = batch_of(net, crops)
        whole = criterion.losses(net, image, batch)
        counts = []
        parts = [slice(0, 1), slice(1, 3)]
        for part in parts:
            listening = Sharing([])
            criterion.losses(net, image[part], {k: v[part] for k, v in batch.items()}, reduce=listening)
            counts.append(listening.asked)
        totals = [a + b for a, b in zip(*counts, strict=True)]
        shares = [
            criterion.losses(net, image[p], {k: v[p] for k, v in batch.items()}, reduce=Sharing(totals)) for p in parts
        ]
    for key, value in whole.items():
        assert sum(s[key].item() for s in shares) == pytest.approx(value.item(), rel=1e-4)
