"""Runs one of our scripts inside a side environment."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_seg.converters.environments.recipe import load_recipe
from edge_seg.converters.environments.store import find_environment, python_of, site_packages
from edge_seg.errors import InputError, MissingHere

_LOG = logging.getLogger(__name__)
_KEPT_LINES = 6


def run_in_environment(
    name: str, script: Path, arguments: Sequence[str], *, folder: Path, what: str, todo: str
) -> None:
    """Runs a script in a side environment and waits for it; what it prints goes to the debug log.

    A script of an environment that leans on ours gets the folder of the environment's packages as first argument.

    Args:
        name: The environment.
        script: A self-contained Python file of `edge_seg.converters.workers`.
        arguments: Its arguments; files only, so that nothing needs quoting or pickling.
        folder: Its working folder, a temporary one: tools leave files behind.
        what: What is wrong when it fails: "onnx2tf cannot convert 'tiny'".
        todo: What to do then.

    Raises:
        MissingHere: The environment is not set up.
        InputError: The script failed; the last lines it wrote are in the message.
    """
    environment = find_environment(name)
    beside_ours = load_recipe(name).beside_ours
    python = sys.executable if beside_ours else str(python_of(environment))
    first = [str(site_packages(environment))] if beside_ours else []
    # -I: neither PYTHONPATH nor the folder of the script may put modules of ours in the way of the tool's
    command = [python, "-I", str(script), *first, *arguments]
    try:
        done = subprocess.run(command, cwd=folder, env=_quiet(), capture_output=True, check=False)
    except OSError as error:
        raise MissingHere(
            f"The interpreter of the side environment {name!r} does not start.",
            expected=python,
            got=str(error),
            todo=f"remove {environment} and run edge-seg doctor --setup {name}",
        ) from error
    output = (done.stdout + done.stderr).decode("utf-8", "replace")
    _LOG.debug("%s said: %s", script.name, output[-4000:])
    if done.returncode:
        raise InputError(f"{what}.", got=_last_lines(output, done.returncode), todo=todo)


def _quiet() -> dict[str, str]:
    """Returns our environment with TensorFlow silenced and kept off a GPU that trainings may be using."""
    return {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}


def _last_lines(output: str, code: int) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f"exit code {code}: " + " | ".join(lines[-_KEPT_LINES:])[-600:]
