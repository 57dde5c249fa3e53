"""The training loop: batches in, averaged weights out; killed at any step and resumed, it ends bit-identical.

What a step does depends only on the weights, the optimiser's state, the step's number and the seed: batches are a
pure function of (seed, step), and nothing else is random. Several processes (see `distributed`) do the same step
together, to rounding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from edge_seg.artifact import write_arrays, write_json
from edge_seg.config import from_mapping
from edge_seg.data.cached import CachedDataset
from edge_seg.data.copy_paste import TrainCrops
from edge_seg.data.loader import BatchLoader
from edge_seg.data.sample import Dataset, Sample
from edge_seg.data.source import open_dataset
from edge_seg.data.things import for_task
from edge_seg.errors import ArtifactError, ConfigError, EdgeSegError
from edge_seg.evaluation.evaluate import Evaluation, evaluate
from edge_seg.evaluation.predictor import Predictor
from edge_seg.models.base import CODE_LICENCE, Criterion, Network, task_of
from edge_seg.models.torch_runner import TorchRunner
from edge_seg.quantization.grids import update_ranges
from edge_seg.training.batchnorm import remeasured
from edge_seg.training.checkpoint import load_state, save_checkpoint, save_state
from edge_seg.training.distributed import World, chosen_device, started
from edge_seg.training.interrupt import Interrupts
from edge_seg.training.kernels import FastKernels
from edge_seg.training.logs import NoLog, RunLog
from edge_seg.training.optim import Average, freeze, learning_rate, make_optimizer, train_mode
from edge_seg.training.runtime import StepClock, threads_of_process, torch_settings
from edge_seg.training.settings import TrainSettings
from edge_seg.training.start import starting_criterion, starting_network
from edge_seg.training.sync_batchnorm import separate, synchronise

T = TypeVar("T")
CHECKPOINT_FILE = "model.safetensors"
STATE_FILE = "state.pt"


class NotFinite(EdgeSegError):
    """The loss became infinite or NaN; the batch was saved."""

    exit_code = 1


@dataclass(frozen=True)
class Trained:
    """What a finished training leaves; `rank` is the number of this process, of which only 0 should report."""

    checkpoint: Path
    metrics: dict[str, Any]
    epochs: float
    seconds: float
    rank: int = 0


@dataclass(frozen=True)
class _BuildBatchItem:
    """Turns a sample into the arrays of a training picture; called by the loader's threads."""

    criterion: Criterion
    crops: TrainCrops

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        crop = self.crops(sample, rng)
        return {"image_hwc_u8": crop.image_hwc_u8, **self.criterion.targets(crop, rng)}


class Trainer:
    """One training run.

    Args:
        settings: The experiment.
        out: Folder of the run.
        resume: Whether to go on from the folder's state.
        world: The processes that share the run; by default it is one. Only the first writes into `out`.

    Raises:
        EdgeSegError: Data, weights or the state to resume are not right.
    """

    def __init__(self, settings: TrainSettings, out: Path, *, resume: bool = False, world: World | None = None) -> None:
        self.settings, self.out = settings, out
        self.world = world or World(chosen_device(settings.run.device))
        self.interrupts = Interrupts(held=self.world.size > 1)
        self.step, self.seconds = 0, 0.0
        with self.world.together("preparing the training"):
            self._prepare()
        if self.world.size > 1:
            self._agree_on_the_start()
        self.optimizer = make_optimizer(self.network, settings.optim)
        self.average = Average(self.network, settings.optim.ema_decay)
        self.total_steps = settings.total_steps(len(self.train_set))
        if resume:
            self._resume()
        self._set_live(self.network)
        if self.world.first:
            write_json(out / "settings.json", asdict(settings))
        self.log = self._open_log()

    def _prepare(self) -> None:
        """What each process does for itself."""
        settings, world = self.settings, self.world
        if settings.optim.batch_size % world.size:
            raise ConfigError(
                "The batch cannot be shared out evenly.",
                expected=f"optim.batch_size as a multiple of {world.size}, the number of processes",
                got=str(settings.optim.batch_size),
            )
        self.task = task_of(settings.model.name)
        self.train_set = self._open(settings.data.train, "train")
        self.val_set = self._open(settings.data.val or settings.data.train, "val")
        self.network = starting_network(settings, self.train_set.classes)
        freeze(self.network, settings.optim)
        self.network.to(world.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.criterion = starting_criterion(settings, self.network, self.train_set.classes, world.device)
        self.network.decoder_params(settings.decoder)  # fails now rather than after the training
        self.crops = TrainCrops(self.train_set, self.network.input_px, settings.augment, self.network.fill_rgb)

    def _agree_on_the_start(self) -> None:
        """Holds every process to the same experiment and data, and to the first one's weights, bit for bit."""
        self.world.require_same("settings", _experiment(self.settings))
        self.world.require_same("training data", self.train_set.fingerprint())
        self.world.require_same("validation data", self.val_set.fingerprint())
        state = {k: v.cpu() for k, v in self.network.state_dict().items()}
        self.network.load_state_dict(self.world.from_first(state))

    def _set_live(self, network: Network) -> None:
        """Puts a network into training mode, its live BatchNorm over the batches of all processes."""
        train_mode(network, self.settings.optim)
        synchronise(network, self.world)

    def _open_log(self) -> RunLog | NoLog:
        return RunLog(self.out, start_step=self.step) if self.world.first else NoLog()

    def _open(self, spec: str, split: Literal["train", "val"]) -> Dataset:
        dataset = for_task(open_dataset(spec, split=split), self.task)
        cache_mb = self.settings.data.cache_mb
        return CachedDataset(dataset, cache_mb=cache_mb) if cache_mb else dataset

    def run(self) -> Trained:
        """Trains to the end, evaluates and returns what was made.

        Raises:
            NotFinite: The loss is not a number; the batch lies in the run's folder.
            KeyboardInterrupt: After the state was saved.
            PeerStopped: Another process has failed.
        """
        bar = tqdm(
            total=self.total_steps, initial=self.step, unit="step", desc=self.network.name, disable=not self.world.first
        )
        threads = threads_of_process(self.settings.run.threads, self.world)
        with torch_settings(threads), FastKernels(), self.interrupts.watched():
            try:
                with self._loader(_BuildBatchItem(self.criterion, self.crops)) as loader, bar:
                    self._steps(loader, bar)
            except KeyboardInterrupt:
                self.save_state()
                raise
            finally:
                self.log.close()
            return self._finish()

    def _loader(self, build: Callable[[Sample, np.random.Generator], T], *, plain: bool = False) -> BatchLoader[T]:
        """Batches of this process; `plain` starts at the first batch, in the caller's thread."""
        return BatchLoader(
            self.train_set,
            build,
            batch_size=self.settings.optim.batch_size,
            seed=self.settings.seed,
            workers=0 if plain else self.settings.run.loader_workers,
            start_step=0 if plain else self.step,
            rank=self.world.rank,
            world=self.world.size,
        )

    def _steps(self, loader: BatchLoader[dict[str, NDArray[Any]]], bar: tqdm[Any]) -> None:
        run = self.settings.run
        self._set_live(self.network)
        clock = StepClock(loader, self.world)
        while self.step < self.total_steps:
            with self.world.together("reading a batch"), self.interrupts.during(held=False):
                items = next(loader)
            with self.interrupts.during(held=True):
                losses = self._step(items)
            clock.images += self.settings.optim.batch_size
            bar.update()
            if self.step % run.log_every == 0 or self.step == self.total_steps:
                figures = clock.figures()
                self._log(losses, figures)
                bar.set_postfix(loss=f"{losses['loss']:.3f}", img_s=f"{figures['images_per_s']:.1f}", refresh=False)
                self.seconds += clock.restart()
            if run.save_every and self.step % run.save_every == 0:
                self.save_state()
            if run.eval_every and self.step % run.eval_every == 0 and self.step < self.total_steps:
                self._evaluate(run.eval_limit)
                clock.restart()

    def _step(self, items: Sequence[dict[str, NDArray[Any]]]) -> dict[str, float]:
        optim = self.settings.optim
        rate = learning_rate(self.step, self.total_steps, optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        batch = self._collate(items)
        image = batch.pop("image_hwc_u8").permute(0, 3, 1, 2).to(torch.get_default_dtype())
        losses = self.criterion.losses(self.network, image, batch, reduce=self.world)
        values = self.world.figures(losses)
        if not np.isfinite(values["loss"]):
            self._stop_not_finite(items, values)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        self.world.add_gradients(self.network.parameters())
        if optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), optim.clip_norm)
        self.optimizer.step()
        update_ranges(self.network, self.world)
        if optim.ema_decay:
            self.average.update(self.network, self.step)
        self.step += 1
        return values

    def _collate(self, items: Sequence[dict[str, NDArray[Any]]]) -> dict[str, Tensor]:
        dtype = torch.get_default_dtype()
        stacked = {k: torch.from_numpy(np.stack([i[k] for i in items])).to(self.world.device) for k in items[0]}
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in stacked.items()}

    def _log(self, losses: dict[str, float], figures: dict[str, float]) -> None:
        self.log.write(
            self.step,
            images=self.step * self.settings.optim.batch_size,
            lr=self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["lr_scale"],
            **figures,
            **{k: round(v, 5) for k, v in losses.items()},
        )

    def _evaluate(self, limit: int) -> dict[str, Any]:
        network = self._evaluated_network()
        found = self._scored(network, limit)
        document = found.to_json()
        self.log.write(
            self.step,
            images=self.step * self.settings.optim.batch_size,
            eval_images=document["images"],
            **found.figures(),
        )
        with self.world.together("saving the checkpoint"):
            if self.world.first:
                save_checkpoint(
                    self.out / CHECKPOINT_FILE,
                    network.state_dict(),
                    settings=self.settings,
                    classes=self.train_set.classes,
                    step=self.step,
                    licence="" if network.licence == CODE_LICENCE else network.licence,
                )
        return document

    def _scored(self, network: Network, limit: int) -> Evaluation:
        """Scores with the pictures shared out between the processes."""
        world = self.world
        with world.together("evaluating"), self.interrupts.during(held=False):
            part = evaluate(
                Predictor(TorchRunner(network, self.train_set.classes, self.settings.decoder)),
                self.val_set,
                limit=limit,
                teacher_forced=True,
                progress="evaluate" if world.first else "",
                rank=world.rank,
                world=world.size,
            )
        return part.merged(world.gather)

    def _evaluated_network(self) -> Network:
        """A copy of the averaged (or live) weights on the CPU with BatchNorm statistics of its own."""
        network = self.average.network if self.settings.optim.ema_decay else self.network
        copied = remeasured(network, self._plain_batches(), self._set_live, self.world.device).cpu()
        separate(copied)
        return copied

    def _plain_batches(self) -> Iterator[Tensor]:
        """The first batches of the run, pictures only."""
        optim = self.settings.optim
        loader = self._loader(lambda sample, rng: self.crops(sample, rng).image_hwc_u8, plain=True)
        for _ in range(math.ceil(optim.batchnorm_images / optim.batch_size)):
            yield torch.from_numpy(np.stack(next(loader))).permute(0, 3, 1, 2).to(torch.get_default_dtype())

    def _finish(self) -> Trained:
        self.log = self._open_log()
        metrics = self._evaluate(0 if self.settings.run.eval_every else self.settings.run.eval_limit)
        self.save_state()
        self.log.close()
        if self.world.first:
            write_json(self.out / "metrics.json", metrics)
        epochs = self.step * self.settings.optim.batch_size / len(self.train_set)
        return Trained(self.out / CHECKPOINT_FILE, metrics, round(epochs, 3), round(self.seconds, 1), self.world.rank)

    def _stop_not_finite(self, items: Sequence[dict[str, NDArray[Any]]], values: dict[str, float]) -> None:
        """Saves this process' part of the batch; every process gets here, for the loss is the sum of all."""
        part = f"_process_{self.world.rank}" if self.world.size > 1 else ""
        path = self.out / f"not_finite_step_{self.step}{part}.npz"
        write_arrays(path, {k: np.stack([i[k] for i in items]) for k in items[0]})
        raise NotFinite(
            f"The loss is not finite at step {self.step}.",
            got=", ".join(f"{k} = {v}" for k, v in values.items()),
            todo=f"the batch is saved at {path}; lower optim.lr, or raise optim.warmup_steps",
        )

    def save_state(self) -> None:
        """Writes the resumable state, in the first process; no process goes on before it is written."""
        with self.world.together("saving the state"):
            if self.world.first:
                save_state(self.out / STATE_FILE, self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "seconds": self.seconds,
            "settings": json.dumps(asdict(self.settings)),
            "data": self.train_set.fingerprint(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _resume(self) -> None:
        """Reads the state in the first process and gives it to all: their machines need not share a disk."""
        state: dict[str, Any] = {}
        with self.world.together("reading the state"):
            if self.world.first:
                state = self._checked_state()
        state = self.world.from_first(state)
        try:
            self.network.load_state_dict(state["network"])
            self.average.network.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise ArtifactError(
                f"{self.out / STATE_FILE} does not fit the network.",
                got=str(error).partition("\n")[0],
                todo="choose another --out",
            ) from error
        self.step, self.seconds = int(state["step"]), float(state["seconds"])

    def _checked_state(self) -> dict[str, Any]:
        state = load_state(self.out / STATE_FILE)
        if _experiment_of(state) != _experiment(self.settings):
            raise ArtifactError(
                f"{self.out} holds another experiment.",
                expected="the settings of the interrupted run",
                todo="resume with the same configuration, or choose another --out",
            )
        if state["data"] != self.train_set.fingerprint():
            raise ArtifactError(
                f"The training data of {self.out} has changed since the run was interrupted.",
                expected=f"data with fingerprint {state['data'][:12]}",
                got=self.train_set.fingerprint()[:12],
                todo="bring the data back, or choose another --out",
            )
        return state


def _experiment(settings: TrainSettings) -> str:
    """The settings that decide the weights: how often a run logs or saves may change on resume."""
    return json.dumps({k: v for k, v in asdict(settings).items() if k != "run"}, sort_keys=True)


def _experiment_of(state: dict[str, Any]) -> str:
    """The same of a saved state; settings that its version did not know have their defaults."""
    try:
        return _experiment(from_mapping(TrainSettings, json.loads(state["settings"])))
    except ConfigError:
        return "settings of another version"


def same_experiment(out: Path, settings: TrainSettings) -> bool:
    """Returns whether the folder's resumable state belongs to these settings."""
    return _experiment_of(load_state(out / STATE_FILE)) == _experiment(settings)


def train(settings: TrainSettings, out: Path, *, resume: bool = False) -> Trained:
    """Trains an experiment, alone or as one of the processes that torchrun started (see `Trainer`)."""
    with started(settings.run.device, timeout_s=settings.run.peer_timeout_s) as world:
        return Trainer(settings, out, resume=resume, world=world).run()
