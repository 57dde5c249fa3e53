"""The README's figures: made from the committed documents, marks and pictures in their places."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edge_seg.errors import InputError
from edge_seg.studies import sheet
from edge_seg.studies.results import figures

ROWS = [
    {"network": "YOLO", "scheme": "fp32", "of_peer": {"YOLO": [1.0, 1.0, 1.0]}},
    {"network": "net, 7x7 as published", "scheme": "fp32", "of_peer": {"YOLO": [4.0, 4.2, 4.4]}},
    {"network": "plain", "scheme": "fp32", "of_peer": {"YOLO": None}},
    {"network": "net", "scheme": "fp32", "of_peer": {"YOLO": [0.4, 0.5, 0.7]}},
    {"network": "net", "scheme": "w8a8", "of_peer": {"YOLO": [1.9, 2.0, 2.2]}},
    {"network": "other", "scheme": "fp32", "of_peer": {"YOLO": [1.4, 1.5, 1.6]}},
]
RUN = {"device": {"cpu": "made up"}, "threads": 1, "rows": ROWS}


def circles(svg):
    """Centres of the marks, in drawing order."""
    return [tuple(map(float, found)) for found in re.findall(r'<use xlink:href="#m\w+" x="([\d.]+)" y="([\d.]+)"', svg)]


def test_the_committed_figures_are_what_the_documents_give(root, tmp_path):
    written = figures.write_figures(root / "results", tmp_path)
    assert [path.name for path in written] == [figures.SPEED, figures.ABLATION]
    for path in written:
        assert path.read_bytes() == (root / "results" / "figures" / path.name).read_bytes(), "run `make results`"
        assert f"results/figures/{path.name}" in (root / "README.md").read_text(encoding="utf-8")


def test_without_documents_there_are_no_figures(tmp_path):
    assert figures.write_figures(tmp_path / "none", tmp_path / "out") == []


def test_marks_lie_where_their_ratios_say_and_the_peer_and_the_published_form_are_left_out():
    """By hand: 0.5, 1.5 and 2.0 lie one and a half steps of the first distance apart."""
    svg = figures.speed_figure(RUN).decode()
    assert "made up" in svg
    assert "plain" not in svg
    assert "published" not in svg
    color = {name: figures.color_of(name) for name in ("fp32", "w8a8")}
    marks = {name: [] for name in color}
    for group in re.findall(r"<g clip-path[^>]*>\s*(<use .*?)</g>", svg, re.S):
        name = next(n for n, c in color.items() if c in group)
        marks[name] += circles(group)
    (half, top), (one_and_half, below) = marks["fp32"]
    ((two, beside),) = marks["w8a8"]
    assert (two - half) / (one_and_half - half) == pytest.approx(1.5, abs=1e-3)
    assert top < beside < below


def test_an_interval_reaches_from_its_low_end_to_its_high_end():
    """By hand: 0.4 to 0.7 is three times 0.5 less 0.4, and twice as far above the value as below it."""
    svg = figures.speed_figure(RUN).decode()
    bars = [tuple(map(float, b)) for b in re.findall(r'd="M ([\d.]+) ([\d.]+) *\nL ([\d.]+) ([\d.]+) *\n"', svg)]
    (half, y), *_ = circles(svg[svg.index(figures.color_of("fp32")) :])
    ((low, _, high, _),) = [b for b in bars if b[1] == b[3] == y and b[0] < half < b[2]]
    assert (high - half) / (half - low) == pytest.approx(2.0, abs=1e-3)


def test_a_run_without_a_peer_has_no_figure(tmp_path):
    (tmp_path / "speed").mkdir()
    rows = [{"network": "net", "scheme": "fp32", "of_peer": {}}]
    (tmp_path / "speed" / "networks.json").write_text(json.dumps({**RUN, "rows": rows}))
    assert figures.write_figures(tmp_path, tmp_path / "out") == []


def test_differences_lie_on_their_side_of_none_and_say_how_many_seeds_they_rest_on():
    """By hand: -2, 0 and 1 PQ; the recipe itself and what is missing have no mark."""
    rows = [{"change": "the recipe", "difference": None}]
    for change, value, seeds in (("worse", -2.0, [0]), ("same", 0.0, [0, 1]), ("better", 1.0, [0, 1])):
        difference = {"value": value, "ci95": [value - 1, value + 1], "seeds": seeds}
        rows.append({"change": change, "difference": difference})
    svg = figures.ablation_figure({"rows": rows, "epochs": 20.0, "data": "made up"}).decode()
    assert [t for t in re.findall(r">([^<]+ seeds?)<", svg)] == ["worse, 1 seed", "same, 2 seeds", "better, 2 seeds"]
    (worse, first), (same, second), (better, third) = circles(svg[svg.index(figures.color_of("fp32")) :])[:3]
    assert (same - worse) / (better - same) == pytest.approx(2.0, abs=1e-3)
    assert first < second < third


def test_the_same_document_gives_the_same_bytes():
    assert figures.speed_figure(RUN) == figures.speed_figure(json.loads(json.dumps(RUN)))


def write_pictures(folder, columns):
    for number, value in ((0, 40), (3, 90)):
        for k, column in enumerate(columns):
            Image.new("RGB", (32, 24), (value + 60 * k,) * 3).save(folder / f"{number:04d}.{column}.png")


def test_a_sheet_has_every_picture_in_its_place(tmp_path):
    write_pictures(tmp_path, ("truth", "w8a8"))
    options = ["--column", "truth", "--column", "w8a8", "--out", str(tmp_path / "sheet.webp")]
    assert CliRunner().invoke(sheet.main, [str(tmp_path), *options]).exception is None
    drawn = np.asarray(Image.open(tmp_path / "sheet.webp").convert("L")).astype(int)
    assert drawn.shape == (18 + 24 + 4 + 24, 32 + 4 + 32)
    centres = [[drawn[18 + 12, 16], drawn[18 + 12, 52]], [drawn[18 + 40, 16], drawn[18 + 40, 52]]]
    assert np.abs(np.array(centres) - [[40, 100], [90, 150]]).max() <= 3


def test_a_picture_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="0007"):
        sheet.main.main([str(tmp_path), "--picture", "7", "--out", str(tmp_path / "s.webp")], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []
