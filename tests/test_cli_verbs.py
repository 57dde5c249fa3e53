"""Verbs on a tiny network: what they print, what they write, what `--json` promises."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from edge_seg.models.base import MODELS


@pytest.fixture
def photo(tmp_path):
    """A picture of 90 x 60 pixels."""
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "street.png")
    return tmp_path / "street.png"


def test_models_lists_every_registered_network(edge_seg):
    done = edge_seg("models", "--json", "--num-classes", 7)
    rows = done.json()
    assert done.code == 0
    assert [r["name"] for r in rows] == MODELS.names()
    for row in rows:
        assert {"name", "family", "input_px", "params", "macs", "decoder", "outputs"} <= set(row)
        assert row["num_classes"] == 7


def test_models_describes_one_network_at_another_size(edge_seg):
    own = edge_seg("models", "maskconver_mnv2_256", "--json").json()
    double = edge_seg("models", "maskconver_mnv2_256", "--input", 512, "--json").json()
    assert (own["input_px"], double["input_px"]) == (256, 512)
    assert double["params"] == own["params"]
    # Every map has four times the cells, but for ASPP's pooled one, whose 1x1 takes 320 channels to 256.
    assert double["macs_graph"] == 4 * own["macs_graph"] - 3 * 320 * 256


def test_models_prints_a_table_for_people(edge_seg):
    head, row = edge_seg("models", "maskconver_mnv2_256", "--num-classes", 7).out.splitlines()
    assert head.split() == ["name", "input", "params", "GMAC", "graph", "decoder"]
    assert row.split()[:2] == ["maskconver_mnv2_256", "256px"]


def test_profiles_lists_those_of_the_package(edge_seg, root):
    rows = edge_seg("profiles", "--json").json()
    files = sorted(p.stem for p in (root / "benchmarks" / "profiles").glob("*.toml"))
    assert [r["name"] for r in rows] == files
    assert all({"name", "soc", "runner", "delegates"} <= set(r) for r in rows)
    assert edge_seg("profiles", files[0], "--json").json() == rows[0]
    assert files[0] in edge_seg("profiles").out


def test_doctor_prints_one_document_and_works_here():
    command = [sys.executable, "-m", "edge_seg.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    checks = json.loads(done.stdout)["checks"]
    assert all({"name", "ok", "detail", "fix"} <= set(c) for c in checks)
    required = {c["name"]: c["ok"] for c in checks if c["required"]}
    assert {"python", "torch", "litert-torch", "ai-edge-quantizer"} <= set(required)
    assert done.returncode == (0 if all(required.values()) else 3)
    assert all(c["fix"] for c in checks if not c["ok"])


def test_doctor_ends_with_three_where_something_required_is_missing(edge_seg, monkeypatch):
    from edge_seg import doctor

    missing = doctor.Check("torch", False, "not installed", "install it")
    optional = doctor.Check("adb", False, "not found", "", required=False)
    monkeypatch.setattr(doctor, "_CHECKS", (lambda: missing, lambda: optional))
    done = edge_seg("doctor", "--json")
    assert done.code == 3
    assert [c["name"] for c in done.json()["checks"]] == ["torch", "adb"]
    assert "Not working here: torch." in done.err


def test_a_package_that_is_not_installed_is_a_line_of_the_doctor_not_a_crash():
    from edge_seg.doctor import _package

    check = _package("nothing", "no_such_module_anywhere")()
    assert not check.ok
    assert "ModuleNotFoundError" in check.detail
    assert "make install" in check.fix


def test_export_writes_the_folder_it_names(edge_seg, tiny_checkpoint, tmp_path):
    document = edge_seg("export", tiny_checkpoint, "--out", tmp_path / "e", "--json").json()
    assert set(document) == {"exported", "contract", "sha256"}
    assert document["exported"] == str(tmp_path / "e" / "model.pt2")
    names = {p.name for p in (tmp_path / "e").iterdir()}
    files = {"model.pt2", "contract.json", "decoder.safetensors", "reference.npz"}
    assert names == files | {f"{n}.manifest.json" for n in files}


def test_evaluate_scores_a_checkpoint(edge_seg, tiny_checkpoint):
    arguments = ("evaluate", tiny_checkpoint, "--data", "synthetic:easy", "--limit", 3, "--controls", "--json")
    document = edge_seg(*arguments).json()
    assert {"metric", "pq", "sq", "rq", "pq_th", "pq_st", "per_class", "images"} <= set(document)
    assert (document["metric"], document["images"], document["data"]) == ("pq", 3, "synthetic:easy")
    assert len(document["per_class"]) == 8
    assert len(document["controls"]) == 2
    assert 0 <= document["pq"] <= 100
    assert document["decoder"]["top_k"] == 50


def test_evaluate_records_the_decoder_parameters_it_was_given(edge_seg, tiny_checkpoint):
    arguments = ("evaluate", tiny_checkpoint, "--data", "synthetic:easy", "--limit", 1, "--json")
    document = edge_seg(*arguments, "--set", "top_k=3", "--set", "score_threshold=0.2").json()
    assert (document["decoder"]["top_k"], document["decoder"]["score_threshold"]) == (3, 0.2)


def test_evaluate_prints_text_for_people(edge_seg, tiny_checkpoint):
    done = edge_seg("evaluate", tiny_checkpoint, "--data", "synthetic:easy", "--limit", 1)
    assert done.code == 0
    assert done.out.startswith("PQ ")
    assert "on 1 images" in done.out


def test_predict_writes_overlay_ids_and_segments_at_the_size_of_the_picture(edge_seg, tiny_checkpoint, photo, tmp_path):
    rows = edge_seg("predict", tiny_checkpoint, photo, "--out", tmp_path / "p", "--json").json()
    assert {p.name for p in (tmp_path / "p").iterdir()} == {
        "street.overlay.png",
        "street.ids.png",
        "street.segments.json",
    }
    assert [r["image"] for r in rows] == ["street.png"]
    assert rows[0] == json.loads((tmp_path / "p" / "street.segments.json").read_text())
    assert {"segments", "pre_ms", "run_ms", "post_ms"} < set(rows[0])
    with Image.open(tmp_path / "p" / "street.ids.png") as ids:
        assert ids.size == (90, 60)
        rgb = np.asarray(ids.convert("RGB")).astype(int)
    id_map = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
    assert set(np.unique(id_map)) - {0} == {s["id"] for s in rows[0]["segments"]}
    for segment in rows[0]["segments"]:
        assert set(segment) == {"id", "category_id", "name", "isthing", "score", "area_px", "bbox_xywh_px"}
        y, x = np.nonzero(id_map == segment["id"])
        box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        assert segment["bbox_xywh_px"] == box
        assert segment["area_px"] == len(x)


def test_predict_with_a_threshold_nothing_reaches_gives_an_empty_picture(edge_seg, tiny_checkpoint, photo, tmp_path):
    arguments = ("predict", tiny_checkpoint, photo, "--out", tmp_path / "p", "--json")
    rows = edge_seg(*arguments, "--set", "score_threshold=0.999").json()
    assert rows[0]["segments"] == []


def test_golden_files_have_the_bytes_their_index_promises(edge_seg, tiny_checkpoint, photo, tmp_path):
    files = edge_seg("golden", tiny_checkpoint, photo, "--out", tmp_path / "g", "--json").json()["files"]
    assert {p.name for p in (tmp_path / "g").iterdir()} == {f.rpartition("/")[2] for f in files}
    index = json.loads((tmp_path / "g" / "index.json").read_text())
    arrays = {
        a["name"]: np.frombuffer(
            (tmp_path / "g" / a["file"]).read_bytes(), np.dtype(a["dtype"]).newbyteorder("<")
        ).reshape(a["shape"])
        for a in index["pictures"][0]["arrays"]
    }
    with Image.open(photo) as image:
        np.testing.assert_array_equal(arrays["image"], np.asarray(image))
    assert arrays["input"].shape == (64, 64, 3)
    assert arrays["id_map"].shape == (60, 90)
    names = {f"output_{o['name']}" for o in index["contract"]["outputs"]}
    assert names == {n for n in arrays if n.startswith("output_")}
    assert set(np.unique(arrays["id_map"])) - {0} == {s["id"] for s in index["pictures"][0]["segments"]}


def test_golden_files_are_the_same_every_time(edge_seg, tiny_checkpoint, photo, tmp_path):
    for folder in ("a", "b"):
        edge_seg("golden", tiny_checkpoint, photo, "--out", tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
