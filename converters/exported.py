"""Opens an exported folder; its files are checked against their manifests before anything uses them."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import read_manifest
from edge_seg.contract import Contract
from edge_seg.converters.metadata import CONSTANTS, CONTRACT, check_constants, load_constants
from edge_seg.errors import ArtifactError, InputError

PROGRAM = "model.pt2"
REFERENCE = "reference.npz"
MAX_REFERENCE_BYTES = 1 << 30


@dataclass(frozen=True)
class Exported:
    """An exported network.

    Attributes:
        folder: Where it lies.
        contract: Its contract.
        program: Path of `model.pt2`.
        program_sha256: Hash of `model.pt2`, checked against its manifest.
        constants: Content of `decoder.safetensors`.
    """

    folder: Path
    contract: Contract
    program: Path
    program_sha256: str
    constants: bytes


@dataclass(frozen=True)
class Reference:
    """Seeded inputs and what PyTorch computes for them.

    Attributes:
        inputs_nhwc_u8: Pictures, uint8 [N, H, W, 3].
        outputs: By contract name, float32 [N, h, w, c].
        float32_error_of_range: By contract name, how far PyTorch's float32 is from its float64, as a share of the
            output's range.
    """

    inputs_nhwc_u8: NDArray[np.uint8]
    outputs: dict[str, NDArray[np.float32]]
    float32_error_of_range: dict[str, float]


def open_exported(folder: Path) -> Exported:
    """Opens an exported folder.

    Raises:
        InputError: There is no such folder.
        ArtifactError: A file is missing, was changed after the export, or does not fit the contract.
    """
    if not folder.is_dir():
        raise InputError(
            f"There is no exported folder {folder}.",
            expected=f"a folder with {PROGRAM} and {CONTRACT}",
            todo="edge-seg export CHECKPOINT --out DIR",
        )
    hashes = {name: _checked(folder / name) for name in (PROGRAM, CONTRACT, CONSTANTS)}
    contract = Contract.load(folder / CONTRACT)
    constants = (folder / CONSTANTS).read_bytes()
    place = str(folder / CONSTANTS)
    check_constants(load_constants(constants, source=place), contract, source=place)
    return Exported(folder, contract, folder / PROGRAM, hashes[PROGRAM], constants)


def _checked(path: Path) -> str:
    if not path.is_file():
        raise ArtifactError(
            f"{path.parent} is not a whole exported folder.",
            expected=path.name,
            got="no such file",
            todo="edge-seg export CHECKPOINT --out DIR",
        )
    manifest = read_manifest(path)
    return manifest.sha256 if manifest else ""


def read_reference(exported: Exported) -> Reference:
    """Reads the reference inputs and outputs of an exported folder.

    Raises:
        ArtifactError: They are missing, changed, or of other names, shapes or dtypes than the contract's.
    """
    path = exported.folder / REFERENCE
    _checked(path)
    if path.stat().st_size > MAX_REFERENCE_BYTES:
        raise ArtifactError(f"{path} is too big.", expected=f"<= {MAX_REFERENCE_BYTES} bytes")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays: dict[str, NDArray[Any]] = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ArtifactError(f"{path} is not a NumPy archive.", got=str(error)) from error
    inputs = arrays.pop("inputs_nhwc_u8", np.zeros(0, np.uint8))
    count = inputs.shape[0]
    _fits(path, "inputs_nhwc_u8", inputs, (count, *exported.contract.input.shape[1:]), "uint8")
    for output in exported.contract.outputs:
        found = arrays.get(output.name, np.zeros(0, np.float32))
        _fits(path, output.name, found, (count, *output.shape[1:]), "float32")
    names = [o.name for o in exported.contract.outputs]
    floor = arrays.get("float32_error_of_range", np.zeros(0))
    _fits(path, "float32_error_of_range", floor, (len(names),), "float64")
    return Reference(inputs, {n: arrays[n] for n in names}, dict(zip(names, floor.tolist(), strict=True)))


def _fits(path: Path, name: str, array: NDArray[Any], shape: tuple[int, ...], dtype: str) -> None:
    if array.shape != shape or array.dtype != dtype or 0 in shape:
        raise ArtifactError(
            f"{path} does not fit the contract at {name!r}.",
            expected=f"{dtype} {list(shape)}",
            got=f"{array.dtype} {list(array.shape)}",
            todo="edge-seg export again",
        )
