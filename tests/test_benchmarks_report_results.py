"""The page of results files: each part is there or said to be absent, doubts have badges, kinds are never mixed."""

import csv
import dataclasses
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from benchmarks_run_folder import record, sha
from click.testing import CliRunner

from edge_seg.benchmarks.report import write_page
from edge_seg.benchmarks.report_metric import METRICS
from edge_seg.benchmarks.report_pareto import Point, pareto_line
from edge_seg.benchmarks.report_results import Beside, load_results_input
from edge_seg.benchmarks.report_samples import PARTS, thinned
from edge_seg.commands.report import report
from edge_seg.errors import ArtifactError, InputError

PARTS_OF_PAGE = (
    "summary",
    "tradeoff",
    "latency",
    "samples",
    "sustained",
    "gpu",
    "devices",
    "operations",
    "provenance",
)
EVIL = "=</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&|[a](javascript:b)"
OPERATIONS = {
    "kind": "measured",
    "device": {"cpu": "A made-up CPU"},
    "environment": {"foreign_cpu_pct": 40.0},
    "profiles": [
        {
            "file": "net_a_w8a8.tflite",
            "threads": 1,
            "whole_ms": 7.5,
            "sum_ms": 8.0,
            "by_kind": {"convolution 1x1": {"operators": 2, "ms": 5.0}, "ADD": {"operators": 1, "ms": 3.0}},
            "operations": [
                {"index": 0, "kind": "ADD", "module": "neck.add", "output_shape": [1, 8, 8, 4], "median_ms": 3.0}
            ],
        }
    ],
}


class Page(HTMLParser):
    """Text and tables of each section, badges, plots, tags."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.specs, self.tags, self.tables, self.badges = {}, {}, [], [], []
        self._section, self._spec, self._cell, self._badge = "", "", False, False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag == "section":
            self._section = attrs["id"]
            self.texts[self._section] = ""
        elif tag == "table":
            self.tables.append((self._section, []))
        elif tag == "tr":
            self.tables[-1][1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][1][-1].append("")
            self._cell = True
        self._badge = tag == "span" and "badge" in attrs.get("class", "")
        self._spec = attrs["data-for"] if tag == "script" and attrs.get("class") == "spec" else ""

    def handle_endtag(self, tag):
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._spec:
            self.specs[self._spec] = json.loads(data)
            self._spec = ""
            return
        self.texts[self._section] = self.texts.get(self._section, "") + data
        if self._cell:
            self.tables[-1][1][-1][-1] += data
        if self._badge:
            self.badges.append(data)

    def rows(self, section, title):
        """Rows as dicts of the table of a section that has a column of that title."""
        found = next(rows for at, rows in self.tables if at == section and title in rows[0])
        return [dict(zip(found[0], row, strict=True)) for row in found[1:]]


def _net(name, scheme, threads=1, **changes):
    item, samples = record(scheme, threads, np.random.default_rng(len(name + scheme)), model=name)
    own = {
        "sha256": sha(name + scheme),
        "samples_file": f"samples/{name}_{scheme}_{changes.get('profile', threads)}.npz",
    }
    return dataclasses.replace(item, **{**own, **changes}), samples


def _gpu(name, scheme, **changes):
    base = {"profile": "host_gpu", "runner": "host_gpu", "kind": "emulated", "valid": False, "median_ms": 7777.0}
    base |= {"ci95_median_ms": [7700.0, 7800.0], "delegate_requested": "gpu", "delegate_actual": "gpu"}
    base |= {"nodes_delegated": 126, "nodes_total": 126, "device": {"name": "host", "gpu": "SwiftShader"}}
    return _net(name, scheme, **{**base, **changes})


def _sustained(name, scheme):
    drift = {"slope_pct_per_min": 3.0, "trend_p": 1e-9, "throttled": True, "throttled_at_s": 181.0}
    drift |= {"first_window_ms": 20.0, "last_window_ms": 26.0, "changes": [{"at_s": 180.0, "change_pct": 30.0}]}
    protocol = {"mode": "sustained", "minutes": 6.0, "target_fps": 15.0, "frames": 5400, "missed": 12}
    return _net(name, scheme, drift=drift, protocol=protocol, samples_file="samples/sustained.npz")


def _write(folder, pairs, name="results.json"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps([item.to_json() for item, _ in pairs]))
    for item, samples in pairs:
        if samples is not None:
            samples.save(folder / item.samples_file)
    return folder / name


def _evaluation(folder, item, key, value):
    path = folder / f"eval_{item.sha256}.json"
    ends = [value - 2.0, value + 1.5]
    document = {key: value, f"{key}_ci95": ends, "file_sha256": item.sha256, "data": f"d/{key}", "images": 9}
    path.write_text(json.dumps(document))
    return path


def _page(results, out, beside=None):
    written = write_page(load_results_input(results, beside), out)
    whole = written.html.read_text(encoding="utf-8")
    own = re.sub(r'<script id="plotly">.*?</script>', "", whole, flags=re.DOTALL)
    return Page(own), own, written


def _rows(path):
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Three schemes of two models on three profiles, with everything that can be shown beside them."""
    folder = tmp_path_factory.mktemp("results")
    nets = [(name, scheme) for name in ("net_a", "net_b") for scheme in ("fp32", "w8_dynamic", "w8a8")]
    pairs = [_net(*net, threads) for threads in (1, 2) for net in nets] + [_gpu(*net) for net in nets]
    pairs[0] = (dataclasses.replace(pairs[0][0], valid=False, warnings=["too noisy"]), pairs[0][1])
    pairs[1] = (dataclasses.replace(pairs[1][0], drift={**pairs[1][0].drift, "throttled": True}), pairs[1][1])
    estimate = {"kind": "estimated", "profile": "pixel_8", "valid": False, "median_ms": 5555.0}
    pairs.append(_net("net_a", "w8a8", **estimate))
    results = _write(folder, [*pairs, _sustained("net_a", "w8a8")])
    scores = {"net_a": ("ap", 50.0), "net_b": ("pq", 30.0)}
    first = {item.sha256: item for item, _ in pairs}.values()
    accuracy = [_evaluation(folder, item, *scores[item.model]) for item in first]
    (folder / "operations.json").write_text(json.dumps(OPERATIONS))
    check = {"file": "net_a_w8a8.tflite", "file_sha256": sha("net_aw8a8"), "delegate": "gpu", "fully_delegable": True}
    beside = Beside(accuracy, [folder / "operations.json"], [{**check, "partitions": 1, "refused": []}])
    page, own, written = _page([results], folder / "report.html", beside)
    return page, own, written, [item for item, _ in pairs], folder


def test_every_part_is_on_the_page_when_its_data_is_there(full):
    page, _, written, _, _ = full
    assert tuple(page.texts)[1:] == PARTS_OF_PAGE  # the first is the head, outside all sections
    assert "Not run" not in "".join(page.texts.values())
    names = {re.sub(r"\d+$", "", name) for name in page.specs}
    assert names == {"plot-tradeoff", "plot-stages", "plot-samples", "plot-sustained", "plot-operations"}
    assert written.markdown.is_file()
    assert written.csv.is_file()


def test_a_part_without_data_is_a_plain_sentence(tmp_path):
    item, samples = _net("net_a", "fp32")
    page, _, _ = _page([_write(tmp_path, [(item, samples)])], tmp_path / "r.html")
    for part in ("tradeoff", "sustained", "gpu", "operations"):
        assert "Not run: " in page.texts[part], part
    (tmp_path / item.samples_file).unlink()
    page, _, _ = _page([tmp_path / "results.json"], tmp_path / "r.html")
    assert "No raw samples" in page.texts["samples"]


def test_every_measured_median_of_the_latency_table_is_the_one_of_its_record(full):
    page, _, _, records, _ = full
    rows = page.rows("latency", "p99")
    told = {(row["file"], row["profile"]): float(row["median"].replace("\u202f", "")) for row in rows}
    measured = [item for item in records if item.kind == "measured"]
    assert len(rows) == len(measured) == 12
    for item in measured:
        assert told[f"{item.model} {item.scheme}", item.profile] == pytest.approx(item.median_ms, rel=6e-3)


def test_each_doubt_has_its_badge_in_the_row_of_its_record_and_no_other_row_has_one(full):
    page, _, _, _, _ = full
    marks = {(row["file"], row["profile"]): row[""] for row in page.rows("latency", "p99")}
    assert marks.pop(("net_a fp32", "host_cpu_1t")) == "invalid"
    assert marks.pop(("net_a w8_dynamic", "host_cpu_1t")) == "throttled"
    assert set(marks.values()) == {"measured"}
    assert {row[""] for row in page.rows("latency", "emulated median")} == {"emulatedinvalid"}
    assert {row[""] for row in page.rows("latency", "estimated median")} == {"estimatedinvalid"}
    # 18 + an estimate + a sustained run; sound: 12 measured less the invalid one and the throttled one
    counts = ("10 fit to quote", "6 emulated", "1 estimated", "1 invalid", "2 throttled")
    assert all(text in page.texts["summary"] for text in counts)


def test_emulated_and_estimated_times_stand_in_no_table_plot_or_column_of_measured_ones(full):
    page, _, written, _, _ = full
    for section, rows in page.tables:
        values = {cell for row in rows[1:] for cell in row}
        if values & {"7\u202f777", "5\u202f555"}:
            assert section == "latency"
            assert rows[0][3] in ("emulated median", "estimated median")
    for name in ("tradeoff", "tradeoff1", "stages0", "stages1"):
        drawn = json.dumps(page.specs[f"plot-{name}"]["data"])
        assert "7777" not in drawn
        assert "host_gpu" not in drawn
    for row in _rows(written.csv):
        times = [row[k] for k in ("median_ms", "ci95_low_ms", "p90_ms", "min_ms", "init_ms", "first_ms", "pre_ms")]
        assert any(times) == (row["kind"] == "measured")
        assert bool(row["emulated_median_ms"]) == (row["kind"] == "emulated")
        assert bool(row["estimated_median_ms"]) == (row["kind"] == "estimated")


def test_a_metric_gets_a_plot_of_its_own_and_says_what_has_no_place_there(full):
    page, _, _, _, _ = full
    titles = [page.specs[name]["layout"]["yaxis"]["title"]["text"] for name in ("plot-tradeoff", "plot-tradeoff1")]
    assert sorted(titles) == ["AP, %", "PQ, %"]
    assert "7 records (emulated, estimated; host_gpu, pixel_8) have no place" in page.texts["tradeoff"]
    for name in ("plot-tradeoff", "plot-tradeoff1"):
        points = [t for t in page.specs[name]["data"] if t["mode"] == "markers" and t["x"] != [None]]
        assert len(points) == 6
        assert all(t["error_x"]["type"] == t["error_y"]["type"] == "data" for t in points)
        opened = [t["name"] for t in points if t["marker"]["symbol"].endswith("-open")]
        doubted = ["net_a fp32, host_cpu_1t", "net_a w8_dynamic, host_cpu_1t"]
        assert sorted(opened) == (doubted if name == "plot-tradeoff" else [])


def _points(values):
    found = []
    for i, (median_ms, score, valid) in enumerate(values):
        item, _ = _net("net_a", "fp32", sha256=str(i), median_ms=median_ms, valid=valid)
        found.append(Point(str(i), item, {"ap": score}, METRICS[1]))
    return found


def test_the_pareto_line_is_the_running_best_of_the_sound_points_by_latency():
    rng = np.random.default_rng(3)
    for _ in range(50):
        n = int(rng.integers(1, 12))
        values = [
            (float(ms), float(ap), bool(ok))
            for ms, ap, ok in zip(rng.integers(1, 6, n), rng.integers(1, 6, n), rng.random(n) < 0.8, strict=True)
        ]
        best, expected = 0.0, []
        for ms, ap in sorted({(v[0], v[1]) for v in values if v[2]}, key=lambda v: (v[0], -v[1])):
            if ap > best:  # no point at most as slow is as accurate
                expected.append((ms, ap))
                best = ap
        line = [(float(p.record.median_ms), p.score) for p in pareto_line(_points(values))]
        assert sorted(set(line)) == expected


def test_the_table_names_who_beats_a_file_and_the_line_joins_those_whom_nobody_beats(tmp_path):
    pairs = [
        _net("net_a", "w8a8", median_ms=10.0, ci95_median_ms=[9.9, 10.1]),
        _net("net_a", "fp32", median_ms=30.0, ci95_median_ms=[29.0, 31.0]),
        _net("net_a", "fp16", median_ms=40.0, ci95_median_ms=[39.0, 41.0]),
    ]
    scores = (50.0, 60.0, 55.0)
    accuracy = [_evaluation(tmp_path, item, "ap", ap) for (item, _), ap in zip(pairs, scores, strict=True)]
    page, _, _ = _page([_write(tmp_path, pairs)], tmp_path / "r.html", Beside(accuracy))
    told = {row["file"]: row["Pareto line"] for row in page.rows("tradeoff", "Pareto line")}
    assert told == {"w8a8": "on the line", "fp32": "on the line", "fp16": "beaten by fp32"}
    line = next(t for t in page.specs["plot-tradeoff"]["data"] if t["mode"] == "lines")
    assert list(zip(line["x"], line["y"], strict=True)) == [(10.0, 50.0), (30.0, 60.0)]


def test_without_a_valid_measurement_there_is_no_line_and_the_page_says_so(tmp_path):
    pairs = [_net("net_a", scheme, valid=False) for scheme in ("fp32", "w8a8")]
    accuracy = [_evaluation(tmp_path, item, "ap", 50.0) for item, _ in pairs]
    page, _, _ = _page([_write(tmp_path, pairs)], tmp_path / "r.html", Beside(accuracy))
    assert "No Pareto line for host_cpu_1t" in page.texts["tradeoff"]
    assert all(t["mode"] != "lines" for t in page.specs["plot-tradeoff"]["data"])
    assert {row["Pareto line"] for row in page.rows("tradeoff", "Pareto line")} == {"not judged"}


def test_thinning_keeps_the_extremes_of_every_part_in_order_and_short_series_whole():
    values = np.random.default_rng(0).normal(size=20_011).astype(np.float32)
    kept = thinned(values)
    assert kept == sorted(set(kept))
    assert len(kept) <= 2 * PARTS
    for part in np.array_split(values, PARTS // 2)[1:-1]:  # each holds a whole part at least
        assert part.min() >= values[kept].min()
    assert {int(values.argmin()), int(values.argmax())} <= set(kept)
    assert thinned(values[: 2 * PARTS]) == list(range(2 * PARTS))


def test_the_drift_line_and_the_change_point_are_where_they_were_planted(tmp_path):
    n = 1000
    t_s = np.linspace(0.0, 60.0, n).astype(np.float32)
    run_ms = (20.0 + 0.05 * t_s).astype(np.float32)  # 21.5 ms in the middle
    item, samples = _net("net_a", "fp32")
    ones = np.ones(n, np.float32)
    samples = dataclasses.replace(
        samples, t_s=t_s, run_ms=run_ms, pre_ms=ones, post_ms=ones, image_index=np.zeros(n, np.int32)
    )
    slope = 100.0 * 0.05 * 60.0 / 21.5
    drift = {"slope_pct_per_min": slope, "trend_p": 1e-12, "changes": [{"at_s": 42.0, "change_pct": 7.5, "p": 1e-5}]}
    item = dataclasses.replace(item, median_ms=21.5, drift=drift, n=n)
    page, _, _ = _page([_write(tmp_path, [(item, samples)])], tmp_path / "r.html")
    runs, line, change = page.specs["plot-samples0"]["data"]
    assert len(runs["x"]) <= 2 * PARTS
    assert line["x"] == pytest.approx([0.0, 60.0])
    assert line["y"] == pytest.approx([20.0, 23.0], abs=1e-3)
    assert change["x"] == [42.0, 42.0, None]
    text = page.texts["samples"]
    assert f"{len(runs['x'])} of 1000 runs: the fastest and the slowest of each of {PARTS} equal parts" in text
    assert "Drift +14.0 % per minute (trend p = 1e-12)" in text
    assert "+7.5 % at 42.0 s" in text


def test_a_sustained_run_says_first_and_last_minute_throttling_and_missed_frames(full):
    page, _, _, _, _ = full
    (row,) = page.rows("sustained", "missed")
    assert (row["first window"], row["last window"], row["throttled"]) == ("20.0", "26.0", "after 181\u202fs")
    assert (row["change"], row["missed"]) == ("+30.0\u202f%", "12 of 5\u202f400")
    assert "sustained" not in {row["profile"] for row in page.rows("latency", "p99")}
    assert len(page.rows("latency", "p99")) == 12


def test_a_profile_shows_each_fact_with_its_confidence_and_source(full):
    page, _, _, _, _ = full
    facts = [r for at, rows in page.tables if at == "devices" and rows[0][0] == "fact" for r in rows[1:]]
    cores = next(row for row in facts if "Cortex-X3" in row[1])
    assert cores[1].startswith("1 × Cortex-X3, 2\u202f910 MHz")
    assert cores[2] == "estimate"
    assert "technewsmix" in cores[3]
    assert ["cpu", "A made-up CPU", "measured", "read there by runner host"] in facts


def test_the_name_of_a_profile_in_a_record_opens_no_file(tmp_path):
    hidden = tmp_path / "hidden.toml"
    hidden.write_text("name = 1")
    pair = _net("net_a", "fp32", profile=str(hidden), samples_file="samples/a.npz")
    page, _, _ = _page([_write(tmp_path, [pair])], tmp_path / "r.html")
    assert "not one that comes with the program" in page.texts["devices"]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "whole, on a driver in software"),
        ({"kind": "measured", "valid": True}, "whole"),
        ({"nodes_delegated": 100}, "partly: 100 of 126 nodes"),
        ({"delegate_actual": "xnnpack"}, "not on the GPU: xnnpack ran"),
        ({"nodes_delegated": None}, "on the GPU, share not told"),
        ({"delegate_actual": None, "nodes_delegated": None, "unknown": {"delegate_actual": "log cut"}}, "not told"),
    ],
)
def test_the_gpu_verdict_is_what_the_runtime_told_and_no_more(tmp_path, changes, verdict):
    page, _, _ = _page([_write(tmp_path, [_gpu("net_a", "fp32", **changes)])], tmp_path / "r.html")
    (row,) = page.rows("gpu", "verdict")
    assert row["verdict"] == verdict
    assert "--check" in page.texts["gpu"]
    assert ("log cut" in page.texts["gpu"]) == (verdict == "not told")


def test_operators_are_stacked_with_their_sums_and_a_busy_machine_is_called_one(full):
    page, _, _, _, _ = full
    bars = {t["name"]: t["x"] for t in page.specs["plot-operations0"]["data"]}
    assert bars == {"convolution 1x1": [5.0], "ADD": [3.0], "whole network": [7.5]}
    assert "busy machine" in page.texts["operations"]
    rows = {row["kind"]: row["net_a w8a8"] for row in page.rows("operations", "kind")}
    assert rows["sum of operators alone"] == "8.00"
    assert rows["whole network at once"] == "7.50"


@pytest.mark.parametrize("text", ["[]", '{"profiles": 1}', '{"profiles": [{"file": "a", "by_kind": {}}]}'])
def test_a_document_without_operation_times_is_refused(tmp_path, text):
    results = _write(tmp_path, [_net("net_a", "fp32")])
    (tmp_path / "o.json").write_text(text)
    with pytest.raises(InputError, match=r"o\.json holds no operation times"):
        load_results_input([results], Beside(operations=[tmp_path / "o.json"]))


def test_csv_reads_back_as_the_records(full):
    _, _, written, records, _ = full
    rows = _rows(written.csv)
    assert len(rows) == len(records) + 1
    by_key = {(row["sha256"], row["profile"]): row for row in rows if row["mode"] != "sustained"}
    for item in records:
        row = by_key[item.sha256, item.profile]
        assert (row["model"], row["scheme"], row["kind"]) == (item.model, item.scheme, item.kind)
        assert row["valid"] == str(item.valid)
        assert json.loads(row["device"]) == item.device
        if item.kind == "measured":
            assert float(row["median_ms"]) == item.median_ms
            assert [float(row["ci95_low_ms"]), float(row["ci95_high_ms"])] == item.ci95_median_ms
        assert float(row["accuracy_pct"]) == (50.0 if item.model == "net_a" else 30.0)


def test_markdown_has_the_sections_and_the_tables_of_the_page(full):
    page, _, written, _, _ = full
    text = written.markdown.read_text(encoding="utf-8")
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert len(titles) == len(PARTS_OF_PAGE)
    lines = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in text.splitlines() if "|" in line}
    for row in page.rows("latency", "p99"):
        assert tuple(row.values()) in lines
    assert "emulated; invalid" in text


def test_text_from_files_is_escaped_in_page_markdown_and_csv(tmp_path):
    changes = {"profile": EVIL, "warnings": [EVIL], "device": {"cpu": EVIL, EVIL: EVIL}, "delegate_actual": EVIL}
    changes |= {"unknown": {"median_ms": EVIL}, "runtime": {"name": EVIL}, "delegate_requested": "gpu"}
    changes |= {"protocol": {"refused": [EVIL], "order": EVIL}, "samples_file": "samples/a.npz"}
    pair = _evil(changes)
    operations = json.loads(json.dumps(OPERATIONS).replace("convolution 1x1", json.dumps(EVIL)[1:-1]))
    operations["profiles"][0]["file"] = EVIL
    (tmp_path / "o.json").write_text(json.dumps(operations))
    check = {"file": EVIL, "file_sha256": pair[0].sha256, "delegate": "gpu", "fully_delegable": False}
    refused = [{"op": EVIL, "tensor": EVIL, "source": EVIL, "reason": EVIL, "rewrite": EVIL}]
    accuracy = [_evaluation(tmp_path, pair[0], "ap", 50.0)]
    beside = Beside(accuracy, [tmp_path / "o.json"], [{**check, "refused": refused, "rules_version": EVIL}])
    page, own, written = _page([_write(tmp_path, [pair])], tmp_path / "r.html", beside)
    assert "alert(1)" in "".join(page.texts.values())
    assert page.tags.count("script") == 1 + len(page.specs)
    assert page.tags.count("img") == 0
    assert "<img" not in json.dumps(page.specs)
    assert "http://" not in own
    assert "https://" not in own
    markdown = written.markdown.read_text(encoding="utf-8")
    assert "<" not in re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    assert "](" not in markdown
    (row,) = _rows(written.csv)
    assert row["profile"] == f"'{EVIL}"
    assert not any(str(value).startswith(("=", "@", "+")) for value in row.values())


def _evil(changes):
    item, samples = record("fp32", 1, np.random.default_rng(0), **changes)
    return dataclasses.replace(item, model=EVIL, scheme=EVIL), samples


def test_two_files_of_one_name_are_told_apart_by_their_hash(tmp_path):
    pairs = [_net("net_a", "w8a8", sha256="1" * 64), _net("net_a", "w8a8", sha256="2" * 64)]
    page, _, _ = _page([_write(tmp_path, pairs)], tmp_path / "r.html")
    assert [row["file"] for row in page.rows("latency", "p99")] == ["w8a8 #111111", "w8a8 #222222"]


def test_several_results_files_make_one_page_and_a_record_in_two_of_them_is_shown_once(tmp_path):
    a, b = _net("net_a", "fp32"), _net("net_a", "w8a8")
    results = [_write(tmp_path / "a", [a]), _write(tmp_path / "b", [a, b])]
    found = load_results_input(results)
    assert [item.scheme for item in found.records] == ["fp32", "w8a8"]
    assert "in two files" in found.remarks[0]
    assert sorted(found.samples) == [0, 1]


def test_accuracy_comes_from_kept_documents_or_from_the_record_itself_and_what_fits_nothing_is_named(tmp_path):
    own = {"metric": "ap", "value": 44.0, "fp32_value": None, "data_sha256": None}
    kept, alone = _net("net_a", "fp32"), _net("net_a", "w8a8", accuracy=own)
    row = {"value": 52.0, "value_ci95": [50.0, 54.0], "files": [{"sha256": kept[0].sha256, "value": 52.0}]}
    document = {"format": "edge_seg.kept_accuracy", "metric": "ap", "data": "d/x", "images": 9, "rows": [row]}
    (tmp_path / "kept.json").write_text(json.dumps(document))
    (tmp_path / "other.json").write_text(json.dumps({"ap": 1.0, "file_sha256": "f" * 64}))
    files = [tmp_path / "kept.json", tmp_path / "other.json"]
    found = load_results_input([_write(tmp_path, [kept, alone])], Beside(files))
    told = {item["name"]: (item["ap"], item.get("ap_ci95")) for item in found.evaluations}
    assert told == {"fp32": (52.0, [50.0, 54.0]), "w8a8": (44.0, None)}
    assert found.remarks == ("other.json is left out: no record is of a file that it scores.",)


@pytest.mark.parametrize(
    "changes",
    [
        {"median_ms": "<b>"},
        {"scheme": ["a"]},
        {"drift": None},
        {"ci95_median_ms": [1.0]},
        {"n": None},
        {"warnings": "x"},
        {"accuracy": 3},
    ],
)
def test_a_record_whose_field_is_not_of_its_type_is_refused_by_name(tmp_path, changes):
    item, _ = _net("net_a", "fp32")
    (tmp_path / "results.json").write_text(json.dumps([{**item.to_json(), **changes}]))
    with pytest.raises(ArtifactError, match=f"record 0: '{next(iter(changes))}'"):
        load_results_input([tmp_path / "results.json"])


def test_a_large_benchmark_makes_a_page_of_bounded_size(tmp_path):
    item, samples = _net("net_a", "fp32")
    n = 30_000
    columns = {name: np.random.default_rng(0).random(n).astype(np.float32) for name in ("pre_ms", "run_ms", "post_ms")}
    t_s = np.arange(n, dtype=np.float32)
    samples = dataclasses.replace(samples, t_s=t_s, image_index=np.zeros(n, np.int32), **columns)
    pairs = [(dataclasses.replace(item, session=i + 1), samples if i == 0 else None) for i in range(45)]
    _, own, written = _page([_write(tmp_path, pairs)], tmp_path / "r.html")
    assert own.count("data-for=") == 36 + 1
    assert "9 more records are left out" in own
    assert len(own) < 1_000_000
    assert written.html.stat().st_size < 8_000_000
    assert written.html.read_text(encoding="utf-8").count('<script id="plotly">') == 1


def test_the_verb_writes_three_files_and_names_them(tmp_path):
    item, samples = _net("net_a", "fp32")
    results = _write(tmp_path, [(item, samples)])
    accuracy = _evaluation(tmp_path, item, "ap", 50.0)
    done = CliRunner().invoke(report, [str(results), "--accuracy", str(accuracy), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert {key: value.rsplit("/", 1)[1] for key, value in told.items()} == {
        "file": "report.html",
        "markdown": "report.md",
        "csv": "report.csv",
    }
    assert "50.0" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_verb_refuses_what_does_not_go_together(tmp_path):
    results = _write(tmp_path / "benchmark", [_net("net_a", "fp32")])
    for arguments, match in (
        ([str(tmp_path), str(results)], "one folder or of results files"),
        ([str(tmp_path), "--accuracy", str(results)], "brings its own files"),
        ([str(tmp_path / "absent.json")], "absent"),
        ([str(results), "--out", str(tmp_path / "r.csv")], "main file is a page"),
        ([str(results), "--accuracy", str(results)], "not an evaluation document"),
    ):
        done = CliRunner().invoke(report, arguments)
        assert isinstance(done.exception, InputError), arguments
        assert match in str(done.exception)
    assert not (tmp_path / "r.csv").exists()
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(InputError, match="no record"):
        load_results_input([tmp_path / "empty.json"])


def test_the_verb_takes_a_run_folder_with_sustained_runs_and_operators(tmp_path):
    _write(tmp_path / "benchmark", [_net("net_a", "fp32")])
    _write(tmp_path / "sustain", [_sustained("net_a", "fp32")])
    (tmp_path / "operations.json").write_text(json.dumps(OPERATIONS))
    done = CliRunner().invoke(report, [str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "after 181" in page.texts["sustained"]
    assert "convolution 1x1" in page.texts["operations"]


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
@pytest.mark.parametrize("width_px", [500, 1400])
def test_a_browser_draws_every_plot_and_nothing_is_wider_than_the_page(full, tmp_path, width_px):
    page, _, written, _, _ = full
    text = written.html.read_text(encoding="utf-8")
    probe = "document.title = document.documentElement.scrollWidth + ' of ' + innerWidth;"
    (tmp_path / "page.html").write_text(text.replace("</body>", f"<script>{probe}</script></body>"), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width_px},900", "--virtual-time-budget=8000", "--dump-dom"]
    done = subprocess.run(
        [*command, f"file://{tmp_path / 'page.html'}"], capture_output=True, text=True, timeout=300, check=True
    )
    drawn = len(re.findall(r'<div class="plot[^"]*js-plotly-plot"', done.stdout))
    assert drawn == len(page.specs)
    assert "could not be drawn" not in re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    inside = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
    assert inside, done.stdout[:500]
    assert int(inside[1]) <= int(inside[2])
