"""The same file on two processors, integer for integer.

XNNPACK has other kernels for x86 than for Arm. Where they round alike, an int8 output made on a desktop is the one
that a phone's CPU makes, and a golden file made here can be tested against there. In float they do not: sums are
taken in another order.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.converters.emulated import EmulatedRunner
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.errors import InputError, MissingHere


@dataclass(frozen=True)
class MachineOutput:
    """One output on both machines, over all pictures.

    Attributes:
        name: Output name of the contract.
        integers: Integers compared.
        differing: How many of them differ.
        max_lsb: Largest difference in steps.
    """

    name: str
    integers: int
    differing: int
    max_lsb: int


@dataclass(frozen=True)
class MachineParity:
    """Integer outputs of one file on two machines.

    Attributes:
        here: This machine.
        there: The other one.
        pictures: Pictures compared.
        integers: Integers compared, over all outputs.
        differing: How many of them differ.
        max_lsb: Largest difference in steps.
        outputs: One entry per output.
    """

    here: str
    there: str
    pictures: int
    integers: int
    differing: int
    max_lsb: int
    outputs: tuple[MachineOutput, ...]

    @property
    def exact(self) -> bool:
        """Whether every integer of every output is equal."""
        return self.differing == 0 and self.integers > 0

    def text(self) -> str:
        """Returns one line for people, and one for each output that differs."""
        figures = f"{self.differing} of {self.integers} integers differ, at most {self.max_lsb} steps"
        lines = [
            f"  {'ok  ' if self.exact else 'FAIL'} {self.here} and {self.there}: {figures}, {self.pictures} pictures"
        ]
        wrong = [o for o in self.outputs if o.differing]
        lines += [f"       {o.name}: {o.differing} of {o.integers} differ, at most {o.max_lsb} steps" for o in wrong]
        return "\n".join(lines)


class MachineChecks:
    """Compares integer outputs of another machine with those of the same file here, picture by picture.

    Args:
        runner: The other machine; outputs of the file are integers, see `is_integer`.

    Raises:
        MissingHere: No TFLite runtime is installed here.
    """

    def __init__(self, runner: EmulatedRunner) -> None:
        self._there = runner
        self._here = TfliteRunner(runner.path, threads=runner.threads)
        names = [o.name for o in runner.contract.outputs]
        self._integers, self._differing, self._max_lsb = (dict.fromkeys(names, 0) for _ in range(3))
        self._pictures = 0

    def add(self, image_hwc_u8: NDArray[np.uint8], raw: Mapping[str, NDArray[Any]]) -> None:
        """Compares the other machine's raw outputs for one picture, uint8 [H, W, 3], with this machine's."""
        self._here.invoke(image_hwc_u8)
        self._pictures += 1
        for name, wanted in self._here.raw_outputs().items():
            distance = np.abs(raw[name].astype(np.int64) - wanted)
            self._integers[name] += distance.size
            self._differing[name] += int(np.count_nonzero(distance))
            self._max_lsb[name] = max(self._max_lsb[name], int(distance.max()))

    def result(self) -> MachineParity:
        """Returns the comparison.

        Raises:
            InputError: No picture was compared.
            MissingHere: The two machines run different versions of the runtime.
        """
        if not self._pictures:
            raise InputError("There are no pictures to compare machines on.", expected="at least one")
        here, there = self._here.runtime, self._there.runtime
        versions = [f"{one['name']} {one['version']}" for one in (here, there)]
        if versions[0] != versions[1]:
            raise MissingHere("The two machines run different runtimes.", expected=versions[0], got=versions[1])
        outputs = tuple(
            MachineOutput(name, count, self._differing[name], self._max_lsb[name])
            for name, count in self._integers.items()
        )
        totals = (sum(self._integers.values()), sum(self._differing.values()), max(self._max_lsb.values()))
        return MachineParity(platform.machine(), there["machine"], self._pictures, *totals, outputs)


def is_integer(contract: Contract) -> bool:
    """Whether every output of a file is on an integer grid, so that two machines can agree bit for bit."""
    return all(o.quantization is not None for o in contract.outputs)


def compare_machines(file: Path, images: Sequence[NDArray[np.uint8]]) -> MachineParity:
    """Runs an integer file here and on aarch64, both on XNNPACK, and counts the integers that differ.

    Args:
        file: A .tflite with integer outputs that carries its contract.
        images: Letterboxed pictures, uint8 [H, W, 3]; at least one.

    Raises:
        InputError: No such file, no pictures, or float outputs.
        ArtifactError: The file is broken.
        MissingHere: There is no aarch64 here, see `emulated`, or it has another version of the runtime.
    """
    there = EmulatedRunner(file)
    if not is_integer(there.contract):
        raise InputError(f"{file} has float outputs; those differ between machines.", expected="a w8a8 file")
    checks = MachineChecks(there)
    outputs = there.run(images)
    for i, image in enumerate(images):
        checks.add(image, {name: rows[i : i + 1] for name, rows in outputs.items()})
    return checks.result()
