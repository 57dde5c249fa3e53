"""Stand-ins for the `ssh` and `scp` clients: commands run on this machine, and can be made to fail at any point."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence

from edge_seg.benchmarks.remote.link import Finished, SystemPipe
from edge_seg.benchmarks.remote.runner_script import PREFIX, Device, answer

CUT = Finished(255, "", "client_loop: send disconnect: Broken pipe\n")


class PretendSsh:
    """Runs what would run on a device here. `answers` replaces the outcome of "connect", "scp" or "rm".

    Args:
        cut_after: Number of answers of the script after which the link is cut.
    """

    def __init__(self, cut_after: int | None = None) -> None:
        self.calls: list[list[str]] = []
        self.answers: dict[str, Finished] = {}
        self.cut_after = cut_after

    def run(self, args: Sequence[str], timeout_s: float) -> Finished:
        self.calls.append(list(args))
        kind = "scp" if args[0] == "scp" else "rm" if args[-1].startswith("rm ") else "connect"
        if kind in self.answers:
            return self.answers[kind]
        if kind == "scp":
            shutil.copy(args[-2], args[-1].partition(":")[2])
            return Finished(0, "", "")
        done = subprocess.run(["sh", "-c", args[-1]], capture_output=True, text=True, check=False, timeout=60)
        return Finished(done.returncode, done.stdout, done.stderr)

    def spawn(self, args: Sequence[str]) -> SystemPipe:
        self.calls.append(list(args))
        pipe = SystemPipe(["sh", "-c", args[-1]])
        return pipe if self.cut_after is None else CutPipe(pipe, self.cut_after)


class CutPipe:
    """A link that breaks after some lines."""

    def __init__(self, pipe: SystemPipe, lines: int) -> None:
        self.pipe, self.left = pipe, lines

    def send(self, line: str) -> None:
        if self.left <= 0:
            raise BrokenPipeError
        self.pipe.send(line)

    def receive(self, timeout_s: float) -> str | None:
        self.left -= 1
        return self.pipe.receive(timeout_s) if self.left >= 0 else None

    def end(self) -> Finished:
        self.pipe.end()
        return CUT


class InProcess:
    """The script inside the test's own process; `change` rewrites an answer before it is sent.

    A text that starts with no prefix stands for what a device prints besides.
    """

    def __init__(self, change: Callable[[str, dict], dict | str | None] = lambda do, answer: answer) -> None:
        self.device, self.change = Device(), change
        self.lines: list[str | None] = []
        self.asked: list[str] = []

    def send(self, line: str) -> None:
        do = json.loads(line)["do"]
        self.asked.append(do)
        told = self.change(do, answer(self.device, line))
        self.lines.append(PREFIX + json.dumps(told) if isinstance(told, dict) else told)

    def receive(self, timeout_s: float) -> str | None:
        if not self.lines:
            raise TimeoutError("no line")
        return self.lines.pop(0)

    def end(self) -> Finished:
        return CUT


class Pipes:
    """Processes that hand out one pipe; `run` pretends a device with a folder and space."""

    def __init__(self, pipe) -> None:
        self.pipe = pipe

    def run(self, args: Sequence[str], timeout_s: float) -> Finished:
        if args[0] == "scp":
            return Finished(0, "", "")
        return Finished(0, "EDGE_SEG_FOLDER /tmp/edge_seg.abcdEFGH\n/dev/root 9999999 1 9999999 1% /\n", "")

    def spawn(self, args: Sequence[str]):
        return self.pipe
