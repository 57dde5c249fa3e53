"""Peak memory of one file: a process of its own opens it, runs it a few times and says how far its memory rose.

Files that are measured in turns share one process, whose peak belongs to none of them. `resource.ru_maxrss` does not
help a child either: Linux keeps the peak of the process it was forked from. VmHWM of /proc/self/status belongs to the
child's own memory.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_seg.benchmarks.profile import load_profile
from edge_seg.benchmarks.runner import RUNNERS, ToolRunner
from edge_seg.errors import InputError, MissingHere

_STATUS = Path("/proc/self/status")
# loaded before the first reading, so that libraries do not count as the file's memory
_LIBRARIES = ("edge_seg.converters.interpreter", "edge_seg.evaluation.predictor", "ai_edge_litert.interpreter")


@dataclass(frozen=True)
class PeakMemory:
    """Resident memory of a process that opened one file.

    Attributes:
        peak_mb: Rise from before the file was opened to the peak of opening and running it, 10^6 bytes. A GPU's
            libraries, which load when it is opened, are in it.
        process_mb: Peak of the whole process, with Python, NumPy and the runtime.
    """

    peak_mb: float
    process_mb: float


def peak_memory(path: Path, profile: str | Path, delegate: str, *, runs: int = 5, timeout_s: float = 120) -> PeakMemory:
    """Opens and runs one file in a process of its own.

    Args:
        path: The file.
        profile: Name of the profile, or path of its `.toml`.
        delegate: What to ask for.
        runs: Runs on one grey 640 x 480 picture; the decoder finds little in it, and its memory is not meant here.
        timeout_s: Time the process has.

    Raises:
        MissingHere: Not Linux, or the process failed or took too long.
    """
    if not _STATUS.is_file():
        raise MissingHere("Peak memory is read from /proc, which is not here.", expected="Linux")
    command = [sys.executable, "-m", "edge_seg.benchmarks.memory", str(path), str(profile), delegate, str(runs)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise MissingHere("The file took too long in a process of its own.", expected=f"{timeout_s:g} s") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MissingHere(f"{path} did not run in a process of its own.", got=lines[-1])
    told = json.loads(done.stdout.splitlines()[-1])
    return PeakMemory(round(told["peak_bytes"] / 1e6, 2), round(told["process_bytes"] / 1e6, 2))


def status_bytes(key: str) -> int:
    """Returns a line of /proc/self/status, such as VmRSS or VmHWM, in bytes."""
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise MissingHere(f"/proc/self/status has no {key}.")


def _main(path: str, profile_name: str, delegate: str, runs: str) -> None:
    profile = load_profile(profile_name)
    runner = RUNNERS[profile.runner]()
    if isinstance(runner, ToolRunner):
        raise InputError("This runner does not run in a process here.", got=profile.runner)
    for name in _LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    image_hwc_u8 = np.full((480, 640, 3), 128, np.uint8)
    before_bytes = status_bytes("VmRSS")
    with runner.session(profile):
        executor = runner.open(Path(path), profile, delegate)
        for _ in range(int(runs)):
            executor.step(image_hwc_u8)
        peak_bytes = status_bytes("VmHWM")
        executor.close()
    print(json.dumps({"peak_bytes": max(0, peak_bytes - before_bytes), "process_bytes": peak_bytes}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
