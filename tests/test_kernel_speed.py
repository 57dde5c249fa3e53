"""The study of what faster kernels save of a training step."""

import json

import numpy as np
from click.testing import CliRunner

from edge_seg.studies import kernel_speed
from edge_seg.studies.results import speed
from edge_seg.training.kernels import FastKernels
from edge_seg.training.settings import load_settings

CONFIG = "edge_seg/configs/quickstart_synthetic.toml"
SMALL = ("model.input_px=64", "optim.batch_size=2", "model.name=maskconver_mnv2_256")


def row(seconds, **changes):
    settings = load_settings(kernel_speed.Path(CONFIG), SMALL)
    return kernel_speed.row_of(settings, kernel_speed.Path(CONFIG), seconds, "a command") | changes


def test_a_row_says_the_medians_and_the_ratio_of_neighbours():
    """Ours takes half of PyTorch's in every round, though the machine slows down meanwhile."""
    slower = np.linspace(1.0, 3.0, 16)
    found = row(np.stack([2.0 * slower, slower], axis=1))
    assert (found["pytorch_s"], found["ours_s"]) == (4.0, 2.0)
    assert found["ratio"] == [0.5, 0.5, 0.5]
    assert not found["retraining"]
    assert "4.000 s a step with PyTorch's kernels, 2.000 with ours, 0.500 [0.500, 0.500] of it" in kernel_speed.text(
        found
    )


def test_a_row_takes_the_place_of_the_same_commands():
    seconds = np.ones((8, 2))
    elsewhere = {"cpu": "made up"}
    first, second = row(seconds, command="b"), row(seconds, command="a")
    document = kernel_speed.with_row(kernel_speed.with_row({}, first), second)
    assert [one["command"] for one in document["rows"]] == ["a", "b"]
    again = kernel_speed.with_row(document, row(seconds, command="b", ours_s=7.0, device=elsewhere))
    assert [one["ours_s"] for one in again["rows"]] == [1.0, 7.0]
    head, table = speed.speed([again])
    assert "A step of training on a CPU" in head
    assert table.count("\n") == 3
    assert "| training of maskconver_mnv2_256 | 2 | made up | 1.000 | 7.000 | 1 | `b` |" in table


def test_steps_are_taken_with_both_in_turns(tmp_path, monkeypatch):
    entered = []
    monkeypatch.setattr(kernel_speed, "FastKernels", lambda: entered.append(1) or FastKernels())
    out = tmp_path / "kernels.json"
    options = [CONFIG, *SMALL, "--rounds", "8", "--results", str(out), "--json"]
    result = CliRunner().invoke(kernel_speed.main, options)
    assert result.exception is None, result.output
    assert len(entered) == 8 + 2, "once a round, and in the first and last of three steps before"
    (found,) = json.loads(out.read_text())["rows"]
    assert found["rounds"] == 8
    assert found["pytorch_s"] > 0
    assert found["ours_s"] > 0
    low, ratio, high = found["ratio"]
    assert low <= ratio <= high


def test_too_few_rounds_are_refused():
    result = CliRunner().invoke(kernel_speed.main, [CONFIG, "--rounds", "3"])
    assert result.exit_code == 2
    assert "--rounds" in result.output


def test_a_setting_that_is_not_there_is_an_error(tmp_path):
    result = CliRunner().invoke(
        kernel_speed.main, [CONFIG, "optim.nothing=1", "--results", str(tmp_path / "kernels.json")]
    )
    assert result.exit_code not in (0, 1)
    assert "error: " in result.output
    assert not (tmp_path / "kernels.json").exists()
