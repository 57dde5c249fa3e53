"""One file in two runtimes: `python -m edge_seg.studies.second_interpreter FILE --data D --json OUT`.

LiteRT with XNNPACK beside tflite-runtime 2.14 with its own kernels, on the same pictures: how far the outputs are
apart, and what that does to the metric. No latency: the second runtime starts a process for each picture.
"""

from __future__ import annotations

import math
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from edge_seg.artifact import sha256_of, write_json
from edge_seg.converters.compare_routes import OutputAgreement, compare_routes
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.second_interpreter import SecondInterpreter
from edge_seg.data.source import open_dataset
from edge_seg.evaluation.bootstrap import paired_bootstrap
from edge_seg.evaluation.evaluate import evaluate
from edge_seg.evaluation.predictor import Predictor
from edge_seg.steps import letterboxed, pictures
from edge_seg.studies.start import start

_SEED = 0


def measured(file: Path, data: str, *, compared: int, limit: int) -> dict[str, Any]:
    """Compares the outputs and the metric of a file in two runtimes.

    Args:
        file: A `.tflite`.
        data: DATA argument; its `val` split is used.
        compared: Pictures whose outputs are compared, evenly spread.
        limit: Pictures scored, evenly spread; 0 takes all.

    Raises:
        MissingHere: The side environment of tflite-runtime is not set up.
    """
    first, second = TfliteRunner(file), SecondInterpreter(file)
    images = letterboxed(first.contract, pictures(data, compared, "val"))
    agreement = compare_routes(file, file, images, second_interpreter=True)
    return {
        "format": "edge_seg.second_interpreter",
        "file": file.name,
        "sha256": sha256_of(file),
        "network": first.contract.model.name,
        "input_px": first.contract.model.input_px,
        "scheme": first.contract.model.scheme,
        "data": data,
        "pictures_compared": agreement.images,
        "outputs": [_output(o) for o in agreement.outputs],
        **_scored(first, second, data, limit),
        "first": _runtime(first.runtime, first.xnnpack_partitions().partitions),
        "second": _runtime(second.runtime, second.delegate_kernels),
    }


def _runtime(runtime: dict[str, str], kernels: int | None) -> dict[str, Any]:
    return {**runtime, "delegate_kernels": kernels}


def _output(found: OutputAgreement) -> dict[str, Any]:
    snr_db = found.snr_db if math.isfinite(found.snr_db) else None  # JSON knows no infinity
    names = ("max_of_range", "exact", "within_1_lsb", "max_lsb")
    return {"name": found.name, "snr_db": snr_db, **{name: getattr(found, name) for name in names}}


def _scored(first: TfliteRunner, second: SecondInterpreter, data: str, limit: int) -> dict[str, Any]:
    dataset = open_dataset(data, split="val")
    a = evaluate(Predictor(first), dataset, limit=limit, progress=first.runtime["name"]).quality
    b = evaluate(Predictor(second), dataset, limit=limit, progress=second.runtime["name"]).quality
    difference = paired_bootstrap(a, b, seed=_SEED)
    return {
        "data_sha256": dataset.fingerprint(),
        "images": len(a.image_ids),
        "metric": a.metric,
        "value_first": round(a.value(), 3),
        "value_second": round(b.value(), 3),
        "difference": round(difference.value, 3),
        "difference_ci95": [round(difference.low, 3), round(difference.high, 3)],
    }


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="DATA whose val split is used.")
@click.option("--compare", default=8, show_default=True, help="Pictures whose outputs are compared.")
@click.option("--limit", default=100, show_default=True, help="Pictures scored, evenly spread; 0 takes all.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the document here.")
def main(file: Path, data: str, compare: int, limit: int, json_file: Path | None) -> None:
    """Runs FILE in LiteRT and in tflite-runtime."""
    found = {
        "command": shlex.join(["python", "-m", "edge_seg.studies.second_interpreter", *sys.argv[1:]]),
        **measured(file, data, compared=compare, limit=limit),
    }
    if json_file is not None:
        write_json(json_file, found)
    click.echo(told(found))


def told(found: dict[str, Any]) -> str:
    """Returns a document of `measured` for people."""
    lines = []
    for o in found["outputs"]:
        steps = "" if o["max_lsb"] is None else f", {o['exact']:.1%} exact, at most {o['max_lsb']} steps"
        ratio = "no difference" if o["snr_db"] is None else f"{o['snr_db']:.1f} dB"
        lines.append(f"{o['name']}: {ratio}{steps}")
    low, high = found["difference_ci95"]
    lines.append(
        f"{found['metric'].upper()} {found['value_first']:.2f} in {found['first']['name']}, "
        f"{found['value_second']:.2f} in {found['second']['name']}: "
        f"{found['difference']:+.2f} [{low:+.2f}, {high:+.2f}] on {found['images']} pictures"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    start(main)
