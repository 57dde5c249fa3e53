"""Runs a file on an emulated aarch64 processor with the script that runs on boards: right numbers, no latency."""

from __future__ import annotations

from pathlib import Path

from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.remote.device import SCRIPT, RemoteRunner
from edge_seg.benchmarks.remote.link import Finished, Pipe, Processes
from edge_seg.benchmarks.runner import RUNNERS
from edge_seg.errors import EdgeSegError, MissingHere


class _Here:
    """The same machine under another processor: nothing is copied."""

    def __init__(self, processes: Processes, command: tuple[str, ...]) -> None:
        self._processes, self._command = processes, command

    def put(self, path: Path) -> str:
        """Returns the path itself."""
        return str(path.absolute())

    def start(self) -> Pipe:
        """Starts the script under the emulator."""
        return self._processes.spawn([*self._command, str(SCRIPT)])

    def close(self) -> None:
        """Has brought nothing."""

    def explain(self, done: Finished) -> EdgeSegError:
        """Says why the emulator ended."""
        return MissingHere(
            "The emulated processor stopped.",
            got=f"exit code {done.code}: {done.err.strip()[-300:]}",
            todo="edge-seg doctor says whether EDGE_SEG_AARCH64 works",
        )


@RUNNERS.register("emulated_arm")
class EmulatedArmRunner(RemoteRunner):
    """The command of EDGE_SEG_AARCH64. Its kind is "emulated", whatever the script finds out."""

    name = "emulated_arm"
    local = True

    def transport(self, profile: Profile) -> _Here:
        """Returns the emulator's command; raises MissingHere where EDGE_SEG_AARCH64 names none."""
        from edge_seg.converters.emulated import emulator

        self.kind = "emulated"
        return _Here(self._processes, emulator())
