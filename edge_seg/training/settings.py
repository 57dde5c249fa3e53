"""The training configuration: one frozen, complete and strict document for an experiment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from edge_seg.config import apply_overrides, from_mapping, load_toml
from edge_seg.data.transforms import AugmentConfig
from edge_seg.errors import ConfigError


@dataclass(frozen=True)
class DataSettings:
    """Data sets by DATA argument (see the command line).

    Attributes:
        train: Training data.
        val: Validation data; empty means the `val` split of `train`.
        cache_mb: Memory for decoded pictures, in each process.
    """

    train: str
    val: str = ""
    cache_mb: int = 1024


@dataclass(frozen=True)
class ModelSettings:
    """The network.

    Attributes:
        name: Registered variant.
        input_px: Side of the input; 0 takes the variant's own.
        weights: Safetensors file for the backbone; empty starts from random weights, on purpose.
        options: Family options.
    """

    name: str
    input_px: int = 0
    weights: str = ""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimSettings:
    """Optimiser and schedule.

    Attributes:
        steps: Optimiser steps; 0 counts `epochs` instead.
        epochs: Passes over the training data.
        batch_size: Pictures in a step, over all processes.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        lr: Peak learning rate.
        backbone_lr_scale: Factor for the backbone.
        weight_decay: Decay of convolution and linear kernels and of the class embedding.
        warmup_steps: Linear warm-up; the first step takes 1 / warmup_steps of the peak.
        clip_norm: Largest gradient norm; 0 is off.
        ema_decay: Decay of the averaged weights, warmed up by (1 + step) / (10 + step); 0 is off.
        freeze_stages: Leading backbone stages that are not trained.
        freeze_batchnorm: "none", or "backbone": its running statistics stay. Only for weights that hardly move: at
            these learning rates the statistics no longer fit after some dozen steps, ReLU6 saturates and the last
            stages carry next to no signal (mask AP after 200 steps on photos: 9.1 instead of 17.9).
        batchnorm_momentum: Momentum of the live statistics.
        batchnorm_images: Training pictures on which an evaluated copy measures its live statistics anew; 0 is off.
    """

    steps: int = 0
    epochs: float = 0.0
    batch_size: int = 8
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = 2e-3
    backbone_lr_scale: float = 1.0
    weight_decay: float = 1e-5
    warmup_steps: int = 100
    clip_norm: float = 10.0
    ema_decay: float = 0.998
    freeze_stages: int = 0
    freeze_batchnorm: Literal["none", "backbone"] = "none"
    batchnorm_momentum: float = 0.03
    batchnorm_images: int = 64


@dataclass(frozen=True)
class RunSettings:
    """How the run goes along.

    Attributes:
        eval_every: Steps between evaluations; 0 evaluates at the end only.
        eval_limit: Pictures of an evaluation during training; 0 takes all.
        save_every: Steps between resumable states.
        log_every: Steps between log lines.
        threads: PyTorch threads of a process; 0 takes all cores, shared between the processes of a machine.
        loader_workers: Threads that build batches.
        device: "cpu", "cuda" or "auto"; of several processes each takes one CUDA device.
        peer_timeout_s: Longest wait for another process.
    """

    eval_every: int = 0
    eval_limit: int = 0
    save_every: int = 200
    log_every: int = 20
    threads: int = 0
    loader_workers: int = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    peer_timeout_s: float = 600.0


@dataclass(frozen=True)
class QatSettings:
    """Quantisation-aware retraining; without `start` a training is an ordinary one.

    Attributes:
        start: Checkpoint of the float network that is retrained.
        observe_steps: Steps over which the ranges of activations follow the data; then they stay.
        range_momentum: Weight of a step's range in the running range.
        ranges: "observed", or "learned": grid steps are trained as well, once observed (arXiv 1902.08153).
        distill: Weight of the distance to the float network's outputs; 0 is off.
    """

    start: str = ""
    observe_steps: int = 200
    range_momentum: float = 0.1
    ranges: Literal["observed", "learned"] = "observed"
    distill: float = 0.0


@dataclass(frozen=True)
class TrainSettings:
    """A whole experiment. `criterion` and `decoder` are the family's own settings."""

    data: DataSettings
    model: ModelSettings
    optim: OptimSettings
    run: RunSettings = field(default_factory=RunSettings)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    criterion: dict[str, Any] = field(default_factory=dict)
    decoder: dict[str, Any] = field(default_factory=dict)
    qat: QatSettings = field(default_factory=QatSettings)
    seed: int = 0

    def total_steps(self, pictures: int) -> int:
        """Returns the number of optimiser steps for a training set of `pictures`."""
        if self.optim.steps:
            return self.optim.steps
        return max(1, math.ceil(self.optim.epochs * pictures / self.optim.batch_size))


def load_settings(path: Path, overrides: Sequence[str] = ()) -> TrainSettings:
    """Reads and checks a configuration file.

    Args:
        path: TOML file.
        overrides: `section.key=value` texts.

    Raises:
        ConfigError: Anything is missing, unknown or out of range.
    """
    return checked(from_mapping(TrainSettings, apply_overrides(load_toml(path), overrides)))


def checked(settings: TrainSettings) -> TrainSettings:
    """Returns settings that can be run; raises ConfigError where values contradict one another."""
    optim = settings.optim
    if settings.qat.start:
        settings, optim = _retraining(settings)
    if min(optim.steps, optim.epochs) < 0 or (optim.steps > 0) == (optim.epochs > 0):
        raise ConfigError(
            "The length of the training is not clear.",
            expected="either optim.steps or optim.epochs, greater than 0",
            got=f"steps = {optim.steps}, epochs = {optim.epochs}",
        )
    if optim.batch_size < 1 or optim.lr <= 0 or optim.batchnorm_images < 0:
        raise ConfigError("optim.batch_size and optim.lr must be greater than 0, optim.batchnorm_images 0 or more.")
    if settings.run.log_every < 1 or min(settings.run.save_every, settings.run.eval_every) < 0:
        raise ConfigError("run.log_every must be 1 or more, run.save_every and run.eval_every 0 or more.")
    if settings.run.peer_timeout_s <= 0:
        raise ConfigError("run.peer_timeout_s must be greater than 0.", got=str(settings.run.peer_timeout_s))
    return settings


def _retraining(settings: TrainSettings) -> tuple[TrainSettings, OptimSettings]:
    """Checks the settings of a retraining: every part is trained, and BatchNorm is folded, so none is live."""
    qat = settings.qat
    if qat.observe_steps < 1 or not 0 < qat.range_momentum <= 1 or qat.distill < 0:
        raise ConfigError(
            "The settings of the retraining do not fit.",
            expected="qat.observe_steps of 1 or more, qat.range_momentum in (0, 1], qat.distill of 0 or more",
            got=f"{qat.observe_steps}, {qat.range_momentum}, {qat.distill}",
        )
    optim = replace(settings.optim, freeze_batchnorm="none", freeze_stages=0, batchnorm_images=0)
    return replace(settings, optim=optim, model=replace(settings.model, weights="")), optim
