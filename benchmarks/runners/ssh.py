"""Runs a file on a board reached by the system's `ssh`: Raspberry Pi, Jetson, any Linux with Python.

One folder is made on the device, files are copied into it with `scp`, and one script runs there as long as the session
lasts. Keys, host keys and jumps are the user's ssh configuration's business; nothing is ever asked (BatchMode).
`EDGE_SEG_SSH_CONFIG` names another configuration file.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from edge_seg.benchmarks.profile import Profile
from edge_seg.benchmarks.remote.device import SCRIPT, RemoteRunner
from edge_seg.benchmarks.remote.link import Finished, Pipe, Processes
from edge_seg.benchmarks.runner import RUNNERS
from edge_seg.errors import EdgeSegError, InputError, MissingHere

CONFIG_VARIABLE = "EDGE_SEG_SSH_CONFIG"
_ADDRESS = re.compile(r"(?:(?P<user>\w[\w.-]*)@)?(?P<host>\[[:.%\w]+\]|\w[\w.-]*)(?::(?P<port>\d{1,5}))?", re.A)
# "ServerAlive" ends a client whose device has gone silent within fifteen seconds
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=5", "ServerAliveCountMax=3")
_CONNECT_S, _COPY_S = 60.0, 1800.0
_SPARE_KB = 16 << 10
# fixed text: nothing from outside is ever put into it
_MAKE_FOLDER = (
    'umask 077; d=$(mktemp -d "${TMPDIR:-/tmp}/edge_seg.XXXXXXXX") || exit 73; '
    'printf "EDGE_SEG_FOLDER %s\\n" "$d"; df -Pk "$d" | tail -n 1'
)
_FOLDER = re.compile(r"^EDGE_SEG_FOLDER (/[\w./+-]*/edge_seg\.\w{8})$", re.M | re.A)
_CAUSES = (
    (r"Permission denied \(|Too many authentication failures|no mutual signature", "_authentication"),
    (r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED|host key .* has changed", "_host_key"),
    (r"No space left on device|disk quota exceeded", "_no_space"),
    (
        r"Could not resolve hostname|Connection refused|Connection timed out|No route to host|Network is unreachable"
        r"|Operation timed out|banner exchange",
        "_unreachable",
    ),
)


@dataclass(frozen=True)
class Destination:
    """Where an address leads.

    Attributes:
        target: "user@host" as ssh and scp take it; IPv6 without brackets.
        port: Port, or "" for the configuration's.
    """

    target: str
    port: str

    @classmethod
    def parse(cls, address: str) -> Destination:
        """Reads "user@host:port"; user and port may be left out.

        Raises:
            InputError: It is none.
        """
        match = _ADDRESS.fullmatch(address)
        if match is None or int(match["port"] or 1) not in range(1, 65536):
            raise InputError(
                "The address of a device cannot be read.",
                expected="host, user@host or user@host:port; IPv6 in brackets",
                got=address or "none",
                todo="edge-seg benchmark FILE --profile raspberry_pi_5@pi@raspberrypi.local --out r.json",
            )
        user = f"{match['user']}@" if match["user"] else ""
        return cls(user + match["host"], match["port"] or "")


class SshTransport:
    """A folder on a device, made at once.

    Args:
        profile: Whose `address` and `python` are used.
        processes: Starts `ssh` and `scp`.

    Raises:
        InputError: The address or the Python command cannot be read.
        MissingHere: No ssh client here, or the device is not reached or has no space.
    """

    def __init__(self, profile: Profile, processes: Processes) -> None:
        self._where = Destination.parse(profile.address)
        self._python = _words(profile.python)
        self._processes = processes
        self._count = 0
        done = processes.run(self._ssh("sh -c " + shlex.quote(_MAKE_FOLDER)), _CONNECT_S)
        found = _FOLDER.search(done.out)
        if done.code or found is None:
            raise self._cannot("make a folder on", done)
        self.folder = found[1]
        self._free_kb = _free_kb(done.out)

    def _ssh(self, command: str) -> list[str]:
        port = ["-p", self._where.port] if self._where.port else []
        # ssh wants an IPv6 address bare, scp in brackets
        target = self._where.target.replace("[", "").replace("]", "")
        return ["ssh", "-T", *_options(), *port, "--", target, command]

    def put(self, path: Path) -> str:
        """Copies a file into the folder; raises MissingHere where it does not fit or the link is cut."""
        need_kb = path.stat().st_size // 1024 + _SPARE_KB
        if self._free_kb is not None and need_kb > self._free_kb:
            raise self._no_space(f"{self._free_kb} KB free, {need_kb} KB needed")
        there = f"{self.folder}/{self._count}{path.suffix if re.fullmatch(r'[.][a-z]+', path.suffix) else ''}"
        self._copy(path, there)
        self._count += 1
        self._free_kb = None if self._free_kb is None else self._free_kb - path.stat().st_size // 1024
        return there

    def _copy(self, path: Path, there: str) -> None:
        port = ["-P", self._where.port] if self._where.port else []
        args = ["scp", "-q", *_options(), *port, "--", str(path.absolute()), f"{self._where.target}:{there}"]
        done = self._processes.run(args, _COPY_S)
        if done.code:
            raise self._cannot(f"copy {path.name} to", done)

    def start(self) -> Pipe:
        """Copies the script and starts it; the script removes the folder when the link ends."""
        self._copy(SCRIPT, f"{self.folder}/{SCRIPT.name}")
        command = f"cd {shlex.quote(self.folder)} && exec {shlex.join(self._python)} -u {SCRIPT.name} --own-folder"
        return self._processes.spawn(self._ssh(command))

    def close(self) -> None:
        """Removes the folder, which the script does where it could run; a device that is gone keeps it."""
        with contextlib.suppress(EdgeSegError):
            self._processes.run(self._ssh(f"rm -rf -- {shlex.quote(self.folder)}"), _CONNECT_S)

    def explain(self, done: Finished) -> EdgeSegError:
        """Says why the script ended."""
        if done.code in (126, 127):
            return MissingHere(
                "There is no such Python on the device.",
                expected=f"a program {self._python[0]!r}",
                got=done.err.strip()[-300:],
                todo="install python3 there, or name it in the profile's key python",
            )
        if done.code == 255:
            return self._cannot("stay connected to", done)
        return MissingHere("The script on the device stopped.", got=f"exit code {done.code}: {done.err.strip()[-300:]}")

    def _cannot(self, what: str, done: Finished) -> EdgeSegError:
        said = (done.err.strip() or done.out.strip() or f"exit code {done.code}")[-400:]
        for pattern, name in _CAUSES:
            if re.search(pattern, done.err, re.I):
                error: EdgeSegError = getattr(self, name)(said)
                return error
        return MissingHere(
            f"Cannot {what} {self._where.target}.", got=said, todo="check the device and its network, then run again"
        )

    def _authentication(self, said: str) -> MissingHere:
        todo = f"ssh-copy-id {self._where.target}, or load the key (ssh-add): no password is ever asked here"
        return MissingHere(f"{self._where.target} does not let us in.", expected="log-in by key", got=said, todo=todo)

    def _host_key(self, said: str) -> MissingHere:
        todo = f"compare the fingerprint on the device, then accept it once by hand: ssh {self._where.target}"
        return MissingHere(f"The host key of {self._where.target} is not the known one.", got=said, todo=todo)

    def _no_space(self, said: str) -> MissingHere:
        return MissingHere(
            f"There is no space left on {self._where.target}.", got=said, todo="free some in its temporary folder"
        )

    def _unreachable(self, said: str) -> MissingHere:
        todo = "check that it is on, in this network, and its address: ssh " + self._where.target
        return MissingHere(f"{self._where.target} is not reached.", got=said, todo=todo)


def _options() -> list[str]:
    config = os.environ.get(CONFIG_VARIABLE)
    return [*(["-F", config] if config else []), *(part for option in _OPTIONS for part in ("-o", option))]


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError("The profile's key python is not a command.", got=f"{command!r}: {error}") from error
    if not words:
        raise InputError("The profile's key python is empty.", expected="a command such as python3")
    return words


def _free_kb(text: str) -> int | None:
    """Returns the free space of the last line of `df -Pk`, or None where that is not understood."""
    fields = text.strip().splitlines()[-1].split() if text.strip() else []
    return int(fields[3]) if len(fields) >= 6 and fields[3].isdigit() else None


@RUNNERS.register("ssh")
class SshRunner(RemoteRunner):
    """A device reached by ssh, at the profile's address."""

    name = "ssh"

    def transport(self, profile: Profile) -> SshTransport:
        """Connects to the profile's address."""
        if not profile.address:
            raise MissingHere(
                f"The profile {profile.name!r} says what a device is, not where yours is.",
                expected="an address",
                got="none",
                todo=f'--profile {profile.name}@user@host, or address = "user@host" in a profile of your own',
            )
        return SshTransport(profile, self._processes)
