"""For which processor and system a program was built, read from its own header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_seg.errors import InputError

# e_machine of the ELF specification, and Android's name for it
_MACHINES = {(183, 64): "arm64-v8a", (40, 32): "armeabi-v7a", (62, 64): "x86_64", (3, 32): "x86", (243, 64): "riscv64"}
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
        abi: Android's name of the processor ("arm64-v8a").
        for_android: Whether it is loaded by Android's linker; None for one that needs no linker.
    """

    abi: str
    for_android: bool | None


def read_program(path: Path) -> Program:
    """Reads the header of a program.

    Raises:
        InputError: No file, no ELF program, or for a processor that Android has not.
    """
    if not path.is_file():
        raise InputError(f"There is no file {path}.", expected="a benchmark program for the device")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if len(head) < 52 or head[:4] != b"\x7fELF" or head[4] not in (1, 2) or head[5] != 1:
        raise InputError(
            f"{path} is not a program for Android.",
            expected="an ELF program, little-endian",
            got=f"a file that begins with {head[:8]!r}",
            todo="name the benchmark_model of the device's processor",
        )
    machine, bits = int.from_bytes(head[18:20], "little"), 32 * head[4]
    abi = _MACHINES.get((machine, bits))
    if abi is None:
        raise InputError(f"{path} is for a processor that Android has not.", got=f"e_machine {machine}, {bits} bit")
    linux = b"/lib64/ld-linux" in head or b"/lib/ld-linux" in head or b"/ld-musl-" in head
    return Program(abi, True if b"/system/bin/linker" in head else False if linux else None)


def check_fits(program: Program, abis: list[str], path: Path, serial: str) -> None:
    """Raises InputError if a device cannot run a program.

    Args:
        program: The program.
        abis: What the device runs, best first; empty where it does not say.
        path: Where the program is, for the message.
        serial: The device, for the message.
    """
    if program.for_android is False:
        raise InputError(
            f"{path.name} was built for Linux, not for Android.",
            expected="a program with Android's linker",
            got="one that asks for ld-linux",
            todo="take the android_arm64 build",
        )
    if abis and program.abi not in abis:
        raise InputError(
            f"{path.name} is not for the processor of {serial}.",
            expected=" or ".join(abis),
            got=program.abi,
            todo="name the benchmark_model that was built for it (--binary or EDGE_SEG_BENCHMARK_MODEL)",
        )
