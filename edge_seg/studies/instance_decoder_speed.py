"""Speed and memory of the decoders of both instance families.

Measured is everything from raw arrays to run lengths of the size of the picture, as the mean of three pictures;
OMP_NUM_THREADS=1 keeps NumPy's matrix products on one thread. The families take turns on the same objects. Memory is
the most that one call holds besides its inputs, result included, counted by tracemalloc in a call of its own.

The arrays are made, not predicted: ellipses (fixed seed), with a radius of 8 to 80 pixels, in a network's input of 320
pixels, of 80 classes. They have the shapes of the mobile variants: BlendMask with three levels of strides 8, 16, 32,
four bases at stride 4, 7 x 7 attention, 28 x 28 masks; SOLOv2 with grids of 24, 20, 16, 12, 8 and 64 mask features at
stride 4. Attention and kernels are left to the decoder (1x1 from 96 channels). An object has three cells in
BlendMask, so that box NMS has work, and every other object two in SOLOv2, so that Matrix NMS has, as far as
`pre_nms_top_k` allows. The first base holds the union of all objects, the attention the inside of an ellipse; SOLOv2's
features are the terms of a quadratic and noise, its kernels the ellipses' equations.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import write_json
from edge_seg.benchmarks import machine
from edge_seg.benchmarks.harness import Plan, Series, measure
from edge_seg.benchmarks.runner import Opened, StageTimes
from edge_seg.contract import ClassInfo, Contract, DecoderInfo, InputTensor, ModelInfo, OutputTensor, Preprocess
from edge_seg.decoders.base import DECODERS, Decoder, InstanceResult, Raw
from edge_seg.errors import EdgeSegError
from edge_seg.letterbox import Letterbox

Array = NDArray[np.float32]

INPUT_PX = 320
INSTANCES = (0, 1, 20, 100)
FAMILIES = ("blendmask", "solov2")
PARAMS: dict[str, dict[str, Any]] = {
    "blendmask": {
        "score_threshold": 0.05,
        "threshold_with_centerness": True,
        "score": "sqrt",
        "pre_nms_top_k": 300,
        "nms_iou": 0.6,
        "class_aware": True,
        "max_instances": 100,
        "mask_threshold": 0.5,
        "attention_size": 7,
        "bases": 4,
        "mask_size": 28,
        "merge": "blend",
        "overlap_threshold": 0.5,
        "show_threshold": 0.3,
        "box_quality": "centerness",
    },
    "solov2": {
        "score_threshold": 0.1,
        "pre_nms_top_k": 100,
        "mask_threshold": 0.5,
        "nms": "gaussian",
        "nms_sigma": 2.0,
        "update_threshold": 0.05,
        "max_instances": 100,
        "class_aware": True,
        "overlap_threshold": 0.5,
        "show_threshold": 0.3,
    },
}
_CLASSES, _WIDTH, _FEATURES, _PICTURES, _CELLS = 80, 96, 64, 3, INPUT_PX // 4
_STRIDES, _LONGEST_PX = (8, 16, 32), (64, 128)  # BlendMask: levels, and the longest box of the first two
_GRIDS, _GRID_STRIDES, _RADII_PX = (24, 20, 16, 12, 8), (8, 8, 16, 32, 32), (12, 20, 36, 60)
_THREADS = "OMP_NUM_THREADS"  # of NumPy's matrix products; read when NumPy is loaded


@dataclass(frozen=True)
class Ellipses:
    """Objects of a picture, surest first: centres and radii in pixels of the input, [N, 2] x and y; classes, [N]."""

    centre_xy_px: NDArray[np.float64]
    radius_xy_px: NDArray[np.float64]
    class_index: NDArray[np.int64]

    @classmethod
    def random(cls, count: int, seed: int) -> Ellipses:
        """Draws objects inside the input."""
        rng = np.random.default_rng([9, seed])
        radius = np.exp(rng.uniform(np.log(8), np.log(80), (count, 1))) * rng.uniform(0.7, 1, (count, 2))
        centre = radius + rng.random((count, 2)) * (INPUT_PX - 2 * radius)
        return cls(centre, radius, rng.integers(_CLASSES, size=count))

    def inside(self) -> NDArray[np.float64]:
        """Returns how deep each cell of stride 4 lies in each object, [N, cells, cells]: 1 amid, 0 at the edge."""
        at = 4 * np.arange(_CELLS) + 2
        x, y = ((at - self.centre_xy_px[:, i, None]) / self.radius_xy_px[:, i, None] for i in (0, 1))
        return 1 - np.square(x)[:, None] - np.square(y)[:, :, None]


@dataclass(frozen=True)
class Case:
    """Raw outputs to decode.

    Attributes:
        family: "blendmask" or "solov2".
        instances: Objects of a picture.
        contract: Parameters, classes and output names.
        constants: The decoder's constants.
        raws: Raw outputs, one per picture.
    """

    family: str
    instances: int
    contract: Contract
    constants: Mapping[str, Array]
    raws: Sequence[Raw]

    @property
    def box(self) -> Letterbox:
        """Geometry of a picture as large as the input."""
        return Letterbox(INPUT_PX, INPUT_PX, INPUT_PX, INPUT_PX)

    def decoder(self) -> Decoder:
        """Returns the decoder under test."""
        return DECODERS[self.family](self.contract, self.constants)


def made_case(family: str, instances: int, *, pictures: int = _PICTURES) -> Case:
    """Makes raw outputs (see the top of this file).

    Args:
        family: "blendmask" or "solov2".
        instances: Objects of every picture.
        pictures: How many pictures.
    """
    make = {"blendmask": _blendmask_raw, "solov2": _solov2_raw}[family]
    raws = [make(Ellipses.random(instances, seed)) for seed in range(max(pictures, 1))]
    rng = np.random.default_rng(0)
    if family == "blendmask":
        weight, bias = rng.normal(0, 0.01, (4 * 49, _WIDTH)), _round_attention()
        constants = {"attention.weight": weight[:, :, None, None], "attention.bias": bias}
    else:
        weight = np.eye(_FEATURES, _WIDTH)
        constants = {"kernel.weight": weight[:, :, None, None], "kernel.bias": np.zeros(_FEATURES)}
    plain = {name: value.astype(np.float32) for name, value in constants.items()}
    return Case(family, instances, _contract(family, raws[0]), plain, raws)


def _contract(family: str, raw: Raw) -> Contract:
    names = {"class": "class_logit", "box": "box_ltrb", "center": "centerness"}
    outputs = []
    for name, value in raw.items():
        kind, _, suffix = name.rpartition("_")
        level = int(suffix.lstrip("p")) if suffix[-1:].isdigit() else 0
        role = names.get(kind, kind) if suffix[-1:].isdigit() else name
        stride_px = 4 if role in ("bases", "mask_features") else 2**level if family == "blendmask" else 0
        stride_px = stride_px or _GRID_STRIDES[level]
        outputs.append(OutputTensor(name, role, value.shape, stride_px, level=level))
    return Contract(
        ModelInfo("made", family, "instance", INPUT_PX, 0, 0, 0, 0, ""),
        InputTensor("image", (1, INPUT_PX, INPUT_PX, 3)),
        Preprocess((128, 128, 128), (127.5,) * 3, (127.5,) * 3),
        tuple(outputs),
        tuple(ClassInfo(i + 1, f"class {i}", True, (0, 0, 0)) for i in range(_CLASSES)),
        DecoderInfo(family, PARAMS[family]),
    )


def _round_attention() -> NDArray[np.float64]:
    """Attention of an ellipse in its own box: the first base inside, the others outside, [4 * 49]."""
    at = (np.arange(7) + 0.5) / 3.5 - 1
    inside = 1 - np.square(at)[:, None] - np.square(at)
    return np.concatenate([np.clip(8 * inside, -4, 4).ravel(), np.zeros(3 * 49)])


def _blendmask_raw(objects: Ellipses) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    arrays = {}
    for level, stride in enumerate(_STRIDES, 3):
        side = INPUT_PX // stride
        arrays[f"class_p{level}"] = rng.normal(-6, 0.3, (side, side, _CLASSES))
        arrays[f"box_p{level}"] = rng.uniform(0, 4, (side, side, 4))
        arrays[f"center_p{level}"] = rng.normal(0, 1, (side, side, 1))
        arrays[f"attention_p{level}"] = rng.normal(0, 1, (side, side, _WIDTH))
    boxes = np.concatenate(
        [objects.centre_xy_px - objects.radius_xy_px, objects.centre_xy_px + objects.radius_xy_px], 1
    )
    for rank, (xyxy, centre) in enumerate(zip(boxes, objects.centre_xy_px, strict=True)):
        level = 3 + int(np.searchsorted(_LONGEST_PX, max(xyxy[2:] - xyxy[:2])))
        stride = _STRIDES[level - 3]
        x, y = np.clip(centre // stride, 1, None).astype(int)
        for step, (cy, cx) in enumerate(((y, x), (y, x - 1), (y - 1, x))):
            at = np.array([cx, cy]) * stride + stride // 2
            around = np.concatenate([at - xyxy[:2], xyxy[2:] - at]) / stride
            arrays[f"box_p{level}"][cy, cx] = np.maximum(around + rng.uniform(-0.1, 0.1, 4), 0)
            arrays[f"class_p{level}"][cy, cx, objects.class_index[rank]] = 3 - step - 2 * rank / len(boxes)
            arrays[f"center_p{level}"][cy, cx] = 2 - step / 2
    bases = rng.normal(-4, 0.3, (_CELLS, _CELLS, 4))
    bases[:, :, 0] = np.clip(8 * objects.inside(), -5, 5).max(axis=0, initial=-5)
    return {name: value[None].astype(np.float32) for name, value in {**arrays, "bases": bases}.items()}


def _solov2_raw(objects: Ellipses) -> dict[str, Array]:
    rng = np.random.default_rng(1)
    arrays = {}
    for level, side in enumerate(_GRIDS):
        arrays[f"category_{level}"] = rng.normal(-6, 0.3, (side, side, _CLASSES))
        arrays[f"kernel_{level}"] = rng.normal(0, 0.02, (side, side, _WIDTH))
    at = (4 * np.arange(_CELLS) + 2) / INPUT_PX
    x, y = np.broadcast_to(at, (_CELLS, _CELLS)), np.broadcast_to(at[:, None], (_CELLS, _CELLS))
    terms = np.stack([np.ones_like(x), x, y, x * x, y * y], axis=-1)
    features = np.concatenate([terms, np.abs(rng.normal(0, 1, (_CELLS, _CELLS, _FEATURES - 5)))], axis=-1)
    centres, radii = objects.centre_xy_px / INPUT_PX, objects.radius_xy_px / INPUT_PX
    for rank, (c, r) in enumerate(zip(centres, radii, strict=True)):
        kernel = 8 * np.array([1 - np.square(c / r).sum(), *(2 * c / r**2), *(-1 / r**2)])
        level = int(np.searchsorted(_RADII_PX, max(r) * INPUT_PX))
        column, row = np.maximum(c * _GRIDS[level], 1).astype(int)
        for step in range(1 + rank % 2):
            arrays[f"kernel_{level}"][row, column - step, :5] = kernel
            arrays[f"category_{level}"][row, column - step, objects.class_index[rank]] = (
                3 - 3 * step - 1.5 * rank / len(radii)
            )
    return {name: value[None].astype(np.float32) for name, value in {**arrays, "mask_features": features}.items()}


class _Timed:
    """A decoder as an executor whose only stage is the decoding of every picture, given as time per picture."""

    def __init__(self, case: Case) -> None:
        self.case, self.decoder = case, case.decoder()
        self.facts = Opened(type(self.decoder).__name__, "", None, {})

    def step(self, image_hwc_u8: NDArray[np.uint8]) -> StageTimes:
        began_s = time.perf_counter()
        for raw in self.case.raws:
            self.decoder(raw, self.case.box)
        # a mean, because the median of runs on different pictures would jump between them
        return StageTimes(0.0, (time.perf_counter() - began_s) * 1e3 / len(self.case.raws), 0.0)

    def close(self) -> None:
        """Keeps nothing open."""


def peak_bytes(case: Case) -> int:
    """Returns the most memory that decoding one picture takes besides the raw outputs, after a first call."""
    decoder = case.decoder()
    peaks = []
    for raw in case.raws:
        decoder(raw, case.box)
        tracemalloc.start()
        try:
            decoder(raw, case.box)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    return max(peaks)


def measured(instances: int, plan: Plan) -> list[dict[str, Any]]:
    """Measures both families in turns on pictures of so many objects; returns a row for each.

    Args:
        instances: Objects of a picture.
        plan: When to stop.
    """
    cases = [made_case(family, instances) for family in FAMILIES]
    series = measure([_Timed(case) for case in cases], [np.zeros((1, 1, 3), np.uint8)], plan)
    return [_row(case, one) for case, one in zip(cases, series, strict=True)]


def _row(case: Case, series: Series) -> dict[str, Any]:
    decoder = case.decoder()
    results = [decoder(raw, case.box) for raw in case.raws]
    found = [len(result.instances) for result in results if isinstance(result, InstanceResult)]
    interval, run_ms = series.interval, series.samples.run_ms
    return {
        "family": case.family,
        "input_px": INPUT_PX,
        "instances": case.instances,
        "found_mean": round(float(np.mean(found)), 1),
        "median_ms": round(interval.value, 3),
        "ci95_median_ms": [round(interval.low, 3), round(interval.high, 3)],
        "min_ms": round(float(run_ms.min()), 3),
        "n": len(run_ms),
        "interval_met": series.target_met,
        "peak_bytes": peak_bytes(case),
    }


def document(plan: Plan, *, command: str) -> dict[str, Any]:
    """Measures every number of objects; returns the document that `--json` writes.

    Args:
        plan: When to stop.
        command: What to write down as the command.
    """
    watch = machine.watch()
    return {
        "command": command,
        "kind": "measured",
        "what": "instance_decoder",
        "source": "raw outputs made from ellipses",
        "rows": [row for instances in INSTANCES for row in measured(instances, plan)],
        "device": machine.host_device(),
        "environment": watch(),
        "real_time_priority": hasattr(os, "sched_getscheduler") and os.sched_getscheduler(0) != os.SCHED_OTHER,
        "threads": int(os.environ[_THREADS]) if _THREADS in os.environ else None,
    }


def text(found: Mapping[str, Any]) -> Iterator[str]:
    """Yields the document as the lines of an aligned table."""
    yield f"decoders on {found['source']}, {INPUT_PX} px"
    yield f"{'family':10}{'instances':>10}{'found':>7}{'median ms':>11}  {'95 %':17}{'least ms':>9}{'peak MB':>9}"
    for row in found["rows"]:
        low, high = row["ci95_median_ms"]
        yield (
            f"{row['family']:10}{row['instances']:10}{row['found_mean']:7.1f}{row['median_ms']:11.2f}  "
            f"[{low:6.2f}, {high:6.2f}] {row['min_ms']:9.2f}{row['peak_bytes'] / 1e6:9.1f}"
            f"{'' if row['interval_met'] else '  interval not met'}"
        )


@click.command(help=__doc__)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the document there as well.")
@click.option("--max-time", "max_time_s", type=float, default=6.0, show_default=True, help="Seconds per decoder.")
def main(json_file: Path | None, max_time_s: float) -> None:
    """Prints the table and, where asked, writes the document."""
    plan = Plan(min_runs=16, min_time_s=0.5, max_time_s=max_time_s, target_ci_pct=3.0, block_runs=2, max_warmup_s=2.0)
    command = shlex.join(["python", "-m", "edge_seg.studies.instance_decoder_speed", *sys.argv[1:]])
    try:
        found = document(plan, command=command)
        if json_file:
            write_json(json_file, found)
    except EdgeSegError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    click.echo("\n".join(text(found)))


if __name__ == "__main__":
    main()
