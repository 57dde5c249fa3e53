"""A tiny training: killed and resumed it ends bit for bit alike; what goes wrong is said and saved."""

import dataclasses
import json
import os
import pickle
import signal
import threading

import numpy as np
import pytest
import torch

from edge_seg.artifact import read_manifest
from edge_seg.data.source import open_dataset
from edge_seg.data.synthetic import SyntheticScenes
from edge_seg.errors import ArtifactError, ConfigError, InputError
from edge_seg.training import depthwise, loop
from edge_seg.training.checkpoint import build_network, load_checkpoint, load_state, save_checkpoint, save_state
from edge_seg.training.loop import NotFinite, Trainer, same_experiment, train
from edge_seg.training.settings import DataSettings, ModelSettings, OptimSettings, RunSettings, TrainSettings

STEPS = 6


def settings(*, run=None, **changes) -> TrainSettings:
    options = {"width": 16, "head_kernel": 3}
    run = {"log_every": 1, "save_every": 3, "eval_limit": 1, "threads": 1, "loader_workers": 0, **(run or {})}
    plain = TrainSettings(
        DataSettings("synthetic:easy", cache_mb=4),
        ModelSettings("maskconver_mnv2_256", 64, options=options),
        OptimSettings(steps=STEPS, batch_size=2, warmup_steps=2, lr=1e-3),
        RunSettings(device="cpu", **run),
        seed=7,
    )
    return dataclasses.replace(plain, **changes)


def tensors(value, path=""):
    """All tensors of a state by path."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {k: v for key, item in items for k, v in tensors(item, f"{path}/{key}").items()}


def same_bits(a, b):
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys()
    assert len(a) > 700
    return [k for k in a if not torch.equal(a[k], b[k])]


def history(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    figures = [json.loads(line) for line in lines]
    return [{k: v for k, v in f.items() if k not in ("images_per_s", "loader_wait_share")} for f in figures]


class Stop(Exception):
    """Stands for SIGKILL: nothing of the run may catch it."""


def kill_before(monkeypatch, step, error=Stop):
    original = Trainer._step

    def stopped(self, items):
        if self.step == step:
            raise error
        return original(self, items)

    monkeypatch.setattr(Trainer, "_step", stopped)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(settings(), folder)


@pytest.fixture(autouse=True)
def global_state_stays():
    """A run leaves torch's global switches, its threads and the handler of Ctrl-C as they were."""

    def state():
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
            torch.get_num_threads(),
            torch.get_default_dtype(),
            signal.getsignal(signal.SIGINT),
            threading.active_count(),
        )

    before = state()
    yield
    assert state() == before


def test_a_finished_run_leaves_weights_figures_and_settings(whole):
    folder, trained = whole
    assert trained.checkpoint == folder / "model.safetensors"
    assert trained.epochs == round(STEPS * 2 / 4000, 3)
    assert json.loads((folder / "metrics.json").read_text())["images"] == 1
    assert json.loads((folder / "settings.json").read_text())["seed"] == 7
    assert read_manifest(trained.checkpoint).step == "train"
    lines = history(folder)
    assert [f["step"] for f in lines] == [*range(1, STEPS + 1), STEPS]
    assert [f["images"] for f in lines[:STEPS]] == [2 * n for n in range(1, STEPS + 1)]
    assert all(np.isfinite(f["loss"]) for f in lines[:STEPS])
    assert "pq_teacher_forced" in lines[-1]
    assert not list(folder.glob(".*.part"))


def test_the_weights_really_moved_and_the_average_lags_behind(whole):
    state = load_state(whole[0] / "state.pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        start = build_network(settings(), open_dataset("synthetic:easy", split="train").classes).state_dict()
    key = "body.heat_head.predict.weight"
    moved = (state["network"][key] - start[key]).norm()
    lag = (state["average"][key] - state["network"][key]).norm()
    assert 0 < lag < moved
    saved = load_checkpoint(whole[0] / "model.safetensors").network
    assert not [k for k, v in saved.named_parameters() if not torch.equal(v, state["average"][k])]
    # the statistics are measured anew for the file, and the state that a resume starts from keeps its own
    key = "body.aspp.merge.bn.running_var"
    assert not torch.equal(saved.state_dict()[key], state["average"][key])
    assert torch.equal(state["network"][key], state["average"][key])


def test_equal_weights_give_equal_files(whole, tmp_path):
    """The header of a safetensors file comes in a random order; a hash must not."""
    found = load_checkpoint(whole[1].checkpoint)
    for name in range(6):
        save_checkpoint(
            tmp_path / f"{name}.safetensors",
            found.network.state_dict(),
            settings=found.settings,
            classes=found.classes,
            step=found.step,
        )
    assert len({(tmp_path / f"{name}.safetensors").read_bytes() for name in range(6)}) == 1
    again = load_checkpoint(tmp_path / "0.safetensors")
    assert (again.settings, again.classes, again.step) == (found.settings, found.classes, found.step)
    assert not [k for k, v in again.network.state_dict().items() if not torch.equal(v, found.network.state_dict()[k])]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(whole, tmp_path, monkeypatch, workers):
    """Killed before step 5, so that step 4 was done and lost; other numbers of workers do not matter."""
    with monkeypatch.context() as patch:
        kill_before(patch, 5)
        with pytest.raises(Stop):
            train(settings(run={"loader_workers": workers}), tmp_path)
    assert load_state(tmp_path / "state.pt")["step"] == 3
    assert history(tmp_path)[-1]["step"] == 5
    train(settings(run={"loader_workers": workers}), tmp_path, resume=True)
    assert same_bits(load_state(whole[0] / "state.pt"), load_state(tmp_path / "state.pt")) == []
    assert history(tmp_path) == history(whole[0])


def test_ctrl_c_in_the_middle_of_a_step_ends_the_step_first(whole, tmp_path, monkeypatch):
    """The signal arrives after BatchNorm has counted the batch; saved there, it would be counted twice."""
    with monkeypatch.context() as patch:
        original = torch.nn.utils.clip_grad_norm_
        calls = []

        def clip(*args, **kwargs):
            calls.append(1)
            if len(calls) == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return original(*args, **kwargs)

        patch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
        with pytest.raises(KeyboardInterrupt):
            train(settings(run={"save_every": 0}), tmp_path)
    assert load_state(tmp_path / "state.pt")["step"] == 4
    train(settings(), tmp_path, resume=True)
    assert same_bits(load_state(whole[0] / "state.pt"), load_state(tmp_path / "state.pt")) == []


def test_an_interrupt_between_steps_saves_the_state(tmp_path, monkeypatch):
    kill_before(monkeypatch, 2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train(settings(), tmp_path)
    assert load_state(tmp_path / "state.pt")["step"] == 2


def test_resuming_a_finished_run_trains_nothing_and_repeats_no_line(whole, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in ("state.pt", "metrics.jsonl"):
        (folder / name).write_bytes((whole[0] / name).read_bytes())
    train(settings(), folder, resume=True)
    assert history(folder) == history(whole[0])
    assert same_bits(load_state(whole[0] / "state.pt"), load_state(folder / "state.pt")) == []


def test_a_line_cut_off_by_a_crash_is_dropped(whole, tmp_path):
    (tmp_path / "state.pt").write_bytes((whole[0] / "state.pt").read_bytes())
    text = (whole[0] / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 6, "lo')
    trainer = Trainer(settings(), tmp_path, resume=True)
    trainer.log.close()
    assert (tmp_path / "metrics.jsonl").read_text() == text


def test_the_seed_decides_the_weights_and_nothing_else_is_seeded(tmp_path):
    random_state = torch.get_rng_state()
    trainer = Trainer(settings(seed=8), tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)
    trainer.log.close()
    other = Trainer(settings(seed=7), tmp_path / "b")
    other.log.close()
    a, b = trainer.network.state_dict(), other.network.state_dict()
    assert not torch.equal(a["mask_embedding.fc1.weight"], b["mask_embedding.fc1.weight"])


def test_a_loss_that_is_not_finite_stops_and_saves_the_batch(tmp_path, monkeypatch):
    original = Trainer._step

    def poisoned(self, items):
        if self.step == 1:
            self.network.mask_embedding.fc2.bias.data[0] = float("nan")
        return original(self, items)

    monkeypatch.setattr(Trainer, "_step", poisoned)
    with pytest.raises(NotFinite, match="step 1") as caught:
        train(settings(), tmp_path)
    assert caught.value.exit_code == 1
    saved = np.load(tmp_path / "not_finite_step_1.npz")
    assert saved["image_hwc_u8"].shape == (2, 64, 64, 3)
    assert "heat_chw" in saved.files
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"optim": OptimSettings(steps=STEPS, batch_size=2, warmup_steps=2, lr=2e-3)},
        {"criterion": {"dice": "adaptive"}},
    ],
    ids=str,
)
def test_resuming_another_experiment_is_refused_and_harms_nothing(whole, tmp_path, changes):
    (tmp_path / "state.pt").write_bytes((whole[0] / "state.pt").read_bytes())
    (tmp_path / "metrics.jsonl").write_bytes((whole[0] / "metrics.jsonl").read_bytes())
    with pytest.raises(ArtifactError, match="another experiment"):
        Trainer(settings(**changes), tmp_path, resume=True)
    assert not same_experiment(tmp_path, settings(**changes))
    assert same_experiment(tmp_path, settings(run={"log_every": 5}))
    assert history(tmp_path) == history(whole[0])
    assert not (tmp_path / "settings.json").exists()


def test_a_state_of_other_data_is_refused(whole, tmp_path, monkeypatch):
    (tmp_path / "state.pt").write_bytes((whole[0] / "state.pt").read_bytes())
    hard = open_dataset("synthetic:hard", split="train")
    monkeypatch.setattr(loop, "open_dataset", lambda *_args, **_kwargs: hard)
    with pytest.raises(ArtifactError, match="has changed since"):
        Trainer(settings(), tmp_path, resume=True)


def test_a_state_of_another_network_is_refused(whole, tmp_path):
    state = load_state(whole[0] / "state.pt")
    del state["network"]["body.heat_head.predict.weight"]
    save_state(tmp_path / "state.pt", state)
    with pytest.raises(ArtifactError, match="does not fit"):
        Trainer(settings(), tmp_path, resume=True)


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch exploded",))


def test_a_state_that_is_a_pickle_is_refused_without_running_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state.pt"
    for write in (lambda: path.write_bytes(pickle.dumps(Bomb())), lambda: torch.save({"step": Bomb()}, path)):
        write()
        with pytest.raises(ArtifactError, match="not a resumable state"):
            load_state(path)
        assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("data", [b"", b"x", b"PK\x03\x04" + bytes(50), b"\x80\x04.", b"hello world\n" * 9, bytes(300)])
def test_a_broken_state_is_refused(tmp_path, data):
    (tmp_path / "state.pt").write_bytes(data)
    with pytest.raises(ArtifactError, match="not a resumable state"):
        load_state(tmp_path / "state.pt")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_truncated_state_is_refused(whole, tmp_path, share):
    data = (whole[0] / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArtifactError, match="not a resumable state"):
        load_state(tmp_path / "state.pt")


def test_a_state_without_its_parts_and_a_missing_one_are_refused(tmp_path):
    save_state(tmp_path / "state.pt", {"step": 3})
    with pytest.raises(ArtifactError, match="not a resumable state"):
        load_state(tmp_path / "state.pt")
    with pytest.raises(InputError, match="nothing to resume"):
        load_state(tmp_path / "none.pt")


def test_wrong_settings_of_the_family_fail_before_the_training(tmp_path):
    for changes in ({"decoder": {"topk": 3}}, {"criterion": {"dices": 1}}):
        with pytest.raises(ConfigError):
            Trainer(settings(**changes), tmp_path)


def test_training_without_an_average_saves_the_network_itself(tmp_path):
    optim = OptimSettings(steps=2, batch_size=2, ema_decay=0.0, optimizer="sgd", lr=1e-3, batchnorm_images=0)
    train(settings(optim=optim), tmp_path)
    state = load_state(tmp_path / "state.pt")
    saved = load_checkpoint(tmp_path / "model.safetensors").network.state_dict()
    assert not [k for k, v in saved.items() if not torch.equal(v, state["network"][k])]


def test_evaluating_on_the_way_does_not_change_the_training(whole, tmp_path, monkeypatch):
    def short(spec, *, split):
        return open_dataset(spec, split=split) if split == "train" else SyntheticScenes("easy", split="val", length=2)

    monkeypatch.setattr(loop, "open_dataset", short)
    train(settings(run={"eval_every": 2}), tmp_path)
    assert same_bits(load_state(whole[0] / "state.pt"), load_state(tmp_path / "state.pt")) == []
    assert [f["step"] for f in history(tmp_path) if "pq" in f] == [2, 4, 6]


@pytest.mark.usefixtures("whole")
def test_on_a_cpu_a_training_takes_the_faster_gradients_and_ends_alike_every_time(tmp_path, monkeypatch):
    plain, taken = depthwise.gradients, []
    monkeypatch.setattr(depthwise, "gradients", lambda *args: taken.append(args[2].shape[2:]) or plain(*args))
    model = ModelSettings("maskconver_mnv2_256", 128, options={"width": 16, "head_kernel": 7})
    brief = OptimSettings(steps=2, batch_size=2, warmup_steps=1, lr=1e-3)
    for name in ("a", "b"):
        train(settings(model=model, optim=brief), tmp_path / name)
    assert taken.count((7, 7)) == 2 * 2 * 6, "two convolutions in each of three heads, two steps, two trainings"
    assert not same_bits(load_state(tmp_path / "a" / "state.pt"), load_state(tmp_path / "b" / "state.pt"))
