"""Where a Vulkan implementation is found for LiteRT's GPU accelerator, a real GPU's or one in software.

Looked for in this order: the environment variable EDGE_SEG_VULKAN_ICD (path of an ICD's json); the Vulkan loader's
own variables VK_DRIVER_FILES and VK_ICD_FILENAMES; the system's folders; Chromium's SwiftShader, as Debian's
chromium-common installs it; `~/.cache/edge_seg/vulkan/NAME/*.json`, where `edge-seg doctor --setup vulkan` puts one.
"""

from __future__ import annotations

import ctypes.util
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_seg.errors import InputError

VARIABLE = "EDGE_SEG_VULKAN_ICD"
_LOADER_VARIABLES = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")
_SYSTEM = (Path("/usr/share/vulkan/icd.d"), Path("/usr/local/share/vulkan/icd.d"), Path("/etc/vulkan/icd.d"))
_CHROMIUM = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
_LOADER = "libvulkan.so.1"
_MAX_ICD_BYTES = 1 << 16


@dataclass(frozen=True)
class Vulkan:
    """One Vulkan implementation.

    Attributes:
        icd: Its description (json), or "" for whatever the system's loader finds.
        place: Where it was found, for people.
        environment: Variables a process needs to use it and no other.
    """

    icd: str
    place: str
    environment: Mapping[str, str]


def cache_folder() -> Path:
    """Returns the folder of the user's own Vulkan implementations; it may not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "edge_seg" / "vulkan"


def found() -> list[Vulkan]:
    """Returns the implementations found here, best first; empty where there is none.

    Where the user names one by a variable, it is the only one.

    Raises:
        InputError: EDGE_SEG_VULKAN_ICD names a file that is not an ICD.
    """
    named = os.environ.get(VARIABLE)
    if named:
        return [_of_icd(Path(named), VARIABLE)]
    for variable in _LOADER_VARIABLES:
        if os.environ.get(variable):
            return [Vulkan("", variable, _library_path(()))]
    return list(_searched())


def _searched() -> Iterator[Vulkan]:
    """Yields what lies in the known places; a broken description there is not ours to repair and is left out."""
    for folder in _SYSTEM:
        if any(folder.glob("*.json")):
            yield Vulkan("", str(folder), _library_path(()))
            break
    for icd in (_CHROMIUM, *sorted(cache_folder().glob("*/*.json"))):
        try:
            yield _of_icd(icd, str(icd.parent))
        except InputError:
            continue


def _of_icd(icd: Path, place: str) -> Vulkan:
    """Reads an ICD's json; its library may be relative to it.

    Source: Khronos, Vulkan Loader Interface to drivers, "Driver Manifest File Format".
    """
    library = _library(icd)
    full = str(icd.resolve())
    environment = {**_library_path((library.parent,)), **dict.fromkeys(_LOADER_VARIABLES, full)}
    return Vulkan(full, place, environment)


def _library(icd: Path) -> Path:
    try:
        if icd.stat().st_size > _MAX_ICD_BYTES:
            raise ValueError("too large")
        library = Path(json.loads(icd.read_text(encoding="utf-8"))["ICD"]["library_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _not_an_icd(icd, f"{type(error).__name__}: {error}") from error
    library = library if library.is_absolute() else icd.resolve().parent / library
    if not library.is_file():
        raise _not_an_icd(icd, f"its library {library} does not exist")
    return library


def _not_an_icd(icd: Path, got: str) -> InputError:
    return InputError(
        f"{icd} is not the description of a Vulkan driver.",
        expected='json with {"ICD": {"library_path": ...}} that names an existing library',
        got=got,
        todo=f"set {VARIABLE} to such a file, or unset it",
    )


def _library_path(folders: tuple[Path, ...]) -> dict[str, str]:
    """Returns LD_LIBRARY_PATH with a driver's folder and, where the system has no Vulkan loader, one that has."""
    wanted = [str(f) for f in folders]
    if ctypes.util.find_library("vulkan") is None and not any((f / _LOADER).is_file() for f in folders):
        candidates = [_CHROMIUM.parent, *sorted(cache_folder().glob("*"))]
        wanted += [str(f) for f in candidates if (f / _LOADER).is_file()][:1]
    wanted += [f for f in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if f]
    return {"LD_LIBRARY_PATH": os.pathsep.join(wanted)} if wanted else {}
