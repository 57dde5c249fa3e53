"""One table of quantisation schemes and the integer grid of TFLite; it drives conversion and retraining alike.

Rules from TFLite's 8-bit quantisation specification (ai.google.dev/edge/litert/models/quantization_spec): weights
symmetric per output channel in [-127, 127], activations asymmetric int8 (int16: symmetric), biases int32 on the grid
input scale * weight scale, and fixed or shared grids for the operations named below. Scales are float32 numbers, as a
file stores them, kept in Python floats.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["float", "dynamic", "static", "trained"]

SMALLEST_SCALE = 1e-6
"""Floor of every scale: a channel of zeros would have scale 0, which no converter takes."""


@dataclass(frozen=True)
class Scheme:
    """How a converted file stores numbers.

    Attributes:
        name: Name on the command line and in file names.
        kind: "float" (kernels compute in floating point), "dynamic" (int8 weights, activations quantised as they
            come), "static" (grids from calibration), "trained" (grids from retraining).
        weight_bits: Bits of a stored weight.
        activation_bits: Bits of an activation between two kernels.
        about: One line for people.
    """

    name: str
    kind: Kind
    weight_bits: int
    activation_bits: int
    about: str

    @property
    def needs_calibration(self) -> bool:
        """Whether pictures are needed to find the ranges of activations."""
        return self.kind == "static"


SCHEMES: Mapping[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("fp32", "float", 32, 32, "as trained"),
        Scheme("fp16", "float", 16, 32, "half the size; a GPU computes it in half precision"),
        Scheme("w8_dynamic", "dynamic", 8, 32, "int8 weights, no calibration"),
        Scheme("w8a8", "static", 8, 8, "int8 throughout, ranges from calibration pictures"),
        Scheme("w8a16", "static", 8, 16, "int8 weights, int16 activations: close to fp32; slow where no kernel is"),
        Scheme("mixed", "static", 8, 8, "int8, with the layers that a recipe names kept in float"),
        Scheme("qat_w8a8", "trained", 8, 8, "int8 throughout, as retrained"),
    )
}


@dataclass(frozen=True)
class Grid:
    """An affine integer grid: real = scale * (integer - zero_point), integers in [low, high].

    Attributes:
        scale: Step, a float32 number.
        zero_point: The integer of real zero.
        low: Smallest integer.
        high: Largest integer.
    """

    scale: float
    zero_point: int
    low: int = -128
    high: int = 127

    def integers(self, real: NDArray[Any]) -> NDArray[np.int32]:
        """Returns the nearest grid points (ties to even), clamped, as int32 of the same shape."""
        import numpy as np

        steps = np.rint(np.asarray(real, np.float32) * np.float32(1.0 / self.scale)) + self.zero_point
        clamped: NDArray[np.int32] = np.clip(steps, self.low, self.high).astype(np.int32)
        return clamped

    def real(self, integers: NDArray[Any]) -> NDArray[np.float32]:
        """Returns scale * (integers - zero_point) as float32."""
        import numpy as np

        return (np.asarray(integers, np.float32) - np.float32(self.zero_point)) * np.float32(self.scale)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest real value."""
        return (self.low - self.zero_point) * self.scale, (self.high - self.zero_point) * self.scale


INPUT_GRID = Grid(1.0, -128)
"""The picture goes in as bytes: an app writes `byte - 128`."""

FIXED_GRIDS: Mapping[str, Grid] = {
    "sigmoid": Grid(1.0 / 256.0, -128),
    "softmax": Grid(1.0 / 256.0, -128),
    "tanh": Grid(1.0 / 128.0, 0),
}
"""Outputs whose grid the kernels fix."""

KEEPS_GRID = frozenset({"resize", "max_pool", "avg_pool", "reshape", "transpose", "slice", "pad", "relu_after_grid"})
"""Operations whose output lies on the grid of their input."""

JOINS_GRIDS = frozenset({"concat", "maximum", "minimum"})
"""Operations whose inputs lie on the grid of their output."""

KIND_OF_OP: Mapping[str, str] = {
    **dict.fromkeys(("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"), "resize"),
    **dict.fromkeys(("MAX_POOL_2D", "REDUCE_MIN"), "max_pool"),
    **dict.fromkeys(("AVERAGE_POOL_2D",), "avg_pool"),
    **dict.fromkeys(("RESHAPE", "SPACE_TO_DEPTH", "BROADCAST_TO"), "reshape"),
    **dict.fromkeys(("TRANSPOSE",), "transpose"),
    **dict.fromkeys(("SLICE", "STRIDED_SLICE", "SPLIT", "UNPACK", "GATHER", "GATHER_ND"), "slice"),
    **dict.fromkeys(("PAD", "MIRROR_PAD"), "pad"),
    **dict.fromkeys(("CONCATENATION", "PACK", "SELECT", "SELECT_V2", "PADV2"), "concat"),
    **dict.fromkeys(("MAXIMUM",), "maximum"),
    **dict.fromkeys(("MINIMUM",), "minimum"),
    **dict.fromkeys(("LOGISTIC",), "sigmoid"),
    **dict.fromkeys(("SOFTMAX",), "softmax"),
    **dict.fromkeys(("TANH",), "tanh"),
}
"""TFLite operators with a rule of their own: the word above that says what holds for their grids."""


def activation_grid(low: float, high: float, *, bits: int = 8) -> Grid:
    """Returns the grid of an activation's range.

    Args:
        low: Smallest value; zero is always included, so that padding is exact.
        high: Largest value.
        bits: 8 (asymmetric) or 16 (symmetric, zero point 0, as TFLite's int16 kernels ask).
    """
    low, high = min(0.0, float(low)), max(0.0, float(high))
    top = 2 ** (bits - 1) - 1
    if bits > 8:
        return Grid(_float32(max(-low, high) / top), 0, -top, top)
    scale = _float32((high - low) / (2**bits - 1))
    zero_point = min(top, max(-(top + 1), round(-(top + 1) - low / scale)))
    return Grid(scale, zero_point, -(top + 1), top)


def weight_scales(weight_o: NDArray[Any], *, bits: int = 8) -> NDArray[np.float32]:
    """Returns the symmetric scale of each output channel.

    Args:
        weight_o: Weights, output channel first, any shape.
        bits: Bits of a weight.

    Returns:
        float32 [out], at least SMALLEST_SCALE.
    """
    import numpy as np

    largest = np.abs(weight_o.reshape(len(weight_o), -1)).max(1)
    scales: NDArray[np.float32] = np.maximum(largest / (2 ** (bits - 1) - 1), SMALLEST_SCALE).astype(np.float32)
    return scales


def bias_scales(input_scale: float, weight_scales_o: NDArray[Any]) -> NDArray[np.float32]:
    """Returns the scale of each bias, float32 [out]: the product that an integer kernel accumulates in."""
    import numpy as np

    return np.float32(input_scale) * np.asarray(weight_scales_o, np.float32)


def _float32(value: float) -> float:
    """Returns the float32 number nearest to `value`, at least SMALLEST_SCALE."""
    (rounded,) = struct.unpack("f", struct.pack("f", max(value, SMALLEST_SCALE)))
    return float(rounded)
