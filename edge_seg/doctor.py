"""What is installed, what works here, and how to get the rest."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One line of the doctor.

    Attributes:
        name: What was looked at.
        ok: Whether it works.
        detail: What was found.
        fix: What to do where it does not work.
        required: Whether the main job needs it.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    required: bool = True


def run_checks() -> list[Check]:
    """Returns all checks, required ones first."""
    return [check() for check in _CHECKS]


def _python() -> Check:
    version = sys.version.split()[0]
    return Check("python", sys.version_info[:2] == (3, 11), version, "use Python 3.11: the pinned wheels are for it")


def _package(name: str, module: str) -> Callable[[], Check]:
    def check() -> Check:
        from edge_seg.converters.quiet import quiet_tools

        try:
            with quiet_tools(f"import of {module}"):
                importlib.import_module(module)
            return Check(name, True, importlib.metadata.version(name))
        except (ImportError, AttributeError, OSError, RuntimeError, SystemError) as error:
            detail = f"{type(error).__name__}: {error}".splitlines()[0]
            return Check(name, False, detail, "run `make install` (or `pip install -e .`)")

    return check


def _environment(name: str, what: str) -> Callable[[], Check]:
    def check() -> Check:
        from edge_seg.converters.environments import find_environment
        from edge_seg.errors import MissingHere

        try:
            return Check(name, True, str(find_environment(name)), required=False)
        except MissingHere as error:
            return Check(name, False, error.what, f"{what}: {error.todo}", required=False)

    return check


def _cuda() -> Check:
    try:
        import torch

        found = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    except (ImportError, OSError, RuntimeError) as error:
        return Check("cuda", False, f"torch does not load: {error}".splitlines()[0], "see torch above", required=False)
    if found:
        return Check("cuda", True, found, required=False)
    return Check("cuda", False, "no CUDA device: trainings run on the CPU", "nothing to do", required=False)


def _interpreter() -> Check:
    from edge_seg.converters.interpreter import runtime_version
    from edge_seg.errors import MissingHere

    fix = "pip install ai-edge-litert==2.3.0"
    try:
        found = runtime_version()
    except MissingHere as error:
        return Check("tflite runtime", False, error.what, fix)
    return Check("tflite runtime", True, f"{found['name']} {found['version']}", fix)


def _accelerator(precision: Literal["fp32", "fp16"]) -> Callable[[], Check]:
    def check() -> Check:
        from edge_seg.converters.gpu.accelerator import Accelerator
        from edge_seg.converters.gpu.vulkan_setup import BY_HAND, FOR_HALF
        from edge_seg.errors import EdgeSegError

        name = f"gpu accelerator {precision}"
        fix = FOR_HALF if precision == "fp16" else f"edge-seg doctor --setup vulkan (SwiftShader, 68 MB), or {BY_HAND}"
        try:
            with Accelerator(precision) as accelerator:
                device = f"{accelerator.adapter.name} ({accelerator.adapter.kind}), {accelerator.vulkan.place}"
        except EdgeSegError as error:
            return Check(name, False, f"{error.what} {error.got}".strip(), fix, required=False)
        return Check(name, True, device, required=False)

    return check


def _aarch64() -> Check:
    from edge_seg.converters.emulated import probe
    from edge_seg.errors import EdgeSegError

    name = "aarch64 emulator"
    try:
        found = probe()
    except EdgeSegError as error:
        return Check(name, False, f"{error.what} {error.got}".strip(), error.todo, required=False)
    detail = f"{found['name']} {found['version']} on {found['machine']}, {found['emulator']}"
    return Check(name, True, detail.rstrip(", "), required=False)


def set_up(name: str) -> Path:
    """Fetches something optional into the user's cache folder and returns where it lies.

    Args:
        name: "vulkan" (SwiftShader, for LiteRT's GPU accelerator) or a side environment.

    Raises:
        InputError: There is nothing of that name.
        MissingHere: It cannot be fetched here.
    """
    if name == "vulkan":
        from edge_seg.converters.gpu.vulkan_setup import install_swiftshader

        return install_swiftshader()
    from edge_seg.converters.environments import setup_environment

    return setup_environment(name)


def _shared() -> Check:
    place = Path(os.environ.get("EDGE_SEG_SHARED", "../shared")) / "data"
    return Check(
        "example data",
        place.is_dir(),
        "found" if place.is_dir() else "not found",
        "optional: synthetic scenes need no files; set EDGE_SEG_SHARED to use the real photos",
        required=False,
    )


def _adb() -> Check:
    found = shutil.which("adb")
    return Check("adb", found is not None, found or "not found", "apt install adb (for phones)", required=False)


_CHECKS: tuple[Callable[[], Check], ...] = (
    _python,
    _package("torch", "torch"),
    _package("litert-torch", "litert_torch"),
    _package("ai-edge-litert", "ai_edge_litert.interpreter"),
    _package("ai-edge-quantizer", "ai_edge_quantizer"),
    _interpreter,
    _environment("tflite_runtime", "optional second interpreter"),
    _environment("onnx2tf", "optional second route"),
    _cuda,
    _accelerator("fp32"),
    _accelerator("fp16"),
    _aarch64,
    _shared,
    _adb,
)
