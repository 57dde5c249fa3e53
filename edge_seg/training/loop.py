"""The training loop: batches in, averaged weights out; killed at any step and resumed, it ends bit-identical.

What a step does depends only on the weights, the optimiser's state, the step's number and the seed: batches are a
pure function of (seed, step), and nothing else is random.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from edge_seg.artifact import write_arrays, write_json
from edge_seg.data.cached import CachedDataset
from edge_seg.data.loader import BatchLoader
from edge_seg.data.sample import Dataset, Sample
from edge_seg.data.source import open_dataset
from edge_seg.data.transforms import augment
from edge_seg.errors import ArtifactError, EdgeSegError
from edge_seg.evaluation.evaluate import evaluate
from edge_seg.evaluation.predictor import Predictor
from edge_seg.models.base import FILL_RGB, Criterion, Network
from edge_seg.models.torch_runner import TorchRunner
from edge_seg.training.batchnorm import remeasured
from edge_seg.training.checkpoint import build_network, load_state, save_checkpoint, save_state
from edge_seg.training.logs import RunLog
from edge_seg.training.optim import Average, freeze, learning_rate, make_optimizer, train_mode
from edge_seg.training.settings import TrainSettings

CHECKPOINT_FILE = "model.safetensors"
STATE_FILE = "state.pt"


class NotFinite(EdgeSegError):
    """The loss became infinite or NaN; the batch was saved."""

    exit_code = 1


@dataclass(frozen=True)
class Trained:
    """What a finished training leaves."""

    checkpoint: Path
    metrics: dict[str, Any]
    epochs: float
    seconds: float


@dataclass(frozen=True)
class _BuildBatchItem:
    """Turns a sample into the arrays of a training picture; called by the loader's threads."""

    criterion: Criterion
    settings: TrainSettings
    input_px: int

    def __call__(self, sample: Sample, rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        crop = augment(sample, self.input_px, self.settings.augment, rng, FILL_RGB)
        return {"image_hwc_u8": crop.image_hwc_u8, **self.criterion.targets(crop, rng)}


class Trainer:
    """One training run.

    Args:
        settings: The experiment.
        out: Folder of the run.
        resume: Whether to go on from the folder's state.

    Raises:
        EdgeSegError: Data, weights or the state to resume are not right.
    """

    def __init__(self, settings: TrainSettings, out: Path, *, resume: bool = False) -> None:
        self.settings, self.out = settings, out
        self.device = _device(settings.run.device)
        self.train_set = self._open(settings.data.train, "train")
        self.val_set = self._open(settings.data.val or settings.data.train, "val")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.network = build_network(settings, self.train_set.classes)
        if settings.model.weights:
            self.network.load_backbone(settings.model.weights)
        freeze(self.network, settings.optim)
        self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.criterion = self.network.criterion(settings.criterion, self.train_set.classes)
        self.network.decoder_params(settings.decoder)  # fails now rather than after the training
        self.optimizer = make_optimizer(self.network, settings.optim)
        self.average = Average(self.network, settings.optim.ema_decay)
        self.total_steps = settings.total_steps(len(self.train_set))
        self.step, self.seconds = 0, 0.0
        if resume:
            self._resume()
        write_json(out / "settings.json", asdict(settings))
        self.log = RunLog(out, start_step=self.step)

    def _open(self, spec: str, split: str) -> Dataset:
        dataset = open_dataset(spec, split="train" if split == "train" else "val")
        cache_mb = self.settings.data.cache_mb
        return CachedDataset(dataset, cache_mb=cache_mb) if cache_mb else dataset

    def run(self) -> Trained:
        """Trains to the end, evaluates and returns what was made.

        Raises:
            NotFinite: The loss is not a number; the batch lies in the run's folder.
            KeyboardInterrupt: After the state was saved.
        """
        build = _BuildBatchItem(self.criterion, self.settings, self.network.input_px)
        loader: BatchLoader[dict[str, NDArray[Any]]] = BatchLoader(
            self.train_set,
            build,
            batch_size=self.settings.optim.batch_size,
            seed=self.settings.seed,
            workers=self.settings.run.loader_workers,
            start_step=self.step,
        )
        bar = tqdm(total=self.total_steps, initial=self.step, unit="step", desc=self.network.name)
        with _torch_settings(self.settings.run.threads):
            try:
                with loader, bar:
                    self._steps(loader, bar)
            except KeyboardInterrupt:
                self.save_state()
                raise
            finally:
                self.log.close()
            return self._finish()

    def _steps(self, loader: BatchLoader[dict[str, NDArray[Any]]], bar: tqdm[Any]) -> None:
        run = self.settings.run
        train_mode(self.network, self.settings.optim)
        began, pictures = time.perf_counter(), 0
        while self.step < self.total_steps:
            items = next(loader)
            with _interrupt_afterwards():
                losses = self._step(items)
            pictures += self.settings.optim.batch_size
            bar.update()
            if self.step % run.log_every == 0 or self.step == self.total_steps:
                elapsed = time.perf_counter() - began
                rate = pictures / elapsed
                self._log(losses, rate, loader.waited_s / elapsed)
                bar.set_postfix(loss=f"{losses['loss']:.3f}", img_s=f"{rate:.1f}", refresh=False)
                self.seconds, began, pictures = self.seconds + elapsed, time.perf_counter(), 0
                loader.waited_s = 0.0
            if run.save_every and self.step % run.save_every == 0:
                self.save_state()
            if run.eval_every and self.step % run.eval_every == 0 and self.step < self.total_steps:
                self._evaluate(run.eval_limit)
                began, pictures, loader.waited_s = time.perf_counter(), 0, 0.0

    def _step(self, items: Sequence[dict[str, NDArray[Any]]]) -> dict[str, float]:
        optim = self.settings.optim
        rate = learning_rate(self.step, self.total_steps, optim)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        batch = self._collate(items)
        image = batch.pop("image_hwc_u8").permute(0, 3, 1, 2).float()
        losses = self.criterion.losses(self.network, image, batch)
        values = {k: float(v.detach()) for k, v in losses.items()}
        if not np.isfinite(values["loss"]):
            self._stop_not_finite(items, values)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()  # type: ignore[no-untyped-call]
        if optim.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), optim.clip_norm)
        self.optimizer.step()
        if optim.ema_decay:
            self.average.update(self.network, self.step)
        self.step += 1
        return values

    def _collate(self, items: Sequence[dict[str, NDArray[Any]]]) -> dict[str, Tensor]:
        return {k: torch.from_numpy(np.stack([i[k] for i in items])).to(self.device) for k in items[0]}

    def _log(self, losses: dict[str, float], rate: float, waited_share: float) -> None:
        self.log.write(
            self.step,
            images=self.step * self.settings.optim.batch_size,
            lr=self.optimizer.param_groups[0]["lr"] / self.optimizer.param_groups[0]["lr_scale"],
            images_per_s=round(rate, 2),
            loader_wait_share=round(waited_share, 4),
            **{k: round(v, 5) for k, v in losses.items()},
        )

    def _evaluate(self, limit: int) -> dict[str, Any]:
        network = self._evaluated_network()
        runner = TorchRunner(network, self.train_set.classes, self.settings.decoder)
        result = evaluate(Predictor(runner), self.val_set, limit=limit, teacher_forced=True, progress="evaluate")
        document = result.to_json()
        figures = {k: document[k] for k in ("pq", "sq", "rq", "pq_th", "pq_st", "pq_teacher_forced")}
        self.log.write(
            self.step,
            images=self.step * self.settings.optim.batch_size,
            eval_images=document["images"],
            **figures,
        )
        save_checkpoint(
            self.out / CHECKPOINT_FILE,
            network.state_dict(),
            settings=self.settings,
            classes=self.train_set.classes,
            step=self.step,
        )
        return document

    def _evaluated_network(self) -> Network:
        """A copy of the averaged (or live) weights on the CPU with BatchNorm statistics of its own."""
        optim = self.settings.optim
        network = self.average.network if optim.ema_decay else self.network
        return remeasured(network, self._plain_batches(), lambda n: train_mode(n, optim), self.device).cpu()

    def _plain_batches(self) -> Iterator[Tensor]:
        """The first batches of the run, pictures only."""
        optim = self.settings.optim
        side = self.network.input_px

        def build(sample: Sample, rng: np.random.Generator) -> NDArray[np.uint8]:
            return augment(sample, side, self.settings.augment, rng, FILL_RGB).image_hwc_u8

        loader = BatchLoader(self.train_set, build, batch_size=optim.batch_size, seed=self.settings.seed, workers=0)
        for _ in range(math.ceil(optim.batchnorm_images / optim.batch_size)):
            yield torch.from_numpy(np.stack(next(loader))).permute(0, 3, 1, 2).float()

    def _finish(self) -> Trained:
        self.log = RunLog(self.out, start_step=self.step)
        metrics = self._evaluate(0 if self.settings.run.eval_every else self.settings.run.eval_limit)
        self.save_state()
        self.log.close()
        write_json(self.out / "metrics.json", metrics)
        epochs = self.step * self.settings.optim.batch_size / len(self.train_set)
        return Trained(self.out / CHECKPOINT_FILE, metrics, round(epochs, 3), round(self.seconds, 1))

    def _stop_not_finite(self, items: Sequence[dict[str, NDArray[Any]]], values: dict[str, float]) -> None:
        path = self.out / f"not_finite_step_{self.step}.npz"
        write_arrays(path, {k: np.stack([i[k] for i in items]) for k in items[0]})
        raise NotFinite(
            f"The loss is not finite at step {self.step}.",
            got=", ".join(f"{k} = {v}" for k, v in values.items()),
            todo=f"the batch is saved at {path}; lower optim.lr, or raise optim.warmup_steps",
        )

    def save_state(self) -> None:
        """Writes the resumable state."""
        save_state(
            self.out / STATE_FILE,
            {
                "step": self.step,
                "seconds": self.seconds,
                "settings": json.dumps(asdict(self.settings)),
                "data": self.train_set.fingerprint(),
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def _resume(self) -> None:
        state = load_state(self.out / STATE_FILE)
        if _experiment(json.loads(state["settings"])) != _experiment(_plain(self.settings)):
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


@contextlib.contextmanager
def _torch_settings(threads: int) -> Iterator[None]:
    """Deterministic algorithms and the number of threads while a run lasts; what was set before comes back."""
    debug = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        debug.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_num_threads(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    # filling fresh memory serves debugging only and costs 13 % of a step
    debug.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_num_threads(threads or before[3])
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        debug.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]
        torch.set_num_threads(before[3])


@contextlib.contextmanager
def _interrupt_afterwards() -> Iterator[None]:
    """Holds Ctrl-C back until the block ends.

    In the middle of a step BatchNorm statistics and part of the weights have moved already: a state saved there
    would repeat them on resume. Outside the main thread no signal arrives, and nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _experiment(settings: dict[str, Any]) -> str:
    """The settings that decide the weights: how often a run logs or saves may change on resume."""
    return json.dumps({k: v for k, v in settings.items() if k != "run"}, sort_keys=True)


def same_experiment(out: Path, settings: TrainSettings) -> bool:
    """Returns whether the folder's resumable state belongs to these settings."""
    return _experiment(json.loads(load_state(out / STATE_FILE)["settings"])) == _experiment(_plain(settings))


def _plain(settings: TrainSettings) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise EdgeSegError("There is no CUDA device here.", todo="use run.device = cpu")
    return torch.device(name)


def train(settings: TrainSettings, out: Path, *, resume: bool = False) -> Trained:
    """Trains an experiment (see `Trainer`)."""
    return Trainer(settings, out, resume=resume).run()
