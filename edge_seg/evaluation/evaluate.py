"""Accuracy of any network on a data set, by the same decoder: panoptic quality, and what limits it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from edge_seg.contract import ClassInfo
from edge_seg.data.center_targets import CenterTargetConfig, center_targets
from edge_seg.data.sample import Dataset, Sample
from edge_seg.data.transforms import letterbox_sample
from edge_seg.decoders.base import PanopticResult
from edge_seg.decoders.maskconver import MaskConverDecoder, Proposals
from edge_seg.errors import InputError
from edge_seg.evaluation.panoptic_quality import PanopticQuality
from edge_seg.evaluation.predictor import Prediction, Predictor

Gather = Callable[[Any], list[Any]]
_FIGURES = ("pq", "sq", "rq", "pq_th", "pq_st")


@dataclass(frozen=True)
class Control:
    """Known damage to a prediction, and the classes that must suffer from it.

    Attributes:
        change: The damage.
        classes: Indices of the classes whose quality is reported apart; empty means all.
    """

    change: Callable[[PanopticResult], PanopticResult]
    classes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        quality: Panoptic quality of the network.
        teacher_forced: Quality when centres and classes come from the truth (masks alone), or None.
        changed: Quality after each named change of the predictions (controls).
        images: Pictures scored.
    """

    quality: PanopticQuality
    teacher_forced: PanopticQuality | None
    changed: dict[str, tuple[Control, PanopticQuality]]
    images: int

    def to_json(self, **about: Any) -> dict[str, Any]:
        """Returns the figures in percent with a 95 % bootstrap interval over pictures; `about` is added."""
        score = self.quality.compute()
        interval = self.quality.bootstrap_ci(seed=0)
        document: dict[str, Any] = {
            **about,
            "metric": "pq",
            **{k: _rounded(getattr(score, k)) for k in _FIGURES},
            "pq_ci95": [_rounded(interval.low), _rounded(interval.high)],
            "images": self.images,
            "per_class": score.to_json()["per_class"],
        }
        if self.teacher_forced is not None:
            document["pq_teacher_forced"] = _rounded(self.teacher_forced.compute().pq)
        if self.changed:
            document["controls"] = {k: self._control(*v) for k, v in self.changed.items()}
        return document

    def _control(self, control: Control, damaged: PanopticQuality) -> dict[str, Any]:
        """PQ after the damage, and the mean PQ of the classes it hits before and after."""
        rows: dict[str, Any] = {"pq": _rounded(damaged.compute().pq)}
        if control.classes:
            before, after = self.quality.compute().per_class, damaged.compute().per_class
            rows["classes"] = [before[i].name for i in control.classes]
            rows["pq_classes_before"] = _rounded(_mean(before[i].pq for i in control.classes))
            rows["pq_classes"] = _rounded(_mean(after[i].pq for i in control.classes))
        return rows

    def merged(self, gather: Gather) -> Evaluation:
        """Joins the parts of several processes; equal to the evaluation of one process to the last digit.

        Args:
            gather: Takes a picklable value; returns the values of all processes in order of rank, to each of them.

        Raises:
            InputError: The parts do not belong together.
        """
        own = {"": self.quality, **{f" {k}": quality for k, (_, quality) in self.changed.items()}}
        if self.teacher_forced is not None:
            own["teacher forced"] = self.teacher_forced
        parts: list[dict[str, PanopticQuality]] = gather(own)
        if any(part.keys() != own.keys() for part in parts):
            raise InputError("Parts of an evaluation do not belong together.", todo="evaluate each with one command")
        whole = {k: PanopticQuality.interleaved([part[k] for part in parts]) for k in own}
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
    rank: int = 0,
    world: int = 1,
) -> Evaluation:
    """Scores a network on a data set.

    Of several processes each scores every `world`-th picture; `Evaluation.merged` joins the parts.

    Args:
        predictor: PyTorch or TFLite.
        dataset: Pictures with truth; classes must agree with the network's.
        limit: Score only this many pictures, evenly spread; 0 takes all.
        teacher_forced: Also score the masks of the true centres.
        controls: Named damages of each prediction that are scored as well.
        progress: Label of the progress bar; empty shows none.
        rank: Number of this process, 0..world-1; it scores the pictures rank, rank + world, ... of those chosen.
        world: Number of processes.

    Raises:
        InputError: The data set has other classes than the network, or rank and world do not fit.
    """
    _same_classes(predictor.contract.classes, dataset.classes)
    if not 0 <= rank < world:
        raise InputError("The part of an evaluation does not fit.", expected=f"0..{world - 1}", got=str(rank))
    quality = PanopticQuality(dataset.classes)
    forced = PanopticQuality(dataset.classes) if teacher_forced else None
    changed = {k: (control, PanopticQuality(dataset.classes)) for k, control in (controls or {}).items()}
    chosen = spread(len(dataset), limit)[rank::world]
    for index in tqdm(chosen, desc=progress, disable=not progress, unit="img", leave=False):
        sample = dataset[index]
        prediction = predictor.predict(sample.image_hwc_u8)
        _score(quality, prediction.result, sample)
        for control, damaged in changed.values():
            _score(damaged, control.change(prediction.result), sample)
        if forced is not None:
            _score(forced, teacher_forced_result(predictor, prediction, sample), sample)
    return Evaluation(quality, forced, changed, len(chosen))


def _mean(values: Iterable[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
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


def _score(quality: PanopticQuality, result: PanopticResult, sample: Sample) -> None:
    quality.update(result.id_map_hw_i32, result.segments, sample.id_map_hw_i32, sample.segments)


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
