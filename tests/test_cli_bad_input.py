"""What the program says to input that is missing, broken or hostile: what is wrong, and what to do next."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RECIPE = """
[data]
train = "synthetic:easy"
[model]
name = "maskconver_mnv2_256"
input_px = 64
[optim]
steps = 1
"""


def refused(done, *words: str) -> None:
    """Asserts that a call ended as bad input does, with these words and a next step, and no traceback."""
    assert done.code == 2, done.err
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err


class Code:
    """Creates a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.mkdir, (str(self.trace),))


def write_pickle(path: Path, trace: Path, kind: str) -> None:
    data = pickle.dumps({"w": Code(trace)}, protocol=0 if kind == "protocol 0" else 4)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", "3\n")
    else:
        path.write_bytes(data)


def test_the_pickles_of_these_tests_would_run_code(tmp_path):
    write_pickle(tmp_path / "a.pt", tmp_path / "trace", "protocol 4")
    with (tmp_path / "a.pt").open("rb") as file:
        pickle.load(file)
    assert (tmp_path / "trace").is_dir()


@pytest.mark.parametrize("kind", ["protocol 0", "protocol 4", "zip"])
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_a_checkpoint_that_is_a_pickle_with_code_is_refused_and_not_run(edge_seg, tmp_path, kind, name):
    write_pickle(tmp_path / name, tmp_path / "trace", kind)
    for arguments in (
        ("evaluate", tmp_path / name, "--data", "synthetic:easy"),
        ("export", tmp_path / name, "--out", tmp_path / "e"),
        ("convert", tmp_path / name, "--out", tmp_path / "t"),
    ):
        refused(edge_seg(*arguments), "is not a safetensors file", "next:     use the model.safetensors")
    assert not (tmp_path / "trace").exists()
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [name]


@pytest.mark.parametrize("kind", ["protocol 4", "zip"])
def test_a_pickle_is_called_a_pickle(edge_seg, tmp_path, kind):
    write_pickle(tmp_path / "model.pt", tmp_path / "trace", kind)
    refused(edge_seg("export", tmp_path / "model.pt", "--out", tmp_path / "e"), "a pickle, which may contain code")


def test_a_resumable_state_that_is_a_pickle_with_code_is_refused_and_not_run(edge_seg, tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "run").mkdir()
    write_pickle(tmp_path / "run" / "state.pt", tmp_path / "trace", "protocol 4")
    done = edge_seg("train", tmp_path / "recipe.toml", "--out", tmp_path / "run", "--resume")
    refused(done, "is not a resumable state", "next:")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_checkpoint_is_refused(edge_seg, tiny_checkpoint, tmp_path, share):
    data = tiny_checkpoint.read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[: int(len(data) * share)])
    done = edge_seg("evaluate", tmp_path / "model.safetensors", "--data", "synthetic:easy")
    refused(done, "is not a safetensors file", "next:")


def test_a_checkpoint_with_a_lying_header_is_refused(edge_seg, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    refused(edge_seg("export", tmp_path / "a.safetensors", "--out", tmp_path / "e"), "is not a safetensors file")


def rewritten(source: Path, target: Path, change) -> Path:
    """Writes a checkpoint with a changed header and changed tensors."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, framework="pt") as file:
        header, tensors = dict(file.metadata()), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, target, metadata=header)
    return target


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h, t: h.clear(), ("is not a checkpoint of edge_seg",)),
        (lambda h, t: h.update(settings="{"), ("has a broken header",)),
        (lambda h, t: h.update(classes='[{"id": 1}]'), ("has a broken header",)),
        (lambda h, t: h.update(step="many"), ("has a broken header",)),
        (lambda h, t: h.update(classes=json.dumps(json.loads(h["classes"])[:3])), ("does not fit", "other shape")),
        (lambda h, t: t.update(extra=t[sorted(t)[0]].clone()), ("does not fit", "surplus ['extra']")),
        (lambda h, t: t.pop("body.aspp.project.conv.weight", t.pop(sorted(t)[0])), ("does not fit", "missing")),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_says_where(edge_seg, tiny_checkpoint, tmp_path, change, words):
    path = rewritten(tiny_checkpoint, tmp_path / "model.safetensors", change)
    refused(edge_seg("export", path, "--out", tmp_path / "e"), *words)


@pytest.mark.parametrize("verb", ["evaluate", "predict", "golden", "export", "convert", "verify", "check", "benchmark"])
@pytest.mark.parametrize("name", ["nothing.safetensors", "nothing.tflite"])
def test_a_missing_model_is_an_error_that_names_the_file(edge_seg, tiny_exported, tmp_path, verb, name):
    model = tmp_path / name
    rest = {
        "evaluate": ("--data", "synthetic:easy"),
        "predict": ("a.png", "--out", tmp_path / "p"),
        "golden": ("a.png", "--out", tmp_path / "p"),
        "verify": ("--against", tiny_exported),
        "check": (),
        "benchmark": ("--out", tmp_path / "r.json"),
    }.get(verb, ("--out", tmp_path / "e"))
    refused(edge_seg(verb, model, *rest), name)


def test_a_model_of_another_kind_is_refused(edge_seg, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    done = edge_seg("evaluate", tmp_path / "model.onnx", "--data", "synthetic:easy")
    refused(done, "is not a model", "expected: a checkpoint (.safetensors) or a converted file (.tflite)")


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\x1c\0\0\0TFL3" + b"\0" * 40, b"\xff" * 5000, b"PK\x03\x04"])
def test_a_tflite_that_is_none_is_refused(edge_seg, tiny_exported, tmp_path, data):
    path = tmp_path / "a.tflite"
    path.write_bytes(data)
    refused(edge_seg("evaluate", path, "--data", "synthetic:easy"), "a.tflite")
    refused(edge_seg("check", path), "a.tflite")
    refused(edge_seg("verify", path, "--against", tiny_exported), "a.tflite")


def test_a_network_and_a_data_set_with_other_classes_do_not_go_together(edge_seg, tiny_checkpoint):
    done = edge_seg("evaluate", tiny_checkpoint, "--data", "synthetic:hard")
    refused(done, "other classes than the network", "next:")
    assert "expected: 8 classes, from number 5 on: plain (stuff), stripes (stuff)" in done.err
    assert "got:      13 classes, from number 5 on: ring (thing), cross (thing)" in done.err


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ("synthetic:medium", "synthetic level 'medium'"),
        ("synthetic:easy:x", "is not a data set"),
        ("nowhere", "nowhere"),
    ],
)
def test_data_that_is_not_there_is_an_error(edge_seg, tiny_checkpoint, data, word):
    refused(edge_seg("evaluate", tiny_checkpoint, "--data", data), word)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("topk=3", ("no parameter 'topk'", "top_k")),
        ("top_k", ("Cannot read the override 'top_k'",)),
        ("top_k=many", ("top_k", "int")),
        ("score_threshold=[0.1]", ("score_threshold", "float")),
        ("one_peak_per_stuff_class=1", ("one_peak_per_stuff_class", "bool")),
    ],
)
def test_a_decoder_parameter_that_does_not_fit_is_refused(edge_seg, tiny_checkpoint, text, words):
    refused(edge_seg("evaluate", tiny_checkpoint, "--data", "synthetic:easy", "--limit", 1, "--set", text), *words)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=0.1", ("'optim.lrr'", "did you mean lr")),
        ("optim.lr=fast", ("'optim.lr'", "float")),
        ("modell.name=a", ("'modell'", "did you mean model")),
        ("model.name=maskconver_mnv2_128", ("no model called", "maskconver_mnv2_256")),
        ("model.input_px=100", ("multiple of 32", "next:     use 96")),
        ("optim.epochs=3", ("length of the training is not clear",)),
        ("data.train=nowhere", ("no data set 'nowhere'",)),
        ("model.weights=nowhere.safetensors", ("nowhere.safetensors",)),
        ("criterion.max_slotz=3", ("max_slotz", "max_slots")),
        ("decoder.topk=3", ("topk", "top_k")),
    ],
)
def test_a_recipe_with_a_mistake_stops_before_training_and_names_the_key(edge_seg, tmp_path, override, words):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    done = edge_seg("train", tmp_path / "recipe.toml", override, "--out", tmp_path / "run")
    refused(done, *words)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_missing_recipe_is_an_error(edge_seg, tmp_path):
    refused(edge_seg("train", tmp_path / "a.toml", "--out", tmp_path / "run"), "There is no configuration", "next:")


@pytest.mark.parametrize("case", ["missing", "truncated", "text", "folder"])
def test_a_picture_that_cannot_be_read_is_an_error_that_names_it(edge_seg, tiny_checkpoint, tmp_path, case):
    path = tmp_path / "street.jpg"
    if case == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-900])
    elif case == "text":
        path.write_text("not a picture")
    elif case == "folder":
        path.mkdir()
    for verb in ("predict", "golden"):
        refused(edge_seg(verb, tiny_checkpoint, path, "--out", tmp_path / "p"), "street.jpg", "next:")
    assert not (tmp_path / "p").exists()


def test_two_pictures_of_one_name_are_refused_before_either_is_written(edge_seg, tiny_checkpoint, tmp_path):
    pictures = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    for path in pictures:
        path.parent.mkdir()
        Image.new("RGB", (8, 8)).save(path)
    refused(edge_seg("predict", tiny_checkpoint, *pictures, "--out", tmp_path / "p"), "cannot be told apart")
    refused(edge_seg("golden", tiny_checkpoint, *pictures, "--out", tmp_path / "g"), "cannot be told apart")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("models", "maskconver_mnv2_265"), ("no model called", "did you mean maskconver_mnv2_256")),
        (("models", "maskconver_mnv2_256", "--input", 100), ("multiple of 32",)),
        (("models", "maskconver_mnv2_256", "--num-classes", 0), ("number of classes",)),
        (("models", "maskconver_mnv2_256", "--num-classes", -3), ("number of classes",)),
        (("profiles", "host_cpu_3t"), ("no profile called", "host_cpu_1t")),
        (("report", "nowhere"), ("nowhere",)),
    ],
)
def test_a_name_that_does_not_exist_is_an_error_with_the_nearest_names(edge_seg, arguments, words):
    refused(edge_seg(*arguments), *words)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--scheme", "int8"), ("int8", "w8a8")),
        (("--scheme", "fp32", "--route", "onnx"), ("no route called 'onnx'", "onnx2tf")),
        (("--scheme", "w8a8"), ("alibrat",)),
    ],
)
def test_a_conversion_that_cannot_work_is_refused_and_leaves_nothing(
    edge_seg, tiny_exported, tmp_path, arguments, words
):
    refused(edge_seg("convert", tiny_exported, *arguments, "--out", tmp_path / "t"), *words)
    assert not list((tmp_path).rglob("*.tflite"))


def test_a_folder_that_was_not_exported_is_refused(edge_seg, tmp_path):
    refused(edge_seg("convert", tmp_path, "--out", tmp_path / "t"), "is not a whole exported folder", "next:")


@pytest.mark.parametrize("name", ["model.pt2", "contract.json", "decoder.safetensors"])
def test_an_exported_file_that_was_changed_is_refused(edge_seg, tiny_exported, tmp_path, name):
    folder = tmp_path / "e"
    shutil.copytree(tiny_exported, folder)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    refused(edge_seg("convert", folder, "--out", tmp_path / "t"), name)


def test_a_tool_that_is_not_installed_ends_with_three_and_says_how_to_get_it(
    edge_seg, tiny_exported, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "litert_torch", None)
    done = edge_seg("convert", tiny_exported, "--out", tmp_path / "t")
    assert done.code == 3
    assert "next:     pip install litert-torch==0.10.0" in done.err
    assert not list(tmp_path.rglob("*.tflite*"))


@pytest.mark.parametrize("verb", ["export", "predict", "golden"])
def test_a_folder_that_cannot_be_written_is_an_error(edge_seg, tiny_checkpoint, tmp_path, verb):
    (tmp_path / "file").write_text("in the way")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    pictures = () if verb == "export" else (tmp_path / "a.png",)
    done = edge_seg(verb, tiny_checkpoint, *pictures, "--out", tmp_path / "file" / "out")
    refused(done, "Cannot write", "next:     free space")
