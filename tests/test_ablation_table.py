"""The table of an ablation: paired picture by picture, made from documents alone, missing runs shown as such."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge_seg.contract import ClassInfo
from edge_seg.errors import InputError
from edge_seg.evaluation.bootstrap import Interval, paired_bootstrap
from edge_seg.evaluation.panoptic_quality import PanopticQuality
from edge_seg.studies import ablation_table
from edge_seg.studies.ablation_table import (
    Variation,
    markdown,
    paired_difference,
    pq,
    read_documents,
    table,
    verdict,
    write_document,
)
from edge_seg.studies.results.page import results_markdown

CLASSES = [{"name": "window", "isthing": True}, {"name": "wall", "isthing": False}]


def statistics(*pictures):
    """Pictures of (iou_sum, tp, fp, fn) per class."""
    return np.array(pictures, np.float64)


def random_statistics(seed, pictures=12, classes=2):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, (pictures, classes, 3)).astype(np.float64)
    return np.concatenate([counts[..., :1] * rng.uniform(0.5, 1, (pictures, classes, 1)), counts], -1)


def test_pq_is_the_mean_over_classes_that_occur_as_by_hand():
    totals = statistics((1.5, 2, 1, 1), (0.0, 0, 0, 0))
    assert float(pq(totals)) == pytest.approx(100 * 1.5 / 3)
    totals = statistics((1.5, 2, 1, 1), (0.0, 0, 0, 4))
    assert float(pq(totals)) == pytest.approx((50.0 + 0.0) / 2)
    assert np.isnan(pq(np.zeros((2, 4))))


def test_a_difference_over_two_seeds_is_the_mean_of_differences_as_by_hand():
    """One class, one picture, so that every resample is the picture itself and the interval a point."""
    base = [statistics([(0.8, 1, 0, 0)]), statistics([(0.6, 1, 0, 0)])]
    other = [statistics([(0.9, 1, 0, 0)]), statistics([(0.9, 1, 1, 1)])]
    # seed 0: 90 - 80 = 10; seed 1: 0.9 / 2 = 45, 45 - 60 = -15
    found = paired_difference(base, other)
    assert (found.value, found.low, found.high) == pytest.approx((-2.5, -2.5, -2.5))


def test_the_interval_of_two_pictures_is_between_their_own_differences_as_by_hand():
    """A resample of two pictures is twice the first, twice the second, or both: differences 10, -10 and 0."""
    base = [statistics([(0.8, 1, 0, 0)], [(0.8, 1, 0, 0)])]
    other = [statistics([(0.9, 1, 0, 0)], [(0.7, 1, 0, 0)])]
    found = paired_difference(base, other)
    assert (found.value, found.low, found.high) == pytest.approx((0.0, -10.0, 10.0))


def test_with_one_seed_the_interval_is_that_of_the_paired_bootstrap():
    a, b = random_statistics(1), random_statistics(2)
    classes = [ClassInfo(i + 1, c["name"], c["isthing"], (0, 0, 0)) for i, c in enumerate(CLASSES)]
    qualities = []
    for values in (a, b):
        quality = PanopticQuality(classes)
        quality._statistics, quality._image_ids = list(values), list(range(len(values)))
        qualities.append(quality)
    expected = paired_bootstrap(*qualities, seed=0)
    found = paired_difference([a], [b])
    assert (found.value, found.low, found.high) == pytest.approx((expected.value, expected.low, expected.high))
    assert found.low < found.value < found.high


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (3.0, 1.0, 5.0, "better"),
        (-3.0, -5.0, -1.0, "worse"),
        (3.0, -0.1, 6.0, "noise"),
        (3.0, 0.0, 6.0, "noise"),
        (1.9, 1.0, 2.8, "noise"),
        (-1.9, -2.8, -1.0, "noise"),
        (2.0, 1.0, 3.0, "better"),
    ],
)
def test_the_verdict_follows_its_rule(value, low, high, expected):
    assert verdict(Interval(value, low, high)) == expected


# Documents and the table


def about(name, seed, **changes):
    return {
        "name": name,
        "seed": seed,
        "config": "recipe.toml",
        "epochs": 20.0,
        "macs_graph": 1_288_000_000,
        "experiment_sha256": "e" * 64,
        "data": "facade",
        "data_sha256": "a" * 64,
        "train_data_sha256": "b" * 64,
        "images": 12,
        "classes": CLASSES,
        **changes,
    }


def write(folder, name, seed, values=None, **changes):
    values = random_statistics(seed) if values is None else values
    return write_document(folder / f"{name}_s{seed}.json", about(name, seed, **changes), values)


def rows_of(folder):
    return {row["name"]: row for row in table(read_documents(folder))["rows"]}


def test_a_document_keeps_every_digit_and_is_small(tmp_path):
    values = random_statistics(3, pictures=107, classes=9)
    classes = [{"name": f"class {i}", "isthing": i < 5} for i in range(9)]
    write(tmp_path, "base", 0, values, images=107, classes=classes)
    assert np.array_equal(read_documents(tmp_path)["base", 0]["statistics"], values)
    assert (tmp_path / "base_s0.json").stat().st_size < 50_000


def test_missing_runs_are_shown_and_never_filled(tmp_path):
    for name, seed in (("base", 0), ("base", 1), ("k5", 0), ("k5", 1), ("lite", 1)):
        write(tmp_path, name, seed, random_statistics(len(name) + 10 * seed))
    rows = rows_of(tmp_path)
    assert rows["k5"]["difference"]["seeds"] == [0, 1]
    assert rows["lite"]["scores"][0] is None
    assert rows["lite"]["differences"][0] is None
    assert rows["lite"]["difference"]["seeds"] == [1]
    assert rows["added"]["verdict"] == "missing"
    assert rows["added"]["difference"] is rows["added"]["macs_graph"] is None
    assert "lite_shared" not in rows  # nothing of its group was asked for
    text = markdown(table(read_documents(tmp_path)))
    lite = next(line for line in text.splitlines() if line.startswith("| lite |"))
    assert lite.count("missing / ") == 4
    assert lite.endswith("(1 of 2 seeds) |")


def test_without_the_base_there_is_no_difference_and_no_verdict(tmp_path):
    write(tmp_path, "k5", 0)
    row = rows_of(tmp_path)["k5"]
    assert row["scores"][0]["pq"] > 0
    assert row["difference"] is row["verdict"] is None
    text = markdown(table(read_documents(tmp_path)))
    assert "base is missing" in next(line for line in text.splitlines() if line.startswith("| k5"))


def test_a_group_has_rows_once_one_of_its_variations_has_a_document(tmp_path):
    write(tmp_path, "base", 0)
    write(tmp_path, "lite_shared", 0)
    rows = rows_of(tmp_path)
    assert rows["lite_shared"]["difference"]["value"] == 0
    assert rows["lite_none_aspp"]["verdict"] == "missing"


def test_the_caption_says_the_rule_and_how_far_two_trainings_of_the_base_are_apart(tmp_path):
    write(tmp_path, "base", 0, np.tile(statistics([(0.8, 1, 0, 0), (0.8, 1, 0, 0)]), (12, 1, 1)))
    write(tmp_path, "base", 1, np.tile(statistics([(0.7, 1, 0, 0), (0.8, 1, 0, 0)]), (12, 1, 1)))
    text = markdown(table(read_documents(tmp_path)))
    assert "the 2 of `base` differ by up to 5.00 PQ" in text
    assert "the interval contains 0 or the difference is below 2 PQ" in text
    assert "| base | the recipe as it is | 1.29 | 80.00 / 75.00 | 80.00 / 70.00 | 80.00 / 80.00 |  |  |  |" in text


@pytest.mark.parametrize("key", ["experiment_sha256", "data_sha256", "train_data_sha256"])
def test_documents_of_other_experiments_or_pictures_are_not_compared(tmp_path, key):
    write(tmp_path, "base", 0)
    write(tmp_path, "k5", 0, **{key: "f" * 64})
    with pytest.raises(InputError, match=r"cannot be compared") as caught:
        read_documents(tmp_path)
    assert key in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"name": "k5"},
        {"seed": 4},
        {"images": 13},
        {"classes": CLASSES[:1]},
        {"classes": [{}, {}]},
        {"classes": 3},
        {"statistics": {}},
        {"statistics": None},
        {"statistics": {k: [[-1.0, 0.0]] * 12 for k in ("iou_sum", "tp", "fp", "fn")}},
        {"macs_graph": ...},
    ],
    ids=str,
)
def test_a_broken_document_is_refused_by_name(tmp_path, change):
    document = {**write(tmp_path, "base", 0), **change}
    path = tmp_path / "base_s0.json"
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))
    with pytest.raises(InputError, match=r"base_s0\.json is not a result of an ablation"):
        read_documents(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"text"', "{}", "{"])
def test_a_file_that_is_no_document_at_all_is_refused_by_name(tmp_path, text):
    (tmp_path / "base_s0.json").write_text(text)
    with pytest.raises(InputError, match=r"base_s0\.json"):
        read_documents(tmp_path)


def test_a_variation_that_is_gone_is_refused(tmp_path, monkeypatch):
    write(tmp_path, "k5", 0)
    monkeypatch.setattr(ablation_table, "VARIATIONS", (Variation("base", "the recipe as it is"),))
    with pytest.raises(InputError, match=r"k5_s0\.json"):
        read_documents(tmp_path)


def test_without_documents_there_is_no_table(tmp_path):
    with pytest.raises(InputError, match="nothing to compare"):
        table(read_documents(tmp_path))
    assert "Choices" not in results_markdown(tmp_path)


def test_the_committed_table_is_what_the_committed_documents_give(root):
    folder = root / "results" / "ablation"
    found = read_documents(folder)
    expected = [markdown(table(found)) + "\n"] if found else []
    assert [path.read_text() for path in folder.glob("table.md")] == expected
