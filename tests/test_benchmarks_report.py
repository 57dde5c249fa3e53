"""The report page: it loads nothing, invents nothing, escapes everything."""

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from benchmarks_run_folder import SCHEMES, record, write_benchmark, write_run_folder
from PIL import Image

from edge_seg.benchmarks import report
from edge_seg.benchmarks.report import load_report_input, write_report
from edge_seg.benchmarks.report_html import interval, milliseconds, number, size
from edge_seg.benchmarks.report_markdown import markdown_of
from edge_seg.benchmarks.report_plots import variant_key
from edge_seg.errors import ArtifactError, InputError

SECTIONS = (
    "summary",
    "pictures",
    "accuracy",
    "tradeoff",
    "latency",
    "samples",
    "devices",
    "files",
    "delegates",
    "parity",
    "controls",
    "classes",
    "training",
    "provenance",
)


class Page(HTMLParser):
    """Collects what a page loads, its plots and the text of each section."""

    def __init__(self, text):
        super().__init__()
        self.loads, self.specs, self.texts, self.tags = [], {}, {}, []
        self._section, self._spec = "", ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.loads += [attrs[key] for key in ("src", "href", "data", "action") if attrs.get(key)]
        if tag == "section":
            self._section = attrs["id"]
        self._spec = attrs["data-for"] if tag == "script" and attrs.get("class") == "spec" else ""

    def handle_data(self, data):
        if self._spec:
            self.specs[self._spec] = json.loads(data)
            self._spec = ""
        elif self._section:
            self.texts[self._section] = self.texts.get(self._section, "") + " " + data


def _write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


def _page(folder):
    text = write_report(folder, folder / "report.html").read_text(encoding="utf-8")
    return re.sub(r'<script id="plotly">.*?</script>', "", text, flags=re.DOTALL), text


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = write_run_folder(tmp_path_factory.mktemp("run"))
    own, whole = _page(folder)
    return folder, own, whole, Page(own)


def test_a_full_folder_gives_every_section_and_none_says_not_run(full):
    _, own, _, page = full
    assert tuple(page.texts) == SECTIONS
    assert "Not run" not in own


def test_marks_in_a_row_and_the_facts_of_the_head_are_told_apart_in_markdown(full):
    badges = '<p><span class="badge">4 fit</span> <span class="badge">4 invalid</span> of <span>8</span></p>'
    assert markdown_of(badges) == "4 fit; 4 invalid of 8\n"
    facts = re.search(r'<div class="facts">.*?</div>', full[1])[0]
    words = [re.sub("<[^>]+>", "", span) for span in re.findall(r"<span>.*?</span>", facts)]
    assert len(words) == 4
    assert markdown_of(facts) == " ".join(words) + "\n"


def test_the_page_loads_nothing_from_anywhere(full):
    _, own, whole, page = full
    assert "http://" not in own
    assert "https://" not in own
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in page.loads)
    assert "default-src 'none'" in own
    assert "link" not in page.tags
    assert whole.count('<script id="plotly">') == 1
    assert len(whole) < 8_000_000


def test_the_figures_on_the_page_are_those_of_the_files(full):
    folder, _, _, page = full
    w8a8 = json.loads((folder / "evaluate" / "w8a8.json").read_text())
    records = json.loads((folder / "benchmark" / "results.json").read_text())
    median_ms = next(r["median_ms"] for r in records if r["scheme"] == "w8a8" and r["threads"] == 1)
    assert f"{w8a8['pq']:.2f}" in page.texts["accuracy"]
    assert f"{median_ms:.1f}" in page.texts["latency"]
    assert "half-pixel centers only" in page.texts["delegates"]
    assert "fully delegable by rules version 2026.08" in page.texts["delegates"]
    assert page.texts["delegates"].count("fully delegable by rules version 2.3.0") == len(SCHEMES)
    assert page.texts["summary"].count("GPU: all ops") == len(SCHEMES) - 1
    assert page.texts["summary"].count("GPU: 1 refused") == 1
    assert "somewhere" not in "".join(page.texts.values())
    assert records[0]["sha256"] in page.texts["provenance"]
    assert "\u22121.9" in page.texts["summary"]


def test_plots_hold_the_values_with_their_intervals(full):
    _, _, _, page = full
    accuracy = {trace["y"][0]: trace for trace in page.specs["plot-accuracy"]["data"]}
    assert accuracy["fp32"]["x"] == [41.3]
    assert accuracy["fp32"]["error_x"]["arrayminus"][0] == pytest.approx(1.9)
    assert accuracy["fp32"]["error_x"]["array"][0] == pytest.approx(1.8)
    points = [t for t in page.specs["plot-tradeoff"]["data"] if t["mode"] == "markers" and t["x"] != [None]]
    assert len(points) == 2 * len(SCHEMES)
    stages = page.specs["plot-stages0"]["data"]
    assert [trace["x"][0] for trace in stages][0::2] == [1.2, 6.3]
    assert sum(name.startswith("plot-samples") for name in page.specs) == 2 * len(SCHEMES)


def test_pictures_are_embedded_as_small_jpegs_with_the_truth_first(tmp_path):
    Image.new("RGB", (1200, 600), (200, 30, 30)).save(tmp_path / "a.png")
    predict = tmp_path / "predict"
    predict.mkdir()
    for name in ("a", "b", "c", "d"):
        Image.new("RGB", (1200, 600), (200, 30, 30)).save(predict / f"{name}.png")
    row = {"w8a8": "d.png", "torch": "c.png", "truth": "b.png", "image": "a.png", "fp32": "absent.png"}
    _write(predict / "overlays.json", [row])
    own, _ = _page(tmp_path)
    page = Page(own)
    images = [link for link in page.loads if link.startswith("data:")]
    first = Image.open(io.BytesIO(base64.b64decode(images[0].split(",")[1])))
    assert first.format == "JPEG"
    assert first.size == (512, 256)
    assert page.texts["pictures"].split()[-6:] == ["input", "truth", "torch", "missing", "fp32", "w8a8"]
    assert "absent.png is missing" in own


def test_more_than_twelve_rows_of_pictures_are_cut_and_the_page_says_so(tmp_path):
    (tmp_path / "predict").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "predict" / "a.png")
    _write(tmp_path / "predict" / "overlays.json", [{"image": "a.png"}] * 15)
    found = load_report_input(tmp_path)
    assert len(found.pictures) == 12
    assert "3 rows" in found.remarks[0]


@pytest.mark.parametrize("kept", ["evaluate", "convert", "check", "verify", "benchmark"])
def test_what_was_not_run_is_stated_and_not_invented(full, tmp_path, kept):
    source, _, _, _ = full
    for path in (source / kept).rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    own, _ = _page(tmp_path)
    page = Page(own)
    drawn = {name for name, text in page.texts.items() if "Not run" not in text}
    allowed = {
        "evaluate": {"summary", "accuracy", "classes", "provenance"},
        "convert": {"summary", "files", "provenance"},
        "check": {"delegates"},
        "verify": {"parity"},
        "benchmark": {"summary", "latency", "samples", "devices", "provenance"},
    }
    assert drawn == allowed[kept]


def test_a_folder_with_nothing_to_report_or_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing to report"):
        write_report(tmp_path, tmp_path / "r.html")
    with pytest.raises(InputError, match="no folder"):
        write_report(tmp_path / "absent", tmp_path / "r.html")
    assert list(tmp_path.iterdir()) == []


def test_text_from_files_is_escaped_everywhere(tmp_path):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"
    folder = write_run_folder(tmp_path)
    for path in [folder / "quickstart.json", folder / "controls.json", *folder.glob("*/*.json")]:
        document = json.loads(path.read_text())
        if path.name not in ("results.json", "overlays.json"):
            path.write_text(json.dumps(_poisoned(document, evil)))
    rng = np.random.default_rng(0)
    changes = {"profile": evil, "warnings": [evil], "device": {"cpu": evil}, "delegate_actual": evil, "valid": False}
    write_benchmark(folder, [record("fp32", 1, rng, **changes)])
    _write(folder / "predict" / "overlays.json", [{evil: "0_image.png"}])
    own, _ = _page(folder)
    page = Page(own)
    assert "alert(1)" in "".join(page.texts.values())
    assert page.tags.count("script") == 1 + len(page.specs)
    assert page.tags.count("img") == 1
    labels = json.dumps(page.specs)
    assert "<script" not in labels
    assert "<img" not in labels


def _poisoned(value, evil):
    if isinstance(value, dict):
        return {k: _poisoned(v, evil) for k, v in value.items()}
    if isinstance(value, list):
        return [_poisoned(v, evil) for v in value]
    return evil if isinstance(value, str) else value


def test_an_estimate_an_emulation_and_an_invalid_run_carry_a_badge(tmp_path):
    rng = np.random.default_rng(0)
    for index, changes in enumerate(({"kind": "estimated"}, {"kind": "emulated"}, {"valid": False})):
        folder = tmp_path / str(index)
        write_benchmark(folder, [record("fp32", 1, rng, **changes)])
        own, _ = _page(folder)
        text = Page(own).texts
        word = next(iter(changes.values())) or "invalid"
        assert word in text["latency"]
        assert word in text["summary"]
        assert "measured" not in text["latency"].split("Milliseconds")[0]


def test_a_runtime_that_does_not_tell_its_delegate_is_not_given_one(tmp_path):
    rng = np.random.default_rng(0)
    silent = {"delegate_actual": None, "nodes_delegated": None, "nodes_total": None}
    write_benchmark(tmp_path, [record("fp32", 1, rng, **silent)])
    own, _ = _page(tmp_path)
    assert "asked, not told" in Page(own).texts["latency"]


def test_latency_joins_accuracy_by_hash_and_not_by_name(tmp_path):
    rng = np.random.default_rng(0)
    folder = write_run_folder(tmp_path)
    write_benchmark(folder, [record("fp32", 1, rng, sha256="0" * 64)])
    own, _ = _page(folder)
    assert "Not run" in Page(own).texts["tradeoff"]


def test_controls_that_do_not_fall_are_called_out(tmp_path):
    _write(tmp_path / "controls.json", {"reference_pq": 40.0, "shift_8px": {"pq": 39.9}, "swap_a_b": {"pq": 10.0}})
    own, _ = _page(tmp_path)
    text = Page(own).texts["controls"]
    assert "hardly moves" in text
    assert "Do not trust" in text


def test_a_swap_is_judged_on_the_two_classes_it_hits(tmp_path):
    swap = {"pq": 38.0, "pq_classes_before": 36.0, "pq_classes": 1.0}
    _write(tmp_path / "controls.json", {"reference_pq": 40.0, "shift_8px": {"pq": 26.0}, "swap_a_b": swap})
    text = Page(_page(tmp_path)[0]).texts["controls"]
    assert "97%" in text
    assert "35%" in text
    assert "more than a quarter" in text
    assert "hardly" not in text


def test_a_cut_off_last_line_of_the_training_log_is_left_out_with_a_remark_and_any_other_is_an_error(tmp_path):
    path = tmp_path / "train" / "metrics.jsonl"
    path.parent.mkdir()
    line = json.dumps({"step": 1, "images": 8, "loss": 1.0})
    path.write_text(f'{line}\n{{"step": 2, "ima')
    found = load_report_input(tmp_path)
    assert len(found.training) == 1
    assert "cut off" in found.remarks[0]
    path.write_text(f'{{"step": 2, "ima\n{line}\n')
    with pytest.raises(InputError, match="line 1"):
        load_report_input(tmp_path)


def test_missing_samples_are_a_remark_and_the_table_stays(tmp_path):
    rng = np.random.default_rng(0)
    item, samples = record("fp32", 1, rng)
    write_benchmark(tmp_path, [(item, samples)])
    (tmp_path / "benchmark" / item.samples_file).unlink()
    own, _ = _page(tmp_path)
    assert "Raw samples of fp32" in own
    assert "No raw samples" in Page(own).texts["samples"]


def test_a_record_or_picture_that_points_outside_its_folder_is_not_read(tmp_path):
    rng = np.random.default_rng(0)
    item, samples = record("fp32", 1, rng)
    write_benchmark(tmp_path, [(item, samples)])
    outside = dataclasses.replace(item, samples_file="../../secret.npz")
    _write(tmp_path / "benchmark" / "results.json", [outside.to_json()])
    assert "outside" in load_report_input(tmp_path).remarks[0]
    (tmp_path / "predict").mkdir()
    _write(tmp_path / "predict" / "overlays.json", [{"image": "../secret.png"}])
    with pytest.raises(InputError, match="outside"):
        load_report_input(tmp_path)


def test_broken_files_are_refused_by_name(tmp_path, monkeypatch):
    cases = {
        "evaluate/fp32.json": '{"name": "fp32"}',
        "controls.json": "[1]",
        "check/fp32.json": "{",
        "benchmark/results.json": '[{"model": 1}]',
        "predict/overlays.json": '{"image": 1}',
    }
    for index, (name, text) in enumerate(cases.items()):
        path = tmp_path / str(index) / name
        path.parent.mkdir(parents=True)
        path.write_text(text)
        with pytest.raises((InputError, ArtifactError), match=path.name.removesuffix(".json")):
            load_report_input(tmp_path / str(index))
    monkeypatch.setattr(report, "MAX_JSON_BYTES", 1)
    with pytest.raises(InputError, match="too large"):
        load_report_input(tmp_path / "1")


def test_a_file_that_is_no_picture_or_a_huge_one_is_refused(tmp_path, monkeypatch):
    predict = tmp_path / "predict"
    predict.mkdir()
    (predict / "a.png").write_bytes(b"not a picture")
    _write(predict / "overlays.json", [{"image": "a.png"}])
    with pytest.raises(InputError, match="not a picture"):
        load_report_input(tmp_path)
    Image.new("RGB", (8, 8)).save(predict / "a.png")
    monkeypatch.setattr(report, "_MAX_PICTURE_PIXELS", 63)
    with pytest.raises(InputError, match="too many pixels"):
        load_report_input(tmp_path)


def test_variants_come_in_reading_order():
    names = ["w8a8", "zzz", "fp32", "torch_published_decoder", "fp16", "qat_w8a8", "torch", "w8_dynamic"]
    assert sorted(names, key=variant_key) == [
        "torch",
        "torch_published_decoder",
        "fp32",
        "fp16",
        "w8_dynamic",
        "w8a8",
        "qat_w8a8",
        "zzz",
    ]


def test_numbers_are_written_with_three_digits_and_what_is_no_number_is_a_dash():
    assert [milliseconds(v) for v in (0.4123, 4.126, 41.26, 412.6)] == ["0.412", "4.13", "41.3", "413"]
    assert [number(v) for v in (None, float("nan"), "12", True)] == ["–"] * 4
    assert number(-1.25, 1, signed=True) == "\u22121.2"
    assert size(13_100_000) == "13.10\u202fMB"
    assert size(4_100) == "4.1\u202fkB"
    assert interval(1.0, None) == "–"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"passed": True, "verdict": "passed"}, "passed"),
        ({"passed": True}, "passed"),  # as written before there were verdicts
        ({"passed": True, "verdict": "accumulated"}, "far, but no layer is wrong"),
        ({"passed": False, "verdict": "failed"}, "failed"),
    ],
)
def test_the_verdict_of_a_verification_is_told_as_it_is(tmp_path, told, words):
    mirror = {"source": "file", "equal": 1.0, "max_lsb": 0}
    write_run_folder(tmp_path)
    for path in (tmp_path / "verify").glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **told, "integer_mirror": mirror}))
    text = Page(write_report(tmp_path, tmp_path / "report.html").read_text()).texts["parity"]
    assert words in text
    assert "equal bit for bit to the integer mirror of the file" in text
