"""The README's figures: made from the committed documents, marks and pictures in their places."""

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from edge_seg.errors import InputError
from edge_seg.studies import figures, sheet

ROWS = [
    {"network": "YOLO", "scheme": "fp32", "of_peer": {"YOLO": [1.0, 1.0, 1.0]}},
    {"network": "net, 7x7 as published", "scheme": "fp32", "of_peer": {"YOLO": [4.0, 4.2, 4.4]}},
    {"network": "plain", "scheme": "fp32", "of_peer": {"YOLO": None}},
    {"network": "net", "scheme": "fp32", "of_peer": {"YOLO": [0.4, 0.5, 0.7]}},
    {"network": "net", "scheme": "w8a8", "of_peer": {"YOLO": [1.9, 2.0, 2.2]}},
    {"network": "other", "scheme": "fp32", "of_peer": {"YOLO": [1.4, 1.5, 1.6]}},
]
RUN = {"device": {"cpu": "made up"}, "rows": ROWS}


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
