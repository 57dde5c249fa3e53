"""The comparison of bodies on the accelerator: its figures on made-up runs, and what a document keeps."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from edge_seg.studies import gpu_bodies
from edge_seg.studies.gpu_bodies import FromFloat64, _kept, range_share, text


class Sum(nn.Module):
    """One output: the channels' sum, scaled."""

    def forward(self, image_nchw):
        return {"sum": image_nchw.sum(1, keepdim=True) / 3.0}


def network():
    return SimpleNamespace(export_graph=lambda: SimpleNamespace(body=Sum()))


def test_a_share_is_of_the_range_and_of_one_where_there_is_none():
    wanted = np.array([1.0, 3.0, 5.0], np.float32)
    assert range_share(wanted, wanted + np.float32(0.5)) == pytest.approx(0.125)
    assert range_share(np.full(3, 7.0), np.full(3, 7.25)) == pytest.approx(0.25)


def test_every_run_is_held_against_float64_and_the_largest_picture_counts():
    truth = FromFloat64(network(), ["sum"])
    for seed, error in ((0, 0.3), (1, 0.1)):
        image = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        exact = image.astype(np.float64).sum(2)[None, :, :, None] / 3.0
        width = np.ptp(exact)
        truth(image, {"gpu": {"sum": exact + error * width}, "cpu": {"sum": exact}})
    shares = truth.shares["sum"]
    assert shares["gpu"] == pytest.approx(0.3)
    assert shares["cpu"] == pytest.approx(0.0, abs=1e-12)
    assert 0.0 < shares["torch"] < 1e-6  # thirds are not exact in float32
    assert torch.get_default_dtype() == torch.float32


def test_the_text_names_the_worst_output_and_what_was_refused():
    rows = [
        {"network": "a", "input_px": 64, "refused": "not whole", "got": "GATHER_ND: Operation is not supported."},
        {"network": "b", "input_px": 64, "worst": 2e-5, "range_share": {"x": 2e-5, "y": 1e-6},
         "from_float64": {"x": {"gpu": 1e-5, "cpu": 2e-5, "torch": 7e-6}, "y": {}}},
    ]  # fmt: skip
    first, second = text(rows).splitlines()
    assert first.endswith("refused: GATHER_ND: Operation is not supported.")
    assert second.endswith("2e-05  x (from float64: gpu 1e-05, cpu 2e-05, torch 7e-06)")


@pytest.mark.parametrize(
    ("input_px", "precision", "kept"), [(64, "fp32", ["a"]), (128, "fp32", ["b"]), (64, "fp16", [])]
)
def test_a_resumed_run_keeps_rows_of_the_same_settings_only(tmp_path, input_px, precision, kept):
    file = tmp_path / "bodies.json"
    rows = [{"network": "a", "input_px": 64}, {"network": "b", "input_px": 128}]
    file.write_text(json.dumps({"precision": "fp32", "pictures": 3, "rows": rows}))
    assert [r["network"] for r in _kept(file, input_px, precision)] == kept
    assert _kept(tmp_path / "none.json", input_px, precision) == []


def test_a_row_keeps_the_machine_it_was_measured_on(tmp_path):
    """Documents of before named one machine for all."""
    file = tmp_path / "bodies.json"
    rows = [{"network": "a", "input_px": 64}, {"network": "b", "input_px": 64, "device": {"name": "new"}}]
    file.write_text(json.dumps({"precision": "fp32", "pictures": 3, "device": {"name": "old"}, "rows": rows}))
    assert [r["device"]["name"] for r in _kept(file, 64, "fp32")] == ["old", "new"]


def test_a_new_row_names_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_bodies, "compared", lambda name, *_: {"network": name, "input_px": 64, "refused": "no"})
    monkeypatch.setattr(gpu_bodies.machine, "host_device", lambda: {"name": "this one"})
    file = tmp_path / "bodies.json"
    options = ["--only", "maskconver_mh_256", "--px", "64", "--json", str(file)]
    assert CliRunner().invoke(gpu_bodies.main, options).exception is None
    assert [row["device"] for row in json.loads(file.read_text())["rows"]] == [{"name": "this one"}]
