"""Where a training's time goes: parts add up to the whole, communication is told from computation."""

from __future__ import annotations

import json
import time

import pytest
import torch
from click.testing import CliRunner

from edge_seg.studies.results.page import results_markdown
from edge_seg.studies.training_speed import PARTS, TimedWorld, compared, main, measure, text, timed_settings
from edge_seg.training import distributed
from edge_seg.training.distributed import World

RECIPE = """
seed = 0
data = {train = "synthetic:easy", cache_mb = 40}
optim = {epochs = 5, batch_size = 4, lr = 1e-3, batchnorm_images = 2}
run = {save_every = 1, log_every = 1, eval_every = 1, threads = 1, device = "auto"}
[model]
name = "maskconver_mnv2_256"
input_px = 64
options = {width = 16, head_kernel = 3}
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE)
    return path


def test_communication_inside_a_part_counts_as_exchange(monkeypatch):
    """Two processes on a clock of our own: 3 s of forward of which 1 s is communication, then 2 s of backward."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda *_: now.__setitem__(0, now[0] + 1.0))
    world = TimedWorld(World(torch.device("cpu"), rank=0, size=2, local_size=2))
    world.mark("rest")
    now[0] += 2.0
    world.add(torch.zeros(1), "batchnorm")
    world.mark("forward")
    now[0] += 2.0
    parameter = torch.nn.Parameter(torch.zeros(3))
    parameter.grad = torch.ones(3)
    world.add_gradients([parameter])
    now[0] += 0.5
    world.mark("optimiser")
    assert world.part_s == {
        "data_wait": 0.0,
        "forward": 2.0,
        "backward": 2.0,
        "exchange": 2.0,
        "optimiser": 0.5,
        "rest": 0.0,
    }
    world.restart()
    assert sum(world.part_s.values()) == 0


def test_one_process_measures_the_real_loop_and_its_parts_add_up(recipe, monkeypatch):
    settings = timed_settings(recipe, ["seed=3"], steps=3)
    assert (settings.seed, settings.optim.steps, settings.run.device) == (3, 3, "cpu")
    threads = torch.get_num_threads()
    began_s = time.perf_counter()
    figures = measure(settings, warmup=1)
    elapsed_s = time.perf_counter() - began_s
    assert figures is not None
    assert figures["pictures"] == 2 * 4
    assert figures["seconds"] == pytest.approx(sum(figures["spent_s"][k] for k in PARTS))
    assert 0 < figures["seconds"] < elapsed_s
    assert min(figures["spent_s"][k] for k in ("forward", "backward", "optimiser")) > 0
    assert figures["spent_s"]["exchange"] < 0.05 * figures["seconds"]
    assert figures["spent_s"]["gradients_exchange"] == 0
    assert (figures["threads"], torch.get_num_threads()) == (1, threads)


def test_rounds_are_joined_by_their_time_as_by_hand():
    def one(seconds, forward, gradients):
        spent = {**dict.fromkeys(PARTS, 0.0), "forward": forward, "exchange": seconds - forward}
        return {"pictures": 8, "seconds": seconds, "threads": 1, "spent_s": {**spent, "gradients_exchange": gradients}}

    (row,) = compared({2: [one(1.0, 0.5, 0.5), one(3.0, 2.5, 0.25)]})
    assert row["images_per_s"] == 16 / 4
    assert row["images_per_s_of_rounds"] == [8.0, 2.667]
    assert row["share"]["forward"] == 0.75
    assert row["share"]["exchange"] == 0.25
    assert row["share_of_exchange"] == {"gradients": round(0.75 / 4, 4)}
    assert list(row["share"]) == list(PARTS)


@pytest.mark.slow
def test_two_processes_are_measured_beside_one_and_the_results_show_both(recipe, tmp_path):
    file = tmp_path / "results" / "training_speed.json"
    options = ["--steps", "1", "--warmup", "1", "--rounds", "1", "--results", str(file)]
    result = CliRunner().invoke(main, [str(recipe), *options])
    assert result.exit_code == 0, result.output
    document = json.loads(file.read_text())
    one, two = document["processes"]
    assert (one["count"], two["count"], document["batch_size"]) == (1, 2, 4)
    for row in (one, two):
        assert row["images_per_s"] > 0
        assert sum(row["share"].values()) == pytest.approx(1, abs=1e-3)
    assert one["share"]["exchange"] < 0.05 < two["share"]["exchange"]
    assert sum(two["share_of_exchange"].values()) <= two["share"]["exchange"] + 1e-3
    assert min(two["share_of_exchange"][k] for k in ("gradients", "batchnorm", "losses")) > 0
    assert "exchange by purpose: losses" in text(document)
    table = results_markdown(file.parent)
    assert "**Training speed** of `maskconver_mnv2_256`, batch 4 over all processes" in table
    assert table.splitlines()[-1].startswith(f"| 2 | 1 | {two['images_per_s']:.2f} |")


def test_a_batch_that_cannot_be_shared_out_is_refused_before_anything_runs(recipe, tmp_path):
    result = CliRunner().invoke(main, [str(recipe), "--processes", "3", "--results", str(tmp_path / "r.json")])
    assert result.exit_code == 2
    assert "divide optim.batch_size = 4" in result.output


def test_a_training_that_fails_shows_its_own_error(recipe, tmp_path):
    result = CliRunner().invoke(
        main, [str(recipe), "model.weights=missing.safetensors", "--processes", "1", "--results", str(tmp_path / "r")]
    )
    assert result.exit_code == 1
    assert "missing.safetensors" in result.output
    assert not (tmp_path / "r").exists()
