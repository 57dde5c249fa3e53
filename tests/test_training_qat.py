"""Retraining on integer grids: from a float checkpoint, resumed bit for bit, on one or two processes, to int8."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from test_training_loop import Stop, kill_before, same_bits, settings

from edge_seg.errors import ArtifactError, ConfigError, InputError
from edge_seg.models.base import Network
from edge_seg.quantization.prepare import grids_of, is_prepared, unobserved
from edge_seg.training.checkpoint import load_checkpoint, load_state
from edge_seg.training.loop import Trainer, train
from edge_seg.training.settings import QatSettings, checked
from edge_seg.training.start import Distilled, starting_criterion, starting_network


@pytest.fixture(scope="module")
def floating(tmp_path_factory):
    """A float training of six steps."""
    return train(settings(), tmp_path_factory.mktemp("float")).checkpoint


def retraining(floating, **qat):
    plain = settings(qat=QatSettings(str(floating), **{"observe_steps": 3, **qat}))
    return checked(dataclasses.replace(plain, optim=dataclasses.replace(plain.optim, lr=1e-4)))


@pytest.fixture(scope="module")
def whole(floating, tmp_path_factory):
    """The retraining that nobody disturbed."""
    folder = tmp_path_factory.mktemp("qat")
    return folder, train(retraining(floating), folder)


def test_a_retraining_leaves_a_checkpoint_on_grids(whole, floating):
    checkpoint = load_checkpoint(whole[1].checkpoint)
    assert is_prepared(checkpoint.network.body)
    assert not unobserved(checkpoint.network)
    assert checkpoint.settings.qat.start == str(floating)
    assert json.loads((whole[0] / "metrics.json").read_text())["images"] == 1


def test_ranges_stop_following_the_data_after_their_steps(whole):
    state = load_state(whole[0] / "state.pt")["network"]
    known = ("grids.image.", "grids.normalize_add.")  # bytes, and bytes less their mean
    steps = {int(v) for k, v in state.items() if k.endswith(".steps") and not any(name in k for name in known)}
    assert steps == {3}


def test_it_starts_from_the_weights_of_the_float_network(floating):
    source = dict(load_checkpoint(floating).network.named_parameters())
    network = starting_network(retraining(floating), load_checkpoint(floating).classes)
    shared = {k: v for k, v in network.named_parameters() if k in source and v.shape == source[k].shape}
    assert len(shared) > 60  # the others: 4x4 kernels, and norms under another path
    assert all(torch.equal(v, source[k]) for k, v in shared.items())


@pytest.mark.parametrize("ranges", ["observed", "learned"])
def test_killed_and_resumed_it_ends_bit_for_bit_alike(floating, tmp_path, monkeypatch, ranges):
    asked = retraining(floating, ranges=ranges)
    train(asked, tmp_path / "whole")
    with monkeypatch.context() as patched:
        kill_before(patched, 4)
        with pytest.raises(Stop):
            train(asked, tmp_path / "killed")
    train(asked, tmp_path / "killed", resume=True)
    states = [load_state(tmp_path / name / "state.pt") for name in ("whole", "killed")]
    assert not same_bits(*[{k: s[k] for k in ("network", "average", "optimizer")} for s in states])


def test_learned_steps_move_once_the_ranges_stand(floating, tmp_path):
    done = train(retraining(floating, ranges="learned"), tmp_path)
    steps = [v for k, v in load_checkpoint(done.checkpoint).network.named_parameters() if k.endswith("log_step")]
    assert sum(bool(v.detach().any()) for v in steps) > 100


def test_distillation_adds_the_distance_to_the_float_network(floating):
    asked = retraining(floating, distill=0.5)
    classes = load_checkpoint(floating).classes
    network = load_checkpoint(floating).network
    criterion = starting_criterion(asked, network, classes, torch.device("cpu"))
    assert isinstance(criterion, Distilled)
    trainer = Trainer(asked, floating.parent / "distilled")
    picture = torch.rand(2, 3, 64, 64) * 255
    batch = _batch(trainer)
    losses = criterion.losses(network, picture, batch)
    assert float(losses["loss_distill"].detach()) < 1e-9  # the network is its own original
    with torch.no_grad():
        wanted = network.body(picture)
        network.body.heat_head.predict.bias += 1.0
    shifted = criterion.losses(network, picture, batch)
    by_hand = (1.0 / wanted["heatmap"].var((1, 2, 3))).mean() / 3
    assert float(shifted["loss_distill"].detach()) == pytest.approx(float(by_hand), rel=1e-3)
    plain = criterion.criterion.losses(network, picture, batch)
    assert float((shifted["loss"] - plain["loss"]).detach()) == pytest.approx(0.5 * float(by_hand), rel=1e-3)


def _batch(trainer):
    rng = np.random.default_rng(0)
    items = [trainer.criterion.targets(trainer.crops(trainer.train_set[i], rng), rng) for i in range(2)]
    return trainer._collate(items)


def test_without_a_weight_there_is_no_second_network(floating):
    network = load_checkpoint(floating).network
    criterion = starting_criterion(
        retraining(floating), network, load_checkpoint(floating).classes, torch.device("cpu")
    )
    assert not isinstance(criterion, Distilled)


def test_another_network_is_refused(floating):
    classes = load_checkpoint(floating).classes
    asked = retraining(floating)
    wider = dataclasses.replace(asked, model=dataclasses.replace(asked.model, options={"width": 32, "head_kernel": 3}))
    with pytest.raises(InputError, match="options"):
        starting_network(wider, classes)
    with pytest.raises(InputError, match="classes"):
        starting_network(asked, classes[1:])


def test_a_retrained_network_is_not_a_start(whole):
    again = retraining(whole[1].checkpoint)
    with pytest.raises(InputError, match="retrained already"):
        starting_network(again, load_checkpoint(whole[1].checkpoint).classes)


def test_a_missing_start_is_said(tmp_path):
    with pytest.raises(InputError, match="There is no checkpoint"):
        Trainer(retraining(tmp_path / "none.safetensors"), tmp_path / "run")


@pytest.mark.parametrize("wrong", [{"observe_steps": 0}, {"range_momentum": 0.0}, {"distill": -1.0}])
def test_wrong_settings_are_refused(floating, wrong):
    with pytest.raises(ConfigError, match="retraining do not fit"):
        retraining(floating, **wrong)


def test_a_retraining_thaws_what_a_training_freezes(floating):
    plain = settings(qat=QatSettings(str(floating)))
    frozen = dataclasses.replace(plain.optim, freeze_stages=3, freeze_batchnorm="backbone")
    optim = checked(dataclasses.replace(plain, optim=frozen)).optim
    assert (optim.freeze_stages, optim.freeze_batchnorm, optim.batchnorm_images) == (0, "none", 0)


def test_export_refuses_what_it_was_not_retrained_for(whole, tmp_path):
    from edge_seg.export import export

    with pytest.raises(InputError, match="folded and split"):
        export(whole[1].checkpoint, tmp_path / "e", fold=False)
    assert not (tmp_path / "e").exists()


def test_a_checkpoint_without_its_grids_does_not_load(whole, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(whole[1].checkpoint, framework="pt") as file:
        header = file.metadata()
        tensors = {k: file.get_tensor(k) for k in file.keys() if ".grids." not in k}  # noqa: SIM118
    save_file(tensors, tmp_path / "model.safetensors", metadata=header)
    with pytest.raises(ArtifactError, match="does not fit"):
        load_checkpoint(tmp_path / "model.safetensors")


def test_the_file_is_int8_from_end_to_end_and_holds_the_trained_numbers(whole, tmp_path):
    from edge_seg.converters.convert import convert
    from edge_seg.converters.flatbuffer import read_graph
    from edge_seg.export import export

    network: Network = load_checkpoint(whole[1].checkpoint).network
    exported = export(whole[1].checkpoint, tmp_path / "exported").folder
    made = convert(exported, scheme="qat_w8a8", out=tmp_path)
    assert made.transposes == 0
    assert not {"QUANTIZE", "DEQUANTIZE", "CAST"} & set(made.ops)
    graph = read_graph(made.file)
    kinds = {t.dtype for t in graph.tensors if t.scale}
    assert kinds == {"int8", "int32"}
    scales = {round(float(t.scale[0]), 9) for t in graph.tensors if t.scale and t.dtype == "int8" and not t.constant}
    trained = {round(g.grid().scale, 9) for g in grids_of(network.body).values()}
    assert scales <= trained
    assert len(scales) > 40


def test_the_verb_retrains_from_a_checkpoint(floating, edge_seg, tmp_path):
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'seed = 7\n[data]\ntrain = "synthetic:easy"\ncache_mb = 4\n'
        '[model]\nname = "maskconver_mnv2_256"\ninput_px = 64\noptions = { width = 16, head_kernel = 3 }\n'
        "[optim]\nsteps = 1\nbatch_size = 2\n[run]\neval_limit = 1\nthreads = 1\n"
    )
    done = edge_seg("qat", recipe, "--from", floating, "--out", tmp_path / "run", "--json")
    assert done.code == 0
    document = json.loads(done.out)
    assert is_prepared(load_checkpoint(tmp_path / "run" / "model.safetensors").network.body)
    assert document["metrics"]["images"] == 1
    lost = edge_seg("qat", recipe, "--from", tmp_path / "lost.safetensors", "--out", tmp_path / "other")
    assert lost.code == 2
    assert "There is no checkpoint" in lost.err
    assert not (tmp_path / "other").exists()
