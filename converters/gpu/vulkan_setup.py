"""Fetches a Vulkan driver in software for LiteRT's GPU accelerator: SwiftShader, without root.

SwiftShader and the Vulkan loader (both Apache-2.0) come in the npm package @sparticuz/chromium (MIT), as Chromium
builds them. Every file is checked against the hash it had when it was tried.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from edge_seg.converters.gpu.vulkan import cache_folder
from edge_seg.errors import ArtifactError, MissingHere

PACKAGE = "@sparticuz/chromium@147.0.0"
_ARCHIVE = "package/bin/swiftshader.tar.br"
_SHA256 = {
    _ARCHIVE: "f957ea867313f9815b71dc2ed30cce301e01db4f3973fbdb31ffa5391b0ec45a",
    "libvk_swiftshader.so": "5b9e8591c7c2d1c9618c3ad485d0cdffb81f5f1ffd6a982fdb6578c2d8d3213e",
    "libvulkan.so.1": "fe17a77c1f2df38d3b6a935140f746fd80aac564bb44eb3e4f6b75a504295a41",
    "vk_swiftshader_icd.json": "c9eef28b6b984fec220ef0abfecc40b502d46946706e47bfe97707027cb818bd",
}
_BROTLI = (
    "const z=require('zlib'),f=require('fs');f.writeFileSync(process.argv[2],"
    "z.brotliDecompressSync(f.readFileSync(process.argv[1])))"
)
_DOWNLOAD_TIMEOUT_S = 900
BY_HAND = "on Debian and Ubuntu `apt install chromium-common`, or any Vulkan driver of the system"
FOR_HALF = (
    "fp16 needs a GPU, or lavapipe of Mesa 25 or later: `apt install -t bookworm-backports mesa-vulkan-drivers` on "
    "Debian 12; or unpack that package with libdrm2 and libdrm-amdgpu1 and set EDGE_SEG_VULKAN_ICD to its lvp_icd.json"
)
Run = Callable[[list[str], Path], None]


def install_swiftshader(run: Run | None = None) -> Path:
    """Puts SwiftShader into the user's cache folder, where `vulkan.found` looks.

    Args:
        run: Runs a command in a folder; tests replace it.

    Returns:
        The folder.

    Raises:
        MissingHere: Another system than Linux on x86-64, no npm or node, or no network.
        ArtifactError: What came has another content than it should.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise MissingHere("SwiftShader comes for Linux on x86-64 only.", got=platform.platform(), todo=BY_HAND)
    target = cache_folder() / "swiftshader"
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix=".swiftshader-") as text:
        folder = Path(text)
        _fetch(folder, run or _run)
        ready = folder / "ready"
        _unpack(folder / "swiftshader.tar", ready)
        if target.exists():
            shutil.rmtree(target)
        ready.rename(target)
    return target


def _fetch(folder: Path, run: Run) -> None:
    """Leaves swiftshader.tar in a folder."""
    run(["npm", "pack", "--silent", PACKAGE], folder)
    packed = next(iter(folder.glob("*.tgz")), None)
    if packed is None:
        raise MissingHere(f"npm did not give {PACKAGE}.", todo=BY_HAND)
    _extract(packed, _ARCHIVE, folder / "swiftshader.tar.br")
    run(["node", "-e", _BROTLI, "swiftshader.tar.br", "swiftshader.tar"], folder)


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir()
    for name in _SHA256:
        if name != _ARCHIVE:
            _extract(archive, name, folder / name)


def _extract(archive: Path, name: str, target: Path) -> None:
    """Writes one member of a tar to a file, if its content is the expected one."""
    try:
        with tarfile.open(archive) as tar:
            member = tar.extractfile(name)
            content = member.read() if member is not None else b""
    except (tarfile.TarError, KeyError, OSError, EOFError) as error:
        raise ArtifactError(f"{PACKAGE} does not contain {name}.", got=str(error), todo=BY_HAND) from error
    found = hashlib.sha256(content).hexdigest()
    if found != _SHA256[name]:
        raise ArtifactError(
            f"{name} of {PACKAGE} has another content than it should.",
            expected=f"sha256 {_SHA256[name]}",
            got=found,
            todo=BY_HAND,
        )
    target.write_bytes(content)


def _run(command: list[str], folder: Path) -> None:
    program = shutil.which(command[0])
    if program is None:
        raise MissingHere(f"{command[0]} is not installed; it fetches SwiftShader.", todo=BY_HAND)
    try:
        done = subprocess.run(
            [program, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S
        )
    except subprocess.TimeoutExpired as error:
        raise MissingHere(f"{command[0]} did not finish in {_DOWNLOAD_TIMEOUT_S} s.", todo=BY_HAND) from error
    if done.returncode:
        raise MissingHere(
            f"{command[0]} failed.", got=done.stderr.strip()[-300:], todo=f"check the network; or {BY_HAND}"
        )
