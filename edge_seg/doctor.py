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


def _package(name: str, module: str, *, required: bool = True, fix: str = "") -> Callable[[], Check]:
    def check() -> Check:
        try:
            importlib.import_module(module)
            return Check(name, True, importlib.metadata.version(name), required=required)
        except (ImportError, AttributeError, OSError, RuntimeError, SystemError) as error:
            return Check(
                name,
                False,
                f"{type(error).__name__}: {error}".splitlines()[0],
                fix or "run `make install` (or `pip install -e .`)",
                required,
            )

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
    _package(
        "tflite-runtime",
        "tflite_runtime",
        required=False,
        fix="optional second interpreter: `pip install tflite-runtime==2.14.0 'numpy<2'` in an environment of its own",
    ),
    _package(
        "onnx2tf",
        "onnx2tf",
        required=False,
        fix="optional second route: `pip install onnx2tf==1.29.24` in an environment of its own",
    ),
    _cuda,
    _shared,
    _adb,
)
