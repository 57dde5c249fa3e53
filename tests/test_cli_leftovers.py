"""What a conversion that is refused leaves in its folder: nothing that was only made on the way."""

from __future__ import annotations

import json

import pytest
from test_cli_bad_input import RECIPE, refused, rewritten

from edge_seg.commands.leftovers import removed_on_failure
from edge_seg.errors import CheckFailed, InputError


def _made(out):
    return sorted(p.name for p in out.iterdir()) if out.is_dir() else None


FLOAT_FILES = ("a_fp32.tflite", "a_fp32.tflite.manifest.json", "a_fp32.contract.json")


def _write(out, *names):
    (out / "exported").mkdir(parents=True, exist_ok=True)
    for name in ("exported/model.pt2", *names):
        (out / name).write_bytes(b"x")


def _fails(out, error, *names, wanted=("w8a8",)):
    """Stands in for a conversion that writes these files and then fails."""
    with removed_on_failure(out, wanted):
        _write(out, *names)
        raise error


@pytest.mark.parametrize("error", [InputError("no"), CheckFailed("no")])
def test_what_was_made_on_the_way_goes_with_the_folder(tmp_path, error):
    with pytest.raises(type(error)):
        _fails(tmp_path / "t", error, *FLOAT_FILES)
    assert _made(tmp_path) == []


def test_what_was_there_before_and_what_others_write_stays(tmp_path):
    _write(tmp_path, *FLOAT_FILES)
    before = _made(tmp_path)
    with pytest.raises(InputError):
        _fails(tmp_path, InputError("no"), "b_fp32.tflite", "notes.txt")
    assert _made(tmp_path) == sorted([*before, "notes.txt"])
    assert (tmp_path / "exported" / "model.pt2").is_file()


@pytest.mark.parametrize("name", ["a_w8a8.tflite", "a.sensitivity.jsonl"])
def test_all_stays_where_something_was_finished(tmp_path, name):
    with pytest.raises(InputError):
        _fails(tmp_path, InputError("the second fails"), *FLOAT_FILES, name, wanted=("w8a8", "w8a16"))
    assert _made(tmp_path) == sorted(["exported", *FLOAT_FILES, name])


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_keeps_what_the_next_run_can_use(tmp_path, error):
    with pytest.raises(error):
        _fails(tmp_path, error(), *FLOAT_FILES)
    assert _made(tmp_path) == sorted(["exported", *FLOAT_FILES])


def _val_only(folder):
    folder.mkdir()
    entry = {"id": 1, "file_name": "a.png", "width": 8, "height": 8}
    document = {"images": [entry], "annotations": [], "categories": [{"id": 1, "name": "disc"}]}
    (folder / "instances_val.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scheme", "w8a8"), ("needs calibration pictures", "--calibration DATA")),
        (("--scheme", "w8a8", "--calibration", "EMPTY"), ("no annotations for the split 'train'", "an empty folder")),
        (("--scheme", "w8a8", "--calibration", "VAL"), ("no annotations for the split 'train'", "instances_val.json")),
        (("--scheme", "w8a8", "--calibration", "OTHER.json"), ("is not a COCO annotation file", "keys hello")),
        (("--scheme", "w8a8", "--calibration", "synthetic:easy", "--calibration-images", 0), ("1 picture or more",)),
        (("--scheme", "w8a8", "--calibration", "synthetic:easy", "--calibration-images", -3), ("got:      -3",)),
        (("--scheme", "w8a16", "--route", "onnx2tf", "--calibration", "synthetic:easy"), ("its own tools", "w8a8")),
        (("--scheme", "mixed", "--calibration", "synthetic:easy"), ("needs a recipe",)),
        (("--scheme", "w8a8", "--budget", "pq>=1", "--calibration", "synthetic:easy"), ("--scheme mixed",)),
        (("--for", "tpu"), ("tpu",)),
        (("--for", "gpu", "--scheme", "fp16"), ("--for or --scheme",)),
        (("--scheme", "mixed", "--budget", "pq>=1", "--calibration", "EMPTY"), ("no annotations",)),
        (
            ("--scheme", "mixed", "--budget", "pq>=1", "--calibration", "synthetic:easy", "--calibration-images", 0),
            ("Calibration needs pictures",),
        ),
        (
            ("--scheme", "mixed", "--budget", "pq>=1", "--calibration", "synthetic:easy", "--budget-data", "EMPTY"),
            ("no annotations for the split 'val'",),
        ),
        (
            ("--scheme", "mixed", "--budget", "pq>=1", "--calibration", "synthetic:easy", "--route", "onnx2tf"),
            ("its own tools", "convert with --route litert"),
        ),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused_before_the_checkpoint_is_exported(
    edge_seg, tiny_checkpoint, tmp_path, arguments, words, monkeypatch
):
    def too_late(*_args, **_options):
        raise AssertionError("the export has begun")

    monkeypatch.setattr("edge_seg.export.export", too_late)
    (tmp_path / "EMPTY").mkdir()
    _val_only(tmp_path / "VAL")
    (tmp_path / "OTHER.json").write_text('{"hello": 1}')
    monkeypatch.chdir(tmp_path)
    refused(edge_seg("convert", tiny_checkpoint, *arguments, "--out", tmp_path / "t"), *words)
    assert not (tmp_path / "t").exists()


BROKEN = "body.aspp.dilated.0.dw.weight"


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_every_verb_that_reads_them(
    edge_seg, tiny_checkpoint, tmp_path, number
):
    path = rewritten(tiny_checkpoint, tmp_path / "a.safetensors", lambda h, t: t[BROKEN][0].fill_(number))
    (tmp_path / "r.toml").write_text(RECIPE)
    out = ("--out", tmp_path / "t")
    for arguments in (
        ("export", path, *out),
        ("convert", path, *out),
        ("evaluate", path, "--data", "synthetic:easy"),
        ("qat", tmp_path / "r.toml", "--from", path, *out),
    ):
        refused(edge_seg(*arguments), f"NaN or infinity in {BROKEN}", "next:     take an earlier checkpoint")
        assert not (tmp_path / "t").exists()


@pytest.mark.slow
def test_a_recipe_that_names_no_layer_leaves_nothing(edge_seg, tiny_checkpoint, tmp_path):
    rules = 'format = "edge_seg.recipe"\n[[rules]]\nlayers = "head.nothing"\nprecision = "float"\n'
    (tmp_path / "r.toml").write_text(rules)
    arguments = ("--scheme", "mixed", "--recipe", tmp_path / "r.toml", "--calibration", "synthetic:easy")
    done = edge_seg("convert", tiny_checkpoint, *arguments, "--calibration-images", 1, "--out", tmp_path / "t")
    assert done.code == 2
    assert "'head.nothing' names no layer" in done.err
    assert not (tmp_path / "t").exists()


@pytest.mark.slow
def test_a_network_that_overflows_is_named_by_its_layer_and_leaves_nothing(edge_seg, tiny_checkpoint, tmp_path):
    path = rewritten(tiny_checkpoint, tmp_path / "large.safetensors", lambda h, t: t[BROKEN].fill_(3e38))
    arguments = ("--scheme", "w8a8", "--calibration", "synthetic:easy", "--calibration-images", 1)
    done = edge_seg("convert", path, *arguments, "--out", tmp_path / "t")
    assert done.code == 2
    assert "aspp.dilated.0" in done.err
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xd3\x00\xff", ("is not TOML", "expected: a recipe in TOML", "[[rules]]")),
        (b"format = \n[[rules]\n", ("is not TOML", "at line 1", "[[rules]]")),
        (b'format = "edge_seg.recipe"\n[[rules]]\nlayers = "a"\nprecision = "int7"\n', ("'int7'", "did you mean int8")),
        (None, ("There is no recipe", "expected: a TOML file")),
    ],
)
def test_a_recipe_that_cannot_be_read_is_told_before_the_checkpoint_is_opened(edge_seg, tmp_path, content, words):
    if content is not None:
        (tmp_path / "r.toml").write_bytes(content)
    arguments = ("--scheme", "mixed", "--recipe", tmp_path / "r.toml", "--calibration", "synthetic:easy")
    refused(edge_seg("convert", tmp_path / "gone", *arguments, "--out", tmp_path / "t"), *words, "next:")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("make it good", ("Cannot read the budget", "pq>=0.99*fp32")),
        ("iou>=0.5", ("no metric 'iou'", "pq")),
        ("pq>=101", ("out of range", "expected: (0, 100]", "next:     percent of the metric")),
        ("pq>=1.5*fp32", ("share of fp32", "expected: (0, 1]", 'next:     the metric itself, in percent: "pq>=60"')),
    ],
)
def test_a_budget_that_makes_no_sense_is_told_before_the_checkpoint_is_opened(edge_seg, tmp_path, budget, words):
    arguments = ("--scheme", "mixed", "--budget", budget, "--calibration", "synthetic:easy")
    refused(edge_seg("convert", tmp_path / "gone", *arguments, "--out", tmp_path / "t"), *words)
    assert not (tmp_path / "t").exists()
