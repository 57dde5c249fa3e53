"""The whole chain on a network too small to be good: every step runs on real files and the report is complete."""

import json
from pathlib import Path

import pytest

from edge_seg.quickstart import SCHEMES, default_out, published_decoder, quickstart, summary

TINY = (
    "model.input_px=64",
    "optim.steps=6",
    "optim.batch_size=2",
    "run.eval_every=0",
    "run.eval_limit=2",
    "run.threads=1",
)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart")
    return out, quickstart("synthetic:easy", out, overrides=TINY, limit=4)


@pytest.mark.slow
def test_the_chain_scores_pytorch_and_every_file(done):
    _, document = done
    assert set(document["pq"]) == {"torch", *SCHEMES}
    assert all(0 <= v <= 100 for v in document["pq"].values())


@pytest.mark.slow
def test_the_chain_leaves_one_file_per_scheme_and_a_report(done):
    out, document = done
    assert len(document["files"]) == len(SCHEMES)
    page = (out / "report.html").read_text(encoding="utf-8")
    for scheme in SCHEMES:
        assert f"_{scheme}.tflite" in page
    assert "is not in this folder" not in page
    assert "edge-seg quickstart --data synthetic:easy model.input_px=64" in page


@pytest.mark.slow
def test_the_fp32_file_equals_pytorch_and_the_graph_is_clean(done):
    out, _ = done
    verified = json.loads((out / "verify" / "fp32.json").read_text())
    assert all(o["snr_db"] > 95 for o in verified["outputs"])  # six steps: the range of the outputs is still tiny
    converted = json.loads((out / "convert" / "fp32.json").read_text())
    assert converted["transposes"] == 0
    checked = json.loads((out / "check" / "fp32_gpu.json").read_text())
    assert checked["fully_delegable"]


@pytest.mark.slow
def test_the_int8_file_is_one_xnnpack_partition(done):
    out, document = done
    checked = json.loads((out / "check" / "w8a8_xnnpack.json").read_text())
    assert checked["partitions"] == 1
    from edge_seg.converters.interpreter import TfliteRunner

    file = next(Path(f) for f in document["files"] if f.endswith("_w8a8.tflite"))
    assert TfliteRunner(file).xnnpack_partitions().partitions == 1


def test_the_published_minimum_area_is_256_pixels_of_the_input():
    assert published_decoder(256)["min_area_share"] * 256 * 256 == pytest.approx(256)
    assert published_decoder(640)["min_area_share"] * 640 * 640 == pytest.approx(256)


def test_each_data_set_has_a_folder_of_its_own():
    assert str(default_out("synthetic:easy")) == "runs/quickstart"
    assert str(default_out("synthetic:hard:3")) == "runs/quickstart_synthetic_hard_3"
    assert str(default_out("../some where/Facade")) == "runs/quickstart_facade"


def test_the_summary_prints_both_controls():
    controls = {
        "shift by 8 px": {"pq": 20.0},
        "swap a and b": {"pq": 50.0, "classes": ["a", "b"], "pq_classes_before": 60.0, "pq_classes": 0.0},
    }
    text = summary({"metric": "pq", "pq": {"torch": 61.5}, "controls": controls, "seconds": 12.0, "report": "r.html"})
    assert "shift by 8 px: PQ 20.0" in text
    assert "60.0 -> 0.0" in text
    assert "r.html" in text
