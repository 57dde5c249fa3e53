"""Checkpoints: safetensors with the experiment in their header, and resumable states; nothing is unpickled."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from edge_seg.artifact import atomic_path, write_bytes, write_manifest
from edge_seg.config import from_mapping
from edge_seg.contract import ClassInfo
from edge_seg.errors import ArtifactError, InputError
from edge_seg.models.base import MODELS, Network
from edge_seg.models.torch_runner import TorchRunner
from edge_seg.quantization.grids import RangeOptions
from edge_seg.quantization.prepare import prepare
from edge_seg.training.settings import QatSettings, TrainSettings

FORMAT = "edge_seg.checkpoint.1"
MAX_CHECKPOINT_BYTES = 2 << 30
_STATE_KEYS = {"step", "seconds", "settings", "data", "network", "average", "optimizer"}


@dataclass(frozen=True)
class Checkpoint:
    """A trained network, ready to run.

    Attributes:
        network: In evaluation mode, on the CPU.
        classes: The classes it was trained on.
        settings: The experiment.
        step: Optimiser steps behind it.
        path: The file.
    """

    network: Network
    classes: tuple[ClassInfo, ...]
    settings: TrainSettings
    step: int
    path: Path


def build_network(settings: TrainSettings, classes: Sequence[ClassInfo]) -> Network:
    """Makes the network of an experiment, with random weights; on integer grids if it is a retraining."""
    network = float_network(settings, classes)
    return prepare(network, range_options(settings.qat)) if settings.qat.start else network


def float_network(settings: TrainSettings, classes: Sequence[ClassInfo]) -> Network:
    """Makes the float network of an experiment, with random weights."""
    model = settings.model
    return MODELS[model.name](num_classes=len(classes), input_px=model.input_px, **model.options)


def range_options(qat: QatSettings) -> RangeOptions:
    """Returns how the ranges of a retraining come about."""
    return RangeOptions(qat.observe_steps, qat.range_momentum, qat.ranges)


def save_checkpoint(
    path: Path,
    state: Mapping[str, Tensor],
    *,
    settings: TrainSettings,
    classes: Sequence[ClassInfo],
    step: int,
    licence: str = "",
) -> None:
    """Writes weights, experiment and classes as one safetensors file with a manifest, atomically.

    Args:
        path: The file.
        state: Weights by name.
        settings: The experiment.
        classes: The classes it was trained on.
        step: Optimiser steps behind it.
        licence: Terms of weights that are somebody else's; every file made of them says so.
    """
    header = {
        "format": FORMAT,
        "settings": json.dumps(asdict(settings)),
        "classes": json.dumps([asdict(c) for c in classes]),
        "step": str(step),
        **({"licence": licence} if licence else {}),
    }
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in state.items()}
    write_bytes(path, _in_order(serialize(tensors, metadata=header)))
    config = {**asdict(settings), **({"licence": licence} if licence else {})}
    write_manifest(path, kind="checkpoint", step="train", config=config, seed=settings.seed)


def _in_order(data: bytes) -> bytes:
    """Sorts the header's own entries, which safetensors writes in a random order: equal weights give equal files."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes, as the format asks
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        InputError: There is no such file.
        ArtifactError: It is a pickle, is truncated, lacks the header, its weights do not fit the network or are not
            finite.
    """
    header, tensors = _read_safetensors(path)
    if header.get("format") != FORMAT:
        raise ArtifactError(
            f"{path} is not a checkpoint of edge_seg.",
            expected=f"format {FORMAT}",
            got=str(header.get("format")),
        )
    try:
        settings = from_mapping(TrainSettings, json.loads(header["settings"]))
        classes = tuple(
            ClassInfo(c["id"], c["name"], c["isthing"], tuple(c["color_rgb"])) for c in json.loads(header["classes"])
        )
        step = int(header["step"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} has a broken header.", got=f"{type(error).__name__}: {error}") from error
    network = build_network(settings, classes)
    load_strictly(network, tensors, path)
    _check_finite(network, path)
    network.licence = header.get("licence", network.licence)
    return Checkpoint(network.eval(), classes, settings, step, path)


def _check_finite(network: Network, path: Path) -> None:
    """Raises ArtifactError that names weights with NaN or infinity: every step behind would compute nonsense."""
    broken = [name for name, weight in network.named_parameters() if not bool(torch.isfinite(weight).all())]
    if broken:
        raise ArtifactError(
            f"{path} holds weights that are not finite.",
            expected="numbers",
            got=f"NaN or infinity in {', '.join(broken[:3])}{' and others' if len(broken) > 3 else ''}",
            todo="take an earlier checkpoint, or train again with a lower optim.lr",
        )


def load_strictly(network: Network, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Loads weights by name; raises ArtifactError that names what is missing, surplus or of another shape."""
    own = network.state_dict()
    missing, surplus = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    wrong = [k for k in own if k in tensors and own[k].shape != tensors[k].shape]
    if missing or surplus or wrong:
        raise ArtifactError(
            f"{path} does not fit {network.name}.",
            expected=f"{len(own)} tensors of its own names and shapes",
            got=f"missing {missing[:3]}, surplus {surplus[:3]}, other shape {wrong[:3]}",
            todo="use the network and the number of classes the checkpoint was trained with",
        )
    network.load_state_dict(dict(tensors), strict=True)


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    if not path.is_file():
        raise InputError(f"There is no checkpoint {path}.", expected="a .safetensors file", todo="check the path")
    if path.stat().st_size > MAX_CHECKPOINT_BYTES:
        raise ArtifactError(f"{path} is too large.", expected=f"at most {MAX_CHECKPOINT_BYTES} bytes")
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {}), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} is not a safetensors file.",
            expected="model.safetensors as written by edge-seg train",
            got="a pickle, which may contain code and is never loaded" if _is_pickle(path) else str(error),
            todo="use the model.safetensors of the run's folder",
        ) from error


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or start == b"PK\x03\x04"


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a resumable state (tensors, numbers, texts) atomically."""
    with atomic_path(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path) -> dict[str, Any]:
    """Reads a resumable state with `weights_only=True`; raises ArtifactError for anything else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles; they are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(
            f"There is nothing to resume at {path}.", todo="start without --resume, or check --out"
        ) from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, OSError) as error:
        raise ArtifactError(
            f"{path} is not a resumable state.",
            got=str(error).partition("\n")[0] or type(error).__name__,
            todo="delete it and start again",
        ) from error
    if not isinstance(state, dict) or not set(state) >= _STATE_KEYS:
        raise ArtifactError(f"{path} is not a resumable state.", expected="a state written by edge-seg train")
    return state


def checkpoint_runner(path: Path, *, fold: bool = False) -> TorchRunner:
    """Returns a runner for a checkpoint file; raises InputError or ArtifactError."""
    checkpoint = load_checkpoint(path)
    return TorchRunner(checkpoint.network, checkpoint.classes, checkpoint.settings.decoder, fold=fold)
