"""The link to the script on a device: programs started without a shell, JSON lines, a limit on every wait."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

from edge_seg.benchmarks.remote.runner_script import PREFIX
from edge_seg.errors import ArtifactError, EdgeSegError, MissingHere

_STOP_S = 10.0
_MAX_LINE = 16 << 20
_REFUSALS: dict[str, tuple[str, str]] = {
    "no_numpy": ("Python on the device has no NumPy.", "on the device: python3 -m pip install numpy"),
    "no_runtime": (
        "Python on the device has no TFLite runtime.",
        "on the device: python3 -m pip install ai-edge-litert (or tflite-runtime), or name another Python in the"
        " profile's key python",
    ),
    "no_cpus": ("The device has not the CPUs that the profile's mask names.", "correct cpu_mask in the profile"),
    "no_file": ("The device cannot read or write a file.", "look for a full or read-only disk on the device"),
}


@dataclass(frozen=True)
class Finished:
    """A program that ended: exit code and what it printed."""

    code: int
    out: str
    err: str


class Pipe(Protocol):
    """A running program whose stdin and stdout are lines of text."""

    def send(self, line: str) -> None:
        """Writes a line; raises OSError where nobody reads any more."""

    def receive(self, timeout_s: float) -> str | None:
        """Returns the next line, or None at the end; raises TimeoutError."""

    def end(self) -> Finished:
        """Closes stdin, waits a little, ends the program and returns its code and stderr."""


class Processes(Protocol):
    """Starts programs; a test gives its own."""

    def run(self, args: Sequence[str], timeout_s: float) -> Finished:
        """Runs a program to its end; raises MissingHere where it is not installed or does not end."""

    def spawn(self, args: Sequence[str]) -> Pipe:
        """Starts a program; raises MissingHere where it is not installed."""


class SystemProcesses:
    """Starts real programs, in English and without our Python's environment."""

    def run(self, args: Sequence[str], timeout_s: float) -> Finished:
        """Runs a program to its end; see `Processes.run`."""
        try:
            done = subprocess.run(
                list(args), stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout_s, env=_env()
            )
        except OSError as error:
            raise _not_started(args, error) from error
        except subprocess.TimeoutExpired as error:
            raise MissingHere(
                f"{args[0]} gives no answer.",
                expected=f"an end within {timeout_s:.0f} s",
                got="none",
                todo="check the device and the network",
            ) from error
        return Finished(done.returncode, _text(done.stdout), _text(done.stderr))

    def spawn(self, args: Sequence[str]) -> SystemPipe:
        """Starts a program; see `Processes.spawn`."""
        try:
            return SystemPipe(args)
        except OSError as error:
            raise _not_started(args, error) from error


class SystemPipe:
    """A real program; a thread reads its lines so that waiting for one can end."""

    def __init__(self, args: Sequence[str]) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `end`)
        try:
            self._process = subprocess.Popen(
                list(args), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=_env()
            )
        except OSError:
            self._errors.close()
            raise
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._finished: Finished | None = None

    def _read(self) -> None:
        stream = self._process.stdout
        while stream is not None and (line := stream.readline(_MAX_LINE)):
            self._lines.put(_text(line))
        self._lines.put(None)

    def send(self, line: str) -> None:
        """Writes a line; see `Pipe.send`."""
        stream = self._process.stdin
        if stream is None or stream.closed:
            raise BrokenPipeError("the program's input is closed")
        stream.write(line.encode() + b"\n")
        stream.flush()

    def receive(self, timeout_s: float) -> str | None:
        """Returns the next line; see `Pipe.receive`."""
        try:
            return self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError(f"no line within {timeout_s:g} s") from None

    def end(self) -> Finished:
        """Ends the program; see `Pipe.end`. A second call gives the same."""
        if self._finished is not None:
            return self._finished
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            code = self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._reader.join(_STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.seek(0)
        self._finished = Finished(code, "", _text(self._errors.read()))
        self._errors.close()
        return self._finished


Explain = Callable[[Finished], EdgeSegError]


class Link:
    """Asks the script on a device.

    Args:
        pipe: The running script.
        explain: Says why it ended, from its exit code and stderr.
    """

    def __init__(self, pipe: Pipe, explain: Explain) -> None:
        self._pipe, self._explain = pipe, explain
        self._id = 0
        self.alive = True

    def ask(self, do: str, timeout_s: float, **fields: Any) -> dict[str, Any]:
        """Sends a request and returns the answer.

        Args:
            do: What to do; a method of the script's `Device`.
            timeout_s: Longest wait in seconds.
            **fields: What that method needs.

        Raises:
            MissingHere: The link is cut, the device does not answer, or it has no runtime, NumPy or CPU.
            ArtifactError: The runtime on the device cannot run the file, or the answer is none.
        """
        self._id += 1
        try:
            self._pipe.send(json.dumps({"id": self._id, "do": do, **fields}))
            line = self._next(timeout_s)
        except TimeoutError as error:
            self.close()
            raise MissingHere("The device does not answer.", got=str(error), todo="check it, then run again") from error
        except OSError:
            line = None
        if line is None:
            self.alive = False
            raise self._explain(self._pipe.end())
        return self._answer(line)

    def _next(self, timeout_s: float) -> str | None:
        """Returns the next answer; lines of others (a log-in's greeting) are passed over."""
        while (line := self._pipe.receive(timeout_s)) is not None:
            if line.startswith(PREFIX):
                return line[len(PREFIX) :]
        return None

    def _answer(self, line: str) -> dict[str, Any]:
        try:
            answer = json.loads(line)
            if answer["id"] != self._id:
                raise ValueError(f"answer to {answer['id']}, asked was {self._id}")
            if "error" not in answer:
                return dict(answer["done"])
            kind, message = str(answer["error"]), str(answer["message"])[:300]
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                "The device's answer cannot be read.",
                expected="one JSON object with done or error",
                got=f"{type(error).__name__}: {error}"[:300],
                todo="run again; the script on the device is of this version",
            ) from error
        if kind in _REFUSALS:
            what, todo = _REFUSALS[kind]
            raise MissingHere(what, got=message, todo=todo)
        raise ArtifactError(
            "The TFLite runtime on the device cannot run the file." if kind == "cannot_run" else "The device failed.",
            got=message,
            todo="edge-seg check FILE --delegate xnnpack names operators; or update the runtime on the device",
        )

    def close(self) -> None:
        """Ends the script; it removes what it brought."""
        self.alive = False
        self._pipe.end()


def _env() -> dict[str, str]:
    """Returns our environment in English, without what would lead another Python to our packages."""
    drop = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LANGUAGE")
    return {**{k: v for k, v in os.environ.items() if k not in drop}, "LC_ALL": "C"}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _not_started(args: Sequence[str], error: OSError) -> MissingHere:
    return MissingHere(f"{args[0]} does not start.", expected="an installed program", got=str(error))
