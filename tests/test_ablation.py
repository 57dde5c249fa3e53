"""Choices compared one at a time: stopped and gone on with, folders and checkpoints of other experiments refused."""

from __future__ import annotations

import fcntl
import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from edge_seg.contract import ClassInfo
from edge_seg.models.base import MODELS
from edge_seg.studies.ablation import Ablation, Run, main
from edge_seg.studies.ablation_table import VARIATIONS, read_documents
from edge_seg.studies.results.page import results_markdown
from edge_seg.training.checkpoint import load_state
from edge_seg.training.loop import NotFinite, Trainer
from edge_seg.training.settings import load_settings

RECIPE = """
seed = 0
data = {train = "synthetic:easy", cache_mb = 4}
optim = {steps = 3, batch_size = 2, warmup_steps = 2, lr = 1e-3, batchnorm_images = 2}
run = {save_every = 1, log_every = 1, eval_limit = 2, threads = 1, loader_workers = 0, device = "cpu"}
[model]
name = "maskconver_mnv2_256"
input_px = 64
options = {width = 16, head_kernel = 3}
"""
NAMES = ("base", "no_position", "exponent1")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


def run(recipe, folder, *options, only=NAMES):
    """Calls the program on tiny trainings in `folder`."""
    chosen = [text for name in only for text in ("--only", name)]
    places = ["--out", str(folder / "runs"), "--results", str(folder / "results" / "ablation")]
    return CliRunner().invoke(main, [str(recipe), *places, "--seed", "0", *chosen, *options])


@pytest.fixture(scope="module")
def done(recipe, tmp_path_factory):
    """Two trainings and three documents, made once; read only."""
    folder = tmp_path_factory.mktemp("done")
    result = run(recipe, folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def copied(done, tmp_path):
    """A copy of `done` that a test may change."""
    return shutil.copytree(done, tmp_path / "copy")


def documents(folder):
    return read_documents(folder / "results" / "ablation")


def test_each_training_is_run_once_and_each_variation_is_scored(done):
    assert sorted(p.name for p in (done / "runs").iterdir() if p.is_dir()) == ["base_s0", "no_position_s0"]
    found = documents(done)
    assert sorted(found) == [("base", 0), ("exponent1", 0), ("no_position", 0)]
    base, other = found["base", 0], found["no_position", 0]
    assert found["exponent1", 0]["checkpoint_sha256"] == base["checkpoint_sha256"] != other["checkpoint_sha256"]
    assert found["exponent1", 0]["decoder"] == {**base["decoder"], "score_exponent": 1.0}
    assert base["params"] - other["params"] == 20 * 16 + 20  # the rows of the last layer that weigh positions
    assert base["macs_graph"] == other["macs_graph"] > 0
    assert base["statistics"].shape == (2, len(base["classes"]), 4)
    assert other["overrides"] == ["seed=0", "model.options.relative_position=false"]
    assert base["epochs"] == round(3 * 2 / 4000, 3)
    assert base["train_s"] > 0


def test_a_document_says_what_the_training_itself_has_measured(done):
    trained = json.loads((done / "runs" / "base_s0" / "metrics.json").read_text())
    document = documents(done)["base", 0]
    assert {k: document[k] for k in ("pq", "pq_th", "pq_st", "images")} == {
        k: trained[k] for k in ("pq", "pq_th", "pq_st", "images")
    }
    totals = document["statistics"].sum(0)
    assert totals[:, 1:].sum(1).tolist() == [c["tp"] + c["fp"] + c["fn"] for c in trained["per_class"]]


def test_run_again_nothing_is_trained_or_scored(recipe, copied, monkeypatch):
    monkeypatch.setattr("edge_seg.studies.ablation.train", None)
    monkeypatch.setattr("edge_seg.studies.ablation.evaluate", None)
    result = run(recipe, copied)
    assert result.exit_code == 0, result.output
    assert result.stderr.count("scored before") == len(NAMES)


def test_a_checkpoint_that_was_trained_anew_is_scored_anew(recipe, copied):
    path = copied / "results" / "ablation" / "base_s0.json"
    text = path.read_text()
    sha256 = json.loads(text)["checkpoint_sha256"]
    path.write_text(text.replace(sha256, "0" * 64))
    result = run(recipe, copied)
    assert result.exit_code == 0, result.output
    assert json.loads(path.read_text())["checkpoint_sha256"] == sha256
    assert result.stderr.count("scored before") == len(NAMES) - 1


def test_interrupted_and_called_again_it_ends_with_the_same_weights(recipe, done, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        original = Trainer._step

        def stopped(self, items):
            if self.step == 2:
                raise KeyboardInterrupt
            return original(self, items)

        patch.setattr(Trainer, "_step", stopped)
        result = run(recipe, tmp_path)
    assert result.exit_code == 130
    assert "the same command goes on" in result.stderr
    assert load_state(tmp_path / "runs" / "base_s0" / "state.pt")["step"] == 2
    result = run(recipe, tmp_path, only=("base",))
    assert result.exit_code == 0, result.output
    assert "going on" in result.stderr
    found, whole = (load_file(f / "runs" / "base_s0" / "model.safetensors") for f in (tmp_path, done))
    assert len(whole) > 200
    assert [k for k in whole if not torch.equal(found[k], whole[k])] == []


def test_score_only_leaves_unfinished_trainings_alone_and_their_rows_missing(recipe, copied, monkeypatch):
    monkeypatch.setattr("edge_seg.studies.ablation.train", None)
    (copied / "runs" / "no_position_s0" / "metrics.json").unlink()
    (copied / "results" / "ablation" / "no_position_s0.json").unlink()
    result = run(recipe, copied, "--score-only")
    assert result.exit_code == 0, result.output
    assert "no_position_s0: the training is begun" in result.stderr
    row = next(line for line in result.stdout.splitlines() if line.startswith("| no_position"))
    assert row.count("missing") == 4
    assert not any(character.isdigit() for character in row)


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_with_other_settings_is_refused_before_anything_is_trained(recipe, copied, finished):
    folder = copied / "runs" / "no_position_s0"
    settings = json.loads((folder / "settings.json").read_text())
    settings["optim"]["lr"] = 0.5
    (folder / "settings.json").write_text(json.dumps(settings))
    if not finished:
        (folder / "metrics.json").unlink()
    shutil.rmtree(copied / "runs" / "base_s0")
    result = run(recipe, copied)
    assert result.exit_code == 2
    for text in ("another experiment than no_position_s0", "optim.lr = 0.001", "optim.lr = 0.5", "move"):
        assert text in result.stderr
    assert not (copied / "runs" / "base_s0").exists()


def test_a_checkpoint_of_another_experiment_is_refused_whatever_the_settings_beside_it_say(recipe, copied):
    for name in ("model.safetensors", "model.safetensors.manifest.json"):
        shutil.copy(copied / "runs" / "base_s0" / name, copied / "runs" / "no_position_s0" / name)
    result = run(recipe, copied)
    assert result.exit_code == 2
    assert "model.options.relative_position = False" in result.stderr
    assert "model.options.relative_position = not set" in result.stderr


def test_a_folder_with_files_but_no_settings_is_refused(recipe, copied):
    (copied / "runs" / "base_s0" / "settings.json").unlink()
    result = run(recipe, copied)
    assert result.exit_code == 2
    assert "settings.json" in result.stderr


def test_a_variation_that_fails_does_not_stop_the_others_and_is_missing(recipe, tmp_path, monkeypatch):
    def trained(one: Run) -> None:
        raise NotFinite(f"The loss of {one.name} is not finite.")

    monkeypatch.setattr("edge_seg.studies.ablation.train", trained)
    result = run(recipe, tmp_path, only=("base", "no_position"))
    assert result.exit_code == 2  # there is not one document
    assert "base_s0 is not finite" in result.stderr
    assert "no_position_s0 is not finite" in result.stderr


def test_how_often_a_run_saves_does_not_matter(recipe, copied, tmp_path):
    other = tmp_path / "tiny.toml"
    other.write_text(RECIPE.replace("save_every = 1", "save_every = 2"))
    assert run(other, copied).exit_code == 0


def test_settings_of_a_version_that_knew_fewer_have_their_defaults(recipe, copied):
    for path in (copied / "runs" / "base_s0" / "settings.json", copied / "runs" / "no_position_s0" / "settings.json"):
        settings = json.loads(path.read_text())
        del settings["augment"], settings["optim"]["clip_norm"]
        path.write_text(json.dumps(settings))
    assert run(recipe, copied, "--score-only").stderr.count("scored before") == len(NAMES)


def test_two_runs_in_one_folder_are_refused(recipe, copied):
    with (copied / "runs" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = run(recipe, copied)
        assert run(recipe, copied, "--score-only").exit_code == 0
    assert result.exit_code == 2
    assert "Another ablation works" in result.stderr


def test_the_listing_trains_nothing_and_says_how_far_each_run_is(recipe, copied, monkeypatch):
    monkeypatch.setattr("edge_seg.studies.ablation.train", None)
    (copied / "runs" / "base_s0" / "metrics.json").unlink()
    result = run(recipe, copied, "--list", "--json", only=("base", "no_position", "added"))
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert {k: row["training"] for k, row in rows.items()} == {
        "base_s0": "begun",
        "no_position_s0": "finished",
        "added_s0": "missing",
    }
    assert rows["base_s0"]["macs_graph"] == documents(copied)["base", 0]["macs_graph"]
    text = run(recipe, copied, "--list", only=("exponent1",)).stdout
    assert "decoder.score_exponent=1.0" in text


def test_an_unknown_variation_is_refused_with_the_nearest_name(recipe, tmp_path):
    result = run(recipe, tmp_path, only=("no_positions",))
    assert result.exit_code == 2
    assert "did you mean no_position" in result.stderr
    assert run(recipe, tmp_path, "--group", "heavy", only=()).exit_code == 2


def test_the_table_is_rebuilt_from_documents_alone(done, tmp_path):
    shutil.copytree(done / "results", tmp_path / "elsewhere")
    text = (tmp_path / "elsewhere" / "ablation" / "table.md").read_text()
    assert results_markdown(tmp_path / "elsewhere") + "\n" == f"## Choices\n\n{text}"
    assert "(0.002 epochs) on `synthetic:easy` (`val`, 2 pictures" in text


# The table of variations


def test_the_trainings_of_the_main_group_are_those_that_were_agreed():
    trained = {v.name: " ".join(v.overrides) for v in VARIATIONS if v.group == "main" and not v.weights_of}
    assert trained == {
        "base": "",
        "k5": "model.name=maskconver_mnv2_256_k5",
        "no_position": "model.options.relative_position=false",
        "lite": "model.name=maskconver_lite_256",
        "blob_stuff": "criterion.dense_stuff=false",
        "added": "model.options.class_embedding=add",
        "mask_centers": "criterion.centers=mask",
        "live_norm": "optim.freeze_batchnorm=none",
    }


@pytest.mark.parametrize("variation", VARIATIONS, ids=lambda v: v.name)
def test_every_variation_is_an_experiment_of_its_own_that_the_network_accepts(variation, root):
    config = root / "edge_seg" / "configs" / "facade_ablation.toml"
    settings = load_settings(config, variation.overrides)
    network = MODELS[settings.model.name](num_classes=3, **settings.model.options)
    classes = [ClassInfo(i + 1, f"class {i}", i < 2, (0, 0, 0)) for i in range(3)]
    network.criterion(settings.criterion, classes)
    decoder = Ablation(config, root, root, print).run_of(variation, 0).variation.decoder
    params = network.decoder_params(settings.decoder)
    assert all(text.partition("=")[0] in params for text in decoder)
    others = [load_settings(config, v.overrides) for v in VARIATIONS if v is not variation]
    assert bool(variation.weights_of) or sum(settings == other for other in others) == 2 * (variation.name == "base")


def test_the_committed_documents_are_of_the_networks_as_they_are(root):
    """A network that is made anew must be trained anew: its multiplications tell. Four are known to be older."""
    config = root / "edge_seg" / "configs" / "facade_ablation.toml"
    older = {(name, 0) for name in ("base", "live_norm", "reassign", "exponent1")}  # 7x7 was cut another way
    trained = {v.name: next(w for w in VARIATIONS if w.name == (v.weights_of or v.name)) for v in VARIATIONS}
    documents = read_documents(root / "results" / "ablation")
    assert older < set(documents)
    for (name, seed), document in documents.items():
        model = load_settings(config, trained[name].overrides).model
        network = MODELS[model.name](num_classes=len(document["classes"]), **model.options)
        same = network.macs()["macs_graph"] == document["macs_graph"]
        assert same is ((name, seed) not in older), (name, seed)


def test_names_and_folders_cannot_be_mistaken_for_one_another():
    names = [v.name for v in VARIATIONS]
    assert len(set(names)) == len(names)
    assert all(name.replace("_", "").isalnum() for name in names)
