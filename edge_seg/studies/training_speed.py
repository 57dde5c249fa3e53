"""Pictures per second of a training and where its time goes: `python -m edge_seg.studies.training_speed CONFIG`.

The real loop runs a few steps on CPUs, alone and as two processes under torchrun with half the batch each, in turns.
Pictures are decoded before the clock starts, as from the second epoch on. Nothing is evaluated or kept.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_seg.artifact import read_json, write_json
from edge_seg.benchmarks import machine
from edge_seg.data.loader import BatchLoader
from edge_seg.data.sample import Sample
from edge_seg.data.transforms import TrainCrop
from edge_seg.errors import CheckFailed, EdgeSegError, InputError
from edge_seg.models.base import Criterion, Network
from edge_seg.models.reduce import ONE_PROCESS, Reduce
from edge_seg.training.distributed import World, started
from edge_seg.training.loop import CHECKPOINT_FILE, Trained, Trainer
from edge_seg.training.settings import TrainSettings, load_settings

T = TypeVar("T")
PARTS = ("data_wait", "forward", "backward", "exchange", "optimiser", "rest")
_NEVER = 1_000_000
_ROUND_LIMIT_S = 900


class TimedWorld(World):
    """A world that writes down where the time between the parts of a step goes.

    `mark` gives the time since the last mark to a part; what was spent in communication goes to "exchange" instead,
    wherever it happened: BatchNorm and the divisors of the losses communicate inside forward and backward.

    Args:
        world: The processes.
    """

    def __init__(self, world: World) -> None:
        super().__init__(world.device, rank=world.rank, size=world.size, local_size=world.local_size)
        self.restart()

    def restart(self) -> None:
        """Begins anew."""
        self.part_s = dict.fromkeys(PARTS, 0.0)
        self.before_s = dict(self.spent_s)
        self._last_s, self._communicated_s = time.perf_counter(), sum(self.spent_s.values())

    def mark(self, part: str) -> None:
        """Ends a part."""
        now_s, communicated_s = time.perf_counter(), sum(self.spent_s.values())
        exchange_s = communicated_s - self._communicated_s
        self.part_s["exchange"] += exchange_s
        self.part_s[part] += now_s - self._last_s - exchange_s
        self._last_s, self._communicated_s = now_s, communicated_s

    def figures(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns losses as numbers (see `World`)."""
        figures = super().figures(values)
        self.mark("rest")
        return figures

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients (see `World`); before it lies the backward pass."""
        self.mark("backward")
        super().add_gradients(parameters)
        self.mark("exchange")


@dataclass(frozen=True)
class _TimedCriterion:
    """Runs a criterion between two marks."""

    criterion: Criterion
    world: TimedWorld

    def targets(self, crop: TrainCrop, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        return self.criterion.targets(crop, rng)

    def losses(
        self, network: Network, image: Tensor, batch: Mapping[str, Tensor], *, reduce: Reduce = ONE_PROCESS
    ) -> dict[str, Tensor]:
        self.world.mark("rest")
        losses = self.criterion.losses(network, image, batch, reduce=reduce)
        self.world.mark("forward")
        return losses


class TimedTrainer(Trainer):
    """The training loop with marks between its parts; it ends without an evaluation.

    Args:
        settings: The experiment; its `optim.steps` are the steps before and under the clock.
        out: A folder to throw away.
        world: The processes.
        warmup: Steps before the clock starts.
    """

    def __init__(self, settings: TrainSettings, out: Path, world: TimedWorld, *, warmup: int) -> None:
        self.timed, self.warmup = world, warmup
        super().__init__(settings, out, world=world)
        self.criterion = _TimedCriterion(self.criterion, world)
        self.threads = 0

    def _loader(self, build: Callable[[Sample, np.random.Generator], T], *, plain: bool = False) -> BatchLoader[T]:
        loader = super()._loader(build, plain=plain)
        for index in {i for step in range(self.total_steps) for i in loader.indices(step)}:
            self.train_set[index]  # decodes and keeps it
        return loader

    def _step(self, items: Sequence[dict[str, NDArray[Any]]]) -> dict[str, float]:
        self.timed.mark("data_wait")
        values = super()._step(items)
        self.timed.mark("optimiser")
        if self.step == self.warmup:
            self.threads = torch.get_num_threads()
            self.timed.restart()
        return values

    def _finish(self) -> Trained:
        return Trained(self.out / CHECKPOINT_FILE, self._figures(), 0.0, self.seconds, self.world.rank)

    def _figures(self) -> dict[str, Any]:
        """Seconds of every part and kind of communication, the mean over processes."""
        world = self.timed
        communication_s = {k: v - world.before_s[k] for k, v in world.spent_s.items()}
        everyone = world.gather({**world.part_s, **{f"{k}_exchange": v for k, v in communication_s.items()}})
        mean_s = {k: float(np.mean([one[k] for one in everyone])) for k in everyone[0]}
        return {
            "network": self.network.name,
            "input_px": self.network.input_px,
            "threads": self.threads,
            "pictures": (self.total_steps - self.warmup) * self.settings.optim.batch_size,
            "seconds": sum(mean_s[k] for k in PARTS),
            "spent_s": mean_s,
        }


def timed_settings(config: Path, overrides: Sequence[str], steps: int) -> TrainSettings:
    """Returns a recipe cut down to some steps on CPUs, without evaluation and saved states."""
    settings = load_settings(config, overrides)
    run = replace(settings.run, device="cpu", eval_every=0, save_every=0, log_every=_NEVER)
    return replace(settings, optim=replace(settings.optim, steps=steps, epochs=0.0), run=run)


def measure(settings: TrainSettings, *, warmup: int) -> dict[str, Any] | None:
    """Times one training, alone or as one of torchrun's processes; returns its figures in the first process.

    Args:
        settings: See `timed_settings`.
        warmup: Steps before the clock starts.
    """
    with tempfile.TemporaryDirectory() as folder, started("cpu", timeout_s=settings.run.peer_timeout_s) as world:
        done = TimedTrainer(settings, Path(folder), TimedWorld(world), warmup=warmup).run()
    return None if done.rank else done.metrics


def _measured_apart(arguments: Sequence[str], count: int) -> dict[str, Any]:
    """Starts `count` processes of this module and reads what the first one wrote."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)] if count > 1 else []
        command = [
            sys.executable,
            *launcher,
            "-m",
            "edge_seg.studies.training_speed",
            *arguments,
            "--worker",
            str(file),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // count))}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False, timeout=_ROUND_LIMIT_S
            )
        except subprocess.TimeoutExpired as error:
            raise CheckFailed(f"A training with {count} processes took over {_ROUND_LIMIT_S} s.") from error
        if done.returncode:
            raise CheckFailed(
                f"A training with {count} processes has failed.",
                got=done.stderr.strip()[-600:],
                todo="run it alone: " + shlex.join(command),
            )
        figures: dict[str, Any] = read_json(file, "speed of a training")
        return figures


def compared(rounds: Mapping[int, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Returns one row per number of processes: pictures per second and shares of the time, over all rounds.

    Args:
        rounds: Figures of each round (see `measure`) by number of processes.
    """
    rows = []
    for count, found in rounds.items():
        seconds = sum(one["seconds"] for one in found)
        share = {k: round(sum(one["spent_s"][k] for one in found) / seconds, 4) for k in found[0]["spent_s"]}
        rows.append(
            {
                "count": count,
                "threads": found[0]["threads"],
                "images_per_s": round(sum(one["pictures"] for one in found) / seconds, 3),
                "images_per_s_of_rounds": [round(one["pictures"] / one["seconds"], 3) for one in found],
                "share": {k: share[k] for k in PARTS},
                "share_of_exchange": {k.removesuffix("_exchange"): v for k, v in share.items() if k not in PARTS},
            }
        )
    return rows


def text(document: Mapping[str, Any]) -> str:
    """Returns the document as an aligned table."""
    head = f"{'processes':>9}{'threads':>8}{'img/s':>8}" + "".join(f"{part.replace('_', ' '):>11}" for part in PARTS)
    lines = [head]
    for row in document["processes"]:
        shares = "".join(f"{row['share'][part]:11.1%}" for part in PARTS)
        lines.append(f"{row['count']:9}{row['threads']:8}{row['images_per_s']:8.2f}{shares}")
        if row["count"] > 1:
            parts = ", ".join(f"{k} {v:.1%}" for k, v in row["share_of_exchange"].items())
            lines.append(f"{'':9}exchange by purpose: {parts}")
    return "\n".join(lines)


def run(
    arguments: Sequence[str], counts: Sequence[int], rounds: int, about: Mapping[str, Any], results: Path
) -> dict[str, Any]:
    """Measures in turns (1, 2, 2, 1, ...), writes the document after every round and returns it.

    Args:
        arguments: Of each process: recipe, overrides, steps.
        counts: Numbers of processes.
        rounds: How often each is measured, at least once.
        about: What to write down beside it.
        results: The document's file.
    """
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    document: dict[str, Any] = {}
    watch = machine.watch()
    for number in range(rounds):
        for count in counts if number % 2 == 0 else reversed(counts):
            click.echo(f"round {number + 1} of {rounds}: {count} process{'es' if count > 1 else ''}", err=True)
            found[count].append(_measured_apart(arguments, count))
        document = {
            **about,
            "network": found[counts[0]][0]["network"],
            "input_px": found[counts[0]][0]["input_px"],
            "rounds": number + 1,
            "device": machine.host_device(),
            "environment": watch(),
            "cores": len(os.sched_getaffinity(0)),
            "processes": compared(found),
        }
        write_json(results, document)
    return document


@click.command(help=__doc__)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--processes", "counts", multiple=True, type=click.IntRange(1), default=(1, 2), show_default=True)
@click.option("--steps", type=click.IntRange(1), default=12, show_default=True, help="Steps under the clock.")
@click.option("--warmup", type=click.IntRange(1), default=3, show_default=True, help="Steps before.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("results/training_speed.json"))
@click.option("--worker", type=click.Path(path_type=Path), hidden=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def main(
    config: Path,
    overrides: tuple[str, ...],
    counts: tuple[int, ...],
    steps: int,
    warmup: int,
    rounds: int,
    results: Path,
    worker: Path | None,
    as_json: bool,
) -> None:
    """Prints the table and writes RESULTS."""
    try:
        settings = timed_settings(config, overrides, warmup + steps)
        if worker:
            figures = measure(settings, warmup=warmup)
            if figures is not None:
                write_json(worker, figures)
            return
        about = {
            "command": shlex.join(["python", "-m", "edge_seg.studies.training_speed", *sys.argv[1:]]),
            "batch_size": settings.optim.batch_size,
            "steps": steps,
            "warmup_steps": warmup,
        }
        own = [str(config), *overrides, "--steps", str(steps), "--warmup", str(warmup)]
        _check_counts(counts, settings.optim.batch_size)
        document = run(own, list(dict.fromkeys(counts)), rounds, about, results)
    except EdgeSegError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    click.echo(json.dumps(document, indent=2) if as_json else text(document))


def _check_counts(counts: Sequence[int], batch_size: int) -> None:
    if wrong := [count for count in counts if batch_size % count]:
        raise InputError(
            "The batch cannot be shared out evenly.",
            expected=f"numbers of processes that divide optim.batch_size = {batch_size}",
            got=str(wrong[0]),
        )


if __name__ == "__main__":
    main()
