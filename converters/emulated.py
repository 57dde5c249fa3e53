"""Runs a converted file on an aarch64 processor, the kind that phones have: an emulated one.

`EDGE_SEG_AARCH64` holds a command that runs an aarch64 Python, so that no emulator is prescribed. What comes out is
the arithmetic of the phone's kernels, integer for integer; how long it took says nothing about a phone.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import write_arrays, write_json
from edge_seg.contract import Contract
from edge_seg.converters.flatbuffer import Graph, read_graph
from edge_seg.converters.interpreter import check_picture, dequantize, encode, places
from edge_seg.converters.metadata import read_contract
from edge_seg.errors import ArtifactError, InputError, MissingHere

VARIABLE = "EDGE_SEG_AARCH64"
MACHINES = ("aarch64", "arm64")
_WORKER = Path(__file__).resolve().parent / "workers" / "tflite_worker.py"
_RUNTIME = {"runtime": "ai_edge_litert.interpreter", "package": "ai-edge-litert"}
_FACTS = ("machine", "python", "numpy", "runtime_version", "cpu_part", "cpu_features")
_HOW_TO_GET = (
    "set it to a command that runs Python 3.11 for aarch64 with numpy and ai-edge-litert, for example "
    "'qemu-aarch64 -L ROOT ROOT/usr/bin/python3': qemu-user 10 or newer, ROOT with the Debian packages python3.11 and "
    "libstdc++6 of arm64 unpacked (dpkg-deb -x) and both wheels for manylinux aarch64 unzipped into "
    "ROOT/usr/lib/python3/dist-packages; QEMU_CPU picks the processor"
)
# An emulated network of 640 pixels takes seconds a picture; a hung emulator must not hang a test run for ever.
_START_S = 180.0
_PICTURE_S = 120.0


class EmulatedRunner:
    """A converted file on XNNPACK of an aarch64 processor: the calls of `interpreter.TfliteRunner`.

    Each call starts the interpreter anew, which takes seconds under emulation; `run` takes all pictures at once.

    Args:
        path: A .tflite that carries its contract.
        threads: CPU threads, at least 1.

    Attributes:
        runtime: Name and version of the runtime, machine and processor as the last run saw them, and the emulator.

    Raises:
        InputError: No such file, or a bad argument.
        ArtifactError: The file is truncated, carries no contract, or does not fit its contract.
        MissingHere: `EDGE_SEG_AARCH64` names no command that is there.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        if threads < 1:
            raise InputError("A runner needs at least one thread.", expected="threads >= 1", got=str(threads))
        self.path, self.threads = path, threads
        self.graph: Graph = read_graph(path)
        self.contract: Contract = read_contract(path)
        self._input, self._outputs = places(self.graph, self.contract)
        self._command = emulator()
        self.runtime = {"name": _RUNTIME["package"], "emulator": emulator_version(self._command)}
        self._raw: dict[str, NDArray[Any]] = {}

    def __call__(self, input_hwc_u8: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Runs the network once; see `TfliteRunner.__call__`."""
        self._raw = self.run([input_hwc_u8])
        return {n: dequantize(raw, self.contract.output(n).quantization) for n, raw in self._raw.items()}

    def raw_outputs(self) -> dict[str, NDArray[Any]]:
        """Returns the last outputs by contract name, in the file's own dtype (int8 in w8a8)."""
        return dict(self._raw)

    def run(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
        """Runs the network on pictures, all in one process.

        Args:
            images: Letterboxed pictures, uint8 [H, W, 3]; at least one.

        Returns:
            Outputs by contract name, [N, h, w, c] in the file's own dtype.

        Raises:
            InputError: No pictures, one of a wrong size, or the runtime cannot run the file.
            ArtifactError: What the run left behind is not the file's outputs.
            MissingHere: The command does not run, or not on aarch64, or XNNPACK stayed off.
        """
        if not len(images):
            raise InputError("There are no pictures to run on.", expected="at least one")
        for image in images:
            check_picture(image, self.contract)
        inputs = np.concatenate([encode(image, self.contract.input.dtype) for image in images])
        with tempfile.TemporaryDirectory(prefix="edge_seg_") as name:
            write_arrays(Path(name) / "inputs.npz", {"input": inputs})
            facts = _run(self._command, Path(name), self._job(Path(name)), _START_S + _PICTURE_S * len(images))
            outputs = self._read(Path(name) / "outputs.npz", len(images))
        if facts.get("delegate_kernels") == 0:
            # seen where the emulator shows no processor: other kernels then run, and round in other ways
            todo = "use qemu-user 10 or newer, which shows an Arm /proc/cpuinfo"
            raise MissingHere(f"XNNPACK stays off in what {VARIABLE} runs.", expected="a delegate's kernel", todo=todo)
        self.runtime |= _told(facts)
        return outputs

    def _job(self, folder: Path) -> dict[str, Any]:
        return {
            "tflite": str(self.path.absolute()),
            "inputs": str(folder / "inputs.npz"),
            "outputs": str(folder / "outputs.npz"),
            "input_index": self._input,
            "indices": list(self._outputs.values()),
            "threads": self.threads,
        }

    def _read(self, path: Path, pictures: int) -> dict[str, NDArray[Any]]:
        wanted = {o.name: ((pictures, *o.shape[1:]), o.dtype) for o in self.contract.outputs}
        try:
            with np.load(path, allow_pickle=False) as archive:
                found = {name: archive[str(index)] for name, index in self._outputs.items()}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ArtifactError(f"The outputs of {self.path} on aarch64 cannot be read.", got=str(error)) from error
        shapes = {name: (array.shape, str(array.dtype)) for name, array in found.items()}
        if shapes != wanted:
            what = f"The outputs of {self.path} on aarch64 do not fit its contract."
            raise ArtifactError(what, expected=str(wanted), got=str(shapes))
        return found


def emulator() -> tuple[str, ...]:
    """Returns the command of `EDGE_SEG_AARCH64`; it is not run.

    Raises:
        InputError: Its quotes are not closed.
        MissingHere: It is not set, or its program is not there.
    """
    given = os.environ.get(VARIABLE, "")
    try:
        command = shlex.split(given)
    except ValueError as error:
        raise InputError(f"{VARIABLE} is not a command.", got=f"{given!r}: {error}", todo=_HOW_TO_GET) from error
    if not command:
        raise MissingHere(f"There is no aarch64 processor here: {VARIABLE} is not set.", todo=_HOW_TO_GET)
    if shutil.which(command[0]) is None:
        raise MissingHere(f"{VARIABLE} names a program that is not there.", got=command[0], todo=_HOW_TO_GET)
    return tuple(command)


def probe() -> dict[str, str]:
    """Runs the command once and returns what it is: version of the runtime, machine, processor and emulator.

    Raises:
        InputError: `EDGE_SEG_AARCH64` is not a command.
        MissingHere: It is not set, does not run, is not aarch64, or has no NumPy or runtime.
    """
    command = emulator()
    with tempfile.TemporaryDirectory(prefix="edge_seg_") as name:
        facts = _run(command, Path(name), {}, _START_S)
    return {"name": _RUNTIME["package"], "emulator": emulator_version(command), **_told(facts)}


def emulator_version(command: Sequence[str]) -> str:
    """Returns the first line that qemu in a command says of its version; "" where none is in it."""
    for part in command:
        if Path(part).name.startswith("qemu-aarch64"):
            try:
                done = subprocess.run(
                    [part, "--version"], capture_output=True, text=True, check=False, timeout=_START_S
                )
            except (OSError, subprocess.TimeoutExpired):
                return ""  # the run itself then says what is wrong
            return next(iter(done.stdout.splitlines()), "")
    return ""


def _told(facts: Mapping[str, Any]) -> dict[str, str]:
    told = {key: str(facts[key]) for key in _FACTS}
    told["version"] = told.pop("runtime_version")
    return {**told, "qemu_cpu": os.environ.get("QEMU_CPU", "")}


def _run(command: Sequence[str], folder: Path, job: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
    """Runs the worker and returns its facts."""
    write_json(folder / "job.json", {**_RUNTIME, "facts": str(folder / "facts.json"), **job})
    whole = [*command, str(_WORKER), str(folder / "job.json")]
    try:
        done = subprocess.run(whole, cwd=folder, env=_clean(), capture_output=True, check=False, timeout=limit_s)
    except OSError as error:
        raise MissingHere(f"The command of {VARIABLE} does not start.", got=str(error), todo=_HOW_TO_GET) from error
    except subprocess.TimeoutExpired as error:
        raise MissingHere(f"The command of {VARIABLE} hangs.", got=f"no end after {limit_s:.0f} s") from error
    if done.returncode:
        raise _failed(job, done)
    return _read_facts(folder / "facts.json")


def _clean() -> dict[str, str]:
    """Returns our environment without what would lead the other Python to our packages."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def _failed(job: Mapping[str, Any], done: subprocess.CompletedProcess[bytes]) -> InputError | MissingHere:
    lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    ending = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    got = f"{ending}: " + " | ".join(lines[-3:])[-400:]
    if "tflite" in job:
        todo = f"edge-seg doctor says whether {VARIABLE} works at all"
        return InputError(f"The runtime on aarch64 cannot run {job['tflite']}.", got=got, todo=todo)
    return MissingHere(f"The command of {VARIABLE} does not run.", got=got, todo=_HOW_TO_GET)


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        machine = str({key: facts[key] for key in _FACTS}["machine"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = f"{type(error).__name__}: {error}"
        raise MissingHere(
            f"The command of {VARIABLE} does not run Python scripts.", got=got, todo=_HOW_TO_GET
        ) from error
    if machine not in MACHINES:
        what = f"The command of {VARIABLE} runs on another processor."
        raise MissingHere(what, expected="aarch64", got=machine, todo=_HOW_TO_GET)
    return dict(facts)
