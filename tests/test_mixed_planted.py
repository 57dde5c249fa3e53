"""Mixed precision on a tiny network with one layer that int8 ruins: its ranking, the recipe, what a budget keeps."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from test_converters_tinynet import Nhwc, Normalise, save_program
from torch import nn

from edge_seg.artifact import write_manifest
from edge_seg.benchmarks.harness import Plan
from edge_seg.commands import mixed_budget
from edge_seg.contract import Contract
from edge_seg.converters.convert import convert
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.metadata import contract_path, read_contract
from edge_seg.converters.mixed.sensitivity import Change, LayerLoss, Sensitivity, ranked
from edge_seg.converters.mixed.sensitivity_file import SensitivityFile
from edge_seg.converters.mixed.trials import Trials, about_trials, layers_of, open_trials, snr_db
from edge_seg.converters.ptq.recipe import Recipe, Rule, read_recipe
from edge_seg.steps import letterboxed, pictures

pytestmark = pytest.mark.slow

DEAD = 3
BAD = "ruined"
CALIBRATION = ["--calibration", "synthetic:easy", "--calibration-images", "4", "--ranges", "minmax"]
LAYERS = ["normalise", "stem", BAD, "heads.0", "heads.1", "heads.2"]


class Planted(nn.Module):
    """A stem, a 1x1 layer, and as many heads as outputs.

    Channel 3 of the stem is always 0, and every output channel of the 1x1 layer has a weight of 300 for it: without
    effect in float, while in int8 the step of these weights becomes 300 / 127, and all others round to zero.
    """

    def __init__(self, channels):
        super().__init__()
        self.normalise = Normalise()
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(3, 16, 8, stride=8))
        self.stem.add_module("act", nn.ReLU())
        self.ruined = nn.Conv2d(16, 16, 1)
        self.heads = nn.ModuleList([nn.Conv2d(16, c, 1) for c in channels])
        nn.init.normal_(self.ruined.weight, std=0.3)
        with torch.no_grad():
            self.stem.conv.weight[DEAD], self.stem.conv.bias[DEAD] = 0.0, -1.0
            self.ruined.weight[:, DEAD] = 300.0

    def forward(self, image):
        features = self.ruined(self.stem(self.normalise(image)))
        return tuple(head(features) for head in self.heads)


@pytest.fixture(scope="module")
def exported(tiny_exported, tmp_path_factory):
    """The exported folder of a tiny MaskConver with the planted body in its place: contract and decoder still fit."""
    folder = tmp_path_factory.mktemp("planted") / "exported"
    shutil.copytree(tiny_exported, folder)
    contract = Contract.load(folder / "contract.json")
    torch.manual_seed(0)
    body = Planted([o.shape[-1] for o in contract.outputs])
    assert all(o.shape[1:3] == (8, 8) for o in contract.outputs)
    save_program(Nhwc(body).eval(), folder / "model.pt2", contract.model.input_px)
    write_manifest(folder / "model.pt2", kind="exported", step="export", config={})
    return folder


@pytest.fixture(scope="module")
def float_file(exported, tmp_path_factory):
    return convert(exported, scheme="fp32", out=tmp_path_factory.mktemp("float")).file


def smooth(count, side):
    rng = np.random.default_rng(1)
    coarse = np.kron(rng.integers(0, 256, (count, side // 8, side // 8, 3)), np.ones((1, 8, 8, 1)))
    return list(coarse.astype(np.uint8))


@pytest.fixture(scope="module")
def trials(float_file):
    side = Contract.load(contract_path(float_file)).model.input_px
    with open_trials(float_file, smooth(6, side)) as opened:
        yield opened


def worst_snr_db(float_file, file, pictures):
    """Output SNR by the definition, apart from the code under test: mean squares over all values."""
    runners = TfliteRunner(float_file), TfliteRunner(file)
    reference, found = ([runner(picture) for picture in pictures] for runner in runners)
    values = {k: [np.stack([row[k] for row in rows]) for rows in (reference, found)] for k in reference[0]}
    return 10 * math.log10(min(np.mean(a**2) / np.mean((a - b) ** 2) for a, b in values.values()))


class CountingMetric:
    """A metric that notes what it was asked; every layer loses one point."""

    name, limit, data_sha256 = "pq", 2, "0" * 64

    def __init__(self, stop_after=None):
        self.asked, self.stop_after = 0, stop_after

    def change(self, file, base):
        if self.asked == self.stop_after:
            raise KeyboardInterrupt
        self.asked += 1
        return Change(50.0, -1.0, (-2.0, 0.0))


def test_layers_are_what_a_person_names_in_execution_order(trials):
    layers = layers_of(trials.network.graph)
    assert sorted(x.module for x in layers) == sorted(LAYERS)
    assert [x.module for x in layers][:3] == LAYERS[:3]
    counted = Counter(op for x in layers for op in x.ops)
    assert counted == Counter(range(len(trials.network.graph.ops)))


def test_the_planted_layer_ranks_first_by_far(trials):
    losses = Sensitivity(trials, SensitivityFile(None, {})).measure(progress=False)
    assert losses[0].module == BAD
    assert losses[0].worst_snr_db < 10 < 25 < losses[1].worst_snr_db
    alone = trials.write(Recipe("float", (Rule(BAD, "int8"),)))
    assert losses[0].worst_snr_db == pytest.approx(
        worst_snr_db(trials.float_file, alone, trials.network.images), abs=0.01
    )


def test_left_out_the_planted_layer_ranks_first_as_well(trials):
    losses = Sensitivity(trials, SensitivityFile(None, {}), "leave_one_out").measure(progress=False)
    assert [losses[0].module, losses[0].scheme] == [BAD, "float"]
    assert losses[0].worst_snr_db > losses[1].worst_snr_db + 10


def test_an_interrupted_run_measures_only_what_is_missing(trials, tmp_path, monkeypatch):
    file, about = tmp_path / "s.jsonl", about_trials(trials, "a" * 64)
    first = CountingMetric(stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        Sensitivity(trials, SensitivityFile(file, about)).measure(first, progress=False)
    with file.open("a") as tail:
        tail.write('{"module": "half a li')  # killed while it wrote
    written = []
    monkeypatch.setattr(Trials, "write", lambda self, recipe, name="trial": written.append(recipe) or self.float_file)
    second = CountingMetric()
    losses = Sensitivity(trials, SensitivityFile(file, about)).measure(second, progress=False)
    assert second.asked == len(LAYERS) - 2
    assert len(written) == len(LAYERS) - 2
    assert [x.delta for x in losses] == [-1.0] * len(LAYERS)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == 1 + 2 * len(LAYERS)


def test_only_the_layers_of_worst_snr_are_scored(trials):
    metric = CountingMetric()
    losses = Sensitivity(trials, SensitivityFile(None, {})).measure(metric, worst=1, progress=False)
    assert metric.asked == 1
    assert [x.module for x in losses if x.delta is not None] == [BAD]
    assert losses[0].module == BAD


def test_scored_layers_rank_by_the_metric_and_left_out_ones_by_what_they_gain():
    def loss(module, delta, snr, scheme="int8"):
        return LayerLoss(module, scheme, {"out": snr}, "pq", 50.0, delta, (delta, delta), 2)

    alone = [loss("a", -1.0, 5.0), loss("b", -3.0, 30.0), LayerLoss("c", "int8", {"out": 1.0})]
    assert [x.module for x in ranked(alone)] == ["b", "a", "c"]
    left_out = [loss("a", 1.0, 5.0, "float"), loss("b", 3.0, 5.0, "float")]
    assert [x.module for x in ranked(left_out)] == ["b", "a"]


def test_snr_is_ten_times_the_logarithm_of_the_power_ratio():
    reference = np.array([3.0, 4.0], np.float32)
    assert snr_db(reference, reference + np.float32([0.0, 0.5])) == pytest.approx(20.0)
    assert snr_db(reference, reference) == math.inf
    assert snr_db(reference, reference * np.float32(np.nan)) < -200


# The whole command; panoptic quality of an untrained network is 0, so a score that follows the outputs stands for it.


@pytest.fixture
def out(float_file, tmp_path):
    """A folder that holds the float file already: converting it is the slow part."""
    return shutil.copytree(float_file.parent, tmp_path / "out")


@pytest.fixture
def scored_by_snr(monkeypatch):
    plan, measure = Plan(3, 0.0, 0.1, 50.0, block_runs=2, max_warmup_runs=2), mixed_budget.latency_ms

    def level(files, images):
        """Runs the files in earnest, then calls them equally fast: what is chosen must not hang on this machine."""
        found = measure(files, images, plan)
        assert all(row["median_ms"] > 0 for row in found.values())
        return {file: {"median_ms": 5.0, "ci95_median_ms": (4.0, 6.0)} for file in found}

    monkeypatch.setattr(mixed_budget, "latency_ms", level)
    asked, seen = [], pictures("synthetic:easy", 4, "train")

    def value(self, file):
        asked.append(file)
        if file == self.float_file:
            return 80.0
        return 80.0 if worst_snr_db(self.float_file, file, letterboxed(read_contract(file), seen)) > 20 else 40.0

    monkeypatch.setattr(mixed_budget._Judge, "value", value)
    return asked


def convert_with(edge_seg, exported, out, budget, *more):
    given = ["--scheme", "mixed", *CALIBRATION, "--limit", "2"]
    return edge_seg("convert", exported, *given, "--budget", budget, "--out", out, "--json", *more)


def test_a_budget_keeps_exactly_the_planted_layer_in_float(edge_seg, exported, float_file, scored_by_snr, out):
    done = convert_with(edge_seg, exported, out, "pq>=0.99*fp32")
    assert done.code == 0, done.err
    document = done.json()
    recipe = read_recipe(out / "maskconver_mnv2_256_mixed.recipe.toml")
    assert recipe.default == "int8"
    assert [(r.layers, r.precision) for r in recipe.rules] == [(BAD, "float")]
    assert "alone in int8: output SNR" in recipe.rules[0].reason
    search = document["search"]
    assert search["threshold"] == pytest.approx(0.99 * 80)
    chosen = [c for c in search["candidates"] if c["chosen"]]
    assert [c["floats"] for c in chosen] == [[BAD]]
    assert chosen[0]["median_ms"] == 5.0
    holds = {c["name"]: c["holds"] for c in search["candidates"]}
    assert holds["fp32"]
    assert not holds["int8"]
    assert len(scored_by_snr) <= 6

    again = shutil.copytree(float_file.parent, out / "again")
    recipe_file = out / "maskconver_mnv2_256_mixed.recipe.toml"
    given = ["--scheme", "mixed", *CALIBRATION]
    assert edge_seg("convert", exported, *given, "--recipe", recipe_file, "--out", again).code == 0
    name = "maskconver_mnv2_256_mixed.tflite"
    assert (again / name).read_bytes() == (out / name).read_bytes()


def test_a_budget_that_all_int8_meets_needs_no_layer_in_float(edge_seg, exported, scored_by_snr, out):
    done = convert_with(edge_seg, exported, out, "pq>=0.5*fp32")
    assert done.code == 0, done.err
    assert read_recipe(out / "maskconver_mnv2_256_mixed.recipe.toml").rules == ()
    assert not list(out.glob("*.jsonl"))
    assert "no layer needs float" in done.json()["search"]["advice"][0]


def test_a_budget_above_the_float_network_fails_and_leaves_no_mixed_file(edge_seg, exported, scored_by_snr, out):
    done = convert_with(edge_seg, exported, out, "pq>=90")
    assert done.code == 1
    assert "80.000" in done.err
    assert not list(out.glob("*mixed*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--budget", "pq>0.9"], "METRIC>="),
        (["--budget", "pq>=0.9*fp32", "--scheme", "w8a8"], "--scheme mixed"),
        (["--budget", "pq>=0.9*fp32", "--scheme", "mixed"], "--calibration"),
        (["--budget", "pq>=0.9*fp32", "--scheme", "mixed", "--calibration", "x", "--recipe", "none.toml"], "none.toml"),
        (["--budget", "pq>=0.9", "--scheme", "mixed", "--calibration", "x", "--sensitivity", "none"], "cannot be read"),
        (["--limit", "3"], "needs a budget"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_runs(edge_seg, exported, tmp_path, options, words):
    done = edge_seg("convert", exported, "--out", tmp_path / "o", *options)
    assert done.code == 2
    assert words in done.err
    assert not (tmp_path / "o").exists()


def test_the_verb_prints_one_document_and_goes_on_from_its_file(edge_seg, float_file, tmp_path):
    out = tmp_path / "layers.jsonl"
    given = ["--data", "synthetic:easy", "--calibration-images", "4", "--limit", "2", "--worst", "1", "--out", out]
    document = edge_seg("sensitivity", float_file, *given, "--json").json()
    assert {"module", "scheme", "metric", "delta", "snr_db"} <= set(document["layers"][0])
    assert [document["layers"][0]["module"], document["layers"][0]["metric"]] == [BAD, "pq"]
    assert [x["metric"] for x in document["layers"][1:]] == ["snr"] * (len(LAYERS) - 1)
    before = out.read_bytes()
    again = edge_seg("sensitivity", float_file, *given)
    assert again.out.splitlines()[1].split()[:2] == ["1", BAD]
    assert out.read_bytes() == before


ROW = {"module": "x", "mode": "alone", "metric": "snr", "snr_db": {"out": 1.0}}


@pytest.mark.parametrize("key", ["model_sha256", "calibration_sha256"])
def test_a_file_of_another_model_or_other_data_is_refused(trials, tmp_path, key):
    about = about_trials(trials, "a" * 64)
    SensitivityFile(tmp_path / "s.jsonl", about | {key: "b" * 64}).add(ROW)
    with pytest.raises(Exception, match=f"{key.replace('_', ' ')} differs"):
        SensitivityFile(tmp_path / "s.jsonl", about)


@pytest.mark.parametrize(
    "content", ["", "nonsense\n", '{"format": "other"}\n', '{"format": "edge_seg.sensitivity"}\n[1]\n']
)
def test_a_file_that_is_no_sensitivity_file_is_refused_and_kept(tmp_path, content):
    file = tmp_path / "s.jsonl"
    file.write_text(content)
    with pytest.raises(Exception, match="not a sensitivity file"):
        SensitivityFile(file, {})
    assert file.read_text() == content


def test_a_quantised_file_has_no_sensitivity(edge_seg, trials, tmp_path):
    file = trials.write(Recipe("int8"), "quantised")
    done = edge_seg("sensitivity", file, "--data", "synthetic:easy", "--out", tmp_path / "s.jsonl")
    assert done.code == 2
    assert "quantised already" in done.err
