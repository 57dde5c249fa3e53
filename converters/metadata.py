"""What travels inside a .tflite: the contract, the labels, the colours and the decoder's constants.

They are associated files in the standard TFLite way: a zip archive appended to the file, which `zipfile` and
other people's tools open, named in the standard metadata buffer. The contract lies beside the file as well.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from edge_seg.artifact import write_bytes
from edge_seg.contract import Contract
from edge_seg.converters import flatbuffer_edit, tflite_metadata
from edge_seg.converters.flatbuffer import Graph, read_bytes
from edge_seg.errors import ArtifactError, InputError

CONTRACT = "contract.json"
LABELS = "labels.txt"
COLORS = "colors.json"
CONSTANTS = "decoder.safetensors"
MAX_MEMBERS = 64
MAX_MEMBER_BYTES = {CONTRACT: 8 << 20, LABELS: 4 << 20, COLORS: 4 << 20, CONSTANTS: 256 << 20}
_BAD_ARCHIVE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OSError)
_EPOCH = (1980, 1, 1, 0, 0, 0)  # one date for all members, so that equal content gives equal bytes


def contract_path(file: Path) -> Path:
    """Returns where the contract of `NAME_SCHEME.tflite` lies: `NAME_SCHEME.contract.json`."""
    return file.with_name(f"{file.stem}.contract.json")


def embed(data: bytes, contract: Contract, *, constants: bytes, outputs: Sequence[str]) -> bytes:
    """Puts contract, labels, colours and decoder constants into a .tflite.

    Args:
        data: A whole .tflite; what was appended to it before is replaced.
        contract: The completed contract.
        constants: Content of `decoder.safetensors`.
        outputs: Names of the contract's outputs in the order of the graph's outputs.

    Returns:
        The new file. The graph computes the same bits as before.
    """
    files = _files(contract, constants)
    buffers = {tflite_metadata.NAME: tflite_metadata.build(contract, outputs, list(files))}
    body = flatbuffer_edit.with_metadata(data, buffers)
    return _with_archive(body, files)


def _with_archive(body: bytes, files: Mapping[str, bytes]) -> bytes:
    """Appends the archive; its offsets count from the start of the whole file, as `zipfile` mode "a" does."""
    target = io.BytesIO(body)
    with zipfile.ZipFile(target, "a", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return target.getvalue()


def _files(contract: Contract, constants: bytes) -> dict[str, bytes]:
    colors = [list(c.color_rgb) for c in contract.classes]
    return {
        CONTRACT: (json.dumps(contract.to_json(), ensure_ascii=False) + "\n").encode(),
        LABELS: "".join(f"{c.name}\n" for c in contract.classes).encode(),
        COLORS: (json.dumps(colors) + "\n").encode(),
        CONSTANTS: constants,
    }


def write(file: Path, data: bytes, contract: Contract) -> None:
    """Writes the .tflite and the contract beside it, each whole or not at all."""
    write_bytes(file, data)
    contract.save(contract_path(file))


def read_contract(path: Path) -> Contract:
    """Reads the contract from inside a .tflite.

    Raises:
        InputError: There is no such file.
        ArtifactError: It is not a TFLite file, carries no contract, or carries a broken one.
    """
    return Contract.loads(read_member(path, CONTRACT), source=f"{path}!{CONTRACT}")


def read_labels(path: Path) -> list[str]:
    """Reads the class names from inside a .tflite, in the order of the class axis."""
    return read_member(path, LABELS).decode("utf-8", "replace").splitlines()


def read_constants(path: Path) -> dict[str, NDArray[Any]]:
    """Reads the decoder's constants from inside a .tflite.

    Returns:
        Arrays by name, as the contract's `decoder.constants` lists them.

    Raises:
        ArtifactError: They are missing, unreadable, or not those the contract lists.
    """
    arrays = load_constants(read_member(path, CONSTANTS), source=f"{path}!{CONSTANTS}")
    check_constants(arrays, read_contract(path), source=str(path))
    return arrays


def load_constants(content: bytes, *, source: str) -> dict[str, NDArray[Any]]:
    """Parses a safetensors file held in memory; nothing in it can run code."""
    import safetensors
    import safetensors.numpy

    try:
        return dict(safetensors.numpy.load(content))
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError, struct.error) as error:
        raise ArtifactError(f"{source} is not a safetensors file.", got=str(error)) from error


def check_constants(arrays: Mapping[str, NDArray[Any]], contract: Contract, *, source: str) -> None:
    """Checks names, shapes and dtypes of the decoder's constants against the contract."""
    wanted = {c.name: (tuple(c.shape), c.dtype) for c in contract.decoder.constants}
    found = {k: (tuple(v.shape), str(v.dtype)) for k, v in arrays.items()}
    if wanted != found:
        raise ArtifactError(
            f"The decoder constants of {source} are not those of its contract.",
            expected=str(wanted),
            got=str(found),
            todo="export and convert again",
        )


def read_member(path: Path, name: str) -> bytes:
    """Reads one associated file, into memory only; its size is checked before and while unpacking.

    Args:
        path: A .tflite.
        name: One of the names this module writes.

    Raises:
        InputError: There is no such file.
        ArtifactError: The file carries no archive or no such member, or the member is too big or damaged.
    """
    data = read_bytes(path)
    limit = MAX_MEMBER_BYTES.get(name)
    if limit is None:
        raise InputError(f"No associated file is called {name!r}.", expected=", ".join(MAX_MEMBER_BYTES))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _member(archive, name, limit, path)
    except _BAD_ARCHIVE as error:
        raise _no_member(path, name, str(error)) from error


def _member(archive: zipfile.ZipFile, name: str, limit: int, path: Path) -> bytes:
    entries = [e for e in archive.infolist() if e.filename == name]
    if len(archive.infolist()) > MAX_MEMBERS or len(entries) != 1:
        raise _no_member(path, name, f"{len(entries)} of that name among {len(archive.infolist())}")
    if entries[0].file_size > limit:
        raise _no_member(path, name, f"{entries[0].file_size} bytes, more than {limit}")
    with archive.open(entries[0]) as member:
        content = member.read(limit + 1)
    if len(content) > limit:
        raise _no_member(path, name, f"more than {limit} bytes")
    return content


def _no_member(path: Path, name: str, detail: str) -> ArtifactError:
    return ArtifactError(
        f"{path} carries no readable {name}.",
        expected="a .tflite converted by edge-seg",
        got=detail,
        todo="convert the network with edge-seg convert",
    )


def output_order(graph: Graph, signature_key: str, contract: Contract) -> list[str]:
    """Returns the contract's output names in the order of the graph's outputs.

    Args:
        graph: The converted file.
        signature_key: The signature the contract speaks of.
        contract: A contract whose outputs carry their `signature_key`.

    Raises:
        ArtifactError: An output of the graph is not in the contract.
    """
    signature = next((s for s in graph.signatures if s.key == signature_key), None)
    keys = {index: key for key, index in signature.outputs.items()} if signature else {}
    names = {o.signature_key: o.name for o in contract.outputs}
    try:
        return [names[keys[index]] for index in graph.outputs]
    except KeyError as error:
        raise ArtifactError(
            f"An output of {graph.path} is not in its contract.", expected=str(names), got=str(keys)
        ) from error
