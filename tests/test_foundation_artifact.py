"""Files are written whole or not at all, and a manifest tells when one was changed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from edge_seg import __version__, artifact
from edge_seg.artifact import (
    atomic_path,
    manifest_path,
    plain_json,
    read_json,
    read_manifest,
    sha256_of,
    tool_versions,
    write_arrays,
    write_bytes,
    write_json,
    write_manifest,
)
from edge_seg.errors import ArtifactError, InputError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_only_when_the_block_ends_well(tmp_path):
    path = tmp_path / "new" / "a.bin"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_bytes() == b"whole"
    assert names(path.parent) == ["a.bin"]


def test_a_written_file_is_readable_by_others(tmp_path):
    write_bytes(tmp_path / "a.bin", b"x")
    assert (tmp_path / "a.bin").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ValueError, MemoryError])
def test_an_interrupted_block_leaves_nothing_and_keeps_the_old_file(tmp_path, kind):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise kind

    with pytest.raises(kind):
        interrupted()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_full_disk_leaves_nothing_and_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match="Cannot write") as caught:
        write_json(path, {"a": 1})
    assert "No space left on device" in caught.value.got
    assert "free space" in caught.value.todo
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which only Linux has")
def test_a_disk_that_the_system_calls_full_is_reported_the_same_way(tmp_path):
    def write() -> None:
        with atomic_path(tmp_path / "a.bin"), Path("/dev/full").open("wb") as file:
            file.write(b"x" * 100_000)

    with pytest.raises(InputError, match="Cannot write") as caught:
        write()
    assert "No space left on device" in caught.value.got
    assert names(tmp_path) == []


def test_a_file_where_a_folder_should_be_is_an_input_error(tmp_path):
    (tmp_path / "a").write_text("a file")
    with pytest.raises(InputError, match="Cannot write"):
        write_bytes(tmp_path / "a" / "b.bin", b"x")


def test_a_folder_where_the_file_should_be_is_an_input_error(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(InputError, match="Cannot write"):
        write_bytes(tmp_path / "a", b"x")
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_an_input_error(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="Cannot write"):
        write_bytes(tmp_path / "a.bin", b"x")
    tmp_path.chmod(0o755)


def test_the_hash_is_sha256(tmp_path):
    data = np.random.default_rng(0).bytes((1 << 20) + 17)  # longer than one block
    (tmp_path / "a.bin").write_bytes(data)
    assert sha256_of(tmp_path / "a.bin") == hashlib.sha256(data).hexdigest()
    (tmp_path / "b.bin").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_of(tmp_path / "b.bin") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_hash_of_a_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        sha256_of(tmp_path / "a.bin")


def test_json_is_written_with_its_keys_in_order_and_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"z": 1, "a": "ß"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "z": 1,\n  "a": "ß"\n}\n'
    assert read_json(tmp_path / "a.json") == {"z": 1, "a": "ß"}


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_file_that_is_not_json_is_an_input_error(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(InputError, match="is not readable") as caught:
        read_json(tmp_path / "a.json", "contract")
    assert caught.value.expected == "a contract"


def test_a_missing_json_and_a_folder_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="There is no file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_json(tmp_path)


def test_arrays_come_back_without_unpickling(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.float32([0.5])}
    write_arrays(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as back:
        assert sorted(back.files) == ["a", "b"]
        np.testing.assert_array_equal(back["a"], arrays["a"])
        assert back["b"].dtype == np.float32


def test_arrays_of_objects_are_not_pickled(tmp_path):
    with pytest.raises(ValueError, match="allow_pickle"):
        write_arrays(tmp_path / "a.npz", {"a": np.array([{}], dtype=object)})
    assert names(tmp_path) == []


@pytest.fixture
def made(tmp_path):
    """A file with a parent and a manifest."""
    (tmp_path / "parent.bin").write_bytes(b"parent")
    (tmp_path / "a.bin").write_bytes(b"child")
    write_manifest(
        tmp_path / "a.bin",
        kind="tflite",
        step="convert",
        config={"scheme": "fp32"},
        parents=[tmp_path / "parent.bin"],
        seed=3,
    )
    return tmp_path / "a.bin"


def test_a_manifest_says_where_the_file_came_from(made):
    written = json.loads(manifest_path(made).read_text())
    assert manifest_path(made).name == "a.bin.manifest.json"
    assert set(written) == {"sha256", "kind", "created_utc", "step", "config", "parents", "tools", "seed"}
    assert written["sha256"] == hashlib.sha256(b"child").hexdigest()
    assert written["parents"] == [{"path_name": "parent.bin", "sha256": hashlib.sha256(b"parent").hexdigest()}]
    assert (written["kind"], written["step"], written["seed"]) == ("tflite", "convert", 3)
    assert written["config"] == {"scheme": "fp32"}
    assert written["created_utc"].endswith("+00:00")
    assert read_manifest(made) is not None


def test_a_manifest_names_the_versions_of_the_tools():
    versions = tool_versions()
    assert versions["edge_seg"] == __version__
    assert versions["numpy"] == np.__version__


def test_a_manifest_names_no_folder_of_this_machine(made):
    assert str(made.parent) not in manifest_path(made).read_text()


@pytest.mark.parametrize("data", [b"chile", b"", b"child "])
def test_a_file_that_was_changed_or_truncated_is_refused(made, data):
    made.write_bytes(data)
    with pytest.raises(ArtifactError, match="is not the file its manifest describes") as caught:
        read_manifest(made)
    assert caught.value.expected != caught.value.got
    assert "make it again" in caught.value.todo


def test_a_missing_manifest_is_refused_where_one_is_required(made):
    manifest_path(made).unlink()
    assert read_manifest(made, required=False) is None
    with pytest.raises(ArtifactError, match="has no manifest"):
        read_manifest(made)


@pytest.mark.parametrize("document", [{}, {"sha256": "x"}, {"sha256": "x", "kind": "", "step": "", "other": 1}, [], 3])
def test_a_manifest_with_other_keys_is_refused(made, document):
    write_json(manifest_path(made), document)
    with pytest.raises(ArtifactError, match="is not a manifest"):
        read_manifest(made)


def test_tools_that_are_not_installed_are_left_out(monkeypatch):
    monkeypatch.setattr(artifact, "_TOOLS", ("numpy", "no-such-tool-anywhere"))
    assert set(tool_versions()) == {"edge_seg", "numpy"}


def test_numbers_that_json_does_not_know_become_none():
    found = plain_json({"a": (1, math.inf), "b": [{"c": math.nan}, "text", None, True], "d": np.float64("-inf")})
    assert found == {"a": [1, None], "b": [{"c": None}, "text", None, True], "d": None}
    assert json.loads(json.dumps(found, allow_nan=False)) == found
