"""What travels inside a .tflite."""

from __future__ import annotations

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import model_modifier
from test_converters_tinynet import (
    CLASSES,
    SIDE,
    converted_files,
    exported_folder,
    smooth_pictures,
    tiny_contract,
)

from edge_seg.converters import metadata
from edge_seg.converters.exported import open_exported
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.flatbuffer_edit import with_metadata
from edge_seg.converters.ptq.post_training import quantized
from edge_seg.errors import ArtifactError


def test_the_archive_opens_with_zipfile_and_holds_contract_labels_colours_and_constants():
    with zipfile.ZipFile(converted_files()["fp16"].file) as archive:
        assert sorted(archive.namelist()) == [
            "colors.json",
            "contract.json",
            "decoder.safetensors",
            "labels.txt",
        ]
        assert archive.read("labels.txt").decode().split("\n")[:2] == ["klass 0", "klass 1"]
        assert json.loads(archive.read("colors.json"))[2] == [2, 20, 253]
        assert archive.testzip() is None


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "w8_dynamic", "w8a8"])
def test_the_embedded_contract_equals_the_one_beside_the_file(scheme):
    made = converted_files()[scheme]
    inside = metadata.read_contract(made.file)
    assert inside.to_json() == json.loads(made.contract_path.read_text())
    assert made.contract_path.name == f"tiny_{scheme}.contract.json"
    assert inside.model.scheme == scheme
    assert inside.model.route == "litert"
    assert inside.model.parents["exported_sha256"] == open_exported(exported_folder()).program_sha256
    assert [o.signature_key for o in inside.outputs] == ["semantic", "features"]


def test_the_constants_come_back_bit_for_bit():
    constants = metadata.read_constants(converted_files()["w8a8"].file)
    wanted = np.arange(CLASSES * 8, dtype=np.float32).reshape(CLASSES, 8)
    np.testing.assert_array_equal(constants["embedding"], wanted)


def test_labels_come_back_in_the_order_of_the_classes():
    labels = metadata.read_labels(converted_files()["fp32"].file)
    assert labels == [c.name for c in tiny_contract().classes]


def test_the_standard_metadata_buffer_is_there_with_its_identifier():
    graph = read_graph(converted_files()["fp32"].file)
    buffer = graph.metadata["TFLITE_METADATA"]
    assert buffer[4:8] == b"M001"
    for text in (b"image", b"semantic", b"features", b"labels.txt", b"Apache-2.0"):
        assert text in buffer


def _outputs(path, picture):
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    batch = picture[None]
    if source["dtype"] == np.int8:
        batch = (batch.astype(np.int16) - 128).astype(np.int8)
    interpreter.set_tensor(source["index"], batch.astype(source["dtype"]))
    interpreter.invoke()
    return [interpreter.get_tensor(o["index"]) for o in interpreter.get_output_details()]


@pytest.mark.parametrize("scheme", ["fp16", "w8_dynamic", "w8a8"])
def test_constants_outside_the_flatbuffer_survive_embedding_bit_for_bit(tmp_path, monkeypatch, scheme):
    # the quantiser writes them outside for networks of more than 256 kB; here it does so for a small one
    def outside(self, model):
        return self._serialize_model(model, model_modifier._PackedBufferData(model, 64))

    monkeypatch.setattr(model_modifier.ModelModifier, "_serialize_small_model", outside)
    made = converted_files()["fp32"]
    graph = read_graph(made.file)
    contract = open_exported(exported_folder()).contract
    pictures = smooth_pictures(4, seed=1)
    data = quantized(made.file.read_bytes(), graph, contract, scheme=scheme, calibration=list(pictures))
    before, after = tmp_path / "before.tflite", tmp_path / "after.tflite"
    before.write_bytes(data)
    assert _external_buffers(data) > 0  # else this test would prove nothing
    after.write_bytes(metadata.embed(data, contract, constants=b"", outputs=[o.name for o in contract.outputs]))
    for picture in smooth_pictures(2, seed=5):
        for a, b in zip(_outputs(before, picture), _outputs(after, picture), strict=True):
            assert np.array_equal(a, b)
    assert _external_buffers(after.read_bytes()) == 0


def _external_buffers(data):
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data, 0)
    return sum(model.Buffers(i).Offset() > 1 for i in range(model.BuffersLength()))


def test_constants_are_aligned_to_16_bytes():
    from ai_edge_litert import schema_py_generated as schema

    data = converted_files()["w8a8"].file.read_bytes()
    model = schema.Model.GetRootAs(data, 0)
    starts = []
    for buffer in (model.Buffers(i) for i in range(model.BuffersLength())):
        if place := buffer._tab.Offset(4):
            starts.append(buffer._tab.Vector(place))
    assert len(starts) > 10
    assert {s % 16 for s in starts} == {0}


def test_embedding_twice_gives_the_same_bytes_as_once():
    contract = open_exported(exported_folder()).contract
    names = [o.name for o in contract.outputs]
    data = converted_files()["fp32"].file.read_bytes()
    once = metadata.embed(data, contract, constants=b"c", outputs=names)
    assert metadata.embed(once, contract, constants=b"c", outputs=names) == once


def _with_archive(tmp_path, files, **changes):
    bare = with_metadata(converted_files()["fp32"].file.read_bytes(), {})
    target = io.BytesIO(bare)
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files:
            archive.writestr(name, content)
    path = tmp_path / "hostile.tflite"
    path.write_bytes(target.getvalue())
    return path


def test_a_file_without_an_archive_has_no_contract(tmp_path):
    bare = tmp_path / "bare.tflite"
    bare.write_bytes(with_metadata(converted_files()["fp32"].file.read_bytes(), {}))
    with pytest.raises(ArtifactError, match=r"carries no readable contract\.json"):
        metadata.read_contract(bare)


def test_an_oversized_member_is_refused_before_it_is_unpacked(tmp_path):
    bomb = _with_archive(tmp_path, [("contract.json", b" " * (metadata.MAX_MEMBER_BYTES["contract.json"] + 1))])
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(ArtifactError, match="more than"):
        metadata.read_contract(bomb)


@pytest.mark.parametrize("name", ["../contract.json", "/contract.json", "a/../contract.json"])
def test_a_member_with_a_path_is_not_the_contract_and_nothing_is_written(tmp_path, name):
    hostile = _with_archive(tmp_path, [(name, b"{}")])
    with pytest.raises(ArtifactError):
        metadata.read_contract(hostile)
    assert [p.name for p in tmp_path.iterdir()] == ["hostile.tflite"]


def test_two_members_of_one_name_are_refused(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"):
        hostile = _with_archive(tmp_path, [("contract.json", b"{}"), ("contract.json", b"{}")])
    with pytest.raises(ArtifactError):
        metadata.read_contract(hostile)


def test_constants_that_are_not_the_contracts_are_refused(tmp_path):
    from safetensors.numpy import save

    contract = json.dumps(tiny_contract().to_json())
    other = save({"embedding": np.zeros((1, 8), np.float32)})
    hostile = _with_archive(tmp_path, [("contract.json", contract), ("decoder.safetensors", other)])
    with pytest.raises(ArtifactError, match="not those of its contract"):
        metadata.read_constants(hostile)


@pytest.mark.parametrize("content", [b"", b"\x80\x04N.", b"\xff" * 64])
def test_constants_that_are_no_safetensors_are_refused(tmp_path, content):
    contract = json.dumps(tiny_contract().to_json())
    hostile = _with_archive(tmp_path, [("contract.json", contract), ("decoder.safetensors", content)])
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        metadata.read_constants(hostile)


def test_a_damaged_archive_is_refused(tmp_path):
    data = bytearray(converted_files()["fp32"].file.read_bytes())
    start = data.index(b"PK\x03\x04")
    damaged = tmp_path / "damaged.tflite"
    for seed in range(60):
        rng = np.random.default_rng(seed)
        copy = bytearray(data)
        for place in rng.integers(start, len(data), 12):
            copy[place] = rng.integers(0, 256)
        damaged.write_bytes(copy)
        try:
            metadata.read_contract(damaged)
        except ArtifactError:
            continue
    shutil.copy(converted_files()["fp32"].file, damaged)
    assert metadata.read_contract(damaged).input.shape == (1, SIDE, SIDE, 3)
