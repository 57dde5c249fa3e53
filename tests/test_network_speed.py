"""The speed run: networks become files, files are measured in turns, figures are put in relation."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from torch import nn

from edge_seg.benchmarks.harness import Series
from edge_seg.benchmarks.result import Samples
from edge_seg.benchmarks.stats import Interval
from edge_seg.models.base import MODELS
from edge_seg.studies.network_speed import (
    CANDIDATES,
    PUBLISHED,
    YARDSTICK,
    Peer,
    PlainConvolutions,
    _command,
    _settle,
    _with_ratios,
    main,
)


def series(index: int, run_ms: list[float]) -> Series:
    runs = np.array(run_ms, np.float32)
    zeros = np.zeros_like(runs)
    samples = Samples(zeros, zeros, runs, zeros, zeros.astype(np.int32))
    return Series(
        index, samples, run_ms[0], 1, True, "target", Interval(runs.min(), float(np.median(runs)), runs.max())
    )


def test_every_candidate_is_a_registered_network_and_the_published_form_is_not_rewritten():
    assert all(c.model in MODELS.names() for c in CANDIDATES if c.model)
    published = next(c for c in CANDIDATES if c.title == PUBLISHED)
    assert not published.split_7x7
    assert any(c.model == published.model and c.split_7x7 for c in CANDIDATES)


def test_the_yardstick_counts_its_multiplications_as_by_hand():
    cells = 64 * 64
    by_hand = cells * (3 * 256 + 2 * 9 * 256 * 256 + 256 * 8)
    assert PlainConvolutions().macs()["macs"] == by_hand


def test_ratios_compare_like_with_like():
    rows = [
        {"network": YARDSTICK, "scheme": "fp32", "gmacs_per_s": 50.0},
        {"network": PUBLISHED, "scheme": "fp32", "gmacs_per_s": 20.0},
        {"network": "a", "scheme": "fp32", "gmacs_per_s": 40.0},
        {"network": "a", "scheme": "w8a8", "gmacs_per_s": 100.0},
        {"network": "peer", "scheme": "w8a8", "gmacs_per_s": None},
    ]
    times = [[10.0] * 16, [40.0] * 16, [10.0] * 16, [5.0] * 16, [7.0] * 16]
    done = _with_ratios(rows, [series(i, t) for i, t in enumerate(times)], 2, ["peer"])
    assert done[2]["of_published"] == [0.25, 0.25, 0.25]
    assert done[3]["of_published"] is None  # there is no int8 file of the published form in this run
    assert done[3]["of_own_fp32"] == [0.5, 0.5, 0.5]
    assert done[2]["share_of_3x3"] == 0.8
    assert done[4]["of_published"] is done[4]["share_of_3x3"] is None
    assert done[3]["of_peer"] == {"peer": [0.714, 0.714, 0.714]}
    assert done[2]["of_peer"] == {"peer": None}, "a float file is not held against an int8 one"


def test_a_ratio_is_taken_turn_by_turn_and_needs_eight_of_them():
    rows = [{"network": "a", "scheme": scheme, "gmacs_per_s": None} for scheme in ("fp32", "w8a8")]
    host = np.exp(np.random.default_rng(0).normal(size=10)).repeat(4)  # the machine slows both down, by a lot
    done = _with_ratios(rows, [series(0, list(20 * host)), series(1, list(8 * host))], 4)
    assert done[1]["of_own_fp32"] == [0.4, 0.4, 0.4]
    few = _with_ratios(rows, [series(0, list(20 * host)), series(1, list(8 * host[:31]))], 4)
    assert few[1]["of_own_fp32"] is None


@pytest.mark.slow
def test_a_short_run_writes_a_row_per_file_and_prints_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr("edge_seg.studies.network_speed.CANDIDATES", [CANDIDATES[0]])
    result = CliRunner().invoke(main, ["--out", str(tmp_path), "--max-time", "0.2"])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "networks.json").read_text())
    assert [r["scheme"] for r in document["rows"]] == ["fp32", "w8a8"]
    assert "paired" in document["ratios"]["method"]
    for row in document["rows"]:
        assert row["xnnpack_partitions"] == 1
        assert 0 < row["ci95_median_ms"][0] <= row["median_ms"] <= row["ci95_median_ms"][1]
    assert document["rows"][0]["of_own_fp32"] == [1.0, 1.0, 1.0]
    assert YARDSTICK in result.stdout


@pytest.mark.parametrize(
    "given", ["somebody", "somebody=x.tflite", "somebody:int4=x.tflite", ":fp32=x.tflite", "a:fp32="]
)
def test_a_peer_that_is_not_clear_is_refused(given, tmp_path):
    result = CliRunner().invoke(main, ["--out", str(tmp_path), "--peer", given])
    assert result.exit_code == 2
    assert "TITLE:SCHEME=FILE.tflite" in result.output


def test_the_command_that_is_written_down_names_no_path_of_this_machine():
    assert Peer.parse("a:b:w8a8=/x/y.tflite") == Peer("a:b", "w8a8", Path("/x/y.tflite"))
    told = _command(["a b"], [Peer("YOLO", "fp32", Path("/home/me/y.tflite"))], 9.0)
    wanted = "python -m edge_seg.studies.network_speed --max-time 9 --only 'a b' --peer YOLO:fp32=FILE"
    assert told == wanted


def test_batchnorm_gets_the_statistics_of_the_pictures():
    """By hand: pictures of 10 and of 30 have the mean 20 and, over n values, the variance 100 n / (n - 1)."""
    body = nn.BatchNorm2d(3)
    pictures = [np.full((4, 4, 3), value, np.uint8) for value in (10, 30)]
    _settle(
        SimpleNamespace(body=body, modules=body.modules, train=lambda: SimpleNamespace(body=body.train())), pictures
    )
    assert body.running_mean.tolist() == [20.0] * 3
    assert body.running_var.tolist() == pytest.approx([100.0 * 32 / 31] * 3)


def test_the_committed_times_are_of_the_networks_as_they_are(root):
    """A network that is made anew must be measured anew: its multiplications tell."""
    rows = json.loads((root / "results" / "speed" / "networks.json").read_text(encoding="utf-8"))["rows"]
    for candidate in (c for c in CANDIDATES if c.model and c.split_7x7):
        told = {row["macs_graph"] for row in rows if row["network"] == candidate.title}
        assert told == {MODELS[candidate.model](candidate.classes).macs()["macs_graph"]}, candidate.title
