"""From an exported folder to converted files, and what happens when something goes wrong on the way."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_converters_tinynet import (
    SIDE,
    ZEROED_CHANNEL,
    converted_files,
    exported_folder,
    smooth_pictures,
)

from edge_seg.artifact import read_manifest, sha256_of, write_manifest
from edge_seg.contract import Contract
from edge_seg.converters import convert as convert_module
from edge_seg.converters.convert import SCHEMES, convert, convert_many
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.routes import ROUTES
from edge_seg.errors import ArtifactError, DataError, InputError


@pytest.fixture
def exported(tmp_path):
    return Path(shutil.copytree(exported_folder(), tmp_path / "exported"))


@pytest.fixture
def out_with_float(tmp_path):
    """An output folder that already holds the float file, so that a test need not convert."""
    out = tmp_path / "out"
    out.mkdir()
    for file in converted_files()["fp32"].file.parent.glob("tiny_fp32.*"):
        shutil.copy(file, out)
    return out


def _names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_each_scheme_gives_file_contract_and_manifest(scheme):
    made = converted_files()[scheme]
    assert made.file.name == f"tiny_{scheme}.tflite"
    manifest = read_manifest(made.file)
    assert manifest.sha256 == made.sha256 == sha256_of(made.file)
    assert manifest.parents[0]["sha256"] == sha256_of(exported_folder() / "model.pt2")
    assert manifest.config["scheme"] == scheme
    assert made.size_bytes == made.file.stat().st_size
    assert made.transposes == 0
    assert sum(made.ops.values()) == len(read_graph(made.file).ops)
    json.dumps(made.to_json())


def test_weights_are_stored_in_the_dtype_the_scheme_promises():
    dtypes = {}
    for scheme, made in converted_files().items():
        graph = read_graph(made.file)
        weights = [t for t in graph.tensors if t.constant and t.shape == (16, 4, 4, 3)]
        dtypes[scheme] = {t.dtype for t in weights}
    int8 = {scheme: {"int8"} for scheme in ("w8_dynamic", "w8a8", "w8a16")}
    assert dtypes == {"fp32": {"float32"}, "fp16": {"float16"}, **int8}


def test_static_int8_is_integers_from_input_to_output():
    graph = read_graph(converted_files()["w8a8"].file)
    assert {t.dtype for t in graph.tensors} == {"int8", "int32"}
    assert "QUANTIZE" not in graph.op_histogram
    assert "DEQUANTIZE" not in graph.op_histogram


def test_the_int8_input_is_scale_one_zero_point_minus_128():
    # the calibration pictures were smooth and did not touch both 0 and 255 in general: the range is forced
    contract = Contract.load(converted_files()["w8a8"].contract_path)
    assert (contract.input.quantization.scale, contract.input.quantization.zero_point) == (1.0, -128)
    assert contract.input.dtype == "int8"
    assert contract.input.range == (0.0, 255.0)


def test_the_input_grid_is_forced_even_when_calibration_is_grey(exported, out_with_float):
    grey = [np.full((SIDE, SIDE, 3), v, np.uint8) for v in (100, 140)]
    made = convert(exported, scheme="w8a8", out=out_with_float, calibration=grey)
    grid = Contract.load(made.contract_path).input.quantization
    assert (grid.scale, grid.zero_point) == (1.0, -128)


def test_an_all_zero_weight_channel_converts_with_a_positive_scale():
    graph = read_graph(converted_files()["w8a8"].file)
    stem = next(op for op in graph.ops if graph.source(op) == "stem.0")
    weights = graph.tensors[stem.inputs[1]]
    assert not graph.constant(stem.inputs[1])[ZEROED_CHANNEL].any()
    assert min(weights.scale) > 0


def test_the_float_file_is_taken_again_and_the_bytes_are_the_same(exported, out_with_float, monkeypatch):
    def must_not_run(*args):
        raise AssertionError("the float file was there")

    monkeypatch.setitem(ROUTES._entries, "litert", must_not_run)
    made = convert_many(exported, SCHEMES, out=out_with_float, calibration=smooth_pictures(8, seed=1))
    assert {c.scheme: c.sha256 for c in made} == {k: c.sha256 for k, c in converted_files().items()}


def test_a_float_file_of_another_export_is_not_taken(exported, out_with_float, monkeypatch):
    (exported / "model.pt2").write_bytes((exported / "model.pt2").read_bytes() + b"\0")
    write_manifest(exported / "model.pt2", kind="exported", step="export", config={})
    called = []

    def route(program, contract):
        called.append(program)
        raise InputError("stop here")

    monkeypatch.setitem(ROUTES._entries, "litert", route)
    with pytest.raises(InputError, match="stop here"):
        convert(exported, scheme="fp16", out=out_with_float)
    assert called


def test_a_broken_float_file_is_made_anew(exported, out_with_float, monkeypatch):
    file = out_with_float / "tiny_fp32.tflite"
    good = converted_files()["fp32"].file.read_bytes()
    file.write_bytes(good[:1000])
    monkeypatch.setitem(ROUTES._entries, "litert", lambda program, contract: good)
    made = convert(exported, scheme="fp32", out=out_with_float)
    assert made.sha256 == converted_files()["fp32"].sha256


@pytest.mark.parametrize(("scheme", "hint"), [("w8a", "w8a8"), ("fp33", "fp32"), ("W8A8", "w8a8")])
def test_an_unknown_scheme_names_its_neighbours(tmp_path, scheme, hint):
    with pytest.raises(InputError, match=hint):
        convert(exported_folder(), scheme=scheme, out=tmp_path / "out")
    assert _names(tmp_path) == []


def test_an_unknown_route_names_its_neighbours(tmp_path):
    with pytest.raises(InputError, match="did you mean litert"):
        convert(exported_folder(), scheme="fp32", out=tmp_path / "out", route="litert2")


@pytest.mark.parametrize("calibration", [None, []])
def test_static_int8_without_calibration_is_refused_before_anything_slow(tmp_path, calibration):
    with pytest.raises(InputError, match="calibration"):
        convert(exported_folder(), scheme="w8a8", out=tmp_path / "out", calibration=calibration)
    assert _names(tmp_path) == []


def test_a_calibration_picture_of_another_size_is_refused(tmp_path):
    wrong = [np.zeros((SIDE, SIDE // 2, 3), np.uint8)]
    with pytest.raises(DataError, match="Calibration picture 0"):
        convert(exported_folder(), scheme="w8a8", out=tmp_path / "out", calibration=wrong)


@pytest.mark.parametrize("name", ["model.pt2", "contract.json", "decoder.safetensors"])
def test_a_changed_file_of_the_exported_folder_is_refused(exported, tmp_path, name):
    with (exported / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ArtifactError, match="not the file its manifest describes"):
        convert(exported, scheme="fp32", out=tmp_path / "out")


@pytest.mark.parametrize("name", ["model.pt2", "contract.json", "decoder.safetensors"])
def test_a_missing_file_of_the_exported_folder_is_named(exported, tmp_path, name):
    (exported / name).unlink()
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        convert(exported, scheme="fp32", out=tmp_path / "out")


def test_no_exported_folder_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no exported folder"):
        convert(tmp_path / "absent", scheme="fp32", out=tmp_path / "out")


def test_a_program_that_torch_cannot_load_is_an_artifact_error(exported, tmp_path):
    (exported / "model.pt2").write_bytes(b"PK\x03\x04 not a program")
    write_manifest(exported / "model.pt2", kind="exported", step="export", config={})
    with pytest.raises(ArtifactError, match="not an exported program"):
        convert(exported, scheme="fp32", out=tmp_path / "out")
    assert _names(tmp_path / "out") == []


def test_a_program_with_a_pickle_inside_is_refused_and_the_pickle_does_not_run(exported, tmp_path):
    import io
    import zipfile

    import torch

    flag = tmp_path / "pickle_ran"

    class Bomb:
        def __reduce__(self):
            return (flag.touch, ())

    payload = io.BytesIO()
    torch.save((Bomb(),), payload)
    source, target = exported / "model.pt2", tmp_path / "hostile.pt2"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        names = [n for n in old.namelist() if "sample_inputs" in n]
        assert names  # else this test would prove nothing
        for name in old.namelist():
            new.writestr(name, payload.getvalue() if name in names else old.read(name))
    shutil.copy(target, source)
    write_manifest(source, kind="exported", step="export", config={})
    with pytest.raises(ArtifactError, match="not an exported program"):
        convert(exported, scheme="fp32", out=tmp_path / "out")
    assert not flag.exists()


def test_a_full_disk_leaves_nothing_half_written(exported, out_with_float, monkeypatch):
    before = _names(out_with_float)
    real = Path.write_bytes

    def full(self, data):
        if "tiny_fp16" in self.name:
            real(self, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="No space left"):
        convert(exported, scheme="fp16", out=out_with_float)
    assert _names(out_with_float) == before


@pytest.mark.parametrize("victim", ["route", "quantized"])
def test_an_interruption_leaves_nothing_half_written(exported, tmp_path, monkeypatch, victim):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    good = converted_files()["fp32"].file.read_bytes()
    out = tmp_path / "out"
    monkeypatch.setitem(ROUTES._entries, "litert", interrupted if victim == "route" else lambda program, contract: good)
    monkeypatch.setattr(convert_module, "quantized", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(exported, scheme="fp16", out=out)
    whole = ["tiny_fp32.contract.json", "tiny_fp32.tflite", "tiny_fp32.tflite.manifest.json"]
    assert _names(out) == ([] if victim == "route" else whole)


def test_the_terminal_comes_back_after_an_interruption(capfd):
    from edge_seg.converters.quiet import quiet_tools

    def interrupted():
        with quiet_tools("a compiler"):
            print("chatter")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    print("mine")
    assert capfd.readouterr().out == "mine\n"


def test_conversion_prints_nothing_on_standard_output(exported, out_with_float, capfd):
    convert(exported, scheme="w8a8", out=out_with_float, calibration=smooth_pictures(2))
    captured = capfd.readouterr()
    assert captured.out == ""


def test_a_calibration_generator_is_enough(exported, out_with_float):
    pictures = smooth_pictures(8, seed=1)
    made = convert(exported, scheme="w8a8", out=out_with_float, calibration=(p for p in pictures))
    assert made.sha256 == converted_files()["w8a8"].sha256


def test_a_contract_with_another_output_shape_is_refused(exported, tmp_path):
    document = json.loads((exported / "contract.json").read_text())
    document["outputs"][0]["shape"] = [1, 3, 3, 5]
    (exported / "contract.json").write_text(json.dumps(document))
    write_manifest(exported / "contract.json", kind="exported", step="export", config={})
    with pytest.raises(ArtifactError, match="does not fit the contract"):
        convert(exported, scheme="fp32", out=tmp_path / "out")
    assert _names(tmp_path / "out") == []


def test_a_route_with_tools_of_its_own_quantises_itself_and_their_versions_decide_about_the_float_file(
    exported, tmp_path, monkeypatch
):
    made = []

    class Route:
        tools = "alpha:1"

        def __call__(self, program, contract):
            made.append(self.tools)
            return converted_files()["fp32"].file.read_bytes()

        def w8a8(self, program, contract, images):
            made.append(f"w8a8 of {len(images)}")
            return converted_files()["w8a8"].file.read_bytes()

    route = Route()
    monkeypatch.setitem(ROUTES._entries, "alpha", route)
    job = {"out": tmp_path / "out", "route": "alpha", "calibration": smooth_pictures(3)}
    convert_many(exported, ["fp32", "fp16", "w8a8"], **job)
    assert made == ["alpha:1", "w8a8 of 3"]
    route.tools = "alpha:2"
    convert_many(exported, ["fp16"], **job)
    assert made == ["alpha:1", "w8a8 of 3", "alpha:2"]
