"""Schedule, groups, averages and frozen parts, by hand."""

import math

import pytest
import torch
from torch import nn

from edge_seg.errors import ConfigError
from edge_seg.models.base import MODELS
from edge_seg.training.batchnorm import remeasured
from edge_seg.training.optim import Average, freeze, learning_rate, make_optimizer, parameter_groups, train_mode
from edge_seg.training.settings import (
    DataSettings,
    ModelSettings,
    OptimSettings,
    RunSettings,
    TrainSettings,
    checked,
    load_settings,
)

CONFIG = """
[data]
train = "synthetic:easy"
[model]
name = "maskconver_mnv2_256"
[optim]
steps = 10
"""


@pytest.fixture
def network():
    torch.manual_seed(0)
    return MODELS["maskconver_mnv2_256"](3, 64, width=16, head_kernel=3)


def settings(**optim) -> TrainSettings:
    return TrainSettings(DataSettings("synthetic:easy"), ModelSettings("maskconver_mnv2_256"), OptimSettings(**optim))


def test_the_learning_rate_warms_up_linearly_then_follows_a_cosine():
    optim = OptimSettings(lr=0.4, warmup_steps=4)
    rates = [learning_rate(step, 12, optim) for step in range(12)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    for step in range(4, 12):
        assert rates[step] == pytest.approx(0.2 * (1 + math.cos(math.pi * (step - 4) / 8)))
    assert rates[8] == pytest.approx(0.2)  # half-way down
    assert 0 < rates[-1] < rates[-2] < 0.1


@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_very_short_training_has_a_finite_rate_at_every_step(total):
    optim = OptimSettings(lr=1.0, warmup_steps=100)
    assert all(0 < learning_rate(step, total, optim) <= 1 for step in range(total))


def test_norms_biases_and_depthwise_kernels_do_not_decay(network):
    groups = parameter_groups(network, OptimSettings(weight_decay=0.5, backbone_lr_scale=0.3))
    name_of = {id(p): n for n, p in network.named_parameters()}
    seen = [name_of[id(p)] for g in groups for p in g["params"]]
    assert sorted(seen) == sorted(name_of.values())
    modules = dict(network.named_modules())
    for group in groups:
        for name in (name_of[id(p)] for p in group["params"]):
            path, _, leaf = name.rpartition(".")
            # by shape: depthwise kernels have one input channel; norms and biases one axis
            decays = leaf == "weight" and modules[path].weight.ndim > 1 and not name.endswith("conv_dw.weight")
            decays = decays and ".dw." not in name
            assert group["weight_decay"] == (0.5 if decays else 0.0), name
            assert group["lr_scale"] == (0.3 if name.startswith("body.backbone.") else 1.0), name
    decayed = {name_of[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    assert {"mask_embedding.class_embedding.weight", "mask_embedding.fc1.weight"} <= decayed
    assert "body.backbone.conv_stem.weight" in decayed
    assert not decayed & {"mask_embedding.norm.weight", "body.heat_head.predict.bias", "body.backbone.bn1.weight"}


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_both_optimisers_take_the_groups(network, name, kind):
    optimizer = make_optimizer(network, OptimSettings(optimizer=name))
    assert type(optimizer) is kind
    assert all("lr_scale" in g for g in optimizer.param_groups)
    if name == "sgd":
        assert {g["momentum"] for g in optimizer.param_groups} == {0.9}


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "mobilenet_mh"])
@pytest.mark.parametrize("stages", [0, 1, 3])
def test_freezing_stops_exactly_the_leading_stages(backbone, stages):
    variant = {"mobilenet_v2": "maskconver_mnv2_256", "mobilenet_mh": "maskconver_mh_256"}[backbone]
    net = MODELS[variant](3, 64, width=16, head_kernel=3)
    optim = OptimSettings(freeze_stages=stages, batchnorm_momentum=0.125)
    freeze(net, optim)
    frozen = {n.removeprefix("body.backbone.") for n, p in net.named_parameters() if not p.requires_grad}
    leading = {
        "mobilenet_v2": ["conv_stem.", "bn1.", "blocks.0.", "blocks.1."],
        "mobilenet_mh": ["stem.", "blocks.0.", "blocks.1."],
    }[backbone]
    wanted = {0: [], 1: leading[:-2], 3: leading}[stages]
    everything = [n for n, _ in net.body.backbone.named_parameters()]
    assert frozen == {n for n in everything if any(n.startswith(w) for w in wanted)}
    assert {m.momentum for m in net.modules() if isinstance(m, nn.BatchNorm2d)} == {0.125}
    trained = sum(len(g["params"]) for g in parameter_groups(net, optim))
    assert trained == sum(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("frozen", ["none", "backbone"])
def test_batchnorm_statistics_of_the_backbone_may_stay(network, frozen):
    optim = OptimSettings(freeze_batchnorm=frozen)
    network.eval()
    train_mode(network, optim)
    before = {k: v.clone() for k, v in network.named_buffers()}
    network.body(torch.rand(2, 3, 64, 64) * 255)
    moved = {k for k, v in network.named_buffers() if not torch.equal(v, before[k])}
    assert any(k.startswith("body.aspp") for k in moved)
    assert any(k.startswith("body.backbone") for k in moved) == (frozen == "none")


def test_the_average_follows_its_formula_and_copies_the_statistics(network):
    average = Average(network, decay=0.5)
    parameter = network.mask_embedding.fc1.bias
    expected = parameter.detach().clone()
    for step, value in enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]):
        parameter.data.fill_(value)
        network.body.aspp.merge.bn.running_mean.fill_(value)
        average.update(network, step)
        keep = min(0.5, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * value
        torch.testing.assert_close(average.network.mask_embedding.fc1.bias, expected)
        assert (average.network.body.aspp.merge.bn.running_mean == value).all()
    assert keep == 0.5
    assert not any(p.requires_grad for p in average.network.parameters())
    assert not average.network.training


def test_the_average_is_a_network_of_its_own(network):
    average = Average(network, decay=0.9)
    before = average.state_dict()["mask_embedding.fc1.weight"].clone()
    network.mask_embedding.fc1.weight.data.zero_()
    assert torch.equal(average.state_dict()["mask_embedding.fc1.weight"], before)


# ---- settings ----------------------------------------------------------------------------------------------------


def test_a_configuration_is_read_with_defaults_and_overrides(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    read = load_settings(path, ["optim.lr=0.5", "model.input_px=96", "data.val=synthetic:hard"])
    assert (read.optim.lr, read.model.input_px, read.data.val) == (0.5, 96, "synthetic:hard")
    assert (read.optim.steps, read.seed, read.run.save_every) == (10, 0, 200)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optim.learning_rate=1", "optim.learning_rate"),
        ("optim.lrr=1", "did you mean lr"),
        ("optim.lr=high", "optim.lr"),
        ("optim.steps=1.5", "optim.steps"),
        ("optim.optimizer=adam", "'adamw'"),
        ("run.device=tpu", "run.device"),
        ("optim.lr=0", "greater than 0"),
        ("optim.batch_size=0", "greater than 0"),
        ("optim.steps=0", "not clear"),
        ("optim.epochs=3", "not clear"),
        ("optim.steps=-3", "not clear"),
        ("run.log_every=0", "log_every"),
        ("run.save_every=-1", "save_every"),
        ("augment.scale_min=0", "scale_min"),
        ("extra.key=1", "extra"),
    ],
)
def test_a_wrong_setting_stops_at_load(tmp_path, override, said):
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    with pytest.raises(ConfigError, match=said):
        load_settings(path, [override])


def test_negative_steps_do_not_pass_as_epochs():
    with pytest.raises(ConfigError, match="not clear"):
        checked(settings(steps=-1, epochs=2.0))


@pytest.mark.parametrize(("epochs", "pictures", "batch", "steps"), [(2, 10, 4, 5), (0.5, 10, 4, 2), (0.01, 10, 4, 1)])
def test_epochs_are_counted_in_pictures(epochs, pictures, batch, steps):
    assert settings(epochs=epochs, batch_size=batch).total_steps(pictures) == steps
    assert RunSettings().log_every > 0


def test_remeasured_statistics_are_those_of_the_pictures_and_the_network_itself_is_left_alone(network):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    images = [torch.rand(2, 3, 64, 64) * 255 for _ in range(3)]
    seen = []
    first = next(p for p, m in network.body.named_modules() if isinstance(m, torch.nn.BatchNorm2d))
    with torch.no_grad():
        handle = network.body.get_submodule(first).register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
        for image in images:
            network.train().body(image)
        handle.remove()
    network.load_state_dict(before)
    network.eval()
    copied = remeasured(network, images, lambda n: n.train(), torch.device("cpu"))
    module = copied.body.get_submodule(first)
    torch.testing.assert_close(module.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(module.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert not copied.training


def test_frozen_statistics_are_not_remeasured(network):
    optim = OptimSettings(freeze_batchnorm="backbone")
    copied = remeasured(network, [torch.rand(2, 3, 64, 64)], lambda n: train_mode(n, optim), torch.device("cpu"))
    moved = {k for k, v in network.state_dict().items() if not torch.equal(v, copied.state_dict()[k])}
    assert moved
    assert not any(k.startswith("body.backbone") for k in moved)
