"""Which devices adb sees, in which state, and which of them a profile means."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from edge_seg.benchmarks.adb.client import Adb, not_ready
from edge_seg.errors import InputError, MissingHere

_LINE = re.compile(r"^(\S{1,128})\s+(no permissions[^\[]*|[a-z]{1,30})(.*)$")
_FACT = re.compile(r"([a-z_]{1,30}):(\S{1,120})")


@dataclass(frozen=True)
class Attached:
    """A device as `adb devices -l` prints it.

    Attributes:
        serial: Its serial number, or address:port.
        state: "device" where it can be used, else "offline", "unauthorized" and so on.
        facts: `product model device transport_id` and what else it says.
    """

    serial: str
    state: str
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        """Whether it can be used."""
        return self.state == "device"


def read_list(text: str) -> list[Attached]:
    """Reads the output of `adb devices -l`; lines of the server starting up are passed over."""
    found = []
    for line in text.splitlines():
        if line.startswith(("*", "List of devices", "adb server")):
            continue
        if told := _LINE.match(line):
            state = "no permissions" if told[2].startswith("no permissions") else told[2]
            found.append(Attached(told[1], state, dict(_FACT.findall(told[3]))))
    return found


def attached(adb: Adb) -> list[Attached]:
    """Returns every device that adb sees.

    Raises:
        MissingHere: Its server cannot be reached.
    """
    return read_list(adb.list())


def choose(found: list[Attached], address: str) -> list[str]:
    """Returns the serial numbers that a profile's address means.

    Args:
        found: What is attached.
        address: A serial number, several with commas between, "all" for every one that is ready, or "" for
            $ANDROID_SERIAL and else the only one.

    Raises:
        InputError: Several are attached and none was named, or one was named twice.
        MissingHere: None is attached, or a named one is not, or is not ready.
    """
    address = address or os.environ.get("ANDROID_SERIAL", "")
    if not found:
        raise MissingHere(
            "No Android device is attached.",
            expected="a phone with USB debugging on",
            todo="plug it in, switch on USB debugging in its developer options, look at `edge-seg devices`",
        )
    if address == "all":
        named = [item.serial for item in found if item.ready]
        if not named:
            raise not_ready(found[0].serial, found[0].state)
        return named
    if not address and len(found) > 1:
        raise InputError(
            f"{len(found)} Android devices are attached.",
            got=", ".join(f"{item.serial} ({item.state})" for item in found),
            todo="say which: --profile PROFILE@SERIAL, or PROFILE@all for all at once",
        )
    named = [part.strip() for part in address.split(",")] if address else [found[0].serial]
    if len(set(named)) != len(named):
        raise InputError("A device was named twice.", got=address)
    states = {item.serial: item.state for item in found}
    for serial in named:
        if states.get(serial) != "device":
            raise not_ready(serial, states.get(serial, "gone"))
    return named
