"""One way to run any network: image to input, raw outputs, decoder; PyTorch and TFLite alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.decoders.base import DECODERS, Result
from edge_seg.letterbox import Letterbox, letterbox_image


class RawRunner(Protocol):
    """Runs a network on one input and returns raw outputs."""

    @property
    def contract(self) -> Contract:
        """What the network says about itself."""
        ...

    @property
    def constants(self) -> Mapping[str, NDArray[np.float32]]:
        """The decoder's constants by name."""
        ...

    def __call__(self, input_hwc_u8: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Returns the dequantised outputs [1, h, w, c] by contract name.

        Args:
            input_hwc_u8: Letterboxed picture, [H, W, 3].
        """
        ...


@dataclass(frozen=True)
class Prediction:
    """A decoded picture and the milliseconds of its stages."""

    result: Result
    raw: dict[str, NDArray[np.float32]]
    box: Letterbox
    pre_ms: float
    run_ms: float
    post_ms: float


class Predictor:
    """A runner with the decoder its contract names.

    Args:
        runner: PyTorch or TFLite.
        **decoder_params: Values that replace the contract's.
    """

    def __init__(self, runner: RawRunner, **decoder_params: Any) -> None:
        self.runner = runner
        self.contract = runner.contract.with_decoder_params(**decoder_params)
        self.decoder = DECODERS[self.contract.decoder.name](self.contract, runner.constants)

    def predict(self, image_hwc_u8: NDArray[np.uint8]) -> Prediction:
        """Runs one picture.

        Args:
            image_hwc_u8: RGB image of any size, [H, W, 3].
        """
        start = time.perf_counter()
        canvas, box = letterbox_image(image_hwc_u8, self.contract.input_wh_px, self.contract.preprocess.fill_rgb)
        ready = time.perf_counter()
        raw = self.runner(canvas)
        ran = time.perf_counter()
        result = self.decoder(raw, box)
        done = time.perf_counter()
        return Prediction(result, raw, box, (ready - start) * 1e3, (ran - ready) * 1e3, (done - ran) * 1e3)
