"""BlendMask's losses: golden values of the published code, sums over processes, empty pictures, one step forward."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edge_seg.contract import ClassInfo
from edge_seg.data.sample import Segment
from edge_seg.data.transforms import TrainCrop
from edge_seg.errors import ConfigError, InputError
from edge_seg.layers.roi_align import roi_align
from edge_seg.models.base import MODELS
from edge_seg.models.blendmask_criterion import (
    BlendMaskLossConfig,
    blend,
    centerness,
    giou,
    semantic_loss,
)
from edge_seg.models.focal import focal_loss
from edge_seg.quantization.grids import RangeOptions
from edge_seg.quantization.prepare import prepare

CLASSES = [ClassInfo(i + 1, f"class {i}", True, (i, i, i)) for i in range(3)]


def test_centerness_is_the_published():
    found = centerness(torch.tensor([[1.0, 2, 3, 4], [0.5, 1, 8, 4], [2, 2, 2, 2]]))
    torch.testing.assert_close(found, torch.tensor([0.408248, 0.125, 1.0]), rtol=0, atol=5e-7)


def test_overlap_is_the_published():
    """The IoU alone is what is left where the enclosing box is the union."""
    found = torch.tensor([[1.0, 2, 3, 4], [2, 2, 2, 2]])
    truth = torch.tensor([[2.0, 2, 2, 3], [1, 1, 1, 1]])
    torch.testing.assert_close(giou(found, truth, 1.0), torch.tensor([0.5, 0.294118]), rtol=0, atol=5e-7)
    enclosing = torch.tensor([30.0, 16.0])
    iou = giou(found, truth, 1.0) + (enclosing - torch.tensor([29.0, 16.0])) / enclosing
    torch.testing.assert_close(iou, torch.tensor([0.533333, 0.294118]), rtol=0, atol=5e-7)


def test_without_smoothing_equal_boxes_overlap_fully_and_the_loss_can_be_trained():
    box = torch.tensor([[0.0, 1, 2, 3]], requires_grad=True)
    overlap = giou(box, torch.tensor([[1.0, 1, 2, 3]]), 0.0)
    assert overlap.item() == pytest.approx(2 / 3)
    overlap.sum().backward()
    assert box.grad[0, 0] > 0


def test_the_blender_is_the_published():
    attention = (2 * torch.sin(0.37 * torch.arange(784.0)))[None]
    pooled = (3 * torch.cos(0.011 * torch.arange(4 * 56 * 56.0))).reshape(1, 4, 56, 56)
    logits = blend(pooled, attention)[0]
    places = [logits[y, x].item() for y, x in ((0, 0), (28, 28), (55, 55), (10, 40))]
    assert places == pytest.approx([1.892463, 0.604595, 1.415720, 2.731583], abs=5e-6)
    assert logits.mean().item() == pytest.approx(0.004177, abs=5e-6)
    assert logits.std().item() == pytest.approx(1.608756, abs=5e-6)
    assert int((logits > 0).sum()) == 1584


def test_pooling_bases_is_the_published():
    columns = 0.1 * torch.arange(64.0)
    bases = (columns + torch.arange(4.0)[:, None, None]).expand(4, 64, 64)
    pooled = roi_align(bases, torch.tensor([[40.0, 24, 200, 120]]), 56, 4)
    assert pooled.shape == (1, 4, 56, 56)
    assert pooled[0, 0, 0, [0, 1, 55]].tolist() == pytest.approx([0.985714, 1.057143, 4.914286], abs=5e-6)
    assert pooled[0, 3, 55, 55].item() == pytest.approx(7.914286, abs=5e-6)


def test_pooling_is_that_of_the_reference_test_of_detectron2():
    image = torch.arange(25.0).reshape(1, 5, 5)
    pooled = roi_align(image, torch.tensor([[1.0, 1, 3, 3]]), 4, 1)[0, 0]
    expected = torch.tensor([4.5, 5.0, 5.5, 6.0]) + torch.tensor([0, 2.5, 5.0, 7.5])[:, None]
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("box", [(3.0, 5.0, 17.0, 30.0), (-6.0, -9.0, 20.0, 44.0), (30.0, 30.0, 60.0, 70.0)])
def test_pooling_agrees_with_grid_sampling_inside_the_map_and_is_zero_far_outside(box):
    torch.manual_seed(0)
    features = torch.rand(2, 10, 12)
    pooled = roi_align(features, torch.tensor([box]), 5, 4)[0]
    steps = (torch.arange(5) + 0.5) / 5
    x, y = ((box[i] + (box[i + 2] - box[i]) * steps) / 4 for i in (0, 1))
    grid = torch.stack(torch.broadcast_tensors(2 * x / 12 - 1, (2 * y / 10 - 1)[:, None]), -1)[None]
    sampled = F.grid_sample(features[None], grid, padding_mode="border", align_corners=False)[0]
    inside = ((x >= -0.5) & (x <= 12.5)) & ((y >= -0.5) & (y <= 10.5))[:, None]
    torch.testing.assert_close(pooled, sampled * inside)


def test_focal_loss_is_the_formula_worked_out_by_hand():
    logits = torch.log(torch.tensor([0.9 / 0.1, 0.2 / 0.8]))
    found = focal_loss(logits, torch.tensor([1.0, 0.0]))
    expected = [-0.25 * 0.1**2 * np.log(0.9), -0.75 * 0.2**2 * np.log(0.8)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def crop(seed=0, objects=3, side=64, crowd=False):
    rng = np.random.default_rng(seed)
    ids = np.zeros((side, side), np.int32)
    for number in range(objects):
        y, x = rng.integers(0, side - 20, 2)
        ids[y : y + 8 + 6 * number, x : x + 20] = number + 1
    image = rng.integers(0, 60, (side, side, 3)).astype(np.uint8)
    image[ids > 0] += (ids[ids > 0, None] * 60).astype(np.uint8)
    segments = tuple(Segment(i, (i - 1) % 3, crowd and i == 1) for i in np.unique(ids).tolist() if i)
    return TrainCrop(image, ids, np.ones((side, side), bool), segments)


def batch_of(criterion, crops):
    rng = np.random.default_rng(0)
    targets = [criterion.targets(c, rng) for c in crops]
    image = torch.from_numpy(np.stack([c.image_hwc_u8 for c in crops])).permute(0, 3, 1, 2).float()
    return image, {k: torch.from_numpy(np.stack([t[k] for t in targets])) for k in targets[0]}


def network(name="blendmask_mobile_256", **options):
    torch.manual_seed(1)
    return MODELS[name](num_classes=3, input_px=64, **options)


@pytest.fixture(scope="module")
def mobile():
    return network()


def losses_of(net, criterion, crops, **more):
    image, batch = batch_of(criterion, crops)
    return criterion.losses(net, image, batch, **more)


def test_targets_have_one_shape_whatever_is_in_the_picture(mobile):
    criterion = mobile.criterion({"max_objects": 4}, CLASSES)
    rng = np.random.default_rng(0)
    one, none = (criterion.targets(crop(objects=n), rng) for n in (3, 0))
    assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in none.items()}
    assert {k: v.dtype for k, v in one.items()} == {k: v.dtype for k, v in none.items()}
    assert (none["object_of_cell"] == -1).all()
    assert one["masks_qhw"].shape == (4, 28, 28)
    assert "semantic_hw" not in one


def test_masks_are_learned_at_no_more_cells_than_asked_and_at_all_for_zero(mobile):
    picture, rng = crop(), np.random.default_rng(0)
    positive = mobile.criterion({}, CLASSES).targets(picture, rng)["object_of_cell"] >= 0
    assert positive.sum() > 3
    for most, count in ((3, 3), (0, positive.sum()), (1000, positive.sum())):
        chosen = mobile.criterion({"max_mask_positives": most}, CLASSES).targets(picture, rng)["makes_mask"]
        assert chosen.sum() == count
        assert not (chosen & ~positive).any()


def test_crowds_are_neither_objects_nor_background(mobile):
    targets = mobile.criterion({}, CLASSES).targets(crop(crowd=True), np.random.default_rng(0))
    assert (targets["class_index"] >= 0).sum() == 2
    assert not targets["counted"].all()
    assert targets["counted"][targets["object_of_cell"] >= 0].all()


def test_the_total_is_the_weighted_sum_of_finite_parts(mobile):
    net = network(semantic=True)
    criterion = net.criterion({"mask_weight": 2.0, "semantic_weight": 0.5}, CLASSES)
    found = {k: v.item() for k, v in losses_of(net.eval(), criterion, [crop(), crop(1)]).items()}
    assert set(found) == {f"loss{k}" for k in ("", "_class", "_box", "_center", "_mask", "_semantic")}
    parts = found["loss_class"] + found["loss_box"] + found["loss_center"]
    assert found["loss"] == pytest.approx(parts + 2 * found["loss_mask"] + 0.5 * found["loss_semantic"], rel=1e-6)
    assert all(0 < v < 50 for v in found.values())


@pytest.mark.parametrize("objects", [0, 3])
def test_every_parameter_gets_a_finite_gradient_even_without_objects(objects):
    net = network(semantic=True).train()
    losses_of(net, net.criterion({}, CLASSES), [crop(0, objects), crop(1, 0)])["loss"].backward()
    trained = [p for p in net.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)


class Half:
    """The sums of two processes, of which this one has a part."""

    size = 2

    def __init__(self, totals=None):
        self.totals, self.seen = totals, []

    def total(self, value):
        self.seen.append(value.detach())
        return value if self.totals is None else self.totals[len(self.seen) - 1].to(value)


def test_two_halves_of_a_batch_add_up_to_the_whole():
    net = network(semantic=True).eval()
    criterion = net.criterion({}, CLASSES)
    crops = [crop(0), crop(1, 1), crop(2, 0), crop(3, 2)]
    whole = losses_of(net, criterion, crops)
    counts = []
    for part in (crops[:2], crops[2:]):
        counter = Half()
        losses_of(net, criterion, part, reduce=counter)
        counts.append(counter.seen)
    totals = [a + b for a, b in zip(*counts, strict=True)]
    halves = [losses_of(net, criterion, part, reduce=Half(totals)) for part in (crops[:2], crops[2:])]
    for key, value in whole.items():
        torch.testing.assert_close(sum(h[key] for h in halves), value, rtol=1e-4, atol=1e-6)


def test_a_perfect_answer_has_next_to_no_loss():
    """Raw maps made from the targets: classes certain, boxes exact, one base that is the picture's only object."""
    ids = np.zeros((64, 64), np.int32)
    ids[16:48, 16:48] = 1
    picture = TrainCrop(np.zeros((64, 64, 3), np.uint8), ids, np.ones((64, 64), bool), (Segment(1, 2),))
    criterion = network(box_limit_share=2.0).criterion({"level_bounds_px": [16.0, 30.0], "mask_size": 8}, CLASSES)
    image, batch = batch_of(criterion, [picture])
    raw, start = {}, 0
    for level in (3, 4, 5):
        side = 64 // 2**level
        cells = slice(start, start + side * side)
        start += side * side
        positive = (batch["object_of_cell"][0, cells] >= 0).reshape(1, 1, side, side)
        ltrb = batch["ltrb_units"][0, cells].T.reshape(1, 4, side, side)
        quality = centerness(ltrb[0].flatten(1).T.clamp(min=1e-6)).reshape(1, 1, side, side).clamp(1e-6, 1 - 1e-6)
        raw[f"class_p{level}"] = torch.full((1, 3, side, side), -20.0)
        raw[f"class_p{level}"][:, 2:] += 40 * positive
        raw[f"box_p{level}"], raw[f"center_p{level}"] = ltrb, torch.logit(quality)
        raw[f"attention_p{level}"] = torch.zeros(1, 196, side, side)
        raw[f"attention_p{level}"][:, :49] = 30
    raw["bases"] = torch.full((1, 4, 16, 16), -30.0)
    raw["bases"][:, 0] = 30

    class Fixed(nn.Module):
        def forward(self, image):
            return raw

    class Answer(nn.Module):
        body = Fixed()

    found = criterion.losses(Answer(), image, batch)
    assert found["loss_class"] < 1e-6
    assert found["loss_box"].abs() < 1e-5
    assert found["loss_mask"] < 1e-5
    quality = centerness(batch["ltrb_units"][batch["object_of_cell"] >= 0])
    floor = F.binary_cross_entropy(quality, quality)  # a soft target keeps its entropy
    assert found["loss_center"].item() == pytest.approx(floor.item(), abs=1e-4)


def test_a_mask_of_another_base_costs(mobile):
    pooled = torch.zeros(1, 4, 8, 8)
    pooled[:, 1] = 9
    attention = torch.zeros(1, 4, 49)
    attention[:, 1] = 20
    assert (blend(pooled, attention.flatten(1)) > 8.9).all()
    attention[:, 3] = 40
    assert (blend(pooled, attention.flatten(1)).abs() < 1e-4).all()


def test_the_semantic_loss_leaves_ignored_cells_out():
    logits = torch.zeros(1, 4, 2, 2)
    logits[0, 1, 0] = 50
    truth = torch.tensor([[[1, -1], [0, -1]]])
    assert semantic_loss(logits, truth).item() == pytest.approx(np.log(4) / 2)
    assert semantic_loss(logits, torch.full((1, 2, 2), -1)).item() == 0


def test_training_lowers_the_loss():
    net = network().train()
    criterion = net.criterion({}, CLASSES)
    image, batch = batch_of(criterion, [crop(0), crop(1)])
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=2e-3)
    seen = []
    for _ in range(12):
        loss = criterion.losses(net, image, batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        seen.append(loss.item())
    assert np.mean(seen[-3:]) < 0.85 * seen[0]


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"max_objects": 0}, "max_objects"),
        ({"mask_weight": -1.0}, "negative"),
        ({"level_bounds_px": [64.0, 32.0]}, "rising"),
        ({"level_bounds_px": [8.0]}, "2 bounds"),
        ({"level_bounds_px": [8.0, 32.0]}, "box_limit_share"),
        ({"max_object": 3}, "max_objects"),
    ],
)
def test_settings_that_do_not_fit_are_refused(mobile, settings, word):
    with pytest.raises(ConfigError, match=word):
        mobile.criterion(settings, CLASSES)


def test_classes_of_another_data_set_are_refused(mobile):
    with pytest.raises(ConfigError, match="classes"):
        mobile.criterion({}, CLASSES[:2])


def test_published_bounds_do_not_follow_the_input_and_mobile_ones_do(mobile):
    assert mobile.criterion({}, CLASSES).config.level_bounds_px == (8, 16)
    published = MODELS["blendmask_rt_mnv2"](num_classes=3, input_px=64, width=32, basis_width=8)
    config = published.criterion({}, CLASSES).config
    assert (config.level_bounds_px, config.mask_size) == ((64, 128), 56)
    assert BlendMaskLossConfig().center_radius == 1.5


def test_a_network_on_grids_has_no_semantic_loss():
    net = prepare(network(semantic=True), RangeOptions())
    with pytest.raises(InputError, match="semantic_weight = 0"):
        losses_of(net, net.criterion({}, CLASSES), [crop()])
    assert "loss_semantic" not in losses_of(net, net.criterion({"semantic_weight": 0.0}, CLASSES), [crop()])
