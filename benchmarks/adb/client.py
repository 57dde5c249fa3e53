"""The `adb` client as a process: arguments as a list, the serial number always given, a time limit on every call."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_seg.errors import InputError, MissingHere

CALL_S = 30.0
TRANSFER_S = 600.0
_SERIAL = re.compile(r"[A-Za-z0-9._:\[\]%-]{1,128}")
_END = "edge_seg_exit="
_HOW_TO_GET = "install Android's platform-tools (Debian: apt-get install adb), or name the program in EDGE_SEG_ADB"


@dataclass(frozen=True)
class Completed:
    """A finished process.

    Attributes:
        code: Exit code; None where the time limit ended it.
        stdout: What it printed.
        stderr: What it complained.
    """

    code: int | None
    stdout: bytes
    stderr: bytes


Run = Callable[[Sequence[str], float], Completed]


class DeviceError(MissingHere):
    """A device is not in a state in which it can be measured.

    Attributes:
        output: What the device had printed until then.
    """

    output: bytes = b""


class ToolFailed(InputError):
    """The benchmark program ran on the device and did not give a result for one file.

    Attributes:
        output: What it printed.
    """

    output: bytes = b""


def run_process(argv: Sequence[str], timeout_s: float) -> Completed:
    """Runs a program without a shell; what it printed is kept where the time limit ends it."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        return Completed(None, error.stdout or b"", error.stderr or b"")
    except OSError as error:
        raise MissingHere(f"{argv[0]} cannot be run.", got=str(error), todo=_HOW_TO_GET) from error
    return Completed(done.returncode, done.stdout, done.stderr)


def find_adb() -> str | None:
    """Returns the path of the client ($EDGE_SEG_ADB or `adb` in PATH), or None."""
    return shutil.which(os.environ.get("EDGE_SEG_ADB") or "adb")


class Adb:
    """The client.

    Args:
        run: Runs a process; a test gives its own.
        program: Path of the client, or None to look for it.

    Raises:
        MissingHere: There is no client.
    """

    def __init__(self, run: Run = run_process, program: str | None = None) -> None:
        found = program or find_adb()
        if found is None:
            raise MissingHere("adb is not installed here.", expected="the client of Android", todo=_HOW_TO_GET)
        self.run, self.program = run, found

    def version(self) -> str | None:
        """Returns the client's version, or None if it does not say."""
        told = re.search(rb"Version (\S{1,60})", self.run([self.program, "version"], CALL_S).stdout)
        return told[1].decode("ascii", "replace") if told else None

    def list(self) -> str:
        """Returns what `adb devices -l` prints; raises MissingHere if its server cannot be reached."""
        done = self.run([self.program, "devices", "-l"], CALL_S)
        if done.code != 0:
            raise MissingHere(
                "adb cannot list the devices.",
                got=_last_line(done.stderr) or "no answer in time",
                todo="adb kill-server; adb devices",
            )
        return done.stdout.decode("utf-8", "replace")

    def call(self, serial: str, arguments: Sequence[str], timeout_s: float = CALL_S) -> Completed:
        """Runs `adb -s SERIAL ARGUMENTS`.

        Raises:
            InputError: The serial number cannot be one.
        """
        if not _SERIAL.fullmatch(serial) or serial.startswith("-"):
            raise InputError(
                "That is not the serial number of a device.", expected="as `adb devices` prints it", got=serial
            )
        return self.run([self.program, "-s", serial, *arguments], timeout_s)


@dataclass(frozen=True)
class Printed:
    """What a command on a device printed, both streams in order, and its exit code."""

    code: int
    output: bytes

    @property
    def text(self) -> str:
        """The output as text; bytes that are no UTF-8 are replaced."""
        return self.output.decode("utf-8", "replace")


class Phone:
    """One attached device.

    Args:
        adb: The client.
        serial: As `adb devices` prints it.
    """

    def __init__(self, adb: Adb, serial: str) -> None:
        self.adb, self.serial = adb, serial

    def state(self) -> str:
        """Returns what adb says of the device now: "device", "offline", "unauthorized", or "gone"."""
        done = self.adb.call(self.serial, ["get-state"])
        if done.code == 0:
            return done.stdout.decode("ascii", "replace").strip() or "gone"
        text = done.stderr.decode("utf-8", "replace")
        return next((word for word in ("unauthorized", "offline", "no permissions") if word in text), "gone")

    def shell(self, command: str, timeout_s: float = CALL_S) -> Printed:
        """Runs a command in the device's shell.

        The exit code travels in the output: old devices have no other way, and an output without it was cut.

        Args:
            command: For the device's shell, quoted by `quoted`.
            timeout_s: Time limit.

        Raises:
            DeviceError: The device is gone, or the time limit was reached; with what was printed until then.
        """
        script = f"( {command} ) 2>&1; edge_seg_code=$?; echo; echo {_END}$edge_seg_code"
        done = self.adb.call(self.serial, ["shell", script], timeout_s)
        output, mark, code = done.stdout.replace(b"\r\n", b"\n").rpartition(b"\n" + _END.encode())
        if not mark or not code.strip().isdigit():
            raise self._lost(done, timeout_s)
        return Printed(int(code.strip()[:9]), output)

    def push(self, local: Path, remote: str) -> None:
        """Copies a file to the device; raises DeviceError if it is gone or full."""
        self._transfer(["push", str(local.resolve()), remote], f"{local.name} could not be copied to")

    def pull(self, remote: str, local: Path) -> None:
        """Copies a file from the device; raises DeviceError if it is gone or the file is not there."""
        self._transfer(["pull", remote, str(local.resolve())], f"{remote} could not be copied from")

    def _transfer(self, arguments: Sequence[str], what: str) -> None:
        done = self.adb.call(self.serial, arguments, TRANSFER_S)
        if done.code == 0:
            return
        complaint = _complaint(done)
        if "no space left" in complaint.lower():
            raise storage_full(self.serial, complaint)
        if self.state() != "device":
            raise self._lost(done, TRANSFER_S)
        raise DeviceError(
            f"{what} {self.serial}.", got=complaint or "no answer in time", todo="adb kill-server, then again"
        )

    def _lost(self, done: Completed, timeout_s: float) -> DeviceError:
        """Says why there was no whole answer: adb's own complaint and the state of the device after it."""
        state = self.state()
        complaint = _last_line(done.stderr)
        if state == "device" and done.code is None:
            error = DeviceError(
                f"{self.serial} did not answer in {timeout_s:g} s.",
                todo="wake the phone and keep its screen on; see what else runs on it",
            )
        elif state == "device":
            error = DeviceError(
                f"The link to {self.serial} was cut, and is back.",
                got=complaint or "an answer without an end",
                todo="check the cable and the port, then run it again",
            )
        else:
            error = not_ready(self.serial, state, complaint)
        error.output = done.stdout
        return error


def quoted(*words: str) -> str:
    """Returns words as one command for the device's shell."""
    return shlex.join(words)


def not_ready(serial: str, state: str, complaint: str = "") -> DeviceError:
    """Returns what to say of a device in a state other than "device".

    Args:
        serial: Its serial number.
        state: As `adb devices` prints it, or "gone".
        complaint: adb's own words.
    """
    todo = {
        "unauthorized": "unlock the phone and accept this computer's key in the dialog it shows",
        "authorizing": "unlock the phone and accept this computer's key in the dialog it shows",
        "offline": "pull the cable and plug it in again; if it stays, adb kill-server and restart the phone",
        "gone": "plug the cable in, and use one that carries data; `edge-seg devices` shows what is there",
        "recovery": "start Android on it",
        "sideload": "start Android on it",
        "bootloader": "start Android on it",
        "no permissions": "allow this user the USB device (udev rules of android-sdk-platform-tools)",
    }
    untrusted = f"{serial} does not trust this computer."
    what = {"gone": f"{serial} is not attached.", "unauthorized": untrusted, "authorizing": untrusted}
    return DeviceError(
        what.get(state, f"{serial} is {state}."),
        expected='the state "device"',
        got=complaint or state,
        todo=todo.get(state, "wait until it has started; `edge-seg devices` shows its state"),
    )


def storage_full(serial: str, got: str, expected: str = "") -> DeviceError:
    """Returns what to say of a device without enough space."""
    return DeviceError(f"The storage of {serial} is full.", expected=expected, got=got, todo="free space on it")


def _complaint(done: Completed) -> str:
    """Returns adb's error, which it prints on either stream and not always last."""
    lines = (done.stderr + b"\n" + done.stdout).decode("utf-8", "replace").splitlines()
    wrong = [line.strip() for line in lines if "error" in line or "failed" in line or "No space" in line]
    return wrong[-1][:300] if wrong else _last_line(done.stderr) or _last_line(done.stdout)


def _last_line(data: bytes) -> str:
    lines = [line.strip() for line in data.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
