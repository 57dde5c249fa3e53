"""Loads and runs `model.pt2`, the exported program; torch is imported when that happens, not before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.converters.interpreter import check_picture
from edge_seg.converters.quiet import quiet_tools
from edge_seg.errors import ArtifactError, MissingHere


def load_program(path: Path) -> Any:
    """Loads a torch.export program.

    Args:
        path: `model.pt2`, already checked against its manifest.

    Returns:
        The `torch.export.ExportedProgram`.

    Raises:
        MissingHere: torch is not installed.
        ArtifactError: It cannot be loaded, or holds pickled objects.
    """
    try:
        import torch
        import torch.ao.quantization.fx._decomposed  # registers quantize and dequantize, which QAT programs hold
    except ImportError as error:
        raise MissingHere("Reading an exported program needs torch.", todo="pip install torch==2.13.0") from error
    try:
        with _no_pickle():
            return torch.export.load(path)
    except Exception as error:
        raise ArtifactError(
            f"{path} is not an exported program that torch can load.",
            expected="a torch.export archive without pickled objects",
            got=f"{type(error).__name__}: {str(error)[:300]}",
            todo="edge-seg export again, with the torch version of this environment",
        ) from error


@contextlib.contextmanager
def _no_pickle() -> Iterator[None]:
    """Makes torch refuse pickled objects: `torch.export.load` falls back to them by itself."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def program_runner(
    path: Path, contract: Contract, *, double: bool = False
) -> Callable[[NDArray[np.uint8]], dict[str, NDArray[Any]]]:
    """Returns a function that runs the exported program in PyTorch.

    Args:
        path: `model.pt2`.
        contract: Names of its outputs, in order.
        double: Whether to compute in float64, for how far float32 itself is off; not for programs with grids.

    Returns:
        From a picture, uint8 [H, W, 3], to float32 or float64 [1, h, w, c] by output name. Raises as `load_program`.
    """
    with quiet_tools("torch.export"):
        module = load_program(path).module()
    if double:
        module = module.double()

    def run(input_hwc_u8: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        import torch

        check_picture(input_hwc_u8, contract)
        pixels = input_hwc_u8[None].astype(np.float64 if double else np.float32)
        with torch.inference_mode():
            raw = module(torch.from_numpy(pixels))
        return {o.name: t.numpy() for o, t in zip(contract.outputs, raw, strict=True)}

    return run
