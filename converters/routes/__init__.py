"""One file, one route from an exported program to a TFLite file.

A route takes the path of `model.pt2` and the contract, and returns the bytes of a .tflite whose only signature
names its argument and results as the contract does: float32, or int8 where the program was trained
quantisation-aware and holds quantize and dequantize operations. It raises EdgeSegError.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_seg.contract import Contract
from edge_seg.registry import Registry

Route = Callable[[Path, Contract], bytes]
ROUTES: Registry[Route] = Registry("route", "edge_seg.converters.routes")
