"""Verbs on converted files of a tiny network: the documents that scripts read, and what each exit code means."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_seg.converters.flatbuffer import read_graph
from edge_seg.studies.results.page import results_markdown

CONVERT_KEYS = {"file", "scheme", "route", "size_bytes", "sha256", "seconds", "ops", "transposes"}
RECORD_KEYS = {
    *("model", "sha256", "size_bytes", "scheme", "profile", "runner", "device", "runtime", "delegate_requested"),
    *("delegate_actual", "nodes_delegated", "nodes_total", "precision", "threads", "cpu_mask", "session", "n"),
    *("warmup_n", "accuracy", "median_ms", "p90_ms", "p95_ms", "p99_ms", "min_ms", "mad_ms", "ci95_median_ms"),
    *("early_stopping_p90_ms", "init_ms", "first_ms", "stages", "peak_memory_mb", "drift", "outliers", "environment"),
    *("kind", "valid", "warnings", "samples_file", "started_utc"),
}

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Converted:
    """A conversion by the installed program: the file, the exported folder, and what was printed."""

    file: Path
    exported: Path
    out: str
    err: str


@pytest.fixture(scope="module")
def converted(tiny_checkpoint, tmp_path_factory):
    """An fp32 file of the tiny network, made from its checkpoint."""
    folder = tmp_path_factory.mktemp("converted")
    command = [sys.executable, "-m", "edge_seg.cli", "convert", str(tiny_checkpoint), "--out", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Converted(folder / "maskconver_mnv2_256_fp32.tflite", folder / "exported", done.stdout, done.stderr)


@pytest.fixture
def photo(tmp_path):
    """A picture of 90 x 60 pixels."""
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "street.png")
    return tmp_path / "street.png"


def test_convert_prints_one_document_about_the_file_it_wrote(converted):
    document = json.loads(converted.out)
    assert set(document) >= CONVERT_KEYS
    assert document["file"] == str(converted.file)
    assert document["size_bytes"] == converted.file.stat().st_size
    assert document["sha256"] == hashlib.sha256(converted.file.read_bytes()).hexdigest()
    assert (document["scheme"], document["route"], document["transposes"]) == ("fp32", "litert", 0)


def test_convert_leaves_the_exported_folder_the_contract_and_manifests(converted):
    assert (converted.exported / "model.pt2").is_file()
    contract = converted.file.with_suffix(".contract.json")
    assert json.loads(contract.read_text())["model"]["scheme"] == "fp32"
    manifest = json.loads(converted.file.with_name(converted.file.name + ".manifest.json").read_text())
    assert manifest["sha256"] == hashlib.sha256(converted.file.read_bytes()).hexdigest()
    assert "model.pt2" in [p["path_name"] for p in manifest["parents"]]


def test_verify_passes_the_file_and_prints_figures_per_output(edge_seg, converted, photo):
    done = edge_seg("verify", converted.file, "--against", converted.exported, "--image", photo, "--json")
    document = done.json()
    assert done.code == 0
    assert document["passed"] is True
    names = {o["name"] for o in json.loads((converted.exported / "contract.json").read_text())["outputs"]}
    assert {o["name"] for o in document["outputs"]} == names
    assert all({"name", "max_abs", "snr_db", "cosine"} <= set(o) for o in document["outputs"])
    assert edge_seg("verify", converted.file, "--against", converted.exported).out.strip()


def test_verify_ends_with_one_when_a_weight_was_changed_and_still_prints_its_document(edge_seg, converted, tmp_path):
    graph = read_graph(converted.file)
    weight = next(graph.constant(i) for op in graph.ops for i in op.inputs[1:2] if op.name == "CONV_2D")
    data = converted.file.read_bytes()
    assert data.count(weight.tobytes()) == 1
    changed = tmp_path / converted.file.name
    changed.write_bytes(data.replace(weight.tobytes(), (weight * np.float32(1.2)).tobytes()))
    done = edge_seg("verify", changed, "--against", converted.exported, "--json")
    assert done.code == 1, done.err
    assert done.json()["passed"] is False
    assert "differs from PyTorch" in done.err


def test_verify_refuses_to_compare_a_file_with_a_folder_it_was_not_made_from(
    edge_seg, converted, tiny_checkpoint, tmp_path
):
    from safetensors import safe_open
    from safetensors.torch import save_file

    from edge_seg.export import export

    with safe_open(tiny_checkpoint, framework="pt") as file:
        header, tensors = dict(file.metadata()), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    next(t for t in tensors.values() if t.is_floating_point()).mul_(1.5)
    save_file(tensors, tmp_path / "other.safetensors", metadata=header)
    other = export(tmp_path / "other.safetensors", tmp_path / "other").folder
    done = edge_seg("verify", converted.file, "--against", other)
    assert done.code == 2
    assert "was not made" in done.err
    assert "next:" in done.err


@pytest.mark.parametrize("delegate", ["gpu", "xnnpack"])
def test_check_prints_the_verdict_of_a_delegate(edge_seg, converted, delegate):
    done = edge_seg("check", converted.file, "--delegate", delegate, "--json")
    document = done.json()
    assert {"delegate", "rules_version", "fully_delegable", "partitions", "refused"} <= set(document)
    assert (done.code, document["delegate"], document["fully_delegable"]) == (0, delegate, True)
    assert edge_seg("check", converted.file, "--delegate", delegate).out.strip()


def test_check_of_an_unknown_delegate_names_those_there_are(edge_seg, converted):
    done = edge_seg("check", converted.file, "--delegate", "gpuu")
    assert done.code == 2
    assert "did you mean gpu" in done.err


def test_evaluate_gives_a_file_the_score_of_its_checkpoint(edge_seg, converted, tiny_checkpoint):
    # The float file differs from PyTorch by rounding alone, and the decoder is the same.
    rest = ("--data", "synthetic:easy", "--limit", 3, "--json")
    torch = edge_seg("evaluate", tiny_checkpoint, *rest).json()
    tflite = edge_seg("evaluate", converted.file, *rest).json()
    assert tflite["pq"] == pytest.approx(torch["pq"], abs=0.2)
    assert tflite["data_sha256"] == torch["data_sha256"]
    assert (torch["scheme"], tflite["scheme"]) == ("torch", "fp32")


def test_predict_and_golden_read_a_converted_file(edge_seg, converted, photo, tmp_path):
    rows = edge_seg("predict", converted.file, photo, "--out", tmp_path / "p", "--json").json()
    assert rows[0]["image"] == "street.png"
    files = edge_seg("golden", converted.file, photo, "--out", tmp_path / "g", "--json").json()["files"]
    index = json.loads(Path(files[-1]).read_text())
    assert index["model_sha256"] == json.loads(converted.out)["sha256"]
    assert index["contract"]["model"]["scheme"] == "fp32"


@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_a_truncated_file_is_refused_by_every_verb_that_reads_what_is_missing(
    edge_seg, converted, photo, tmp_path, share
):
    cut = tmp_path / "cut.tflite"
    data = converted.file.read_bytes()
    cut.write_bytes(data[: int(len(data) * share)])
    calls = [
        ("evaluate", cut, "--data", "synthetic:easy", "--limit", 1),
        ("verify", cut, "--against", converted.exported),
        ("predict", cut, photo, "--out", tmp_path / "p"),
    ]
    # The contract is the file's last part; the graph, which is all that `check` reads, may be whole without it.
    for arguments in calls if share > 0.9 else [*calls, ("check", cut)]:
        done = edge_seg(*arguments)
        assert done.code == 2
        assert done.err.startswith("error: ")
        assert "cut.tflite" in done.err


def test_benchmark_writes_the_records_it_prints_and_the_readme_can_show_them(edge_seg, converted, tmp_path):
    results = tmp_path / "r.json"
    done = edge_seg("benchmark", converted.file, "--images", 2, "--out", results, "--json")
    assert done.code == 0, done.err
    records = done.json()
    assert records == json.loads(results.read_text())
    assert set(records[0]) >= RECORD_KEYS
    assert (records[0]["profile"], records[0]["kind"], records[0]["threads"]) == ("host_cpu_1t", "measured", 1)
    assert records[0]["sha256"] == json.loads(converted.out)["sha256"]
    low, high = records[0]["ci95_median_ms"]
    assert low <= records[0]["median_ms"] <= high
    assert (tmp_path / records[0]["samples_file"]).is_file()
    assert done.err != ""  # progress
    evaluation = edge_seg("evaluate", converted.file, "--data", "synthetic:easy", "--limit", 1, "--json").json()
    (tmp_path / "a.json").write_text(json.dumps({"name": "tiny", **evaluation}))
    text = results_markdown(tmp_path)
    assert "| tiny | `fp32` |" in text
    assert "| `host_cpu_1t` |" in text


def test_benchmark_takes_no_longer_than_asked(edge_seg, converted, tmp_path):
    results = tmp_path / "r.json"
    done = edge_seg("benchmark", converted.file, "--images", 1, "--max-time-s", 0.2, "--out", results, "--json")
    assert done.code == 0, done.err
    assert done.json()[0]["protocol"]["max_time_s"] == 0.2
    for wrong in (0, -1, "nan", "inf"):
        again = edge_seg("benchmark", converted.file, "--max-time-s", wrong, "--out", tmp_path / "never.json")
        assert (again.code, "seconds > 0" in again.err) == (2, True)
    alone = edge_seg("benchmark", converted.file, "--ratio-ci-pct", 2, "--out", tmp_path / "never.json")
    assert (alone.code, "no ratio" in alone.err) == (2, True)
    assert not (tmp_path / "never.json").exists()


def test_a_file_moved_without_its_neighbours_still_runs(edge_seg, converted, photo, tmp_path):
    alone = tmp_path / "alone" / "renamed.tflite"
    alone.parent.mkdir()
    shutil.copy(converted.file, alone)
    done = edge_seg("predict", alone, photo, "--out", tmp_path / "p", "--json")
    assert done.code == 0, done.err
