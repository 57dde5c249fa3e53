"""Mixed precision as plain functions: which layers are sensitive, and the cheapest recipe that meets a budget."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.converters.convert import convert
from edge_seg.converters.metadata import read_contract
from edge_seg.converters.mixed.sensitivity import Change, LayerLoss, Metric, Mode, Sensitivity
from edge_seg.converters.mixed.sensitivity_file import SensitivityFile, read_rows
from edge_seg.converters.mixed.trials import about_trials, open_trials
from edge_seg.converters.ptq.calibration import Images
from edge_seg.converters.ptq.post_training import PtqSettings
from edge_seg.data.source import open_dataset
from edge_seg.errors import InputError, nearest
from edge_seg.evaluation.bootstrap import paired_bootstrap
from edge_seg.evaluation.evaluate import Quality, evaluate, metric_of
from edge_seg.model_file import open_predictor
from edge_seg.steps import exported_folder, letterboxed, pictures

METRICS = ("auto", "pq", "ap", "snr")
FIGURES = ("pq", "sq", "rq", "pq_th", "pq_st", "ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l", "boundary_ap")


class Accuracy:
    """PQ or AP of converted files on the `val` split of a data set.

    Args:
        data: DATA argument.
        limit: Pictures, evenly spread; 0 takes all.
        name: "pq" or "ap".
        threads: CPU threads.
    """

    def __init__(self, data: str, limit: int, name: str = "pq", threads: int = 1) -> None:
        self.limit, self.name, self._threads = limit, name, threads
        self._dataset = open_dataset(data, split="val")
        self.data_sha256 = self._dataset.fingerprint()
        self._bases: dict[Path, Quality] = {}

    def quality(self, file: Path) -> Quality:
        """Scores a file."""
        predictor = open_predictor(file, threads=self._threads)
        progress = f"score {file.stem}"
        return evaluate(predictor, self._dataset, limit=self.limit, metric=self.name, progress=progress).quality

    def change(self, file: Path, base: Path) -> Change:
        """Scores a file beside another; the interval is over pictures, both on the same ones."""
        if base not in self._bases:
            self._bases[base] = self.quality(base)
        found = self.quality(file)
        difference = paired_bootstrap(self._bases[base], found, seed=0)
        return Change(
            round(figure(found, self.name), 3),
            round(difference.value, 3),
            (round(difference.low, 3), round(difference.high, 3)),
        )


def metric_of_figure(name: str) -> str:
    """Returns the metric that a figure belongs to, "pq" or "ap"."""
    return "ap" if name.startswith("ap") or name.endswith("_ap") else "pq"


def figure(quality: Quality, name: str) -> float:
    """Returns a figure in percent; raises InputError where the pictures hold nothing that it measures."""
    value = quality.figures()[name]
    if not math.isfinite(value):
        raise InputError(f"The pictures have nothing that {name} measures.", todo="raise --limit, or take other data")
    return value


def float_file(model: Path, out: Path, *, route: str = "litert", split_7x7: bool = True) -> Path:
    """Returns the fp32 file of a MODEL: itself, or what an exported folder or a checkpoint converts to.

    Args:
        model: Exported folder, checkpoint or fp32 `.tflite`.
        out: Folder of what is made.
        route: Converter.
        split_7x7: As in `exported_folder`.
    """
    if model.suffix == ".tflite":
        return model
    folder = exported_folder(model, out, split_7x7=split_7x7)
    return convert(folder, scheme="fp32", out=out, route=route).file


@dataclass(frozen=True)
class Calibration:
    """Pictures that give activations their ranges.

    Attributes:
        data: DATA argument; its `train` split is used.
        count: Pictures.
    """

    data: str
    count: int

    def check(self) -> None:
        """Raises InputError or DataError for data that is not there; quick, so that it comes before anything slow."""
        if self.count < 1:
            raise InputError(
                "Calibration needs pictures.", expected="1 or more", got=str(self.count), todo="64 are usual"
            )
        open_dataset(self.data, split="train")

    def images(self, contract: Contract) -> Images:
        """Returns the pictures, letterboxed for a network."""
        found: list[NDArray[np.uint8]] = letterboxed(contract, pictures(self.data, self.count, "train"))
        return found

    def sha256(self) -> str:
        """Fingerprint of the data."""
        return open_dataset(self.data, split="train").fingerprint()


@dataclass(frozen=True)
class Question:
    """What `sensitivity` is asked.

    Attributes:
        calibration: Pictures for ranges.
        data: DATA argument whose `val` split is scored.
        metric: "auto" (PQ of a panoptic network, AP of an instance network), "pq", "ap" or "snr".
        limit: Pictures scored; 0 takes all.
        worst: Layers scored, those of lowest SNR; 0 scores all.
        mode: Each layer quantised alone, or left out alone.
        threads: CPU threads.
        settings: Ranges and corrections.
    """

    calibration: Calibration
    data: str
    metric: str = "auto"
    limit: int = 24
    worst: int = 0
    mode: Mode = "alone"
    threads: int = 2
    settings: PtqSettings = field(default_factory=PtqSettings)

    def __post_init__(self) -> None:
        """Raises InputError for an unknown metric or a negative number."""
        if self.metric not in METRICS:
            raise InputError(
                f"There is no metric {self.metric!r}.", got=self.metric, todo=nearest(self.metric, METRICS)
            )
        if self.limit < 0 or self.worst < 0:
            raise InputError("A number is negative.", expected=">= 0", got=f"limit {self.limit}, worst {self.worst}")

    def metric_for(self, contract: Contract) -> Metric | None:
        """Returns the metric of a network; None stands for output SNR alone."""
        if self.metric == "snr":
            return None
        name = metric_of(contract.model.task, "" if self.metric == "auto" else self.metric)
        return Accuracy(self.data, self.limit, name, self.threads)


def sensitivity(model: Path, question: Question, out: Path) -> tuple[dict[str, Any], list[LayerLoss]]:
    """Ranks the layers of a network by what they lose in int8.

    Args:
        model: Exported folder, checkpoint or fp32 `.tflite`.
        question: What is measured, on what.
        out: JSON lines of finished layers; what it holds is not measured again. An fp32 file that has to be made
            lies beside it.

    Returns:
        The document for scripts, and the layers, the most sensitive first.

    Raises:
        InputError: The model is not float, or `out` is about another network, data or settings.
        ArtifactError: `out` is not a sensitivity file.
    """
    question.calibration.check()
    if out.exists():
        read_rows(out)
    if question.metric != "snr":
        open_dataset(question.data, split="val")  # what is wrong is told before the long work
    file = float_file(model, out.parent)
    contract = read_contract(file)
    metric = question.metric_for(contract)
    calibration = question.calibration
    with open_trials(file, calibration.images(contract), question.settings, threads=question.threads) as trials:
        about = about_trials(trials, calibration.sha256())
        runs = Sensitivity(trials, SensitivityFile(out, about), question.mode)
        losses = runs.measure(metric, worst=question.worst)
    document = {
        "model": contract.model.name,
        **about,
        "mode": question.mode,
        "metric": metric.name if metric else "snr",
        "limit": question.limit,
        "data": question.data,
        "data_sha256": metric.data_sha256 if metric else None,
        "file": str(out),
        "layers": [loss.to_json() for loss in losses],
    }
    return document, losses
