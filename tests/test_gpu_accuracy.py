"""The study of the accelerator's arithmetic, with stand-ins for both runners."""

import json

import numpy as np
import pytest

from edge_seg.studies.gpu_accuracy import Beside
from edge_seg.studies.results.page import results_markdown


class Runner:
    contract, constants = "contract", {}

    def __init__(self, *outputs):
        self.answers = iter(outputs)

    def __call__(self, _input):
        return {"map": np.array(next(self.answers), np.float32)}


def test_bodies_with_equal_figures_share_a_line_and_a_refused_one_says_why(tmp_path):
    off = {"gpu": 3e-6, "cpu": 2e-6, "torch": 1e-6}
    runtime = {"adapter": "SwiftShader", "adapter_kind": "CPU / Software"}
    shares = {"range_share": {"a": 1e-6, "b": 4e-6}, "worst": 4e-6, "from_float64": {"a": {}, "b": off}}
    rows = [{"network": f"net_{px}", "input_px": 128, "runtime": runtime, **shares} for px in (256, 512)]
    rows.append({"network": "old", "input_px": 128, "refused": "not whole", "got": "CUMSUM: not supported. 3 of 4"})
    document = {"command": "python -m x", "precision": "fp32", "pictures": 3, "rows": rows}
    (tmp_path / "gpu_bodies").mkdir()
    (tmp_path / "gpu_bodies" / "128_px.json").write_text(json.dumps(document))
    text = results_markdown(tmp_path)
    assert "SwiftShader (CPU / Software), fp32, 128 px, random weights, 3 pictures (`python -m x`)" in text
    assert "| `net_256`, `net_512` | `b` | 4.0e-06 | 3.0e-06 | 2.0e-06 | 1.0e-06 |" in text
    assert "| `old` |  | refused: CUMSUM: not supported |  |  |  |" in text


def test_the_largest_difference_is_kept_as_a_share_of_each_pictures_range():
    beside = Beside(Runner([0.0, 1.0, 4.0], [0.0, 2.5]), Runner([0.0, 1.2, 4.0], [0.0, 2.0]))
    picture = np.zeros((2, 2, 3), np.uint8)
    assert beside(picture)["map"].tolist() == [0.0, 1.0, 4.0]
    assert beside.range_share["map"] == pytest.approx(0.2 / 4)
    beside(picture)
    assert beside.range_share["map"] == pytest.approx(0.25)


def test_a_flat_output_has_a_range_of_one():
    beside = Beside(Runner([3.0, 3.0]), Runner([3.5, 3.5]))
    beside(np.zeros((1, 1, 3), np.uint8))
    assert beside.range_share["map"] == pytest.approx(0.5)


def test_the_readme_shows_a_run(tmp_path):
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu" / "a.json").write_text(
        """{"file": "a.tflite", "images": 24, "data": "/x/facade", "metric": "pq", "cpu": 62.58, "accelerator": 62.54,
        "difference": -0.04, "difference_ci95": [-0.97, 1.12], "range_share": {"m": 0.11, "n": 0.02},
        "runtime": {"adapter": "llvmpipe", "adapter_kind": "CPU", "precision": "fp16"}}"""
    )
    text = results_markdown(tmp_path)
    cells = "| 24 of `facade` | llvmpipe (CPU) | fp16 | PQ 62.58 | 62.54 | -0.04 [-0.97, +1.12] | 0.11 of the range |"
    assert cells in text
