"""The README's results and the page of every one are made from committed documents, by one command."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from edge_seg.errors import InputError
from edge_seg.studies.results.page import (
    BEGIN,
    END,
    NOTHING,
    PAGE,
    main,
    page,
    readme,
    replace_block,
    results_markdown,
)

EVALUATION = {
    "name": "net, float",
    "scheme": "fp32",
    "data": "../somewhere/facade",
    "data_sha256": "a" * 64,
    "file_sha256": "0123456789abcdef",
    "metric": "pq",
    "pq": 25.125,
    "sq": 60.0,
    "rq": 30.0,
    "pq_th": 12.5,
    "pq_st": 37.75,
    "pq_ci95": [23.04, 27.26],
    "images": 107,
}
RECORD = {
    "model": "net",
    "sha256": "fedcba9876543210",
    "size_bytes": 3_456_789,
    "scheme": "w8a8",
    "profile": "host_cpu_1t",
    "device": {"cpu": "A CPU"},
    "runtime": {"name": "litert", "version": "2.3.0"},
    "median_ms": 4.321,
    "ci95_median_ms": [4.3, 4.35],
    "p90_ms": None,
    "n": 64,
    "kind": "measured",
    "valid": True,
}


def write(folder, name, document):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(document))


def test_the_readme_and_the_page_are_what_the_documents_give(root):
    text = (root / "README.md").read_text(encoding="utf-8")
    assert readme(text, root / "results") == text, "run `make results`"
    tables = (root / "results" / PAGE).read_text(encoding="utf-8")
    assert page(root / "results") == tables, "run `make results`"


def test_the_page_lists_its_subjects_and_leads_to_each(tmp_path):
    write(tmp_path, "a.json", EVALUATION)
    write(tmp_path, "bench.json", [RECORD])
    text = page(tmp_path)
    assert re.findall(r"^- \[(.*)\]\(#(.*)\)$", text, re.MULTILINE) == [("Accuracy", "accuracy"), ("Speed", "speed")]
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Accuracy", "Speed"]
    assert NOTHING in page(tmp_path / "missing")


def test_links_of_the_readme_into_the_page_lead_to_a_heading(root):
    headings = re.findall(r"^## (.*)$", (root / "results" / PAGE).read_text(encoding="utf-8"), re.MULTILINE)
    wanted = re.findall(rf"results/{re.escape(PAGE)}#([\w-]+)", (root / "README.md").read_text(encoding="utf-8"))
    assert wanted
    assert set(wanted) <= {heading.lower().replace(" ", "-") for heading in headings}


def test_without_documents_the_block_says_so(tmp_path):
    assert results_markdown(tmp_path) == NOTHING == "Not measured yet."
    assert results_markdown(tmp_path / "missing") == NOTHING


def test_an_evaluation_becomes_one_row_with_its_interval_and_hash(tmp_path):
    write(tmp_path, "a.json", EVALUATION)
    lines = results_markdown(tmp_path).splitlines()
    assert lines[0] == "## Accuracy"
    assert "`facade` (`val`, 107 pictures, data sha256 `aaaaaaaaaaaa`)" in lines[2]
    assert "somewhere" not in lines[2]
    assert lines[-1] == (
        "| net, float | `fp32` | 25.12 [23.0, 27.3] | 60.00 | 30.00 | 12.50 | 37.75 |  | `0123456789ab` |"
    )


def test_a_record_becomes_one_row_below_its_machine(tmp_path):
    write(tmp_path, "bench.json", [RECORD])
    lines = results_markdown(tmp_path).splitlines()
    assert "A CPU, litert 2.3.0" in lines[2]
    assert lines[-1] == (
        "| net | `w8a8` | 3.46 | `host_cpu_1t` | 4.32 [4.30, 4.35] |  | 64 | measured | `fedcba987654` |"
    )


def test_a_record_that_broke_its_protocol_says_so(tmp_path):
    write(tmp_path, "bench.json", [{**RECORD, "valid": False}])
    assert "measured, not valid" in results_markdown(tmp_path)


def test_data_sets_and_machines_get_tables_of_their_own(tmp_path):
    write(tmp_path, "a.json", EVALUATION)
    write(tmp_path, "b.json", {**EVALUATION, "name": "other", "images": 12})
    write(tmp_path, "c.json", {**EVALUATION, "name": "third"})
    write(tmp_path, "d.json", [RECORD, {**RECORD, "device": {"cpu": "Another"}}])
    text = results_markdown(tmp_path)
    assert text.count("**Accuracy**") == 2
    assert text.count("**Latency**") == 2
    first = text.split("**Accuracy**")[1]
    assert "net, float" in first
    assert "third" in first
    assert "other" not in first


def test_a_name_cannot_break_the_table(tmp_path):
    write(tmp_path, "a.json", {**EVALUATION, "name": "a | b"})
    assert "| a \\| b |" in results_markdown(tmp_path)


@pytest.mark.parametrize("document", [{}, {"pq": 1.0}, [1], [{"median_ms": 1}], "text", 3, None])
def test_a_document_that_is_no_result_is_refused_by_name(tmp_path, document):
    write(tmp_path, "odd.json", document)
    with pytest.raises(InputError, match=r"odd\.json is not a result"):
        results_markdown(tmp_path)


def test_only_the_block_is_replaced():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert replace_block(text, "new") == f"before\n{BEGIN}\nnew\n{END}\nafter\n"


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_marks_that_are_not_there_once_and_in_order_are_refused(text):
    with pytest.raises(InputError, match="no results block"):
        replace_block(text, "new")


def test_the_command_rewrites_the_file_and_says_what_is_wrong(tmp_path, capsys):
    file = tmp_path / "README.md"
    file.write_text(f"a\n{BEGIN}\n{END}\nb\n")
    write(tmp_path / "results", "a.json", EVALUATION)
    assert main([str(file), str(tmp_path / "results")]) == 0
    assert "| 25.1 [23.0, 27.3] |" in file.read_text()
    assert "25.12" in (tmp_path / "results" / PAGE).read_text()
    write(tmp_path / "results", "b.json", {})
    assert main([str(file), str(tmp_path / "results")]) == 2
    assert "b.json is not a result" in capsys.readouterr().err
    assert main([]) == 2


def test_the_command_needs_nothing_heavy():
    code = "import sys, edge_seg.studies.results.page\nprint([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_decoders_of_instance_networks_have_a_table(tmp_path):
    row = {"family": "solov2", "input_px": 320, "instances": 20, "median_ms": 4.29, "ci95_median_ms": [4.22, 4.33]}
    row |= {"min_ms": 2.81, "interval_met": False, "peak_bytes": 1_100_000}
    run = {"what": "instance_decoder", "source": "ellipses", "threads": 1, "real_time_priority": False, "rows": [row]}
    run |= {"device": {"cpu": None}, "command": "python -m it"}
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "a.json").write_text(json.dumps(run))
    text = results_markdown(tmp_path)
    assert "| solov2 | 320 | 20 | 4.29 [4.22, 4.33], wider than asked | 2.81 | 1.1 |" in text
    assert "an unnamed CPU" in text
