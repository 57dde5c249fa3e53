"""What a network and a criterion are, the registry of variants, and the count of multiplications."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_seg.contract import ClassInfo
from edge_seg.data.transforms import TrainCrop
from edge_seg.errors import InputError
from edge_seg.layers import ops
from edge_seg.layers.conv import SameConv2d
from edge_seg.layers.split import is_depthwise_7x7, is_foldable, split_7x7
from edge_seg.models.reduce import ONE_PROCESS, Reduce
from edge_seg.registry import Registry

MEAN_RGB = (128.0, 128.0, 128.0)  # a whole byte and a power of two: nothing of the picture is lost to rounding
STD_RGB = (128.0, 128.0, 128.0)
SIZE_STEP_PX = 32
CODE_LICENCE = "Apache-2.0 (network); the weights follow the licence of their training data"


@dataclass(frozen=True)
class OutputSpec:
    """A raw output of a body: unique name, role for the decoder, stride in pixels, activation, pyramid level."""

    name: str
    role: str
    stride_px: int
    activation: str = "logit"
    level: int = 0


@dataclass(frozen=True)
class ExportGraph:
    """What is exported: the body after its exact rewrites, its outputs, and the decoder's constants."""

    body: nn.Module
    outputs: tuple[OutputSpec, ...]
    constants: Mapping[str, NDArray[np.float32]]


class Criterion(Protocol):
    """Targets and losses of a family."""

    def targets(self, crop: TrainCrop, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Returns the arrays of one picture that the losses need; pure NumPy, runs in the loader's threads."""
        ...

    def losses(
        self, network: Network, image: Tensor, batch: Mapping[str, Tensor], *, reduce: Reduce = ONE_PROCESS
    ) -> dict[str, Tensor]:
        """Returns the named losses of a batch; "loss" is the one to minimise.

        With several processes each sees its part of the batch; the losses must add up to those of one process, so
        divisors are counted with `reduce.total`.
        """
        ...


class Network(nn.Module):
    """A body plus the small parts that run outside the exported graph.

    Attributes:
        name: Registered name of the variant.
        family: Name of the family.
        task: "panoptic" or "instance".
        decoder_name: Registered name of the decoder.
        licence: Licence of the weights a user trains with it (theirs), of the code (ours).
        input_px: Side of the square input.
        num_classes: Number of classes, void not counted.
        mean_rgb: Mean colour that the body subtracts, 0..255.
        std_rgb: Deviation that it divides by.
    """

    family: ClassVar[str]
    task: ClassVar[str]
    decoder_name: ClassVar[str]
    name: str
    input_px: int
    num_classes: int
    body: nn.Module
    licence: str = CODE_LICENCE
    mean_rgb: tuple[float, float, float] = MEAN_RGB
    std_rgb: tuple[float, float, float] = STD_RGB

    @property
    def fill_rgb(self) -> tuple[int, int, int]:
        """Colour of the padding: the byte nearest to the mean, halves up, so that padding is zero to the body."""
        red, green, blue = (math.floor(value + 0.5) for value in self.mean_rgb)
        return red, green, blue

    def export_graph(self, *, fold: bool = True, split_7x7: bool = True) -> ExportGraph:
        """Returns a deep copy of the body after exact rewrites.

        Args:
            fold: Whether the decoder takes over last layers that are needed at few places only, and whether constant
                maps are folded.
            split_7x7: Whether 7x7 depthwise convolutions become sums of three smaller ones.
        """
        raise NotImplementedError

    def decoder_params(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the decoder's parameters for the contract; `settings` come from the configuration."""
        raise NotImplementedError

    def criterion(self, settings: Mapping[str, Any], classes: Sequence[ClassInfo]) -> Criterion:
        """Returns the family's criterion; `settings` come from the configuration."""
        raise NotImplementedError

    def macs(self) -> dict[str, int]:
        """Returns multiply-accumulates: `macs` (as published), `macs_graph`, `macs_decoder`."""
        raise NotImplementedError

    def load_backbone(self, weights: str) -> None:
        """Fills the backbone from a safetensors file; raises InputError or ArtifactError."""
        raise NotImplementedError


MODELS: Registry[Callable[..., Network]] = Registry("model", "edge_seg.models")


def task_of(name: str) -> str:
    """Returns the task of a registered network, "panoptic" or "instance"; raises InputError for an unknown name."""
    return _without_weights(name).task


def family_of(name: str) -> str:
    """Returns the family of a registered network; raises InputError for an unknown name."""
    return _without_weights(name).family


def _without_weights(name: str) -> Network:
    with torch.device("meta"):
        return MODELS[name](num_classes=1)


def checked_input_px(input_px: int) -> int:
    """Returns `input_px`; raises InputError unless it is a positive multiple of 32."""
    if input_px < SIZE_STEP_PX or input_px % SIZE_STEP_PX:
        raise InputError(
            "The input size does not fit the network.",
            expected=f"a positive multiple of {SIZE_STEP_PX}",
            got=str(input_px),
            todo=f"use {max(1, round(input_px / SIZE_STEP_PX)) * SIZE_STEP_PX}",
        )
    return input_px


def checked_num_classes(num_classes: int) -> int:
    """Returns `num_classes`; raises InputError unless there is at least one."""
    if num_classes < 1:
        raise InputError("The number of classes does not fit.", expected="at least 1", got=str(num_classes))
    return num_classes


def conv_macs(module: nn.Module, input_px: int) -> dict[str, int]:
    """Counts the multiply-accumulates of each convolution of a body.

    Args:
        module: A body that takes [1, 3, input_px, input_px].
        input_px: Side of the input.

    Returns:
        Module path to count. BatchNorm, activations and resizes are not counted.
    """
    clone = _shapes_only(copy.deepcopy(module).to("meta").eval())
    counts: dict[str, int] = {}

    def hook(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def count(conv: nn.Module, _inputs: Any, output: Tensor) -> None:
            counts[path] = counts.get(path, 0) + int(output.numel()) * _taps(conv)

        return count

    for path, child in clone.named_modules():
        if isinstance(child, nn.Conv2d):
            child.register_forward_hook(hook(path))
    with torch.no_grad():
        clone(torch.zeros(1, 3, input_px, input_px, device="meta"))
    return counts


class _Enlarged(nn.Module):
    """The shape of a resize's result."""

    def __init__(self, resize: nn.Module) -> None:
        super().__init__()
        self._resize = [resize]  # in a list, so that it is no part of this module

    def forward(self, x: Tensor, *like: Tensor) -> Tensor:
        """Returns an empty map of the size that the resize gives."""
        (resize,) = self._resize
        if isinstance(resize, ops.Upsample):
            height, width = (side * resize.factor for side in x.shape[-2:])
        else:
            height, width = resize.size_hw if isinstance(resize, ops.Resize) else like[0].shape[-2:]
        return x.new_empty((*x.shape[:2], height, width))


def _shapes_only(module: nn.Module) -> nn.Module:
    """Keeps only shapes of what costs no multiplication here, in place: on "meta" it would be slow Python."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d | nn.GroupNorm | nn.ReLU | nn.ReLU6):
            setattr(module, name, nn.Identity())
        elif isinstance(child, ops.Upsample | ops.Resize | ops.ResizeLike):
            setattr(module, name, _Enlarged(child))
        else:
            _shapes_only(child)
    return module


def _taps(conv: nn.Module) -> int:
    """Returns the products of one output value; the zeros of a `SameConv2d` in its 4x4 form are none."""
    weight = conv.get_parameter("weight")
    return int(weight.shape[1]) * int(getattr(conv, "taps", weight[0, 0].numel()))


def plain_convolutions(module: nn.Module) -> nn.Module:
    """Replaces every `SameConv2d` by its 4x4 form, in place, and returns the module (export only)."""
    for name, child in list(module.named_children()):
        if isinstance(child, SameConv2d):
            setattr(module, name, child.as_plain())
        else:
            plain_convolutions(child)
    return module


def split_convolutions(module: nn.Module) -> nn.Module:
    """Replaces every 7x7 depthwise convolution by its split form, in place, and returns the module (export only).

    In an `nn.Sequential` the BatchNorm that follows is folded in and becomes an `nn.Identity`, so that module paths
    stay; a convolution with its BatchNorm in another kind of parent keeps it after the sum. Exact for a module in
    evaluation mode; done before calibration and before quantisation-aware retraining, because in int8 each of the
    three parts is rounded for itself.
    """
    children = list(module.named_children())
    followers = [*children[1:], ("", None)]
    for (name, child), (after_name, after) in zip(children, followers, strict=False):
        if not (isinstance(child, nn.Conv2d) and is_depthwise_7x7(child)):
            split_convolutions(child)
        elif isinstance(module, nn.Sequential) and isinstance(after, nn.BatchNorm2d) and is_foldable(after):
            setattr(module, name, split_7x7(child, after))
            setattr(module, after_name, nn.Identity())
        else:
            setattr(module, name, split_7x7(child))
    return module
