"""Where a training starts: random weights, a backbone's weights, or a float checkpoint that is put on integer grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_seg.contract import ClassInfo
from edge_seg.data.transforms import TrainCrop
from edge_seg.errors import InputError
from edge_seg.models.base import Criterion, Network
from edge_seg.models.reduce import ONE_PROCESS, Reduce
from edge_seg.quantization.prepare import prepare
from edge_seg.training.checkpoint import Checkpoint, build_network, load_checkpoint, range_options
from edge_seg.training.settings import TrainSettings


def starting_network(settings: TrainSettings, classes: Sequence[ClassInfo]) -> Network:
    """Makes the network of an experiment with the weights it starts from.

    Args:
        settings: The experiment; its seed decides random weights.
        classes: Classes of the training data.

    Raises:
        EdgeSegError: Weights or checkpoint are not there, are broken or do not fit.
    """
    if settings.qat.start:
        checkpoint = _fitting(settings, classes)
        return prepare(checkpoint.network, range_options(settings.qat))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = build_network(settings, classes)
    if settings.model.weights:
        network.load_backbone(settings.model.weights)
    return network


def starting_criterion(
    settings: TrainSettings, network: Network, classes: Sequence[ClassInfo], device: torch.device
) -> Criterion:
    """Returns the family's criterion; with `qat.distill` it also holds the outputs to those of the float network."""
    criterion = network.criterion(settings.criterion, classes)
    if not (settings.qat.start and settings.qat.distill):
        return criterion
    teacher = load_checkpoint(Path(settings.qat.start)).network.body
    teacher.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Distilled(criterion, teacher.eval().requires_grad_(False), settings.qat.distill)


def _fitting(settings: TrainSettings, classes: Sequence[ClassInfo]) -> Checkpoint:
    """Returns the float checkpoint; raises InputError unless it is a network of these settings and classes."""
    checkpoint = load_checkpoint(Path(settings.qat.start))
    found, wanted = checkpoint.settings.model, settings.model
    own = (found.name, checkpoint.network.input_px, found.options, [c.name for c in checkpoint.classes])
    asked = (wanted.name, wanted.input_px or own[1], wanted.options, [c.name for c in classes])
    if checkpoint.settings.qat.start:
        raise InputError(
            f"{settings.qat.start} was retrained already.",
            expected="the checkpoint of a float training",
            todo="start from the float checkpoint, or go on with --resume",
        )
    if own != asked:
        what, got, wish = next(
            (w, a, b) for w, a, b in zip(("network", "input", "options", "classes"), own, asked, strict=True) if a != b
        )
        raise InputError(
            f"{settings.qat.start} holds another network than the configuration asks for ({what}).",
            expected=_plain(wish),
            got=_plain(got),
            todo="use the configuration the checkpoint was trained with",
        )
    return checkpoint


def _plain(value: Any) -> str:
    """Returns a value of a checkpoint's settings, cut to a line of a message."""
    text = f"{len(value)}: {', '.join(value)}" if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


@dataclass(frozen=True)
class Distilled:
    """A criterion that adds the squared distance between the raw outputs of a network and of its float original.

    Each output counts by its distance over the variance of the original, so that no output outweighs the others.
    Idea: knowledge distillation (arXiv 1503.02531) on raw outputs, as for quantised networks in arXiv 1711.05852.

    Attributes:
        criterion: The family's criterion.
        teacher: The float body, frozen.
        weight: Weight of the distance.
    """

    criterion: Criterion
    teacher: nn.Module
    weight: float

    def targets(self, crop: TrainCrop, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        """Returns the targets of the family's criterion."""
        return self.criterion.targets(crop, rng)

    def losses(
        self, network: Network, image: Tensor, batch: Mapping[str, Tensor], *, reduce: Reduce = ONE_PROCESS
    ) -> dict[str, Tensor]:
        """Returns the family's losses and "loss_distill"; "loss" is their sum."""
        raw: dict[str, Tensor] = {}
        handle = network.body.register_forward_hook(lambda _module, _inputs, outputs: raw.update(outputs))
        try:
            losses = self.criterion.losses(network, image, batch, reduce=reduce)
        finally:
            handle.remove()
        with torch.no_grad():
            wanted = self.teacher(image)
        pictures = reduce.total(image.new_tensor(float(len(image))))
        distance = sum((_distance(raw[k], wanted[k]) for k in wanted), start=image.new_zeros(()))
        distill = distance / pictures / len(wanted)
        return {**losses, "loss": losses["loss"] + self.weight * distill, "loss_distill": distill}


def _distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Returns the sum over pictures of mean squared distance / variance of what is wanted."""
    squared = (found - wanted).square().mean((1, 2, 3))
    return (squared / wanted.var((1, 2, 3)).clamp(min=1e-12)).sum()
