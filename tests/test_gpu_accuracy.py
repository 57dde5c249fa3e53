"""The study of the accelerator's arithmetic, with stand-ins for both runners."""

import numpy as np
import pytest

from edge_seg.studies.gpu_accuracy import Beside
from edge_seg.studies.results_table import results_markdown


class Runner:
    contract, constants = "contract", {}

    def __init__(self, *outputs):
        self.answers = iter(outputs)

    def __call__(self, _input):
        return {"map": np.array(next(self.answers), np.float32)}


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
