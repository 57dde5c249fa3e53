"""Compares two converted files of one network: by two routes, in two schemes, or on two interpreters.

Where two converters that share no code agree, neither is wrong; where they differ, this says by how much and in what.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import plain_json, sha256_of
from edge_seg.contract import Contract, Quantization
from edge_seg.converters.flatbuffer import Graph
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.output_parity import Tolerance
from edge_seg.converters.second_interpreter import SecondInterpreter
from edge_seg.converters.verify import TOLERANCES
from edge_seg.errors import ArtifactError, InputError

SEEDED_PICTURES = 4
_SEED = 20261
_BLOCK_PX = 16


@dataclass(frozen=True)
class Side:
    """One of the two things compared.

    Attributes:
        file: The file.
        sha256: Its hash.
        scheme: Its scheme.
        route: The route that made it.
        runtime: Name and version of the runtime that ran it.
        ops: Number of its operators by name.
    """

    file: str
    sha256: str
    scheme: str
    route: str
    runtime: Mapping[str, str]
    ops: Mapping[str, int]


@dataclass(frozen=True)
class OutputAgreement:
    """How one output of B differs from A's, over all pictures, as real values.

    Attributes:
        name: Output name of the contract.
        max_abs: Largest absolute difference.
        output_range: Largest minus smallest value of A.
        max_of_range: `max_abs / output_range`.
        snr_db: Signal-to-noise ratio with A as the signal; infinite where nothing differs.
        grid_a: Integer grid of A, or None.
        grid_b: Integer grid of B, or None.
        exact: Share of equal integers, where both are on the same grid; else None.
        within_1_lsb: Share of integers at most one step apart, likewise.
        max_lsb: Largest difference in steps, likewise.
        passed: Whether the tolerance holds.
    """

    name: str
    max_abs: float
    output_range: float
    max_of_range: float
    snr_db: float
    grid_a: Quantization | None
    grid_b: Quantization | None
    exact: float | None
    within_1_lsb: float | None
    max_lsb: int | None
    passed: bool


@dataclass(frozen=True)
class AgreementReport:
    """The result of `compare_routes`.

    Attributes:
        passed: Whether every output agrees within the tolerance of the coarser scheme.
        a: The first file.
        b: The second file.
        images: Pictures compared.
        tolerance: What was allowed.
        ops_differing: Operators whose number differs, as (in A, in B).
        outputs: One entry per output.
    """

    passed: bool
    a: Side
    b: Side
    images: int
    tolerance: Tolerance
    ops_differing: Mapping[str, tuple[int, int]]
    outputs: tuple[OutputAgreement, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain JSON types; infinite ratios become null."""
        document: dict[str, Any] = plain_json(asdict(self))
        return document

    def text(self) -> str:
        """Returns the report for people, one output a line."""
        lines = [
            f"{'passed' if self.passed else 'FAILED'}: {_side(self.a)} and {_side(self.b)}, {self.images} pictures"
        ]
        for o in self.outputs:
            steps = f", {o.within_1_lsb:.2%} within 1 step, at most {o.max_lsb}" if o.within_1_lsb is not None else ""
            figures = f"max {o.max_of_range:.1e} of range, {o.snr_db:.1f} dB{steps}"
            lines.append(f"  {'ok  ' if o.passed else 'FAIL'} {o.name}: {figures}")
            if o.grid_a != o.grid_b:
                lines.append(f"       {_grid(o.grid_a)} against {_grid(o.grid_b)}")
        lines += [f"  {name}: {a} against {b}" for name, (a, b) in self.ops_differing.items()]
        return "\n".join(lines)


def _side(side: Side) -> str:
    return f"{side.scheme} by {side.route} on {side.runtime['name']} {side.runtime['version']}"


def _grid(grid: Quantization | None) -> str:
    return "float" if grid is None else f"scale {grid.scale:.6g}, zero point {grid.zero_point}"


def compare_routes(
    file_a: Path,
    file_b: Path,
    images: Sequence[NDArray[np.uint8]] | None = None,
    *,
    second_interpreter: bool = False,
    threads: int = 1,
) -> AgreementReport:
    """Runs two files of one network on the same pictures and compares what they compute.

    Args:
        file_a: The first .tflite.
        file_b: The second; the same file where only the interpreters differ.
        images: Letterboxed pictures, uint8 [H, W, 3]; SEEDED_PICTURES smooth noise pictures where there are none.
        second_interpreter: Whether `file_b` runs in tflite-runtime 2.14, in its side environment.
        threads: CPU threads.

    Returns:
        Figures per output, operators that differ, and the verdict: within what `verify` allows the coarser of the two
        schemes against PyTorch.

    Raises:
        InputError: A path does not exist, or a picture has another size.
        ArtifactError: A file is broken, or the two were not made from the same exported network.
        MissingHere: No TFLite runtime, or the side environment is not set up.
    """
    a, b = TfliteRunner(file_a, threads=threads), TfliteRunner(file_b, threads=threads)
    _check_same_network(a, b)
    tolerance = _tolerance(a.contract, b.contract)
    pictures = list(images) if images is not None and len(images) else _seeded(a.contract)
    wanted = _stacked(a, pictures)
    other = SecondInterpreter(file_b, threads=threads) if second_interpreter else None
    found = other.raw_outputs(pictures) if other else _stacked(b, pictures)
    outputs = tuple(
        _agreement(o.name, (wanted[o.name], found[o.name]), _grids(a.contract, b.contract, o.name), tolerance)
        for o in a.contract.outputs
    )
    return AgreementReport(
        passed=all(o.passed for o in outputs),
        a=_described(a, a.runtime),
        b=_described(b, other.runtime if other else b.runtime),
        images=len(pictures),
        tolerance=tolerance,
        ops_differing=_differing(a.graph, b.graph),
        outputs=outputs,
    )


def _check_same_network(a: TfliteRunner, b: TfliteRunner) -> None:
    origins = [r.contract.model.parents.get("exported_sha256", "") for r in (a, b)]
    if origins[0] != origins[1] or not origins[0]:
        raise ArtifactError(
            f"{a.path} and {b.path} were not made from the same exported network.",
            expected=f"exported_sha256 {origins[0] or 'in both'}",
            got=origins[1] or "none",
            todo="convert both from one exported folder",
        )


def _tolerance(a: Contract, b: Contract) -> Tolerance:
    schemes = [contract.model.scheme for contract in (a, b)]
    unknown = [s for s in schemes if s not in TOLERANCES]
    if unknown:
        raise InputError(f"The scheme {unknown[0]!r} has no tolerance.", expected=", ".join(TOLERANCES), got=unknown[0])
    return min((TOLERANCES[s] for s in schemes), key=lambda t: -math.inf if t.min_snr_db is None else t.min_snr_db)


def _seeded(contract: Contract) -> list[NDArray[np.uint8]]:
    """Returns smooth noise: blocks with grain, so that activations look like those of pictures."""
    height, width = contract.input.shape[1:3]
    rng = np.random.default_rng(_SEED)
    blocks = rng.integers(0, 256, (SEEDED_PICTURES, -(-height // _BLOCK_PX), -(-width // _BLOCK_PX), 3))
    coarse = np.kron(blocks, np.ones((1, _BLOCK_PX, _BLOCK_PX, 1)))[:, :height, :width]
    return list(np.clip(coarse + rng.normal(0, 12, coarse.shape), 0, 255).astype(np.uint8))


def _stacked(runner: TfliteRunner, pictures: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[Any]]:
    rows = []
    for picture in pictures:
        runner.invoke(picture)
        rows.append(runner.raw_outputs())
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _grids(a: Contract, b: Contract, name: str) -> tuple[Quantization | None, Quantization | None]:
    return a.output(name).quantization, b.output(name).quantization


def _real(raw: NDArray[Any], grid: Quantization | None) -> NDArray[np.float64]:
    values = raw.astype(np.float64)
    return values if grid is None else grid.scale * (values - grid.zero_point)


def _agreement(
    name: str,
    raw: tuple[NDArray[Any], NDArray[Any]],
    grids: tuple[Quantization | None, Quantization | None],
    tolerance: Tolerance,
) -> OutputAgreement:
    a, b = (_real(r, g) for r, g in zip(raw, grids, strict=True))
    max_abs, output_range = float(np.max(np.abs(a - b))), float(np.ptp(a))
    of_range = 0.0 if max_abs == 0.0 else max_abs / output_range if output_range else math.inf
    snr_db = _decibel(float((a**2).sum()), float(((a - b) ** 2).sum()))
    limit, floor_db = tolerance.max_of_range, tolerance.min_snr_db
    near = limit is None or of_range <= limit  # NaN is not
    steps = np.abs(raw[0].astype(np.int32) - raw[1].astype(np.int32)) if grids[0] and grids[0] == grids[1] else None
    return OutputAgreement(
        name=name,
        max_abs=max_abs,
        output_range=output_range,
        max_of_range=of_range,
        snr_db=snr_db,
        grid_a=grids[0],
        grid_b=grids[1],
        exact=None if steps is None else float((steps == 0).mean()),
        within_1_lsb=None if steps is None else float((steps <= 1).mean()),
        max_lsb=None if steps is None else int(steps.max()),
        passed=near and (floor_db is None or snr_db >= floor_db) and not math.isnan(of_range),
    )


def _decibel(signal: float, noise: float) -> float:
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 and noise > 0.0 else -math.inf


def _described(runner: TfliteRunner, runtime: Mapping[str, str]) -> Side:
    model = runner.contract.model
    return Side(
        str(runner.path), sha256_of(runner.path), model.scheme, model.route, dict(runtime), runner.graph.op_histogram
    )


def _differing(a: Graph, b: Graph) -> dict[str, tuple[int, int]]:
    first, second = Counter(a.op_histogram), Counter(b.op_histogram)
    return {op: (first[op], second[op]) for op in sorted({*first, *second}) if first[op] != second[op]}
