"""Recipes tried on one calibrated network: its layers, a file for each recipe, and what that does to the outputs."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import sha256_of, write_bytes
from edge_seg.converters.convert import in_memory
from edge_seg.converters.flatbuffer import read_graph
from edge_seg.converters.graph import Graph
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.metadata import read_contract
from edge_seg.converters.ptq.calibration import Images
from edge_seg.converters.ptq.post_training import Calibrated, PtqSettings, calibrate
from edge_seg.converters.ptq.recipe import Recipe
from edge_seg.errors import InputError

SNR_PICTURES = 8
LOWEST_DB = -300.0  # where the signal is nothing or the error is not finite
# Pieces of one layer as a person sees it: what is fused with a convolution, and what a split 7x7 one consists of.
_PIECES = frozenset({"conv", "bn", "norm", "act", "center", "rows", "columns", "add_rows", "add_columns"})


@dataclass(frozen=True)
class Layer:
    """What a rule of a recipe names, and a person would.

    Attributes:
        module: Module path.
        ops: Its operators by their place in the execution order; all that the path names.
    """

    module: str
    ops: tuple[int, ...]


def layers_of(graph: Graph) -> list[Layer]:
    """Returns the layers of a float network in execution order.

    Convolution, normalisation and activation are one layer, and so are the parts of a split 7x7 convolution.

    Raises:
        InputError: No operator tells its module, so that no recipe could name it.
    """
    paths = [graph.source(op) for op in graph.ops]
    names = list(dict.fromkeys(_layer_name(path) for path in paths if path))
    if not names:
        raise InputError(
            f"{graph.path} names no modules.",
            expected="operators with module paths",
            got="a network of another route",
            todo="convert with --route litert",
        )
    # a path within a path: the rule for the outer one means both
    outer = [n for n in names if not any(n.startswith(f"{other}.") for other in names)]
    return [Layer(n, tuple(i for i, p in enumerate(paths) if f"{p}.".startswith(f"{n}."))) for n in outer]


def _layer_name(path: str) -> str:
    parts = path.split(".")
    while len(parts) > 1 and parts[-1] in _PIECES:
        parts.pop()
    return ".".join(parts)


@dataclass(frozen=True)
class Trials:
    """A calibrated float file, and a folder for the files that are tried.

    Attributes:
        float_file: `NAME_fp32.tflite`.
        network: The same, calibrated.
        folder: Where tried files lie, for a while.
        threads: CPU threads.
    """

    float_file: Path
    network: Calibrated = field(repr=False)
    folder: Path
    threads: int = 1

    def write(self, recipe: Recipe, name: str = "trial") -> Path:
        """Quantises by a recipe and returns the file, whole and with its contract."""
        file = self.folder / f"{name}.tflite"
        write_bytes(file, in_memory(self.float_file, self.network, recipe))
        return file

    def outputs(self, file: Path) -> dict[str, NDArray[np.float32]]:
        """Runs some of the calibration pictures; returns real outputs by name, [pictures, h, w, c]."""
        images = self.network.images
        places = np.linspace(0, len(images) - 1, min(SNR_PICTURES, len(images))).round().astype(int)
        runner = TfliteRunner(file, threads=self.threads)
        rows = [runner(images[i]) for i in places]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


@contextmanager
def open_trials(
    float_file: Path, images: Images, settings: PtqSettings | None = None, *, threads: int = 1
) -> Iterator[Trials]:
    """Calibrates a float file and yields what quantises it by any recipe; the tried files are removed afterwards.

    Args:
        float_file: `NAME_fp32.tflite` with its contract.
        images: Letterboxed calibration pictures, uint8 [H, W, 3].
        settings: Ranges and corrections.
        threads: CPU threads.

    Raises:
        InputError: The file is not a float one.
        DataError: No pictures.
    """
    contract = read_contract(float_file)
    if contract.model.scheme != "fp32":
        raise InputError(
            f"{float_file} is quantised already.",
            expected="an fp32 file",
            got=contract.model.scheme,
            todo="give NAME_fp32.tflite, or the exported folder or checkpoint that it comes from",
        )
    network = calibrate(float_file.read_bytes(), read_graph(float_file), contract, images, settings)
    with tempfile.TemporaryDirectory(prefix="edge_seg_trials_") as folder:
        yield Trials(float_file, network, Path(folder), threads)


def snr_db(reference: NDArray[np.float32], values: NDArray[np.float32]) -> float:
    """Returns 10 log10 of the reference's power over the error's, over all values; infinite without error."""
    noise = float(np.square(reference.astype(np.float64) - values).sum())
    signal = float(np.square(reference.astype(np.float64)).sum())
    if noise == 0:
        return math.inf
    return max(LOWEST_DB, 10 * math.log10(signal / noise)) if signal and math.isfinite(noise) else LOWEST_DB


def about_trials(trials: Trials, calibration_sha256: str) -> dict[str, Any]:
    """Returns what decides the figures: network, calibration data and pictures, how ranges are chosen."""
    return {
        "model_sha256": sha256_of(trials.float_file),
        "calibration_sha256": calibration_sha256,
        "calibration_images": len(trials.network.images),
        "snr_images": min(SNR_PICTURES, len(trials.network.images)),
        "settings": trials.network.settings.to_json(),
    }
