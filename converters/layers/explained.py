"""Outputs outside their tolerance: is a layer wrong, or do right layers add up their rounding?

A tolerance on outputs cannot tell the two apart on a deep network: MobileNetV2 amplifies a rounding of its stem by
40 dB, and XNNPACK, which starts each sum with the folded bias, rounds more than PyTorch does. Comparing every layer
by itself can: where all of them are right, the file is the network, and its accuracy is for `evaluate` to judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.layers.report import LayersReport
from edge_seg.converters.layers.verify import verify_layers
from edge_seg.converters.verify import VerifyReport, verify


def verify_explained(
    file: Path, against: Path, images: Sequence[NDArray[np.uint8]] = (), *, layers: LayersReport | None = None
) -> VerifyReport:
    """Compares outputs, and every layer where an output is outside its tolerance.

    Args:
        file: `NAME_SCHEME.tflite`.
        against: The exported folder.
        images: Letterboxed pictures, uint8 [H, W, 3], besides the seeded reference inputs.
        layers: Every layer of the file, where they have been compared already.

    Returns:
        The report of `verify`; its verdict is "accumulated" where outputs are far and no layer is wrong.

    Raises:
        EdgeSegError: As `verify` and `verify_layers`.
    """
    report = verify(file, against, images or None)
    if not may_be_rounding(report):
        return report
    return explained(report, layers or verify_layers(file, against, images))


def may_be_rounding(report: VerifyReport) -> bool:
    """Returns whether outputs are merely far: finite, in place, and nothing that is proved exactly has failed."""
    numbers, mirror = report.trained_numbers, report.integer_mirror
    proved = numbers is None or (numbers.passed and mirror is not None and (mirror.exact or bool(mirror.reason)))
    in_place = all(np.isfinite(o.max_of_range) and not o.displaced for o in report.outputs)
    return not report.passed and proved and in_place


def explained(report: VerifyReport, layers: LayersReport) -> VerifyReport:
    """Returns the report with what the layers say: "accumulated" where none is wrong, else as it was.

    Args:
        report: Outputs, some of them far.
        layers: Every layer of the same file.
    """
    if not (may_be_rounding(report) and layers.passed and layers.complete and layers.sha256 == report.sha256):
        return report
    return replace(report, passed=True, layers_right_n=len(layers.layers))
