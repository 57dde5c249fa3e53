"""Ctrl-C during training and conversion: nothing half-written stays, and a training goes on to the same end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
[data]
train = "synthetic:easy"
[model]
name = "maskconver_mnv2_256"
input_px = 64
[optim]
steps = 40
batch_size = 2
warmup_steps = 2
[run]
threads = 1
eval_limit = 2
save_every = 1000
log_every = 1
"""
PATIENCE_S = 120


def train(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    """Starts a training in `folder`; what it prints goes to files there."""
    command = [sys.executable, "-m", "edge_seg.cli", "train", str(folder / "recipe.toml"), "--out", str(folder / "run")]
    with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
        return subprocess.Popen([*command, *more], stdout=out, stderr=err)


def wait_for_lines(path: Path, count: int, running: subprocess.Popen[bytes]) -> None:
    """Waits until the run has logged `count` steps."""
    end = time.monotonic() + PATIENCE_S
    while not path.is_file() or len(path.read_text().splitlines()) < count:
        assert running.poll() is None, "the training ended before it could be interrupted"
        assert time.monotonic() < end, "the training does not get on"
        time.sleep(0.02)


@pytest.mark.slow
def test_a_training_stopped_by_ctrl_c_ends_with_130_and_goes_on_with_resume(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    run = tmp_path / "run"
    cut = train(tmp_path)
    wait_for_lines(run / "metrics.jsonl", 4, cut)
    cut.send_signal(signal.SIGINT)
    assert cut.wait(PATIENCE_S) == 130
    error = (tmp_path / "err.txt").read_text()
    assert "Traceback" not in error
    assert "--resume" in error.splitlines()[-1]
    assert (tmp_path / "out.txt").read_text() == ""
    assert (run / "state.pt").is_file()
    assert not (run / "model.safetensors").exists()
    assert list(run.rglob("*.part")) == []

    assert train(tmp_path, "--resume").wait(PATIENCE_S) == 0, (tmp_path / "err.txt").read_text()
    assert (run / "model.safetensors").is_file()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "loss" in row]
    assert steps == sorted(set(steps))
    assert steps[-1] == 40


def test_a_conversion_interrupted_by_ctrl_c_leaves_no_file(edge_seg, tiny_exported, tmp_path, monkeypatch):
    from edge_seg.converters.routes import ROUTES

    def interrupted(program: Path, contract: object) -> bytes:
        raise KeyboardInterrupt

    ROUTES.names()
    monkeypatch.setitem(ROUTES._entries, "litert", interrupted)
    done = edge_seg("convert", tiny_exported, "--out", tmp_path / "t")
    assert done.code == 130
    assert done.out == ""
    assert "interrupted" in done.err
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_an_export_interrupted_while_it_writes_leaves_no_half_file(edge_seg, tiny_checkpoint, tmp_path, monkeypatch):
    import torch

    def interrupted(program: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.export, "save", interrupted)
    done = edge_seg("export", tiny_checkpoint, "--out", tmp_path / "e")
    assert done.code == 130
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_disk_that_is_full_while_exporting_is_an_error_and_leaves_no_half_file(
    edge_seg, tiny_checkpoint, tmp_path, monkeypatch
):
    import torch

    def full(program: object, file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    done = edge_seg("export", tiny_checkpoint, "--out", tmp_path / "e")
    assert done.code == 2
    assert "No space left on device" in done.err
    assert "next:     free space" in done.err
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
