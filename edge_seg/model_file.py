"""A MODEL argument of the command line: a checkpoint or a converted file, run by the same predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_seg.errors import InputError
from edge_seg.evaluation.predictor import Predictor, RawRunner


def open_runner(model: Path, *, threads: int = 1) -> RawRunner:
    """Opens a checkpoint (`.safetensors`) or a converted file (`.tflite`).

    Args:
        model: The file.
        threads: CPU threads of a converted file.

    Raises:
        InputError: The file is missing or of another kind.
        ArtifactError: It is broken.
    """
    if not model.is_file():
        raise InputError(f"There is no model {model}.", expected="a .safetensors or .tflite file")
    if model.suffix == ".tflite":
        from edge_seg.converters.interpreter import TfliteRunner

        return TfliteRunner(model, threads=threads)
    if model.suffix in (".safetensors", ".pt", ".pth", ".ckpt"):
        from edge_seg.training.checkpoint import checkpoint_runner

        return checkpoint_runner(model)
    raise InputError(
        f"{model} is not a model.",
        expected="a checkpoint (.safetensors) or a converted file (.tflite)",
        got=model.suffix or "no suffix",
    )


def open_predictor(model: Path, *, threads: int = 1, **decoder_params: Any) -> Predictor:
    """Opens a model with its decoder; `decoder_params` replace the contract's values."""
    return Predictor(open_runner(model, threads=threads), **decoder_params)
