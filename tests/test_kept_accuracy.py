"""The study that says what share of the float accuracy other files keep."""

import json

import numpy as np
import pytest

from edge_seg.contract import ClassInfo
from edge_seg.data.sample import Segment
from edge_seg.errors import InputError
from edge_seg.evaluation.panoptic_quality import PanopticQuality
from edge_seg.studies import kept_accuracy
from edge_seg.studies.results_table import results_markdown


def quality(hits):
    """PQ over pictures of 2 x 2 pixels with one segment each, found in those where `hits` is true."""
    found = PanopticQuality((ClassInfo(1, "thing", True, (0, 0, 0)),))
    segment, full, empty = Segment(1, 0), np.ones((2, 2), np.int32), np.zeros((2, 2), np.int32)
    for hit in hits:
        found.update(full if hit else empty, (segment,) if hit else (), full, (segment,))
    return found


def a_row(tmp_path, title, base, *scores):
    files = [tmp_path / f"{title}_{n}.tflite" for n in range(len(scores))]
    for file in files:
        file.write_bytes(title.encode())
    return kept_accuracy.row(title, files, scores, base)


def test_a_share_is_one_for_the_same_scores_and_the_median_of_seeds_counts(tmp_path):
    base = quality([1] * 30 + [0] * 10)
    same = a_row(tmp_path, "same", base, base)
    assert (same["share"], same["share_ci95"]) == (1.0, [1.0, 1.0])
    seeds = [quality([1] * n + [0] * (40 - n)) for n in (10, 24, 30)]
    row = a_row(tmp_path, "seeds", base, *seeds)
    assert row["value"] == pytest.approx(seeds[1].value(), abs=1e-3)
    assert row["share"] == pytest.approx(seeds[1].value() / base.value(), abs=1e-3)
    low, high = row["share_ci95"]
    assert low < row["share"] < high < 1.0
    assert [f["value"] for f in row["files"]] == [round(s.value(), 3) for s in seeds]


def test_the_readme_shows_it(tmp_path):
    base = quality([1] * 30 + [0] * 10)
    found = {
        "metric": "pq",
        "data": "/somewhere/facade",
        "images": 40,
        "command": "python -m it",
        "rows": [a_row(tmp_path, "int8", base, quality([1] * 27 + [0] * 13))],
    }
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a.json").write_text(json.dumps(found))
    text = results_markdown(tmp_path)
    assert "/somewhere" not in text
    row = found["rows"][0]
    assert f"| int8 | {row['value']:.2f} | {row['share']:.4f} |" in text
    assert "keeps" in kept_accuracy.text(found)


def test_a_file_without_a_title_is_refused():
    with pytest.raises(InputError, match="needs a title"):
        kept_accuracy._titled(["a.tflite"])
    assert list(kept_accuracy._titled(["a=1", "b=2", "a=3"])) == ["a", "b"]
