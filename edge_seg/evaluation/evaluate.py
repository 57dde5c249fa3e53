"""Accuracy of any network on a data set, by the same decoder: PQ of panoptic networks, mask AP of instance networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edge_seg.contract import ClassInfo
from edge_seg.data.center_targets import CenterTargetConfig, center_targets
from edge_seg.data.sample import Dataset, Sample, Segment
from edge_seg.data.things import for_task, object_masks
from edge_seg.data.transforms import letterbox_sample
from edge_seg.decoders.base import PanopticResult, Result
from edge_seg.decoders.maskconver import MaskConverDecoder, Proposals
from edge_seg.errors import InputError, nearest
from edge_seg.evaluation.average_precision import AveragePrecision
from edge_seg.evaluation.bootstrap import Resampled, interval
from edge_seg.evaluation.panoptic_quality import PanopticQuality
from edge_seg.evaluation.predictor import Prediction, Predictor

Gather = Callable[[Any], list[Any]]
Objects = Callable[[], list[tuple[Segment, NDArray[np.bool_]]]]


class Quality(Resampled, Protocol):
    """A score that collects pictures; `metric` is the key of its main figure."""

    metric: str

    def score(self, result: Result, sample: Sample, objects: Objects) -> None:
        """Adds one picture.

        Args:
            result: The prediction.
            sample: The picture and its truth.
            objects: Returns the things of the picture with whole masks; called only where they are needed.
        """

    def figures(self) -> dict[str, float]:
        """Returns the averages in percent, the main one first; raises InputError when there is no picture."""

    def per_class(self) -> list[dict[str, Any]]:
        """Returns the figures of each class, plain JSON types, in the order of the class list."""


METRICS: dict[str, type[PanopticQuality] | type[AveragePrecision]] = {
    kind.metric: kind for kind in (PanopticQuality, AveragePrecision)
}
_METRIC_OF_TASK = {"panoptic": "pq", "instance": "ap"}


def metric_of(task: str, wanted: str = "") -> str:
    """Returns the metric of a task, or the wanted one; raises InputError for one that does not exist."""
    metric = wanted or _METRIC_OF_TASK[task]
    if metric not in METRICS:
        raise InputError(f"There is no metric {metric!r}.", got=metric, todo=nearest(metric, list(METRICS)))
    return metric


@dataclass(frozen=True)
class Control:
    """Known damage to a prediction, and the classes that must suffer from it.

    Attributes:
        change: The damage.
        classes: Indices of the classes whose quality is reported apart; empty means all.
    """

    change: Callable[[Result], Result]
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        quality: Score of the network.
        teacher_forced: Panoptic quality when centres and classes come from the truth (masks alone), or None.
        changed: Score after each named change of the predictions (controls).
        images: Pictures scored.
    """

    quality: PanopticQuality | AveragePrecision
    teacher_forced: PanopticQuality | None
    changed: dict[str, tuple[Control, PanopticQuality | AveragePrecision]]
    images: int

    @property
    def panoptic(self) -> PanopticQuality:
        """The panoptic quality; raises InputError where another metric was measured."""
        if not isinstance(self.quality, PanopticQuality):
            raise InputError("This needs panoptic quality.", expected="metric pq", got=self.quality.metric)
        return self.quality

    def figures(self) -> dict[str, float | None]:
        """Returns the averages in percent, None where there is nothing to measure."""
        found = {k: _rounded(v) for k, v in self.quality.figures().items()}
        if self.teacher_forced is not None:
            found["pq_teacher_forced"] = _rounded(self.teacher_forced.value())
        return found

    def to_json(self, **about: Any) -> dict[str, Any]:
        """Returns the figures in percent with a 95 % bootstrap interval over pictures; `about` is added."""
        metric = self.quality.metric
        found = interval(self.quality, seed=0)
        document: dict[str, Any] = {
            **about,
            "metric": metric,
            **{k: _rounded(v) for k, v in self.quality.figures().items()},
            f"{metric}_ci95": [_rounded(found.low), _rounded(found.high)],
            "images": self.images,
            "per_class": self.quality.per_class(),
        }
        document |= {k: v for k, v in self.figures().items() if k not in document}
        if self.changed:
            document["controls"] = {k: self._control(*v) for k, v in self.changed.items()}
        return document

    def _control(self, control: Control, damaged: PanopticQuality | AveragePrecision) -> dict[str, Any]:
        """The metric after the damage, and its mean over the classes that are hit, before and after."""
        metric = damaged.metric
        rows: dict[str, Any] = {metric: _rounded(damaged.value())}
        if control.classes:
            before, after = self.quality.per_class(), damaged.per_class()
            rows["classes"] = [before[i]["name"] for i in control.classes]
            rows[f"{metric}_classes_before"] = _rounded(_mean(before[i][metric] for i in control.classes))
            rows[f"{metric}_classes"] = _rounded(_mean(after[i][metric] for i in control.classes))
        return rows

    def merged(self, gather: Gather) -> Evaluation:
        """Joins the parts of several processes; equal to the evaluation of one process to the last digit.

        Args:
            gather: Takes a picklable value; returns the values of all processes in order of rank, to each of them.

        Raises:
            InputError: The parts do not belong together.
        """
        own: dict[str, Any] = {"": self.quality, **{f" {k}": quality for k, (_, quality) in self.changed.items()}}
        if self.teacher_forced is not None:
            own["teacher forced"] = self.teacher_forced
        parts: list[dict[str, Any]] = gather(own)
        if any(part.keys() != own.keys() for part in parts):
            raise InputError("Parts of an evaluation do not belong together.", todo="evaluate each with one command")
        whole = {k: type(own[k]).interleaved([part[k] for part in parts]) for k in own}
        changed = {k: (control, whole[f" {k}"]) for k, (control, _) in self.changed.items()}
        return Evaluation(whole[""], whole.get("teacher forced"), changed, len(whole[""].image_ids))


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    *,
    limit: int = 0,
    teacher_forced: bool = False,
    controls: Mapping[str, Control] | None = None,
    progress: str = "",
    metric: str = "",
    rank: int = 0,
    world: int = 1,
) -> Evaluation:
    """Scores a network on a data set.

    Of several processes each scores every `world`-th picture; `Evaluation.merged` joins the parts.

    Args:
        predictor: PyTorch or TFLite.
        dataset: Pictures with truth; classes must agree with the network's. An instance network is scored on the
            things of a panoptic data set.
        limit: Score only this many pictures, evenly spread; 0 takes all.
        teacher_forced: Also score the masks of the true centres, where the decoder has centres.
        controls: Named damages of each prediction that are scored as well.
        progress: Label of the progress bar; empty shows none.
        metric: "pq" or "ap" instead of the task's own; objects are laid over each other for PQ.
        rank: Number of this process, 0..world-1; it scores the pictures rank, rank + world, ... of those chosen.
        world: Number of processes.

    Raises:
        InputError: The data set has other classes than the network, or rank and world do not fit.
    """
    task = predictor.contract.model.task
    dataset = for_task(dataset, task)
    _same_classes(predictor.contract.classes, dataset.classes)
    if not 0 <= rank < world:
        raise InputError("The part of an evaluation does not fit.", expected=f"0..{world - 1}", got=str(rank))
    kind = METRICS[metric_of(task, metric)]
    quality = kind(dataset.classes)
    forced = PanopticQuality(dataset.classes) if teacher_forced and has_centres(predictor) else None
    changed = {k: (control, kind(dataset.classes)) for k, control in (controls or {}).items()}
    chosen = spread(len(dataset), limit)[rank::world]
    for index in tqdm(chosen, desc=progress, disable=not progress, unit="img", leave=False):
        sample = dataset[index]
        prediction = predictor.predict(sample.image_hwc_u8)
        objects = partial(object_masks, dataset, index, sample)
        quality.score(prediction.result, sample, objects)
        for control, damaged in changed.values():
            damaged.score(control.change(prediction.result), sample, objects)
        if forced is not None:
            forced.score(teacher_forced_result(predictor, prediction, sample), sample, objects)
    return Evaluation(quality, forced, changed, len(chosen))


def has_centres(predictor: Predictor) -> bool:
    """Returns whether a network's masks can be judged with centres from the truth."""
    return isinstance(predictor.decoder, MaskConverDecoder)


def _mean(values: Iterable[float | None]) -> float:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def _rounded(value: float) -> float | None:
    """Three digits for JSON; None where there is nothing to measure."""
    return round(value, 3) if math.isfinite(value) else None


def spread(count: int, limit: int) -> list[int]:
    """Returns `limit` indices evenly spread over `count` (all for 0)."""
    if limit <= 0 or limit >= count:
        return list(range(count))
    return [int(i) for i in np.linspace(0, count - 1, limit).round()]


def teacher_forced_result(predictor: Predictor, prediction: Prediction, sample: Sample) -> PanopticResult:
    """Decodes a prediction with the true centres and classes, so that only the masks are judged."""
    decoder = predictor.decoder
    if not isinstance(decoder, MaskConverDecoder):
        raise InputError(f"Teacher forcing is not defined for {predictor.contract.decoder.name!r}.")
    contract = predictor.contract
    crop = letterbox_sample(sample, contract.model.input_px, contract.preprocess.fill_rgb)
    config = CenterTargetConfig(stride_px=decoder.params["stride_px"], max_slots=200, stuff_min_area_share=0.0)
    targets = center_targets(crop, [c.isthing for c in contract.classes], config, np.random.default_rng(0))
    real = targets.class_index >= 0
    score = np.ones(int(real.sum()), np.float32)
    proposals = Proposals(targets.cell[real], targets.class_index[real], score)
    return decoder.assemble(prediction.raw, proposals, prediction.box)


def _same_classes(own: Sequence[ClassInfo], other: Sequence[ClassInfo]) -> None:
    mine, theirs = ([f"{c.name} ({'thing' if c.isthing else 'stuff'})" for c in cs] for cs in (own, other))
    if mine == theirs:
        return
    shared = min(len(mine), len(theirs))
    first = next((i for i in range(shared) if mine[i] != theirs[i]), shared)
    raise InputError(
        "The data set has other classes than the network.",
        expected=f"{len(mine)} classes, from number {first + 1} on: {', '.join(mine[first : first + 8]) or 'none'}",
        got=f"{len(theirs)} classes, from number {first + 1} on: {', '.join(theirs[first : first + 8]) or 'none'}",
        todo="evaluate on the data set the network was trained for",
    )
