"""Two real processes with half the batch each do what one does; whatever ends one of them ends both."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn
from two_processes import INSTANCE_MODELS, START, STEPS, VARIANTS, finish, start, write_start

from edge_seg.errors import ConfigError, EdgeSegError, InputError, MissingHere
from edge_seg.training import distributed
from edge_seg.training.checkpoint import load_checkpoint, load_state
from edge_seg.training.distributed import World, chosen_device, started
from edge_seg.training.interrupt import Interrupts
from edge_seg.training.sync_batchnorm import SyncBatchNorm2d, separate, synchronise

PATIENCE_S = 600
CPU = torch.device("cpu")


def errors(folder, rank):
    return (folder / f"err_{rank}.txt").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def pair(folder):
    """What two processes found, by rank, with all scenarios one after the other."""
    write_start(folder / START)
    codes = finish(start("together", folder), PATIENCE_S)
    assert codes == [0, 0], errors(folder, 0) + errors(folder, 1)
    return [torch.load(folder / f"together_2_{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(folder, pair):
    """What one process found."""
    assert finish(start("together", folder, size=1), PATIENCE_S) == [0], errors(folder, 0)
    return torch.load(folder / "together_1_0.pt")


def distance(a, b):
    """Relative distance of two sets of tensors, and the largest difference of any element."""
    assert a.keys() == b.keys()
    a, b = (torch.cat([t.double().reshape(-1) for t in values.values()]) for values in (a, b))
    return float((a - b).norm() / b.norm()), float((a - b).abs().max())


# ---- two equal one -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_with_half_the_batch_equal_one(pair, alone, variant):
    """In float64 only algebra is left: three steps of losses, weights, averages and BatchNorm statistics."""
    name = f"{variant} float64"
    two, one = pair[0]["equal"][name], alone["equal"][name]
    assert one["losses"].shape == (STEPS, 4)
    assert ((two["losses"] - one["losses"]).abs() / one["losses"]).max() < 1e-9
    for part in ("network", "average", "evaluated"):
        relative, largest = distance(two[part], one[part])
        assert relative < 1e-10, part
        assert largest < 1e-6, part


@pytest.mark.slow
def test_two_processes_equal_one_in_float32_to_rounding(pair, alone):
    """With live BatchNorm over four values rounding grows a thousandfold in a step: only the first is compared."""
    for variant, steps, bound in (("live", 1, 1e-3), ("frozen", STEPS, 1e-4)):
        two, one = (found["equal"][f"{variant} float32"]["losses"][:steps] for found in (pair[0], alone))
        assert ((two - one).abs() / one).max() < bound
    relative, _ = distance(pair[0]["equal"]["frozen float32"]["network"], alone["equal"]["frozen float32"]["network"])
    assert relative < 1e-4


@pytest.mark.slow
def test_two_processes_retrain_like_one(pair, alone):
    """Ranges are agreed on, so that the grids, which decide every rounding, are the same."""
    two, one = pair[0]["retrained"], alone["retrained"]
    assert one["losses"].shape == (STEPS, 5)
    assert ((two["losses"] - one["losses"]).abs() / one["losses"]).max() < 1e-9
    ranges = [k for k in one["network"] if k.endswith((".low", ".high"))]
    assert len(ranges) > 150
    assert distance({k: two["network"][k] for k in ranges}, {k: one["network"][k] for k in ranges})[0] < 1e-10
    assert distance(two["network"], one["network"])[0] < 1e-8
    other = pair[1]["retrained"]["network"]
    assert not [k for k, v in two["network"].items() if not torch.equal(v, other[k])]


@pytest.mark.slow
@pytest.mark.parametrize("name", INSTANCE_MODELS)
def test_two_processes_train_and_score_instance_networks_like_one(pair, alone, name):
    """In float64: three steps of losses and weights; then the AP of pictures that each scored a part of."""
    two, one = pair[0]["instances"][name], alone["instances"][name]
    assert ((two["losses"] - one["losses"]).abs() / one["losses"].clamp(min=1e-6)).max() < 1e-9
    assert distance(two["network"], one["network"])[0] < 1e-9
    assert not [k for k, v in two["network"].items() if not torch.equal(v, pair[1]["instances"][name]["network"][k])]
    assert two["score"] == pair[1]["instances"][name]["score"]
    assert one["score"]["images"] == two["score"]["images"] == 7
    assert one["score"]["ap"] == pytest.approx(two["score"]["ap"], abs=0.05)
    assert one["score"]["found"] == pytest.approx(two["score"]["found"], rel=0.02)
    assert one["score"]["found"] > 7


@pytest.mark.slow
def test_both_processes_hold_the_same_bits(pair):
    for name, mine in pair[0]["equal"].items():
        other = pair[1]["equal"][name]
        assert torch.equal(mine["losses"], other["losses"])
        for part in ("network", "average", "evaluated"):
            assert not [k for k, v in mine[part].items() if not torch.equal(v, other[part][k])], name


@pytest.mark.slow
def test_only_live_layers_are_synchronised(pair, alone):
    assert "SyncBatchNorm2d" in pair[0]["equal"]["live float64"]["kinds"]
    assert "BatchNorm2d" not in pair[0]["equal"]["live float64"]["kinds"]
    assert {"BatchNorm2d", "SyncBatchNorm2d"} <= set(pair[0]["equal"]["frozen float64"]["kinds"])
    assert all("SyncBatchNorm2d" not in found["kinds"] for found in alone["equal"].values())


# ---- parts -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_batchnorm_over_uneven_parts_equals_batchnorm_over_the_whole(pair, alone):
    one = alone["layers"]["torch.float64"]
    a, b = (found["layers"]["torch.float64"] for found in pair)
    assert a["kinds"] == ["Conv2d", "SyncBatchNorm2d", "SyncBatchNorm2d"]
    assert one["kinds"] == ["Conv2d", "BatchNorm2d", "BatchNorm2d"]
    assert [len(a["y"]), len(b["y"])] == [4, 2]
    for key in ("y", "x", "evaluated"):
        torch.testing.assert_close(torch.cat([a[key], b[key]]), one[key], rtol=1e-9, atol=1e-9)
    for part in ("gradients", "state", "again"):
        assert list(a[part]) == list(one[part])
        for name, value in one[part].items():
            torch.testing.assert_close(a[part][name], value, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(a[part][name], b[part][name], rtol=0, atol=0)


@pytest.mark.slow
def test_statistics_of_values_far_from_zero_lose_no_more_digits_than_one_process_loses(pair, alone):
    """A mean a thousand times the spread: the difference of two large sums would keep no digit of the variance."""
    truth = alone["layers"]["torch.float64"]["state"]
    for name in ("1.running_var", "2.running_var"):
        own, plain = (found["layers"]["torch.float32"]["state"][name] for found in (pair[0], alone))
        error = (own.double() - truth[name]).abs() / truth[name]
        assert error.max() < 10 * ((plain.double() - truth[name]).abs() / truth[name]).max() + 1e-5


@pytest.mark.slow
def test_gradients_and_values_of_processes_meet(pair):
    for found in (pair[0]["holes"], pair[1]["holes"]):
        assert torch.equal(found["a"], torch.full((2, 3), 5.0))  # only the first process has it
        assert torch.equal(found["b"], torch.full((2, 3), 3.0))
        assert found["c"]
        assert found["part"].item() == 2 * (2 + 3)
        assert found["first"] == "of 0"
        assert found["all"] == [0, 1]
        assert found["spent"]


# ---- whole runs --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_whole_run_writes_once_and_scores_every_picture_once(pair, alone, folder):
    run, reference = folder / "whole_run_2" / "run", folder / "whole_run_1" / "run"
    assert [found["whole_run"]["rank"] for found in pair] == [0, 1]
    metrics = pair[0]["whole_run"]["metrics"]
    assert metrics == pair[1]["whole_run"]["metrics"] == json.loads((run / "metrics.json").read_text())
    assert metrics["images"] == 7
    missed = [[c["tp"] + c["fn"] for c in m["per_class"]] for m in (metrics, alone["whole_run"]["metrics"])]
    assert missed[0] == missed[1]
    assert sum(missed[0]) > 7
    rows, single = (
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (run, reference)
    )
    assert [(r["step"], r["images"]) for r in rows] == [(r["step"], r["images"]) for r in single]
    assert rows[0]["loss"] == pytest.approx(single[0]["loss"], rel=1e-3)
    assert sorted(p.name for p in run.iterdir()) == sorted(p.name for p in reference.iterdir())
    assert len(list((run / "tensorboard").iterdir())) == len(list((reference / "tensorboard").iterdir()))
    assert load_checkpoint(run / "model.safetensors").step == STEPS


@pytest.mark.slow
def test_a_log_line_says_where_the_time_goes(pair, alone, folder):
    def losses(size):
        lines = (folder / f"whole_run_{size}" / "run" / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if "loss" in row]

    names = ["allreduce_share", "batchnorm_sync_share", "peers_wait_share", "loader_wait_share"]
    for row in losses(2):
        assert all(0 <= row[n] < 1 for n in names)
        assert 0 < sum(row[n] for n in names) < 1
    assert all(not set(names[:3]) & set(row) for row in losses(1))


@pytest.mark.slow
def test_an_interrupt_of_one_process_ends_both_after_the_step_and_resume_ends_bit_identical(pair, folder):
    """Process 1 goes on without a folder of its own: the state comes from the first."""
    assert [found["interrupted"]["error"] for found in pair] == ["KeyboardInterrupt"] * 2
    assert [found["resumed"]["elsewhere"] for found in pair] == [False, False]
    whole, cut = (load_state(folder / f / "state.pt") for f in ("whole_run_2/run", "cut"))
    assert whole["step"] == cut["step"] == STEPS
    for part in ("network", "average"):
        assert not [k for k, v in whole[part].items() if not torch.equal(v, cut[part][k])]


@pytest.mark.slow
def test_an_interrupt_while_evaluating_ends_both_and_saves_the_state(pair, folder):
    assert [found["interrupted_evaluation"]["error"] for found in pair] == ["KeyboardInterrupt"] * 2
    assert load_state(folder / "interrupted_evaluation_2" / "run" / "state.pt")["step"] == 2


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_both_and_saves_every_part(pair, folder):
    assert [found["poisoned"]["error"] for found in pair] == ["NotFinite"] * 2
    run = folder / "poisoned_2" / "run"
    parts = [np.load(run / f"not_finite_step_1_process_{rank}.npz")["image_hwc_u8"] for rank in (0, 1)]
    assert [len(part) for part in parts] == [2, 2]
    assert not np.array_equal(*parts)


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_other_with_its_message(pair):
    assert [found["broken_data"]["error"] for found in pair] == ["PeerStopped", "DataError"]
    assert "Process 1 of 2 has stopped while reading a batch" in pair[0]["broken_data"]["text"]
    assert "The picture is broken." in pair[0]["broken_data"]["text"]


@pytest.mark.slow
def test_processes_with_different_settings_or_uneven_parts_do_not_start(pair):
    for found in pair:
        assert found["other_settings"]["error"] == "InputError"
        assert "same settings" in found["other_settings"]["text"]
        assert found["uneven"]["error"] == "ConfigError"
        assert "a multiple of 2" in found["uneven"]["text"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "codes", "message"),
    [("raises_in_the_step", [1, 1], "Connection"), ("silent", [1, 0], "imed out")],
)
def test_a_process_that_fails_or_falls_silent_does_not_leave_the_other_waiting(tmp_path, scenario, codes, message):
    assert finish(start(scenario, tmp_path), PATIENCE_S) == codes
    said = errors(tmp_path, 0)
    assert "Process 0 of 2 has lost the others." in said
    assert message in said
    assert "Traceback" not in said


RECIPE = """
[data]
train = "synthetic:easy"
cache_mb = 4
[model]
name = "maskconver_mnv2_256"
input_px = 64
[model.options]
width = 16
head_kernel = 3
[optim]
steps = 12
batch_size = 2
warmup_steps = 2
batchnorm_images = 2
[run]
threads = 1
eval_limit = 2
save_every = 1000
log_every = 1
"""


def torchrun(folder, *more):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    command += ["-m", "edge_seg.cli", "train", str(folder / "recipe.toml"), "--out", str(folder / "run"), *more]
    with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
        return subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_training_under_torchrun_stops_at_ctrl_c_and_goes_on_with_resume(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    run, cut = tmp_path / "run", torchrun(tmp_path)
    try:
        end = time.monotonic() + PATIENCE_S
        while not (run / "metrics.jsonl").is_file() or len((run / "metrics.jsonl").read_text().splitlines()) < 3:
            assert cut.poll() is None, (tmp_path / "err.txt").read_text()
            assert time.monotonic() < end, "the training does not get on"
            time.sleep(0.02)
        cut.send_signal(signal.SIGINT)
        assert cut.wait(PATIENCE_S) != 0
    finally:
        cut.kill()
    step = load_state(run / "state.pt")["step"]
    assert 3 <= step < 12
    assert list(run.rglob("*.part")) == []
    again = torchrun(tmp_path, "--resume")
    assert finish([again], PATIENCE_S) == [0], (tmp_path / "err.txt").read_text()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert load_checkpoint(run / "model.safetensors").step == 12


# ---- one process -------------------------------------------------------------------------------------------------


def test_a_process_that_is_alone_changes_nothing():
    world = World(CPU)
    value = torch.tensor([2.0], requires_grad=True)
    network = nn.Sequential(nn.BatchNorm2d(2))
    synchronise(network, world)
    assert type(network[0]) is nn.BatchNorm2d
    assert world.total(value) is value
    assert world.gather("x") == ["x"]
    assert world.from_first("x") == "x"
    with pytest.raises(ZeroDivisionError), world.together("dividing"):
        raise ZeroDivisionError
    assert set(world.spent_s.values()) == {0.0}


def test_synchronised_layers_share_their_parameters_and_come_back_plain():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, eps=0.01, momentum=0.3)))
    before = {k: v.data_ptr() for k, v in network.state_dict().items()}
    parameters = [id(p) for p in network.parameters()]
    synchronise(network, World(CPU, size=2))
    assert type(network[1][0]) is SyncBatchNorm2d
    assert {k: v.data_ptr() for k, v in network.state_dict().items()} == before
    assert [id(p) for p in network.parameters()] == parameters
    separate(network.eval())
    plain = network[1][0]
    assert type(plain) is nn.BatchNorm2d
    assert (plain.eps, plain.momentum, plain.training) == (0.01, 0.3, False)
    assert {k: v.data_ptr() for k, v in network.state_dict().items()} == before


def test_a_frozen_layer_stays_and_another_kind_of_live_layer_is_refused():
    frozen = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm1d(2)).eval()
    synchronise(frozen, World(CPU, size=2))
    assert [type(m) for m in frozen] == [nn.BatchNorm2d, nn.BatchNorm1d]
    for module in (nn.BatchNorm1d(2), nn.BatchNorm2d(2, affine=False)):
        with pytest.raises(ConfigError, match="cannot be synchronised"):
            synchronise(nn.Sequential(module), World(CPU, size=2))


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x"},
        {"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "2", "RANK": "-1", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"},
    ],
    ids=str,
)
def test_half_an_environment_is_refused(monkeypatch, environment):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="incomplete"), started("cpu", timeout_s=1):
        pass


def test_without_torchrun_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with started("cpu", timeout_s=1) as world:
        assert (world.size, world.first, world.device) == (1, True, CPU)


def test_more_processes_than_devices_are_refused(monkeypatch):
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 1)
    with pytest.raises(MissingHere, match="no CUDA device for process 1"):
        chosen_device("cuda", 1)
    monkeypatch.setattr(distributed.torch.cuda, "device_count", lambda: 0)
    assert chosen_device("auto", 1) == CPU


def interrupted_step(interrupts, reached):
    """A step during which Ctrl-C arrives, and what comes after it."""
    with interrupts.watched():
        with interrupts.during(held=True):
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("end of the step")
        reached.append("after it")
        with interrupts.during(held=False):
            reached.append("inside a block that lets it through")


@pytest.mark.parametrize("held", [False, True])
def test_an_interrupt_waits_for_the_end_of_what_must_not_be_cut(held):
    reached, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        interrupted_step(Interrupts(held=held), reached)
    assert reached == (["end of the step", "after it"] if held else ["end of the step"])
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_inside_a_block_is_not_hidden_by_an_interrupt():
    interrupts = Interrupts(held=False)

    def fail():
        os.kill(os.getpid(), signal.SIGINT)
        raise EdgeSegError("broken")

    with pytest.raises(EdgeSegError, match="broken"), interrupts.watched(), interrupts.during(held=True):
        fail()
