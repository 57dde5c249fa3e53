"""One file, one route from an exported program to a TFLite file.

A route takes the path of `model.pt2` and the contract, and returns the bytes of a .tflite whose only signature
names its argument and results as the contract does: float32, or int8 where the program was trained
quantisation-aware and holds quantize and dequantize operations. It raises EdgeSegError.

A route whose tools bring a static quantiser of their own also has a method `w8a8` (see `OwnTools`); the scheme
w8a8 then takes that, so that two routes are two opinions on the quantisation as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.registry import Registry

Route = Callable[[Path, Contract], bytes]
ROUTES: Registry[Route] = Registry("route", "edge_seg.converters.routes")


@runtime_checkable
class OwnTools(Protocol):
    """A route whose tools are not installed beside us and quantise by themselves."""

    @property
    def tools(self) -> str:
        """Versions of tools that are not installed beside us; they go into the manifest of every file."""
        ...

    def w8a8(self, program: Path, contract: Contract, images: Sequence[NDArray[np.uint8]]) -> bytes:
        """Returns a static int8 .tflite, calibrated on letterboxed pictures, uint8 [H, W, 3]."""
        ...
