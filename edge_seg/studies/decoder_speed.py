"""Speed of MaskConver's decoder beside the straightforward merge, the second part of `make bench`.

Measured is everything from raw arrays to id map and segments, at the size of the network's input, as the mean of three
pictures; OMP_NUM_THREADS=1 keeps NumPy's matrix products on one thread. The two decoders take turns (A-B-B-A) on the
same arrays and must give the same picture.

Without `--model` the arrays are made, not predicted. Four hard synthetic scenes (fixed seed) form each picture, two by
two. The mask features of a cell hold the share of the cell that each segment covers, so that masks are soft at
borders, plus normal noise of 0.02, in 256 channels. Every segment has a centre in its fullest cell, best scores first;
further centres lie in random cells, with the segment found there, so that segments have several. A kernel is +9 on its
segment's channel and -9 on all others, with up to 0.3 of another segment mixed in. Heat has 133 classes.
"""

from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import write_json
from edge_seg.benchmarks import machine, stats
from edge_seg.benchmarks.harness import Plan, Series, measure
from edge_seg.benchmarks.runner import Opened, StageTimes
from edge_seg.contract import ClassInfo, Contract, DecoderInfo, InputTensor, ModelInfo, OutputTensor, Preprocess
from edge_seg.data.synthetic import SyntheticScenes
from edge_seg.decoders.base import Raw
from edge_seg.decoders.maskconver import MaskConverDecoder
from edge_seg.decoders.straightforward import StraightforwardDecoder
from edge_seg.errors import EdgeSegError, InputError
from edge_seg.letterbox import Letterbox

Array = NDArray[np.float32]

SIDES_PX = (256, 640)
PROPOSALS = (0, 20, 50, 100)
PARAMS = {
    "score_threshold": 0.05,
    "score_exponent": 0.3,
    "overlap_threshold": 0.5,
    "min_area_share": 0.0002,
    "mask_threshold": 0.5,
    "one_peak_per_stuff_class": False,
    "reassign_rejected": False,
    "class_embedding": "multiply",
    "wavelengths_cells": [],
    "stride_px": 8,
}
_CHANNELS, _CLASSES, _PICTURES = 256, 133, 3
_GAIN, _NOISE, _MIXED = 9.0, 0.02, 0.3
_THREADS = "OMP_NUM_THREADS"  # of NumPy's matrix products; read when NumPy is loaded
_TIED_SHARE = 1e-6  # of all pixels: where two masks are equal but for rounding, either may show


@dataclass(frozen=True)
class Case:
    """Raw outputs to decode.

    Attributes:
        input_px: Side of the network's input and of the decoded pictures.
        proposals: Most centres of a picture.
        contract: Parameters, classes and output names.
        constants: The decoder's constants.
        raws: Raw outputs, one per picture.
    """

    input_px: int
    proposals: int
    contract: Contract
    constants: Mapping[str, Array]
    raws: Sequence[Raw]

    @property
    def box(self) -> Letterbox:
        """Geometry of a picture as large as the input."""
        return Letterbox(self.input_px, self.input_px, self.input_px, self.input_px)


def made_case(input_px: int, proposals: int, *, pictures: int = _PICTURES) -> Case:
    """Makes raw outputs of synthetic scenes (see the top of this file).

    Args:
        input_px: Side, a multiple of 16.
        proposals: Centres of every picture.
        pictures: How many pictures.
    """
    scenes = SyntheticScenes("hard", split="val", size_px=input_px // 2, length=4 * pictures)
    constants = {name: np.asarray(value, np.float32) for name, value in _constants().items()}
    raws = [_raw(_shares(scenes, 4 * i, input_px // 8), proposals, seed=i) for i in range(pictures)]
    return Case(input_px, proposals, _contract(input_px, proposals), constants, raws)


def made_cases() -> Iterator[Case]:
    """Makes the cases of the table: every size with every number of proposals."""
    for input_px in SIDES_PX:
        for proposals in PROPOSALS:
            yield made_case(input_px, proposals)


def _contract(input_px: int, proposals: int) -> Contract:
    cells = input_px // 8
    widths = {"heatmap": _CLASSES, "embedding": _CHANNELS, "mask_features": _CHANNELS}
    return Contract(
        ModelInfo("made", "maskconver", "panoptic", input_px, 0, 0, 0, 0, ""),
        InputTensor("image", (1, input_px, input_px, 3)),
        Preprocess((128, 128, 128), (127.5,) * 3, (127.5,) * 3),
        tuple(OutputTensor(role, role, (1, cells, cells, width), 8) for role, width in widths.items()),
        tuple(ClassInfo(i + 1, f"class {i}", i < 80, (0, 0, 0)) for i in range(_CLASSES)),
        DecoderInfo("maskconver", {**PARAMS, "top_k": proposals}),
    )


def _constants() -> dict[str, NDArray[Any]]:
    """A mask head that turns a unit vector n into a kernel of +gain on channel n and -gain elsewhere."""
    eye, ones = np.eye(_CHANNELS), np.ones(_CHANNELS)
    return {
        "class_embedding.weight": np.ones((_CLASSES, _CHANNELS)),
        "fc1.weight": eye,
        "fc1.bias": 0 * ones,
        "norm.weight": ones,
        "norm.bias": 0 * ones,
        "fc2.weight": eye * 2 * _GAIN / math.sqrt(_CHANNELS - 1),
        "fc2.bias": -_GAIN * ones,
    }


def _shares(scenes: SyntheticScenes, first: int, cells: int) -> NDArray[np.float64]:
    """Share of every cell that each segment of four scenes covers, and last what none does, [cells, cells, n + 1]."""
    maps = [scenes[first + i].id_map_hw_i32.astype(np.int64) for i in range(4)]
    ends = np.cumsum([0, *(ids.max() for ids in maps)])
    maps = [np.where(ids > 0, ids + end, 0) for ids, end in zip(maps, ends, strict=False)]
    ids = np.block([maps[:2], maps[2:]])
    blocks = ids.reshape(cells, 8, cells, 8).swapaxes(1, 2).reshape(cells * cells, 64)
    count = int(ends[-1]) + 1
    place = blocks + count * np.arange(len(blocks))[:, None]
    shares = np.bincount(place.ravel(), minlength=count * len(blocks)).reshape(cells, cells, count) / 64
    return np.roll(shares, -1, axis=2)


def _raw(shares: NDArray[np.float64], proposals: int, *, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng([8, seed])
    cells, segments = len(shares), shares.shape[2] - 1
    features = np.zeros((cells, cells, _CHANNELS))
    features[:, :, : segments + 1] = shares + rng.normal(0, _NOISE, shares.shape)
    heat = rng.normal(-6, 0.3, (cells, cells, _CLASSES))
    embedding = np.zeros_like(features)
    for rank, (y, x, n) in enumerate(_centres(shares[:, :, :-1], rng)[:proposals]):
        heat[y, x, rng.integers(_CLASSES)] = 3 - 5 * rank / proposals
        embedding[y, x, n] = 1
        embedding[y, x, rng.integers(segments)] += rng.uniform(0, _MIXED)
    arrays = {"heatmap": heat, "embedding": embedding, "mask_features": features}
    return {name: value[None].astype(np.float32) for name, value in arrays.items()}


def _centres(shares: NDArray[np.float64], rng: np.random.Generator) -> list[tuple[int, int, int]]:
    """Row, column and segment of centres in cells of even row and column, so that no two are neighbours."""
    even = shares[::2, ::2]
    fullest = np.stack(np.unravel_index(even.reshape(-1, even.shape[-1]).argmax(0), even.shape[:2]), -1)
    chosen: dict[tuple[int, int], int] = {}
    for n, (y, x) in enumerate(fullest.tolist()):
        chosen.setdefault((y, x), n)
    for y, x in rng.permutation(np.argwhere(np.ones(even.shape[:2]))).tolist():
        chosen.setdefault((y, x), int(even[y, x].argmax()))
    return [(2 * y, 2 * x, n) for (y, x), n in chosen.items()]


def network_cases(model: Path, data: str, proposals: Sequence[int]) -> Iterator[Case]:
    """Predicts pictures with a network and gives its raw outputs, decoded with the contract's own parameters.

    Args:
        model: Checkpoint or .tflite of a MaskConver.
        data: A data set; pictures are taken from its `val` in equal steps.
        proposals: Values of `top_k`.

    Raises:
        InputError: The network is no MaskConver.
    """
    from edge_seg.data.source import open_dataset
    from edge_seg.model_file import open_predictor

    predictor = open_predictor(model)
    contract = predictor.contract
    if contract.decoder.name != "maskconver":
        raise InputError("There is one decoder to compare.", expected="a maskconver", got=contract.decoder.name)
    pictures = open_dataset(data, split="val")
    step = max(1, len(pictures) // _PICTURES)
    chosen = range(0, len(pictures), step)[:_PICTURES]
    raws = [dict(predictor.predict(pictures[i].image_hwc_u8).raw) for i in chosen]
    for top_k in proposals:
        made = contract.with_decoder_params(top_k=top_k)
        yield Case(contract.model.input_px, top_k, made, predictor.runner.constants, raws)


class _Timed:
    """A decoder as an executor whose only stage is the decoding of every picture, given as time per picture."""

    def __init__(self, case: Case, decoder: MaskConverDecoder) -> None:
        self.case, self.decoder = case, decoder
        self.facts = Opened(type(decoder).__name__, "", None, {})

    def step(self, image_hwc_u8: NDArray[np.uint8]) -> StageTimes:
        began_s = time.perf_counter()
        for raw in self.case.raws:
            self.decoder(raw, self.case.box)
        # a mean, because the median of runs on different pictures would jump between them
        return StageTimes(0.0, (time.perf_counter() - began_s) * 1e3 / len(self.case.raws), 0.0)

    def close(self) -> None:
        """Keeps nothing open."""


def measured_case(case: Case, plan: Plan) -> dict[str, Any]:
    """Compares the decoders, then measures both in turns; returns a row of the table.

    Args:
        case: What to decode.
        plan: When to stop.

    Raises:
        InputError: The two decoders do not give the same picture.
    """
    fast, slow = (kind(case.contract, case.constants) for kind in (MaskConverDecoder, StraightforwardDecoder))
    differing_px = segments = centres = 0
    for raw in case.raws:
        got, truth = fast(raw, case.box), slow(raw, case.box)
        differing_px += int((got.id_map_hw_i32 != truth.id_map_hw_i32).sum())
        segments += len(got.segments)
        centres += len(fast.propose(raw).cell)
    if differing_px > max(2, _TIED_SHARE * len(case.raws) * case.input_px**2):
        raise InputError("The decoders differ.", expected="only exact ties to differ", got=f"{differing_px} pixels")
    executors = [_Timed(case, fast), _Timed(case, slow)]
    quick, plain = measure(executors, [np.zeros((1, 1, 3), np.uint8)], plan)
    ratio = stats.median_ratio(quick.samples.run_ms, plain.samples.run_ms)
    return {
        "input_px": case.input_px,
        "proposals": case.proposals,
        "centres_mean": round(centres / len(case.raws), 1),
        "segments_mean": round(segments / len(case.raws), 1),
        "differing_px": differing_px,
        "fast": _timing(quick),
        "straightforward": _timing(plain),
        "ratio": [round(value, 4) for value in (ratio.low, ratio.value, ratio.high)],
    }


def _timing(series: Series) -> dict[str, Any]:
    interval, run_ms = series.interval, series.samples.run_ms
    return {
        "median_ms": round(interval.value, 3),
        "ci95_median_ms": [round(interval.low, 3), round(interval.high, 3)],
        "min_ms": round(float(run_ms.min()), 3),
        "n": len(run_ms),
        "interval_met": series.target_met,
    }


def document(cases: Iterator[Case], plan: Plan, *, source: str, command: str) -> dict[str, Any]:
    """Measures cases; returns the document that `--json` writes.

    Args:
        cases: What to decode.
        plan: When to stop.
        source: Where the raw outputs are from.
        command: What to write down as the command.
    """
    watch = machine.watch()
    rows = []
    for case in cases:
        click.echo(f"measure {case.input_px} px, {case.proposals} proposals", err=True)
        rows.append(measured_case(case, plan))
    return {
        "command": command,
        "kind": "measured",
        "what": "decoder",
        "source": source,
        "device": machine.host_device(),
        "environment": watch(),
        "real_time_priority": _real_time(),
        "threads": int(os.environ[_THREADS]) if _THREADS in os.environ else None,
        "rows": rows,
    }


def _real_time() -> bool:
    """Whether this process goes before all usual ones, so that a busy machine hardly slows it."""
    return hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)


def text(found: Mapping[str, Any]) -> str:
    """Returns the document as an aligned table."""
    head = f"{'px':>4}{'proposals':>10}{'segments':>9}{'decoder ms':>11}  {'95 %':17}{'straightforward':>19}"
    lines = [f"decoder on {found['source']}", f"{head}{'ratio':>7}  95 %"]
    for row in found["rows"]:
        low, high = row["fast"]["ci95_median_ms"]
        missed = "" if row["fast"]["interval_met"] and row["straightforward"]["interval_met"] else "  interval not met"
        lines.append(
            f"{row['input_px']:4}{row['proposals']:10}{row['segments_mean']:9.1f}{row['fast']['median_ms']:11.2f}  "
            f"[{low:6.2f}, {high:6.2f}] {row['straightforward']['median_ms']:19.1f}{row['ratio'][1]:7.3f}  "
            f"[{row['ratio'][0]:.3f}, {row['ratio'][2]:.3f}]{missed}"
        )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the document there as well.")
@click.option(
    "--model", type=click.Path(path_type=Path), help="A MaskConver whose raw outputs to decode; needs --data."
)
@click.option("--data", help="Data set whose pictures it is given.")
@click.option("--max-time", "max_time_s", type=float, default=6.0, show_default=True, help="Seconds per decoder.")
def main(json_file: Path | None, model: Path | None, data: str | None, max_time_s: float) -> None:
    """Prints the table and, where asked, writes the document."""
    try:
        if (model is None) != (data is None):
            raise InputError("--model and --data belong together.", expected="both or neither")
        plan = Plan(
            min_runs=16, min_time_s=0.5, max_time_s=max_time_s, target_ci_pct=3.0, block_runs=2, max_warmup_s=2.0
        )
        command = shlex.join(["python", "-m", "edge_seg.studies.decoder_speed", *sys.argv[1:]])
        if model is not None and data is not None:
            cases, source = network_cases(model, data, PROPOSALS), f"raw outputs of {model.name} on {Path(data).name}"
        else:
            cases, source = made_cases(), "raw outputs made from synthetic scenes"
        found = document(cases, plan, source=source, command=command)
        if json_file:
            write_json(json_file, found)
    except EdgeSegError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    click.echo(text(found))


if __name__ == "__main__":
    main()
