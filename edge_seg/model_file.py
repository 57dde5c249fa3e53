"""A MODEL argument of the command line: a checkpoint or a converted file, run by the same predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edge_seg.errors import InputError
from edge_seg.evaluation.predictor import Predictor, RawRunner


def open_runner(model: Path, *, threads: int = 1, second_interpreter: bool = False) -> RawRunner:
    """Opens a checkpoint (`.safetensors`) or a converted file (`.tflite`).

    Args:
        model: The file.
        threads: CPU threads of a converted file.
        second_interpreter: Whether a converted file runs in tflite-runtime, in its side environment.

    Raises:
        InputError: The file is missing or of another kind, or a checkpoint should run in the second interpreter.
        ArtifactError: It is broken.
        MissingHere: The second interpreter is not set up.
    """
    if not model.is_file():
        raise InputError(f"There is no model {model}.", expected="a .safetensors or .tflite file")
    if second_interpreter:
        return _second_interpreter(model, threads)
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


def _second_interpreter(model: Path, threads: int) -> RawRunner:
    if model.suffix != ".tflite":
        raise InputError(
            "Only a .tflite runs in the second interpreter.",
            expected="a converted file",
            got=str(model),
            todo="convert it first, or leave out --second-interpreter",
        )
    from edge_seg.converters.second_interpreter import SecondInterpreter

    return SecondInterpreter(model, threads=threads)


def open_predictor(
    model: Path, *, threads: int = 1, second_interpreter: bool = False, **decoder_params: Any
) -> Predictor:
    """Opens a model with its decoder; `decoder_params` replace the contract's values, the rest as `open_runner`."""
    return Predictor(open_runner(model, threads=threads, second_interpreter=second_interpreter), **decoder_params)
