"""Files that steps exchange: written whole or not at all, each with a manifest that says where it came from."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_seg.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOOLS = ("torch", "litert-torch", "ai-edge-litert", "ai-edge-quantizer", "numpy", "pillow")


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits."""
    if not path.is_file():
        raise InputError(f"There is no file {path}.", expected="an existing file", todo="check the path")
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` and renames it to `path` when the block ends well.

    If the block raises (a full disk, Ctrl-C), the temporary file is removed and `path` is untouched.

    Args:
        path: The final path; its folder is created.

    Raises:
        InputError: The folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> InputError:
    return InputError(
        f"Cannot write {path}.",
        expected="a writable folder with free space",
        got=f"{type(error).__name__}: {error.strerror or error}",
        todo="free space or choose another --out; nothing half-written was left",
    )


def write_bytes(path: Path, data: bytes) -> None:
    """Writes `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes named arrays to a `.npz` file atomically."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON document to `path` atomically, indented, keys in the given order."""
    write_bytes(path, (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode())


def plain_json(value: Any) -> Any:
    """Returns a value with tuples as lists and numbers that are not finite, which JSON does not know, as None."""
    if isinstance(value, Mapping):
        return {k: plain_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, what: str = "JSON document") -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        what: What it should contain, for the message.

    Raises:
        InputError: The file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.", expected=f"a {what}", todo="check the path") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not readable.", expected=f"a {what}", got=str(error)) from error
    except OSError as error:
        raise InputError(f"{path} cannot be read.", expected=f"a {what}", got=str(error)) from error


@dataclass(frozen=True)
class Manifest:
    """Where a file came from.

    Attributes:
        sha256: Hash of the file.
        kind: What it is ("checkpoint", "exported", "tflite", ...).
        step: The verb that produced it.
        config: The settings of that step.
        parents: `{"path_name": ..., "sha256": ...}` for each file it was made from.
        tools: Versions of the libraries that had a hand in it.
        seed: Seed of the step, or None.
        created_utc: ISO 8601 time in UTC.
    """

    sha256: str
    kind: str
    step: str
    config: Mapping[str, Any] = field(default_factory=dict)
    parents: Sequence[Mapping[str, str]] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    created_utc: str = ""


def manifest_path(path: Path) -> Path:
    """Returns where the manifest of `path` lies."""
    return path.with_name(path.name + ".manifest.json")


def tool_versions() -> dict[str, str]:
    """Returns the versions of edge_seg and of the tools that shape an artifact, as far as installed."""
    from edge_seg import __version__

    versions = {"edge_seg": __version__}
    for name in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def write_manifest(
    path: Path,
    *,
    kind: str,
    step: str,
    config: Mapping[str, Any],
    parents: Sequence[Path] = (),
    seed: int | None = None,
) -> Manifest:
    """Hashes `path` and writes its manifest beside it.

    Args:
        path: The finished file.
        kind: What the file is.
        step: The verb that made it.
        config: The settings of that verb.
        parents: The files it was made from; each is hashed.
        seed: The seed that was used, if any.
    """
    manifest = Manifest(
        sha256=sha256_of(path),
        kind=kind,
        step=step,
        config=dict(config),
        parents=[{"path_name": p.name, "sha256": sha256_of(p)} for p in parents],
        tools=tool_versions(),
        seed=seed,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_json(manifest_path(path), asdict(manifest))
    return manifest


def read_manifest(path: Path, *, required: bool = True) -> Manifest | None:
    """Reads the manifest of `path` and checks its hash against the file.

    Args:
        path: The artifact.
        required: Whether a missing manifest is an error; otherwise None is returned.

    Raises:
        ArtifactError: The manifest is missing or incomplete, or the file changed after it was written.
    """
    place = manifest_path(path)
    if not place.is_file():
        if not required:
            return None
        raise ArtifactError(f"{path} has no manifest.", expected=str(place), todo="make the file again with edge-seg")
    document = read_json(place, "manifest")
    try:
        manifest = Manifest(**document)
    except TypeError as error:
        raise ArtifactError(f"{place} is not a manifest.", got=str(error)) from error
    actual = sha256_of(path)
    if manifest.sha256 != actual:
        raise ArtifactError(
            f"{path} is not the file its manifest describes.",
            expected=f"sha256 {manifest.sha256}",
            got=f"sha256 {actual}",
            todo="the file was changed or truncated: make it again",
        )
    return manifest
