"""The README shows a line per network: from which documents, and what it leaves to the page of every figure."""

import dataclasses

from edge_seg.studies.results.documents import read_results
from edge_seg.studies.results.summary import summary_markdown


def evaluation(name, scheme, pq, **more):
    ends = [pq - 1, pq + 1]
    return {"name": name, "scheme": scheme, "pq": pq, "pq_ci95": ends, "images": 7, "data": "a/photos"} | more


def summary(tmp_path, **given):
    return summary_markdown(dataclasses.replace(read_results(tmp_path), **given))


def rows(text):
    return [line for line in text.splitlines() if line.startswith("| ")][2:]


def test_a_network_is_one_line_with_every_scheme(tmp_path):
    evaluations = [
        evaluation("net, PyTorch", "torch", 50.0),
        evaluation("net, fp32 file", "fp32", 50.25),
        evaluation("net, w8a8 file", "w8a8", 49.0),
        evaluation("net, PyTorch, retrained on int8 grids", "torch", 51.0),
        evaluation("net, qat_w8a8 file", "qat_w8a8", 50.5),
        evaluation("PyTorch, other settings of the decoder", "torch", 10.0),
        evaluation("quick, fp32 file", "fp32", 33.0, command="edge-seg quickstart"),
    ]
    found = rows(summary(tmp_path, evaluations=evaluations))
    assert found == ["| net | 7 of `photos` | PQ | 50.2 [49.2, 51.2] |  |  | 49.0 | 50.5 |"]


def test_a_comparison_of_files_stands_instead_of_the_evaluations_of_its_network(tmp_path):
    files = [{"file": "net_fp32.tflite"}]
    row = {"title": "fp32", "files": files, "value": 50.0, "value_ci95": [49.0, 51.0]}
    kept = {"metric": "pq", "images": 7, "data": "b/photos", "rows": [row, {**row, "title": "fp16", "value": 49.5}]}
    evaluations = [evaluation("net, fp32 file", "fp32", 12.0), evaluation("other, fp32 file", "fp32", 13.0)]
    found = rows(summary(tmp_path, kept=[kept, {**kept, "name": "net made hard"}], evaluations=evaluations))
    assert found == [
        "| net | 7 of `photos` | PQ | 50.0 [49.0, 51.0] | 49.5 |  |  |  |",
        "| net made hard | 7 of `photos` | PQ | 50.0 [49.0, 51.0] | 49.5 |  |  |  |",
        "| other | 7 of `photos` | PQ | 13.0 [12.0, 14.0] |  |  |  |  |",
    ]


def test_times_stand_beside_the_peers_and_what_has_no_such_ratio_is_left_out(tmp_path):
    def row(network, scheme, ms, ratio):
        of_peer = {"Peer": ratio and [ratio - 0.1, ratio, ratio + 0.1]}
        return {"network": network, "scheme": scheme, "macs_graph": 2.5e9, "median_ms": ms, "of_peer": of_peer}

    found = [row("plain", "fp32", 1.0, None), row("net", "fp32", 4.04, 0.5), row("net", "w8a8", 2.0, 1.256)]
    run = {"threads": 1, "device": {"cpu": "made up"}, "rows": [*found, row("Peer", "fp32", 8.0, 1.0)]}
    text = summary(tmp_path, speeds=[run, {"what": "decoder"}])
    assert "made up" in text
    assert "not on a phone" in text
    assert rows(text) == ["| net | 2.50 | 4.0 | 2.0 | 0.50 | 1.26 |", "| Peer | 2.50 | 8.0 |  | 1.00 |  |"]


def test_choices_are_told_by_verdict_and_other_groups_are_not(tmp_path):
    def choice(change, value, verdict, group="main"):
        return {"change": change, "difference": {"value": value}, "verdict": verdict, "group": group}

    missing = {"change": "never run", "difference": None, "verdict": "missing", "group": "main"}
    found = [choice("a", 0.3, "noise"), choice("b", -3.25, "worse"), choice("c", -4.0, "worse", "lite"), missing]
    text = summary(tmp_path, ablation={"data": "photos", "epochs": 20.0, "seeds": [0, 1], "rows": found})
    assert text.endswith("**worse**: b (-3.2); **within the noise**: a (+0.3).")


def test_without_documents_there_is_nothing(tmp_path):
    assert summary(tmp_path) == ""
