"""What a backbone is, the registry, and the strict loader of its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edge_seg.errors import ArtifactError, InputError
from edge_seg.registry import Registry

MAX_WEIGHTS_BYTES = 1 << 30


@dataclass(frozen=True)
class Stage:
    """One stage of a backbone: module path, output channels, output stride in pixels."""

    path: str
    channels: int
    stride_px: int


class Backbone(nn.Module):
    """A network that returns (skip, top): the last stride-8 map and the last map before the classifier.

    Attributes:
        stages: Channels and stride after every stage.
        skip_channels: Channels of the stride-8 map.
        top_channels: Channels of the stride-16 map.
        tail_keys: Prefixes of the classification tail: a checkpoint may contain them, the backbone does not.
    """

    stages: tuple[Stage, ...]
    skip_channels: int
    top_channels: int
    tail_keys: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps a normalised image [N, 3, H, W] to maps at stride 8 and 16."""
        raise NotImplementedError

    def frozen_paths(self, stages: int) -> tuple[str, ...]:
        """Returns the module paths of the first `stages` stages, for freezing them in training."""
        return tuple(stage.path for stage in self.stages[:stages])


class PyramidBackbone(nn.Module):
    """A network that returns its last maps at strides 4, 8, 16 and 32.

    Attributes:
        stages: Channels and stride after every stage.
        channels: Channels of the four maps.
        tail_keys: Prefixes of the classification tail, as in `Backbone`.
    """

    stages: tuple[Stage, ...]
    channels: tuple[int, int, int, int]
    tail_keys: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps a normalised image [N, 3, H, W] to maps at stride 4, 8, 16 and 32 (C2 to C5)."""
        raise NotImplementedError

    def frozen_paths(self, stages: int) -> tuple[str, ...]:
        """Returns the module paths of the first `stages` stages, for freezing them in training."""
        return tuple(stage.path for stage in self.stages[:stages])


BACKBONES: Registry[Callable[[], Backbone]] = Registry("backbone", "edge_seg.backbones")
PYRAMIDS: Registry[Callable[[], PyramidBackbone]] = Registry("pyramid backbone", "edge_seg.backbones")


def load_weights(backbone: Backbone | PyramidBackbone, path: Path) -> None:
    """Loads a safetensors file by name, strictly.

    Args:
        backbone: The network to fill; float16 values are widened.
        path: A safetensors file with timm's names; the classification tail may be present.

    Raises:
        InputError: The file is missing.
        ArtifactError: It is not safetensors, a key is missing or surplus, or a shape differs.
    """
    if not path.is_file():
        raise InputError(f"There are no weights at {path}.", expected="a .safetensors file", todo="check the path")
    if path.stat().st_size > MAX_WEIGHTS_BYTES:
        raise ArtifactError(f"{path} is too large.", expected=f"at most {MAX_WEIGHTS_BYTES} bytes")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} is not a safetensors file.", got=str(error), todo="convert the checkpoint to safetensors"
        ) from error
    own = backbone.state_dict()
    body = {k: v for k, v in found.items() if not k.startswith(backbone.tail_keys or ("\0",))}
    _compare(path, own, body)
    backbone.load_state_dict({k: v.to(own[k].dtype) for k, v in body.items()}, strict=True)


def _compare(path: Path, own: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    missing = sorted(set(own) - set(found))
    surplus = sorted(set(found) - set(own))
    if missing or surplus:
        raise ArtifactError(
            f"{path} does not fit this backbone.",
            expected=f"exactly its {len(own)} tensors",
            got=f"missing {missing[:3] or 'none'} ({len(missing)}), surplus {surplus[:3] or 'none'} ({len(surplus)})",
            todo="choose the backbone the weights belong to",
        )
    for key, value in found.items():
        if value.shape != own[key].shape:
            raise ArtifactError(
                f"{path}: the tensor {key!r} has another shape.",
                expected=str(tuple(own[key].shape)),
                got=str(tuple(value.shape)),
                todo="use weights of the same width multiplier",
            )
