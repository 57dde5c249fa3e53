"""Parameters, outputs and constants of a contract, checked before a decoder trusts them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract, OutputTensor
from edge_seg.errors import InputError

_TODO = "correct the recipe's [decoder] section or the --set option"


@dataclass(frozen=True)
class Number:
    """Allowed values of a number: at least `low`, at most `high`; whole where `whole`."""

    low: float
    high: float
    whole: bool = False

    def __contains__(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        return math.isfinite(value) and self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{'a whole number from ' if self.whole else ''}{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Choice:
    """Allowed values of a word or a flag."""

    values: tuple[str | bool, ...]

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str | bool) and value in self.values

    def __str__(self) -> str:
        return " or ".join(repr(value) for value in self.values)


COUNT = Number(0, 1000, whole=True)
SHARE = Number(0.0, 1.0)
FLAG = Choice((True, False))


def checked_params(params: Mapping[str, Any], rules: Mapping[str, Number | Choice]) -> dict[str, Any]:
    """Returns a decoder's parameters.

    Args:
        params: As the contract has them.
        rules: What each required parameter may be.

    Raises:
        InputError: A parameter is missing or not allowed.
    """
    for name, rule in rules.items():
        if params.get(name) not in rule:
            raise InputError(
                f"The decoder parameter {name!r} is {'out of range' if name in params else 'missing'}.",
                expected=str(rule),
                got=repr(params.get(name)),
                todo=_TODO,
            )
    return dict(params)


def outputs_of(contract: Contract, role: str) -> dict[int, OutputTensor]:
    """Returns the outputs of a role by level, lowest first; raises InputError when there is none."""
    found = {o.level: o for o in sorted(contract.outputs, key=lambda o: o.level) if o.role == role}
    if not found:
        raise InputError(
            f"The decoder {contract.decoder.name!r} needs an output with the role {role!r}.",
            got=", ".join(sorted({o.role for o in contract.outputs})),
        )
    return found


def same_levels(outputs: Mapping[str, Mapping[int, OutputTensor]]) -> list[int]:
    """Returns the levels that all roles have; raises InputError where one has others.

    Args:
        outputs: From role to outputs by level.
    """
    levels = [sorted(by_level) for by_level in outputs.values()]
    if any(other != levels[0] for other in levels):
        raise InputError(
            f"The outputs {', '.join(outputs)} do not have the same levels.", got=", ".join(map(str, levels))
        )
    return levels[0]


def need_channels(output: OutputTensor, channels: int) -> None:
    """Raises InputError unless an output has so many channels."""
    if output.shape[-1] != channels:
        raise InputError(
            f"The output {output.name!r} does not fit the decoder's parameters.",
            expected=f"{channels} channels",
            got=str(output.shape[-1]),
        )


class LazyConv:
    """A convolution that runs at a few cells only: stride 1, zeros outside the map, "same" size.

    Args:
        weight_oihw: [outputs, inputs, k, k], k odd.
        bias: [outputs].

    Raises:
        InputError: The shapes do not belong together.
    """

    def __init__(self, weight_oihw: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        shape = weight_oihw.shape
        if len(shape) != 4 or shape[2] != shape[3] or shape[2] % 2 == 0 or bias.shape != shape[:1]:
            raise InputError(
                "The weight and bias of a layer at kept cells do not belong together.",
                expected="[outputs, inputs, k, k] with an odd k, and [outputs]",
                got=f"{list(shape)} and {list(bias.shape)}",
            )
        self.outputs, self.inputs, self.size = shape[:3]
        matrix = weight_oihw.transpose(2, 3, 1, 0).reshape(-1, self.outputs)
        self._matrix, self._bias = np.ascontiguousarray(matrix, np.float32), bias.astype(np.float32)

    def at(self, features_hwc: NDArray[np.float32], cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns the layer's outputs at n flat cells, [n, outputs].

        Args:
            features_hwc: [h, w, inputs].
            cells: [n] row * w + column.
        """
        return self.of_patches(self.patches(features_hwc, cells))

    def patches(self, features_hwc: NDArray[np.float32], cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns what the layer reads around n flat cells, [n, k * k * inputs]; arguments as those of `at`."""
        height, width, channels = features_hwc.shape
        if self.size == 1:
            return np.asarray(features_hwc.reshape(-1, channels).take(cells, axis=0))
        reach = np.arange(self.size) - self.size // 2
        y, x = np.divmod(cells, width)
        rows, columns = y[:, None] + reach, x[:, None] + reach
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        place = np.where(inside, rows[:, :, None] * width + columns[:, None], 0)
        return np.asarray((features_hwc.reshape(-1, channels)[place] * inside[..., None]).reshape(len(cells), -1))

    def of_patches(self, patches: NDArray[np.float32]) -> NDArray[np.float32]:
        """Returns the layer's outputs, [n, outputs], of what it reads, [n, k * k * inputs]."""
        return np.asarray(patches @ self._matrix + self._bias, np.float32)


def lazy_conv(constants: Mapping[str, NDArray[np.float32]], name: str, *, inputs: int, outputs: int) -> LazyConv | None:
    """Returns the layer `name` that the graph left to the decoder, or None where the graph has it.

    Args:
        constants: The decoder's constants.
        name: Prefix of the constants ("kernel").
        inputs: Channels of the raw output that the layer reads.
        outputs: Values that the decoder needs of a cell.

    Raises:
        InputError: One of weight and bias is missing, or the layer has other sizes.
    """
    weight, bias = constants.get(f"{name}.weight"), constants.get(f"{name}.bias")
    if weight is None and bias is None:
        return None
    if weight is None or bias is None:
        raise InputError(f"The decoder needs both {name}.weight and {name}.bias.", got=", ".join(sorted(constants)))
    layer = LazyConv(weight, bias)
    if (layer.inputs, layer.outputs) != (inputs, outputs):
        raise InputError(
            f"The constant {name}.weight does not fit the outputs.",
            expected=f"{inputs} inputs and {outputs} outputs",
            got=f"{layer.inputs} and {layer.outputs}",
        )
    return layer


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns probabilities, of any shape; logits of any size raise no overflow."""
    share = np.multiply(logits, np.float32(0.5), dtype=np.float32)
    np.tanh(share, out=share)
    share *= np.float32(0.5)
    share += np.float32(0.5)
    return share
