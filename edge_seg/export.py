"""Checkpoint to exported folder: `model.pt2`, `contract.json`, `decoder.safetensors`, `reference.npz`, manifests.

The body is wrapped to NHWC inside the exported module, so that module paths survive into the converted file.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save as save_safetensors
from torch import Tensor, nn

from edge_seg.artifact import atomic_path, sha256_of, write_arrays, write_bytes, write_manifest
from edge_seg.contract import ClassInfo, Contract
from edge_seg.errors import InputError
from edge_seg.models.base import ExportGraph, Network
from edge_seg.models.torch_runner import make_contract
from edge_seg.quantization.integers import integer_form
from edge_seg.quantization.prepare import is_prepared
from edge_seg.training.checkpoint import load_checkpoint

REFERENCE_SEED = 20260
REFERENCE_PICTURES = 2


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    folder: Path
    exported: Path
    contract: Path
    sha256: str


class NhwcBody(nn.Module):
    """A body with channels last at both ends.

    Args:
        body: Takes [N, 3, H, W], returns a mapping of maps.
        names: Order of the outputs.
    """

    def __init__(self, body: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.body = body
        self.names = tuple(names)

    def forward(self, image_nhwc: Tensor) -> tuple[Tensor, ...]:
        """Maps [N, H, W, 3] in 0..255 to [N, h, w, c] maps."""
        raw = self.body(image_nhwc.permute(0, 3, 1, 2))
        return tuple(raw[name].permute(0, 2, 3, 1) for name in self.names)


def export(checkpoint_path: Path, out: Path, *, fold: bool = True, split_7x7: bool = True) -> Exported:
    """Writes the exported folder of a checkpoint.

    Args:
        checkpoint_path: `model.safetensors` of a training.
        out: Folder.
        fold: Whether the decoder takes over the last 1x1 layers (exact, cheaper).
        split_7x7: Whether 7x7 depthwise convolutions become sums of three smaller ones (exact, much faster on a CPU).

    Raises:
        InputError: The checkpoint is missing or `out` cannot be written.
        ArtifactError: The checkpoint is broken.
    """
    checkpoint = load_checkpoint(checkpoint_path)
    network, options = checkpoint.network, {"fold": fold, "split_7x7": split_7x7}
    graph = _graph(network, options)
    contract = make_contract(network, graph, checkpoint.classes, checkpoint.settings.decoder)
    config = {**options, "settings_seed": checkpoint.settings.seed}
    _write(out, graph, _with_parents(contract, checkpoint_path), config, [checkpoint_path])
    return Exported(out, out / "model.pt2", out / "contract.json", sha256_of(out / "model.pt2"))


def export_network(
    network: Network,
    classes: Sequence[ClassInfo],
    decoder: Mapping[str, Any],
    out: Path,
    *,
    fold: bool = True,
    split_7x7: bool = True,
) -> Path:
    """Writes the exported folder of a network that comes from no checkpoint (for speed, where weights do not matter).

    Args:
        network: The network, in evaluation mode.
        classes: Its classes.
        decoder: Decoder settings of the recipe.
        out: Folder.
        fold: As in `export`.
        split_7x7: As in `export`.

    Returns:
        `out`.

    Raises:
        InputError: `out` cannot be written.
    """
    options = {"fold": fold, "split_7x7": split_7x7}
    graph = _graph(network, options)
    _write(out, graph, make_contract(network, graph, classes, decoder), options, [])
    return out


def _graph(network: Network, options: Mapping[str, bool]) -> ExportGraph:
    fold = options["fold"]
    if is_prepared(network.body) and not (fold and options["split_7x7"]):
        raise InputError(
            f"{network.name} was retrained for its folded and split form.",
            expected="an export with both rewrites",
            got=f"fold {fold}, split_7x7 {options['split_7x7']}",
            todo="export without --no-fold and --no-split-7x7",
        )
    graph = network.export_graph(fold=fold, split_7x7=options["split_7x7"])
    return replace(graph, body=integer_form(graph.body))


def _write(
    out: Path, graph: ExportGraph, contract: Contract, config: Mapping[str, Any], parents: Sequence[Path]
) -> None:
    """Writes the four files and, when all are there, their manifests."""
    wrapped = NhwcBody(graph.body, [o.name for o in contract.outputs]).eval()
    paths = {n: out / n for n in ("model.pt2", "contract.json", "decoder.safetensors", "reference.npz")}
    _save_program(wrapped, contract, paths["model.pt2"])
    contract.save(paths["contract.json"])
    write_bytes(paths["decoder.safetensors"], save_safetensors(dict(graph.constants)))
    _save_reference(wrapped, contract, paths["reference.npz"])
    for path in paths.values():
        write_manifest(path, kind="exported", step="export", config=config, parents=parents, seed=REFERENCE_SEED)


def _with_parents(contract: Contract, checkpoint_path: Path) -> Contract:
    parents = {"checkpoint_sha256": sha256_of(checkpoint_path), "exported_sha256": ""}
    return replace(contract, model=replace(contract.model, parents=parents))


def _save_program(wrapped: nn.Module, contract: Contract, path: Path) -> None:
    side = contract.model.input_px
    logger = logging.getLogger("torch.export")
    level = logger.level
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            program = torch.export.export(wrapped, (torch.zeros(1, side, side, 3),))
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                torch.export.save(program, file)
        finally:
            logger.setLevel(level)


def _save_reference(wrapped: nn.Module, contract: Contract, path: Path) -> None:
    """Seeded inputs (smooth noise, so that activations look like those of pictures) and the outputs for them.

    `float32_error_of_range` holds, per output, how far PyTorch's own float32 is from float64.
    """
    side = contract.model.input_px
    rng = np.random.default_rng(REFERENCE_SEED)
    coarse = rng.integers(0, 256, (REFERENCE_PICTURES, side // 16, side // 16, 3))
    fine = np.kron(coarse, np.ones((1, 16, 16, 1))) + rng.normal(0, 12, (REFERENCE_PICTURES, side, side, 3))
    inputs = np.clip(fine, 0, 255).astype(np.uint8)
    with torch.inference_mode():
        single = _stacked(wrapped, torch.from_numpy(inputs).float())
        double = _stacked(copy.deepcopy(wrapped).double(), torch.from_numpy(inputs).double())
    error = [float(np.abs(a - b).max() / max(np.ptp(b), 1e-30)) for a, b in zip(single, double, strict=True)]
    arrays = {output.name: array for output, array in zip(contract.outputs, single, strict=True)}
    write_arrays(path, {"inputs_nhwc_u8": inputs, "float32_error_of_range": np.array(error), **arrays})


def _stacked(wrapped: nn.Module, inputs: Tensor) -> list[NDArray[np.floating[Any]]]:
    """Runs pictures one by one; returns every output stacked over them."""
    rows = [wrapped(one[None]) for one in inputs]
    return [torch.cat(column).numpy() for column in zip(*rows, strict=True)]
