"""What `verify --layers` writes: a page that needs nothing from anywhere, JSON, a Model Explorer overlay; the verb."""

from __future__ import annotations

import html.parser
import json
import math
import re

import pytest
from layer_faults import channel_flipped, file_of, folder_of, planted, whole, wrongly_aligned

from edge_seg.commands.layers_page import depth_plot, layers_page
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.layers.model_explorer import node_data
from edge_seg.converters.layers.verify import verify_layers

pytestmark = pytest.mark.slow  # conversions, and kernels without speed


class Page(html.parser.HTMLParser):
    """Collects what a page would load, and the cells of its table."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.rows, self.heads, self._in = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data") and not (v or "#").startswith("#")]
        self._in = tag if tag in ("td", "button") else self._in
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "button"):
            (self.rows[-1] if tag == "td" else self.heads).append("")

    def handle_endtag(self, tag):
        self._in = "" if tag == self._in else self._in

    def handle_data(self, data):
        if self._in:
            (self.rows[-1] if self._in == "td" else self.heads)[-1] += data


def test_the_page_loads_nothing_and_is_forbidden_to():
    text = layers_page(whole("w8a8"))
    assert Page(text).loads == []
    assert "default-src 'none'" in text
    assert not re.search(r"@import|url\(\s*['\"]?http", text.split('<script id="plotly">')[0])


def test_the_table_has_a_row_for_each_layer_and_a_cell_for_each_column():
    report = whole("w8a8")
    page = Page(layers_page(report))
    rows = [row for row in page.rows if row]
    assert [row[1] for row in rows] == [layer.module for layer in report.layers]
    assert {len(row) for row in rows} == {len(page.heads)}
    assert "fp16 after every layer, emulated, dB" in page.heads


def test_names_from_a_file_are_text_on_the_page(tmp_path):
    def fault(model, graph):
        model.subgraphs[0].tensors[graph.ops[3].outputs[0]].name = b"<img src=x onerror=alert(1)>;stem"

    report = verify_layers(planted("fp32", fault, tmp_path), folder_of("fp32"))
    assert "<img" not in layers_page(report)
    assert "&lt;img" in layers_page(report)


def test_the_plot_marks_the_first_divergence_and_leaves_exact_layers_out(tmp_path):
    report = verify_layers(planted("w8a8", channel_flipped("lateral", 2), tmp_path), folder_of("w8a8"))
    plot = depth_plot(report)
    at = [row.module for row in report.layers].index("lateral")
    assert [s["x0"] for s in plot["layout"]["shapes"]] == [at]
    assert "shapes" not in depth_plot(whole("w8a8"))["layout"]
    alone = plot["data"][-1]["y"]
    assert all((y is None) == math.isinf(r.alone.snr_db) for y, r in zip(alone, report.layers, strict=True))
    assert "lateral" in plot["data"][0]["text"][at]


def test_the_overlay_has_the_schema_of_model_explorer(tmp_path):
    """Keys and types of ModelNodeData in Model Explorer's node_data_builder.py."""
    file = planted("w8a8", channel_flipped("lateral", 2), tmp_path)
    document = json.loads(json.dumps(node_data(verify_layers(file, folder_of("w8a8"))), allow_nan=False))
    assert list(document) == ["main"]
    assert set(document["main"]) == {"results", "thresholds"}
    written = {read_graph(file).tensors[t].name for op in read_graph(file).ops for t in op.outputs}
    results = document["main"]["results"]
    assert set(results) <= written
    assert len(results) == len(written)
    for result in results.values():
        assert set(result) <= {"value", "bgColor", "textColor"}
        assert isinstance(result["value"], int | float)
    coloured = [name for name, result in results.items() if "bgColor" in result]
    assert len(coloured) == 1
    assert "lateral" in coloured[0]
    values = [t["value"] for t in document["main"]["thresholds"]]
    assert values == sorted(values)
    assert all(re.fullmatch("#[0-9a-f]{6}", t["bgColor"]) for t in document["main"]["thresholds"])


def test_the_overlay_gives_noise_in_percent_of_the_signal():
    report = whole("w8a8")
    results = node_data(report)["main"]["results"]
    row = next(r for r in report.layers if r.module == "heads.0")
    assert 20 * math.log10(results[row.tensor]["value"] / 100) == pytest.approx(
        -row.cumulative["xnnpack"].snr_db, abs=1e-4
    )


def test_the_verb_prints_json_and_writes_page_and_overlay(edge_seg, tmp_path):
    page = tmp_path / "out" / "layers.html"
    done = edge_seg(
        "verify", file_of("qat_w8a8"), "--against", folder_of("qat_w8a8"), "--layers", "--html", page, "--json"
    )
    assert done.code == 0, done.err
    document = json.loads(done.out)
    assert document["passed"]
    assert document["first_divergence"] is None
    assert document["integer_mirror"]["max_lsb"] == 0
    assert len(document["layers"]) == len(whole("qat_w8a8").layers)
    assert {"module", "op", "tensor", "cumulative", "alone", "mirror"} <= set(document["layers"][0])
    assert [o["name"] for o in document["outputs"]] == ["semantic", "features"]
    names = ["layers.html", "layers.layers.json", "layers.model_explorer.json"]
    assert sorted(p.name for p in page.parent.iterdir()) == names
    assert json.loads((page.parent / names[1]).read_text())["layers"] == document["layers"]


@pytest.mark.parametrize(
    ("scheme", "fault", "module"),
    [
        ("qat_w8a8", wrongly_aligned("up.op"), "up.op"),  # the outputs' own check refuses to mirror such a file
        ("w8a8", channel_flipped("lateral", 2), "lateral"),
    ],
)
def test_a_divergence_ends_with_exit_code_1_and_its_name(scheme, fault, module, edge_seg, tmp_path):
    file = planted(scheme, fault, tmp_path)
    done = edge_seg("verify", file, "--against", folder_of(scheme), "--layers", "--json")
    assert done.code == 1
    document = json.loads(done.out)
    assert not document["passed"]
    assert document["first_divergence"]["module"] == module
    assert module in done.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--html", "p.html"), "--layers"),
        (("--layers", "--kernels", "gpu"), "reference kernels"),
        (("--second-interpreter",), "second interpreter"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, words, edge_seg):
    done = edge_seg("verify", file_of("fp32"), "--against", folder_of("fp32"), *options)
    assert done.code == 2
    assert words in done.err
