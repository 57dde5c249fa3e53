"""The exact half of `verify`: numbers as trained, and outputs equal to the integer mirror bit for bit.

Two statements make the proof for a file trained quantisation-aware: it holds the numbers that training found
(`trained_numbers`), and the runtime computes with them what the mirror of the trained program computes. The float
program itself is no such yardstick: see `integer_mirror`. For a file quantised after training there is nothing
trained to hold it against; its mirror is read from the file and says whether the runtime's kernels are the known
ones, so that its integers can be expected on other machines too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.converters.exported import Exported
from edge_seg.converters.flatbuffer import Graph
from edge_seg.converters.integers.file import network_of_file
from edge_seg.converters.integers.mirror import IntegerMirror
from edge_seg.converters.integers.trained_numbers import TrainedNumbers, compare_numbers
from edge_seg.schemes import SCHEMES


@dataclass(frozen=True)
class MirrorOutput:
    """One output against the mirror's, over all pictures.

    Attributes:
        name: Output name of the contract.
        equal: Share of equal integers.
        max_lsb: Largest difference in steps.
    """

    name: str
    equal: float
    max_lsb: int


@dataclass(frozen=True)
class MirrorParity:
    """A file's outputs against an integer mirror.

    Attributes:
        source: What the mirror was read from: the trained "program", or the "file" itself.
        equal: Share of equal integers over all outputs; None where there is no mirror.
        max_lsb: Largest difference in steps; None likewise.
        pictures: Pictures compared.
        outputs: One entry per output.
        reason: Why there is no mirror, else "".
    """

    source: Literal["program", "file"]
    equal: float | None
    max_lsb: int | None
    pictures: int
    outputs: tuple[MirrorOutput, ...]
    reason: str = ""

    @property
    def exact(self) -> bool:
        """Whether every integer of every output is equal."""
        return self.max_lsb == 0 and self.pictures > 0

    def text(self) -> str:
        """Returns one line for people, and one for each output that differs."""
        if self.equal is None:
            return f"  --   integer mirror of the {self.source}: none, {self.reason}"
        word = "ok  " if self.exact else "FAIL" if self.source == "program" else "DIFF"
        figures = f"{self.equal:.3%} equal, at most {self.max_lsb} steps apart, {self.pictures} pictures"
        wrong = [o for o in self.outputs if o.max_lsb]
        lines = [f"  {word} integer mirror of the {self.source}: {figures}"]
        return "\n".join(lines + [f"       {o.name}: {o.equal:.3%} equal, at most {o.max_lsb} steps" for o in wrong])


class IntegerChecks:
    """Gathers the exact checks of one file; does nothing where the file or its kernels are not int8 on XNNPACK.

    Args:
        graph: The file.
        contract: Its contract.
        exported: What it was made from; the mirror of a trained file is read from there.
        kernels: Kernels that run the file; the mirror knows XNNPACK's only, which round alike on every processor.

    Raises:
        InputError: A trained file or its program holds an operation without a rule.
        ArtifactError: The file or the program makes no sense.
        MissingHere: torch is not installed and the file is a trained one.
    """

    def __init__(self, graph: Graph, contract: Contract, exported: Exported, kernels: str) -> None:
        self.numbers: TrainedNumbers | None = None
        self._mirror: IntegerMirror | None = None
        self._reason = "" if kernels in ("xnnpack", "aarch64") else f"{kernels} kernels round in other ways"
        scheme = SCHEMES.get(contract.model.scheme)
        self._trained = scheme is not None and scheme.kind == "trained"
        self._quantised = scheme is not None and scheme.kind == "static" and scheme.activation_bits == 8
        self._outputs = tuple(o.name for o in contract.outputs)
        if self._trained:
            trained = IntegerMirror.of_program(exported.program, exported.contract)
            self.numbers = compare_numbers(trained.network, network_of_file(graph, contract))
            self._mirror = trained
        elif self._quantised and not self._reason:
            self._mirror, self._reason = IntegerMirror.of_any_file(graph, contract)
        self._equal = dict.fromkeys(self._outputs, 0)
        self._size = dict.fromkeys(self._outputs, 0)
        self._max_lsb = dict.fromkeys(self._outputs, 0)
        self._pictures = 0

    def add(self, image_hwc_u8: NDArray[np.uint8], raw: Mapping[str, NDArray[Any]]) -> None:
        """Compares the raw outputs for one picture, uint8 [H, W, 3], with the mirror's."""
        if self._mirror is None or self._reason:
            return
        self._pictures += 1
        for name, wanted in self._mirror.run(image_hwc_u8).items():
            distance = np.abs(raw[name].astype(np.int32) - wanted)
            self._equal[name] += int((distance == 0).sum())
            self._size[name] += distance.size
            self._max_lsb[name] = max(self._max_lsb[name], int(distance.max()))

    def mirror(self) -> MirrorParity | None:
        """Returns the comparison with the mirror; None for schemes without int8 activations."""
        if not (self._trained or self._quantised):
            return None
        source: Literal["program", "file"] = "program" if self._trained else "file"
        if not self._pictures:
            return MirrorParity(source, None, None, 0, (), self._reason or "no pictures")
        outputs = tuple(MirrorOutput(n, self._equal[n] / self._size[n], self._max_lsb[n]) for n in self._outputs)
        share = sum(self._equal.values()) / sum(self._size.values())
        return MirrorParity(source, share, max(self._max_lsb.values()), self._pictures, outputs)

    def passed(self) -> bool:
        """Whether nothing speaks against the file: only a trained one must be exact."""
        if self.numbers is None:
            return True
        mirror = self.mirror()
        return self.numbers.passed and (bool(self._reason) or (mirror is not None and mirror.exact))
