"""Another project's checkpoint as one of ours: read without running any of it, mapped by names, strictly."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edge_seg.contract import ClassInfo
from edge_seg.data.coco_json import read_classes, read_coco
from edge_seg.errors import ArtifactError, InputError
from edge_seg.models.base import MODELS
from edge_seg.models.foreign import FOREIGN
from edge_seg.training.checkpoint import save_checkpoint
from edge_seg.training.settings import DataSettings, ModelSettings, OptimSettings, TrainSettings

MAX_BYTES = 2 << 30
_NESTS = ("model", "state_dict")  # where projects keep the tensors inside a training state


@dataclass(frozen=True)
class Wanted:
    """What a checkpoint is to become.

    Attributes:
        kind: Project, for example "adelaidet".
        model: Registered network.
        options: Its options.
        input_px: Side of the input; 0 takes the network's own.
        num_classes: Number of classes, named by number.
        classes: COCO JSON whose categories name the classes, in the checkpoint's order; instead of `num_classes`.
    """

    kind: str
    model: str
    options: Mapping[str, Any] = field(default_factory=dict)
    input_px: int = 0
    num_classes: int = 80
    classes: Path | None = None

    def class_list(self) -> tuple[ClassInfo, ...]:
        """Returns the classes; raises DataError for a broken JSON."""
        numbers = {"categories": [{"id": n, "name": f"class {n}"} for n in range(1, self.num_classes + 1)]}
        if self.classes is None:
            return read_classes(numbers, Path("--num-classes"))
        return read_classes(read_coco(self.classes), self.classes)


def import_checkpoint(file: Path, wanted: Wanted, out: Path) -> dict[str, Any]:
    """Writes a checkpoint of ours from another project's.

    Args:
        file: Safetensors, or a PyTorch file that holds tensors only.
        wanted: What it is to become.
        out: The checkpoint, `.safetensors`.

    Returns:
        `checkpoint licence mapped unmapped`; unmapped are tensors that a network for inference has no place for.

    Raises:
        InputError: Unknown network or kind, a network without counterpart, or no file.
        ArtifactError: The file holds more than tensors, or they do not fit.
    """
    if out.suffix != ".safetensors":
        raise InputError("A checkpoint is a safetensors file.", expected="--out NAME.safetensors", got=str(out))
    tensors, classes = read_tensors(file), wanted.class_list()
    make = MODELS[wanted.model]
    network = make(num_classes=len(classes), input_px=wanted.input_px, **dict(wanted.options))
    foreign = FOREIGN[f"{wanted.kind}/{network.family}"]
    network.load_state_dict(foreign.state(network, tensors), strict=True)
    settings = TrainSettings(
        data=DataSettings(train=f"imported: {file.name}"),
        model=ModelSettings(wanted.model, wanted.input_px, options=dict(wanted.options)),
        optim=OptimSettings(),
    )
    licence = f"{foreign.licence} ({file.name}, imported from {wanted.kind})"
    save_checkpoint(out, network.state_dict(), settings=settings, classes=classes, step=0, licence=licence)
    mapped = set(foreign.names(network).values()) & set(tensors)
    return {
        "checkpoint": str(out),
        "licence": licence,
        "mapped": len(mapped),
        "unmapped": sorted(set(tensors) - mapped),
    }


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors or PyTorch file; nothing in it is executed.

    Raises:
        InputError: There is no such file.
        ArtifactError: It is too large, broken, or holds other objects than tensors.
    """
    if not file.is_file():
        raise InputError(f"There is no checkpoint {file}.", expected="a .safetensors or .pth file")
    if file.stat().st_size > MAX_BYTES:
        raise ArtifactError(f"{file} is too large.", expected=f"at most {MAX_BYTES} bytes")
    state = _safetensors(file) if file.suffix == ".safetensors" else _weights_only(file)
    for nest in _NESTS:
        if isinstance(state, dict) and isinstance(state.get(nest), Mapping):
            state = state[nest]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ArtifactError(
            f"{file} is not a table of tensors.",
            expected='names and tensors, perhaps under "model" or "state_dict"',
            got=type(state).__name__,
            todo="save the network's state_dict alone",
        )
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _safetensors(file: Path) -> Any:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{file} is not a safetensors file.", got=str(error)) from error


def _weights_only(file: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of foreign pickles; what is not weights is refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError, OSError) as error:
        raise ArtifactError(
            f"{file} cannot be read as weights only.",
            expected="tensors, numbers and texts; objects of a pickle may contain code and are never loaded",
            got=str(error).partition("\n")[0] or type(error).__name__,
            todo="where you trust the file, save its state_dict again as safetensors",
        ) from error
