"""Parity of a converted file with the network it was made from, output by output."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import sha256_of
from edge_seg.contract import Contract, OutputTensor
from edge_seg.converters.emulated import EmulatedRunner
from edge_seg.converters.exported import Exported, Reference, open_exported, read_reference
from edge_seg.converters.integers.checks import IntegerChecks, MirrorParity
from edge_seg.converters.integers.trained_numbers import TrainedNumbers
from edge_seg.converters.interpreter import Kernels, TfliteRunner
from edge_seg.converters.machines import MachineChecks, MachineParity, is_integer
from edge_seg.converters.program import program_runner
from edge_seg.errors import ArtifactError

if TYPE_CHECKING:
    from edge_seg.converters.gpu.runner import GpuRunner

Engine = Kernels | Literal["gpu", "aarch64"]
Runner = Union[TfliteRunner, EmulatedRunner, "GpuRunner"]
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Tolerance:
    """What a scheme may lose against PyTorch; None means that this figure decides nothing.

    Attributes:
        max_of_range: Largest absolute error as a share of the output's range.
        min_snr_db: Smallest signal-to-noise ratio.
        floor_factor: Where PyTorch's own float32 is far from float64, the error may be this many times as large.
    """

    max_of_range: float | None
    min_snr_db: float | None
    floor_factor: float = 0.0


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


def plain_document(report: Any) -> dict[str, Any]:
    """Returns a report (a dataclass with `outputs`) as plain JSON types; infinite ratios become null."""
    document = asdict(report)
    document["outputs"] = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in o.items()}
        for o in document["outputs"]
    ]
    return document


@dataclass(frozen=True)
class OutputParity:
    """How one output compares with PyTorch, over all pictures.

    Attributes:
        name: Output name of the contract.
        max_abs: Largest absolute difference.
        output_range: Largest minus smallest reference value.
        max_of_range: `max_abs / output_range`.
        torch_float32_of_range: The same for PyTorch's float32 against its float64, on the reference pictures.
        snr_db: Signal-to-noise ratio; infinite where nothing differs.
        cosine: Cosine of the angle between the two, as vectors.
        exact: Share of integers equal to the reference on the file's own grid; None for float outputs.
        within_1_lsb: Share of integers at most one step away; None for float outputs.
        max_lsb: Largest difference in steps; None for float outputs.
        displaced: Whether the output fits better when it is moved by one cell.
        passed: Whether the scheme's tolerance holds and nothing is displaced.
    """

    name: str
    max_abs: float
    output_range: float
    max_of_range: float
    torch_float32_of_range: float
    snr_db: float
    cosine: float
    exact: float | None
    within_1_lsb: float | None
    max_lsb: int | None
    displaced: bool
    passed: bool


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

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON types; infinite ratios become null."""
        return plain_document(self)

    def _device(self) -> str:
        if "machine" in self.runtime:
            return " on {name} {version}, {emulator}".format(**self.runtime).rstrip(", ")
        if "adapter" not in self.runtime:
            return ""
        return " in {precision} on {adapter} ({adapter_kind})".format(**self.runtime)

    def text(self) -> str:
        """Returns the report for people, one output a line."""
        pictures = self.reference_images + self.given_images
        verdict = "passed" if self.passed else "FAILED"
        lines = [f"{verdict}: {self.scheme}, {pictures} pictures, {self.kernels}{self._device()}"]
        for o in self.outputs:
            steps = f", {o.within_1_lsb:.2%} within 1 step" if o.within_1_lsb is not None else ""
            floor = f" (PyTorch float32 itself {o.torch_float32_of_range:.1e})" if self.scheme == "fp32" else ""
            figures = f"max {o.max_of_range:.1e} of range{floor}, {o.snr_db:.1f} dB, cosine {o.cosine:.6f}{steps}"
            figures += ", FITS BETTER WHEN MOVED BY ONE CELL" if o.displaced else ""
            lines.append(f"  {'ok  ' if o.passed else 'FAIL'} {o.name}: {figures}")
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
    tallies = {o.name: _Tally(o, reference.float32_error_of_range[o.name]) for o in runner.contract.outputs}
    counts = [0, 0]
    for place, picture, wanted in _pairs(exported, reference, images):
        counts[place] += 1
        found = runner(picture)
        raw = runner.raw_outputs()
        for name, tally in tallies.items():
            tally.add(wanted[name], found[name], raw[name])
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


_MOVES = ((0, 1), (0, -1), (1, 0), (-1, 0))  # rows, columns


class _Tally:
    """Sums up one output over pictures, in float64."""

    def __init__(self, output: OutputTensor, floor: float) -> None:
        self.output, self.floor = output, floor
        self.max_abs = self.noise = self.signal = self.product = self.power = 0.0
        self.low, self.high = math.inf, -math.inf
        self.count = self.exact = self.near = self.max_lsb = 0
        self.moved_noise = np.zeros(len(_MOVES))

    def add(self, wanted: NDArray[Any], found: NDArray[Any], raw: NDArray[Any]) -> None:
        a, b = wanted.astype(np.float64), found.astype(np.float64)
        error = np.abs(a - b)
        # max() of Python drops NaN; a NaN anywhere must end in a failed check
        self.max_abs = float(np.maximum(self.max_abs, np.max(error)))
        self.low, self.high = min(self.low, float(a.min())), max(self.high, float(a.max()))
        self.noise += float((error**2).sum())
        self.moved_noise += [float(((a - np.roll(b, move, axis=(1, 2))) ** 2).sum()) for move in _MOVES]
        self.signal += float((a**2).sum())
        self.power += float((b**2).sum())
        self.product += float((a * b).sum())
        self.count += a.size
        if self.output.quantization is not None:
            self._add_steps(a, raw)

    def _add_steps(self, wanted: NDArray[np.float64], raw: NDArray[Any]) -> None:
        grid = self.output.quantization
        limits = np.iinfo(raw.dtype)
        steps = np.rint(wanted / grid.scale) + grid.zero_point if grid else wanted
        distance = np.abs(np.clip(steps, limits.min, limits.max) - raw.astype(np.float64))
        distance = np.nan_to_num(distance, nan=float(limits.max) - limits.min)
        self.exact += int((distance == 0).sum())
        self.near += int((distance <= 1).sum())
        self.max_lsb = max(self.max_lsb, int(distance.max()))

    def result(self, tolerance: Tolerance) -> OutputParity:
        output_range = self.high - self.low
        of_range = _ratio(self.max_abs, output_range)
        snr_db = _decibel(self.signal, self.noise)
        whole = self.output.quantization is not None
        displaced = bool(self.moved_noise.min() < self.noise)
        return OutputParity(
            name=self.output.name,
            max_abs=self.max_abs,
            output_range=output_range,
            max_of_range=of_range,
            torch_float32_of_range=self.floor,
            snr_db=snr_db,
            cosine=_ratio(self.product, math.sqrt(self.signal * self.power)) if self.noise else 1.0,
            exact=self.exact / self.count if whole else None,
            within_1_lsb=self.near / self.count if whole else None,
            max_lsb=self.max_lsb if whole else None,
            displaced=displaced,
            passed=_holds(tolerance, of_range, snr_db, self.floor) and not displaced,
        )


def _holds(tolerance: Tolerance, of_range: float, snr_db: float, floor: float) -> bool:
    """Whether the figures are within the tolerance; NaN never is."""
    limit = tolerance.max_of_range
    near = limit is None or of_range <= max(limit, tolerance.floor_factor * floor)
    clean = tolerance.min_snr_db is None or snr_db >= tolerance.min_snr_db
    return near and clean and not math.isnan(of_range)


def _ratio(part: float, whole: float) -> float:
    if part == 0.0:
        return 0.0
    return part / whole if whole else math.inf


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 and noise > 0.0 else -math.inf
