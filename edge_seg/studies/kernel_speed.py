"""What `training.kernels` saves of a step on this CPU: `python -m edge_seg.studies.kernel_speed CONFIG [KEY=VALUE]...`.

Steps of one training with PyTorch's own kernels and with ours, in turns, on batches that were read before. Retraining
is measured with the setting `qat.start=CHECKPOINT`; its steps still observe ranges. A row is added to the document.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edge_seg.artifact import read_json, write_json
from edge_seg.benchmarks import machine
from edge_seg.benchmarks.stats_paired import LEAST_BLOCKS, compare_turns
from edge_seg.errors import EdgeSegError
from edge_seg.studies.training_speed import timed_settings
from edge_seg.training.kernels import FastKernels
from edge_seg.training.loop import Trainer, _BuildBatchItem
from edge_seg.training.runtime import threads_of_process, torch_settings
from edge_seg.training.settings import TrainSettings

_BATCHES = 3
_WARMUP = 3


class SteppedTrainer(Trainer):
    """A trainer whose steps are taken one by one."""

    def batches(self, count: int) -> list[Sequence[dict[str, NDArray[Any]]]]:
        """Returns the first batches, read and ready."""
        with self._loader(_BuildBatchItem(self.criterion, self.crops)) as loader:
            return [next(loader) for _ in range(count)]

    def step_s(self, items: Sequence[dict[str, NDArray[Any]]], *, fast: bool) -> float:
        """Takes a step, with PyTorch's kernels or with ours."""
        with FastKernels() if fast else contextlib.nullcontext():
            began_s = time.perf_counter()
            self._step(items)
            return time.perf_counter() - began_s


def measure(settings: TrainSettings, rounds: int) -> NDArray[np.float64]:
    """Returns seconds of a step, [rounds, 2]: PyTorch's kernels, ours; which comes first changes every round.

    Args:
        settings: See `training_speed.timed_settings`.
        rounds: Turns.
    """
    with tempfile.TemporaryDirectory() as folder:
        trainer = SteppedTrainer(settings, Path(folder))
        found = np.zeros((rounds, 2))
        with torch_settings(threads_of_process(settings.run.threads, trainer.world)), contextlib.closing(trainer.log):
            batches = trainer.batches(_BATCHES)
            trainer._set_live(trainer.network)
            for number in range(_WARMUP):
                trainer.step_s(batches[number % _BATCHES], fast=number % 2 == 0)
            for number in tqdm(range(rounds), desc=settings.model.name, unit="round"):
                for fast in (0, 1) if number % 2 == 0 else (1, 0):
                    found[number, fast] = trainer.step_s(batches[number % _BATCHES], fast=bool(fast))
    return found


def row_of(settings: TrainSettings, config: Path, seconds: NDArray[np.float64], command: str) -> dict[str, Any]:
    """Returns a row of the document: medians and the ratio of neighbouring steps with its 95 % interval."""
    ratio = compare_turns([seconds[:, 1]], [seconds[:, 0]], block_runs=1).ratio
    return {
        "config": config.name,
        "network": settings.model.name,
        "retraining": bool(settings.qat.start),
        "batch_size": settings.optim.batch_size,
        "rounds": len(seconds),
        "pytorch_s": round(float(np.median(seconds[:, 0])), 4),
        "ours_s": round(float(np.median(seconds[:, 1])), 4),
        "ratio": [round(end, 3) for end in (ratio.low, ratio.value, ratio.high)],
        "device": machine.host_device(),
        "command": command,
    }


def with_row(document: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the document with a row added, in place of one of the same command."""
    others = [one for one in document.get("rows", []) if one["command"] != row["command"]]
    return {"what": "kernels", "kind": "measured", "rows": sorted([*others, row], key=lambda one: one["command"])}


def text(row: Mapping[str, Any]) -> str:
    """Returns a row as a line."""
    low, ratio, high = row["ratio"]
    return (
        f"{row['config']}: {row['pytorch_s']:.3f} s a step with PyTorch's kernels, {row['ours_s']:.3f} with ours, "
        f"{ratio:.3f} [{low:.3f}, {high:.3f}] of it"
    )


@click.command(help=__doc__)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--rounds", type=click.IntRange(LEAST_BLOCKS), default=24, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("results/speed/kernels.json"))
@click.option("--json", "as_json", is_flag=True, help="Print the row as JSON on stdout.")
def main(config: Path, overrides: tuple[str, ...], rounds: int, results: Path, as_json: bool) -> None:
    """Prints the row and adds it to RESULTS."""
    try:
        settings = timed_settings(config, overrides, _WARMUP + 2 * rounds)
        command = shlex.join(["python", "-m", "edge_seg.studies.kernel_speed", str(config), *overrides])
        row = row_of(settings, config, measure(settings, rounds), command)
        write_json(results, with_row(read_json(results, "speed of kernels") if results.exists() else {}, row))
    except EdgeSegError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(json.dumps(row, indent=2) if as_json else text(row))


if __name__ == "__main__":
    main()
