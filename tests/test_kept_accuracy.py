"""The study that says what share of the float accuracy other files keep."""

import json

import numpy as np
import pytest

from edge_seg.contract import ClassInfo
from edge_seg.data.sample import Segment
from edge_seg.decoders.base import Instance, InstanceResult
from edge_seg.decoders.run_lengths import RunLengths
from edge_seg.errors import InputError
from edge_seg.evaluation.average_precision import AveragePrecision, TrueObject
from edge_seg.evaluation.panoptic_quality import PanopticQuality
from edge_seg.studies import kept_accuracy
from edge_seg.studies.results.page import results_markdown


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


def precision(hits):
    """AP over pictures of 8 x 8 pixels with one object each, found exactly in those where `hits` is true."""
    found = AveragePrecision((ClassInfo(1, "thing", True, (0, 0, 0)),))
    mask = RunLengths.from_mask(np.pad(np.ones((4, 4), bool), 2))
    for hit in hits:
        instances = (Instance(0, 0.9, (0.0, 0.0, 0.0, 0.0), mask),) if hit else ()
        found.update(InstanceResult((8, 8), instances), [TrueObject(0, False, mask)])
    return found


def test_instance_networks_have_ap50_and_boundary_ap_with_intervals_too(tmp_path):
    base, other = precision([1] * 30 + [0] * 10), precision([1] * 24 + [0] * 16)
    row = a_row(tmp_path, "int8", base, other)
    assert set(row["figures"]) == {"ap50", "boundary_ap"}
    for name, figure in row["figures"].items():
        assert figure["value"] == pytest.approx(other.figures()[name], abs=1e-3)
        assert figure["share"] == pytest.approx(other.figures()[name] / base.figures()[name], abs=1e-4)
        assert figure["share_ci95"][0] < figure["share"] < figure["share_ci95"][1]
    (tmp_path / "kept").mkdir()
    document = {"metric": "ap", "data": "animals", "images": 40, "command": "python -m it", "rows": [row]}
    (tmp_path / "kept" / "a.json").write_text(json.dumps(document))
    text = results_markdown(tmp_path)
    assert "| AP50 (share) | boundary AP (share) |" in text
    assert f"| {row['figures']['ap50']['value']:.2f} ({row['figures']['ap50']['share']:.3f}) |" in text


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
    low, high = row["value_ci95"]
    assert f"| int8 | {row['value']:.2f} [{low:.1f}, {high:.1f}] | {row['share']:.4f} |" in text
    assert "keeps" in kept_accuracy.text(found)


def test_a_file_without_a_title_is_refused():
    with pytest.raises(InputError, match="needs a title"):
        kept_accuracy._titled(["a.tflite"])
    assert list(kept_accuracy._titled(["a=1", "b=2", "a=3"])) == ["a", "b"]
