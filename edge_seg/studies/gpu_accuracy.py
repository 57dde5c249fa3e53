"""What the GPU accelerator's arithmetic costs in accuracy: `python -m edge_seg.studies.gpu_accuracy FILE --data D`.

The same file on the CPU (fp32) and on LiteRT's GPU accelerator, on the same pictures. On a software Vulkan device the
numbers are those of a GPU of that precision, the times are not: none is written down.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np

from edge_seg.artifact import sha256_of, write_json
from edge_seg.benchmarks import machine
from edge_seg.contract import Contract
from edge_seg.converters.gpu.accelerator import Precision
from edge_seg.converters.gpu.runner import GpuRunner
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.data.source import open_dataset
from edge_seg.evaluation.bootstrap import paired_bootstrap
from edge_seg.evaluation.evaluate import evaluate
from edge_seg.evaluation.predictor import Predictor, RawRunner
from edge_seg.studies.start import start

_SEED = 0


class Beside:
    """Runs two runners on each picture and keeps the largest difference of each output as a share of its range.

    Args:
        runner: Its outputs are handed on.
        reference: What it is compared with.
    """

    def __init__(self, runner: RawRunner, reference: RawRunner) -> None:
        self.runner, self.reference = runner, reference
        self.contract: Contract = runner.contract
        self.constants = runner.constants
        self.range_share: dict[str, float] = {}

    def __call__(self, input_hwc_u8: Any) -> dict[str, Any]:
        """Returns the outputs of `runner` (see `RawRunner`)."""
        found, expected = self.runner(input_hwc_u8), self.reference(input_hwc_u8)
        for name, value in found.items():
            width = float(np.ptp(expected[name])) or 1.0
            share = float(np.abs(value - expected[name]).max()) / width
            self.range_share[name] = max(share, self.range_share.get(name, 0.0))
        return found


def measured(file: Path, data: str, precision: Precision, limit: int) -> dict[str, Any]:
    """Scores a file on the CPU and on the accelerator.

    Args:
        file: A float `.tflite`.
        data: DATA argument; its `val` split is scored.
        precision: Arithmetic of the accelerator.
        limit: Pictures, evenly spread; 0 takes all.

    Raises:
        MissingHere: No Vulkan implementation here runs the accelerator in this precision.
    """
    dataset, cpu = open_dataset(data, split="val"), TfliteRunner(file)
    reference = evaluate(Predictor(cpu), dataset, limit=limit, progress="CPU").quality
    with GpuRunner(file, precision=precision) as gpu:
        beside = Beside(gpu, cpu)
        found = evaluate(Predictor(beside), dataset, limit=limit, progress=f"accelerator {precision}").quality
        runtime = {k: v for k, v in gpu.runtime.items() if k != "vulkan"}  # where a driver lies is this host's business
    difference = paired_bootstrap(reference, found, seed=_SEED)
    return {
        "format": "edge_seg.gpu_accuracy",
        "file": file.name,
        "sha256": sha256_of(file),
        "network": cpu.contract.model.name,
        "data": data,
        "data_sha256": dataset.fingerprint(),
        "images": len(found.image_ids),
        "metric": found.metric,
        "cpu": round(reference.value(), 3),
        "accelerator": round(found.value(), 3),
        "difference": round(difference.value, 3),
        "difference_ci95": [round(difference.low, 3), round(difference.high, 3)],
        "range_share": {k: float(f"{v:.3g}") for k, v in beside.range_share.items()},
        "runtime": runtime,
        "device": machine.host_device(),
    }


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="DATA whose val split is scored.")
@click.option("--precision", type=click.Choice(get_args(Precision)), default="fp16", show_default=True)
@click.option("--limit", default=24, show_default=True, help="Pictures, evenly spread; 0 takes all.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the document here.")
def main(file: Path, data: str, precision: Precision, limit: int, json_file: Path | None) -> None:
    """Scores FILE on the CPU and on the GPU accelerator."""
    found = measured(file, data, precision, limit)
    found["command"] = shlex.join(["python", "-m", "edge_seg.studies.gpu_accuracy", *sys.argv[1:]])
    if json_file is not None:
        write_json(json_file, found)
    low, high = found["difference_ci95"]
    worst = ", ".join(f"{k} {v:.2g}" for k, v in found["range_share"].items())
    click.echo(
        f"{found['metric'].upper()} {found['cpu']:.2f} on the CPU, {found['accelerator']:.2f} on the accelerator in "
        f"{precision}: {found['difference']:+.2f} [{low:+.2f}, {high:+.2f}] on {found['images']} pictures\n"
        f"largest difference as a share of the range: {worst}"
    )


if __name__ == "__main__":
    start(main)
