"""Quantisation as a step: files, reports and manifests it leaves, what it refuses and leaves behind then (nothing)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_converters_tinynet import SIDE, converted_files, exported_folder, smooth_pictures

from edge_seg.artifact import read_manifest
from edge_seg.contract import Contract
from edge_seg.converters.convert import calibration_path, convert, convert_many, in_memory
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.ptq import bias_correction
from edge_seg.converters.ptq.post_training import PtqSettings, calibrate
from edge_seg.converters.ptq.ranges import RangeMethod
from edge_seg.converters.ptq.recipe import Recipe, Rule
from edge_seg.converters.routes import ROUTES
from edge_seg.errors import ConfigError, DataError, InputError

PICTURES = smooth_pictures(4, seed=1)
MIXED = Recipe("int8", (Rule("heads.0", "float", "a test"), Rule("stages", "int16")))


@pytest.fixture
def out(tmp_path):
    """An output folder that already holds the float file of the exported folder."""
    folder = tmp_path / "out"
    folder.mkdir()
    for file in converted_files()["fp32"].file.parent.glob("tiny_fp32.*"):
        shutil.copy(file, folder)
    return folder


def _names(folder):
    return sorted(p.name for p in Path(folder).iterdir())


def _snr_db(file, picture):
    exact, found = (TfliteRunner(f)(picture) for f in (converted_files()["fp32"].file, file))
    return min(10 * np.log10(np.square(exact[k]).sum() / np.square(exact[k] - found[k]).sum()) for k in exact)


def test_a_calibrated_file_comes_with_its_report_and_the_others_with_none():
    for scheme, made in converted_files().items():
        static = scheme in ("w8a8", "w8a16")
        assert calibration_path(made.file).is_file() == static
        assert (made.calibration_path == calibration_path(made.file)) == static
        assert bool(made.calibration_text) == static
    document = json.loads(calibration_path(converted_files()["w8a8"].file).read_text())
    assert document["format"] == "edge_seg.calibration_report"
    assert document["pictures"] == 8
    graph = read_graph(converted_files()["fp32"].file)
    assert len(document["tensors"]) == 1 + sum(len(op.outputs) for op in graph.ops)


def test_the_report_shows_the_grids_that_are_in_the_file():
    made = converted_files()["w8a8"]
    lines = {t["tensor"]: t for t in json.loads(made.calibration_path.read_text())["tensors"]}
    graph = read_graph(made.file)
    for t in (t for op in graph.ops for t in op.outputs):
        tensor = graph.tensors[t]
        assert (lines[tensor.name]["step"], lines[tensor.name]["zero_point"]) == (tensor.scale[0], tensor.zero_point[0])


def test_the_dead_channel_of_the_stem_is_listed():
    flags = json.loads(converted_files()["w8a8"].calibration_path.read_text())["flags"]
    assert [(f["module"], f["reason"][:7]) for f in flags if f["kind"] == "dead_channels"] == [("stem.0", "1 of 16")]


def test_w8a16_takes_bytes_gives_int16_and_is_nearer_to_float():
    made = converted_files()["w8a16"]
    own = Contract.load(made.contract_path)
    assert (own.input.dtype, own.input.quantization.scale, own.input.quantization.zero_point) == ("int8", 1.0, -128)
    assert {o.dtype for o in own.outputs} == {"int16"}
    assert {o.quantization.zero_point for o in own.outputs} == {0}
    picture = smooth_pictures(1, seed=9)[0]
    assert _snr_db(made.file, picture) > _snr_db(converted_files()["w8a8"].file, picture) + 3
    assert "int16" in made.warnings[0]


def test_mixed_writes_what_the_recipe_says(out):
    made = convert(exported_folder(), scheme="mixed", out=out, calibration=PICTURES, settings=PtqSettings(recipe=MIXED))
    assert made.file.name == "tiny_mixed.tflite"
    own = Contract.load(made.contract_path)
    assert own.model.scheme == "mixed"
    graph = read_graph(made.file)
    weights = {graph.source(op): graph.tensors[op.inputs[1]].dtype for op in graph.ops if "CONV" in op.name}
    assert weights["heads.0"] == "float32"
    assert weights["heads.1"] == weights["stem.0"] == "int8"
    assert read_manifest(made.file).config["calibration"]["recipe"] == MIXED.to_json()
    assert _snr_db(made.file, smooth_pictures(1, seed=9)[0]) > 15


def test_a_recipe_without_files_gives_the_same_network_as_the_step(out):
    file = converted_files()["fp32"].file
    network = calibrate(
        file.read_bytes(), read_graph(file), Contract.load(exported_folder() / "contract.json"), PICTURES
    )
    alone = out / "alone.tflite"
    alone.write_bytes(in_memory(file, network, MIXED))
    made = convert(exported_folder(), scheme="mixed", out=out, calibration=PICTURES, settings=PtqSettings(recipe=MIXED))
    picture = smooth_pictures(1, seed=3)[0]
    a, b = TfliteRunner(alone)(picture), TfliteRunner(made.file)(picture)
    assert all(np.array_equal(a[k], b[k]) for k in b)


def test_the_settings_of_calibration_are_in_the_manifest_and_change_the_file(out):
    settings = PtqSettings(RangeMethod("mse"), bias_correction=True, equalize=True)
    made = convert(exported_folder(), scheme="w8a8", out=out, calibration=PICTURES, settings=settings)
    config = read_manifest(made.file).config
    assert config["calibration_images"] == 4
    assert {k: config["calibration"][k] for k in ("ranges", "bias_correction", "equalize")} == {
        "ranges": "mse",
        "bias_correction": True,
        "equalize": True,
    }
    assert made.sha256 != converted_files()["w8a8"].sha256
    assert "corrected the biases" in made.calibration_text
    assert TfliteRunner(made.file).xnnpack_partitions().partitions == 1


def test_the_report_of_an_older_file_does_not_stay_beside_a_new_one(out, monkeypatch):
    class Route:
        tools = "alpha:1"

        def __call__(self, program, contract):
            return converted_files()["fp32"].file.read_bytes()

        def w8a8(self, program, contract, images):
            return converted_files()["w8a8"].file.read_bytes()

    made = convert(exported_folder(), scheme="w8a8", out=out, calibration=PICTURES)
    assert made.calibration_path.is_file()
    monkeypatch.setitem(ROUTES._entries, "alpha", Route())
    other = convert(exported_folder(), scheme="w8a8", out=out, calibration=PICTURES, route="alpha")
    assert other.file == made.file
    assert not made.calibration_path.exists()
    for scheme, settings in (
        ("w8a16", None),
        ("mixed", PtqSettings(recipe=MIXED)),
        ("w8a8", PtqSettings(RangeMethod("minmax"))),
    ):
        with pytest.raises(InputError, match="its own tools"):
            convert(exported_folder(), scheme=scheme, out=out, calibration=PICTURES, route="alpha", settings=settings)


def test_a_recipe_that_names_no_layer_leaves_no_file(out):
    before = _names(out)
    settings = PtqSettings(recipe=Recipe("int8", (Rule("heds.0", "float"),)))
    with pytest.raises(ConfigError, match="heads"):
        convert(exported_folder(), scheme="mixed", out=out, calibration=PICTURES, settings=settings)
    assert _names(out) == before


@pytest.mark.parametrize("scheme", ["w8a8", "w8a16", "mixed"])
def test_calibrated_schemes_without_pictures_are_refused_before_anything_slow(tmp_path, scheme):
    with pytest.raises(InputError, match="needs calibration pictures"):
        convert(exported_folder(), scheme=scheme, out=tmp_path / "out", settings=PtqSettings(recipe=MIXED))
    assert not (tmp_path / "out").exists()


def test_what_one_of_several_schemes_cannot_do_stops_all_of_them(tmp_path):
    with pytest.raises(InputError, match="w8a16 has none"):
        convert_many(
            exported_folder(),
            ["w8a8", "w8a16"],
            out=tmp_path / "out",
            calibration=PICTURES,
            settings=PtqSettings(bias_correction=True),
        )
    assert not (tmp_path / "out").exists()


def test_an_interrupted_bias_correction_leaves_no_file(out, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    before = _names(out)
    monkeypatch.setattr(bias_correction, "corrected", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(
            exported_folder(),
            scheme="w8a8",
            out=out,
            calibration=PICTURES,
            settings=PtqSettings(bias_correction=True),
        )
    assert _names(out) == before


def test_a_network_that_computes_nan_leaves_no_quantised_file(out, monkeypatch):
    from edge_seg.converters.flatbuffer_edit import Editor

    file = out / "tiny_fp32.tflite"
    graph = read_graph(file)
    stem = next(op for op in graph.ops if graph.source(op) == "stem.0")
    editor = Editor(file.read_bytes())
    editor.set_operand(stem.index, 2, np.full(16, np.nan, np.float32))
    broken = editor.packed()
    monkeypatch.setitem(ROUTES._entries, "litert", lambda program, contract: broken)
    for name in _names(out):
        (out / name).unlink()
    with pytest.raises(DataError, match=r"stem\.0"):
        convert(exported_folder(), scheme="w8a8", out=out, calibration=PICTURES)
    assert not list(out.glob("*w8a8*"))


@pytest.fixture
def command(edge_seg, out, monkeypatch):
    """`edge-seg convert` on the exported folder, with eight synthetic pictures for calibration."""
    from edge_seg import steps

    pictures = smooth_pictures(8, side=SIDE)
    monkeypatch.setattr(steps, "pictures", lambda data, count, split: pictures[:count])
    return lambda *options: edge_seg("convert", exported_folder(), "--out", out, *options)


def test_the_verb_takes_ranges_and_prints_one_summary_line(command):
    done = command("--scheme", "w8a8", "--calibration", "x", "--calibration-images", 3, "--ranges", "mse", "--json")
    assert done.code == 0, done.err
    document = done.json()
    assert Path(document["calibration_path"]).is_file()
    assert sum(line.startswith("w8a8: 3 pictures, ranges mse") for line in done.err.splitlines()) == 1
    assert "weakest" not in done.err


def test_the_verb_prints_the_whole_report_when_asked(command):
    done = command("--scheme", "w8a8", "--calibration", "x", "--report", "--json")
    assert "weakest" in done.err
    assert "dead_channels stem.0" in done.err
    assert done.json()["scheme"] == "w8a8"


def test_the_verb_picks_a_scheme_for_a_processor_and_says_why(command):
    done = command("--for", "gpu", "--json")
    assert done.code == 0, done.err
    assert done.json()["scheme"] == done.json()["advice"]["scheme"] == "fp16"
    assert "fp16 for gpu: " in done.err


def test_the_verb_converts_by_a_recipe_file(command, tmp_path):
    (tmp_path / "r.toml").write_text(MIXED.to_toml())
    done = command("--scheme", "mixed", "--recipe", tmp_path / "r.toml", "--calibration", "x", "--json")
    assert done.code == 0, done.err
    assert done.json()["ops"]["QUANTIZE"] >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scheme", "fp16", "--ranges", "mse"), "--ranges needs a scheme that is calibrated"),
        (("--scheme", "fp32", "--report"), "--report needs a scheme that is calibrated"),
        (("--scheme", "w8a8", "--ranges", "mze"), "did you mean mse"),
        (("--for", "gpu", "--scheme", "fp16"), "--for picks the scheme"),
        (("--for", "gpuu"), "did you mean gpu"),
        (("--for", "npu"), "needs calibration pictures"),
        (("--scheme", "w8a8", "--recipe", "r.toml"), "r.toml"),
        (
            (
                "--scheme",
                "w8a99",
            ),
            "did you mean w8a8",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused_and_leave_nothing(command, out, options, message):
    before = _names(out)
    done = command(*options)
    assert done.code == 2
    assert message in done.err
    assert _names(out) == before
