"""Parity of a converted file with the network it was made from, output by output."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import plain_json, sha256_of
from edge_seg.contract import Contract
from edge_seg.converters.emulated import EmulatedRunner
from edge_seg.converters.exported import Exported, Reference, open_exported, read_reference
from edge_seg.converters.integers.checks import IntegerChecks, MirrorParity
from edge_seg.converters.integers.trained_numbers import TrainedNumbers
from edge_seg.converters.interpreter import Kernels, TfliteRunner
from edge_seg.converters.machines import MachineChecks, MachineParity, is_integer
from edge_seg.converters.output_parity import OutputParity, OutputTally, Tolerance
from edge_seg.converters.program import program_runner
from edge_seg.errors import ArtifactError

if TYPE_CHECKING:
    from edge_seg.converters.gpu.runner import GpuRunner

Engine = Kernels | Literal["gpu", "aarch64"]
Runner = Union[TfliteRunner, EmulatedRunner, "GpuRunner"]
Arrays = Mapping[str, NDArray[Any]]
Verdict = Literal["passed", "accumulated", "failed"]


# fp32 differs by the order of sums only: TFLite's kernels add products one after the other, PyTorch's in blocks, so
# that a file lies 3 to 5 times as far from float64 as PyTorch does (its folded weights agree with float64 to 2 units
# in the last place). fp16 rounds weights to 11 bits. The other floors lie below what a healthy network reaches and
# catch a broken conversion; the accuracy that quantisation costs is for `evaluate` to judge. Measured on photos with
# a trained MaskConver-MobileNetV2 at 256 px, worst output: fp32 5.4e-6 of range, 110 dB; fp16 2.1e-2, 40 dB;
# w8_dynamic 22 dB; w8a8 with 8 calibration pictures 18 dB. On synthetic:hard and its seeded noise w8_dynamic reaches
# 10 dB only, and loses 0.6 PQ. So low a floor would let a map pass that is shifted by a cell; that is looked for apart.
TOLERANCES: Mapping[str, Tolerance] = {
    "fp32": Tolerance(1e-5, 80.0, floor_factor=8.0),
    "fp16": Tolerance(5e-2, 35.0),
    "w8_dynamic": Tolerance(None, 7.0),
    "w8a8": Tolerance(None, 10.0),
    "qat_w8a8": Tolerance(None, 10.0),
}

# A GPU that computes in float16 rounds after every operator. Measured over lavapipe of Mesa 25.0.7 with a trained
# MaskConver-MobileNetV2 at 256 px: worst output 1.4e-1 of range, 18.6 dB.
HALF_ARITHMETIC = Tolerance(None, 12.0)


_WORDS: Mapping[Verdict, str] = {"passed": "passed", "accumulated": "passed, BUT FAR", "failed": "FAILED"}
_ACCUMULATED = "their rounding adds up. `evaluate` tells what that costs"


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`.

    Attributes:
        passed: Whether every output is within the tolerance of its scheme; of a file trained quantisation-aware also
            whether its numbers are the trained ones and it equals the integer mirror, and of an integer file on
            aarch64 whether it equals this machine's.
        file: The converted file.
        sha256: Its hash.
        scheme: Its scheme.
        exported_sha256: Hash of the exported program it was compared with.
        reference_images: Seeded pictures compared.
        given_images: Given pictures compared.
        kernels: Kernels of the runtime, "gpu", or "aarch64" for XNNPACK on that processor.
        runtime: Name and version of the runtime; of a GPU also adapter, its kind, precision and driver, of aarch64
            also processor and emulator.
        tolerance: What was allowed.
        outputs: One entry per output.
        trained_numbers: Grids, weights and biases against the program; None unless trained quantisation-aware.
        integer_mirror: Outputs against the integer mirror; None for schemes without int8 activations.
        machines: Integers on aarch64 against this machine's; None elsewhere, and for float outputs.
        layers_right_n: Number of layers, each right by itself, where outputs are outside the tolerance because
            rounding adds up (`layers.explained`); None elsewhere.
    """

    passed: bool
    file: str
    sha256: str
    scheme: str
    exported_sha256: str
    reference_images: int
    given_images: int
    kernels: str
    runtime: Mapping[str, str]
    tolerance: Tolerance
    outputs: tuple[OutputParity, ...]
    trained_numbers: TrainedNumbers | None = None
    integer_mirror: MirrorParity | None = None
    machines: MachineParity | None = None
    layers_right_n: int | None = None

    @property
    def verdict(self) -> Verdict:
        """What `passed` rests on: the outputs, or every layer by itself."""
        return "failed" if not self.passed else "passed" if self.layers_right_n is None else "accumulated"

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON types; infinite ratios become null."""
        return {"verdict": self.verdict, **plain_json(asdict(self))}

    def _device(self) -> str:
        if "machine" in self.runtime:
            return " on {name} {version}, {emulator}".format(**self.runtime).rstrip(", ")
        if "adapter" not in self.runtime:
            return ""
        return " in {precision} on {adapter} ({adapter_kind})".format(**self.runtime)

    def text(self) -> str:
        """Returns the report for people, one output a line."""
        pictures = self.reference_images + self.given_images
        lines = [f"{_WORDS[self.verdict]}: {self.scheme}, {pictures} pictures, {self.kernels}{self._device()}"]
        for o in self.outputs:
            steps = f", {o.within_1_lsb:.2%} within 1 step" if o.within_1_lsb is not None else ""
            floor = f" (PyTorch float32 itself {o.torch_float32_of_range:.1e})" if self.scheme == "fp32" else ""
            figures = f"max {o.max_of_range:.1e} of range{floor}, {o.snr_db:.1f} dB, cosine {o.cosine:.6f}{steps}"
            figures += ", FITS BETTER WHEN MOVED BY ONE CELL" if o.displaced else ""
            lines.append(f"  {'ok  ' if o.passed else 'FAR ' if self.passed else 'FAIL'} {o.name}: {figures}")
        if self.layers_right_n is not None:
            lines.append(f"  ok   layers: all {self.layers_right_n} are right by themselves; {_ACCUMULATED}")
        parts = (self.trained_numbers, self.integer_mirror, self.machines)
        return "\n".join(lines + [part.text() for part in parts if part])


def verify(
    file: Path,
    against: Path,
    images: Sequence[NDArray[np.uint8]] | None = None,
    *,
    kernels: Engine = "xnnpack",
    precision: Literal["fp32", "fp16"] = "fp32",
    threads: int = 1,
) -> VerifyReport:
    """Compares a converted file with the exported network it was made from.

    An int8 file is held to a signal-to-noise ratio against the float program: a deep one cannot be within one step
    of it, since a sum that rounds the other way avalanches over the layers. That a file trained quantisation-aware
    is the trained network, bit for bit, is proved apart: by its numbers and by the integer mirror.

    Args:
        file: `NAME_SCHEME.tflite`.
        against: The exported folder.
        images: Letterboxed pictures, uint8 [H, W, 3], to compare on besides the seeded reference inputs;
            PyTorch runs the exported program for them.
        kernels: Kernels of the TFLite runtime, "gpu" for LiteRT's GPU accelerator, or "aarch64" for XNNPACK on the
            processor that `EDGE_SEG_AARCH64` runs.
        precision: Arithmetic of the GPU accelerator; in fp16 a float file is held to `HALF_ARITHMETIC`.
        threads: CPU threads of the TFLite runtime.

    Returns:
        Figures per output and the verdict.

    Raises:
        InputError: A path does not exist, or a picture has another size.
        ArtifactError: A file is broken, or `file` was not made from `against`.
        MissingHere: No TFLite runtime; no torch, where `images` are given or the scheme is qat_w8a8; no Vulkan
            implementation for "gpu"; no emulator for "aarch64".
    """
    exported = open_exported(against)
    with _opened(file, kernels, precision, threads) as runner:
        return _compare(runner, exported, images or (), kernels)


@contextlib.contextmanager
def _opened(file: Path, kernels: Engine, precision: Literal["fp32", "fp16"], threads: int) -> Iterator[Runner]:
    if kernels == "aarch64":
        yield EmulatedRunner(file, threads=threads)
        return
    if kernels != "gpu":
        yield TfliteRunner(file, threads=threads, kernels=kernels)
        return
    from edge_seg.converters.gpu.runner import GpuRunner

    with GpuRunner(file, precision=precision) as runner:
        yield runner


def _tolerance(scheme: str, runtime: Mapping[str, str]) -> Tolerance:
    """Returns what a scheme may lose; float16 arithmetic costs a float file more than float16 weights do."""
    in_half = scheme in ("fp32", "fp16") and runtime.get("precision") == "fp16"
    return HALF_ARITHMETIC if in_half else TOLERANCES[scheme]


def _compare(runner: Runner, exported: Exported, images: Sequence[NDArray[np.uint8]], kernels: Engine) -> VerifyReport:
    check_origin(runner.path, runner.contract, exported, TOLERANCES)
    reference = read_reference(exported)
    integers = IntegerChecks(runner.graph, runner.contract, exported, kernels)
    machines = MachineChecks(runner) if isinstance(runner, EmulatedRunner) and is_integer(runner.contract) else None
    tallies = {o.name: OutputTally(o, reference.float32_error_of_range[o.name]) for o in runner.contract.outputs}
    exact = _float64(exported, runner.contract, images)
    counts = [0, 0]
    for place, picture, wanted in _pairs(exported, reference, images):
        counts[place] += 1
        if place and exact:
            for name, real in exact(picture).items():
                tallies[name].add_float32(wanted[name], real)
        found = runner(picture)
        raw = runner.raw_outputs()
        for name, tally in tallies.items():
            tally.add(wanted[name], found[name], raw[name], given=bool(place))
        integers.add(picture, raw)
        if machines:
            machines.add(picture, raw)
    tolerance = _tolerance(runner.contract.model.scheme, runner.runtime)
    outputs = tuple(t.result(tolerance) for t in tallies.values())
    parity = machines.result() if machines else None
    return VerifyReport(
        passed=all(o.passed for o in outputs) and integers.passed() and (parity is None or parity.exact),
        file=str(runner.path),
        sha256=sha256_of(runner.path),
        scheme=runner.contract.model.scheme,
        exported_sha256=exported.program_sha256,
        reference_images=counts[0],
        given_images=counts[1],
        kernels=kernels,
        runtime=runner.runtime,
        tolerance=tolerance,
        outputs=outputs,
        trained_numbers=integers.numbers,
        integer_mirror=integers.mirror(),
        machines=parity,
    )


def check_origin(path: Path, contract: Contract, exported: Exported, schemes: Collection[str]) -> None:
    """Raises ArtifactError unless a file was made from this export, in a scheme that can be judged.

    Args:
        path: The file.
        contract: Its contract.
        exported: What it is compared with.
        schemes: Schemes there are tolerances for.
    """
    parent = contract.model.parents.get("exported_sha256", "")
    if parent != exported.program_sha256:
        raise ArtifactError(
            f"{path} was not made from {exported.folder}.",
            expected=f"exported_sha256 {exported.program_sha256}",
            got=parent or "none",
            todo="verify against the folder it was converted from, or convert again",
        )
    if contract.model.scheme not in schemes:
        raise ArtifactError(
            f"{path} has a scheme without a tolerance.", expected=", ".join(schemes), got=contract.model.scheme
        )


def _pairs(
    exported: Exported, reference: Reference, images: Sequence[NDArray[np.uint8]]
) -> Iterator[tuple[int, NDArray[np.uint8], Arrays]]:
    for i, picture in enumerate(reference.inputs_nhwc_u8):
        yield 0, picture, {k: v[i : i + 1] for k, v in reference.outputs.items()}
    if len(images):
        run = program_runner(exported.program, exported.contract)
        for picture in images:
            yield 1, picture, run(picture)


def _float64(
    exported: Exported, contract: Contract, images: Sequence[NDArray[np.uint8]]
) -> Callable[[NDArray[np.uint8]], Arrays] | None:
    """Returns the program in float64 where a float file is held to PyTorch's own rounding on given pictures."""
    if not len(images) or not TOLERANCES[contract.model.scheme].floor_factor:
        return None
    return program_runner(exported.program, exported.contract, double=True)
