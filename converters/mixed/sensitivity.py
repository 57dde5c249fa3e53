"""Which layers lose most in int8: each is quantised alone, or left out alone, and the outputs are compared."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.mixed.sensitivity_file import SensitivityFile
from edge_seg.converters.mixed.trials import Trials, layers_of, snr_db
from edge_seg.converters.ptq.recipe import Recipe, Rule

Mode = Literal["alone", "leave_one_out"]


@dataclass(frozen=True)
class Change:
    """A metric of a file beside the metric of another one, in the metric's unit.

    Attributes:
        value: Of the file.
        delta: Value minus the other one's; below zero the file is worse.
        ci95: 95 % interval of the difference over pictures.
    """

    value: float
    delta: float
    ci95: tuple[float, float]


class Metric(Protocol):
    """An accuracy that a file has on labelled pictures."""

    name: str
    limit: int
    data_sha256: str

    def change(self, file: Path, base: Path) -> Change:
        """Scores a file beside another; both carry their contract."""


@dataclass(frozen=True)
class LayerLoss:
    """What the precision of one layer costs.

    Attributes:
        module: Module path.
        scheme: Its precision while all others have the opposite: "int8", or "float" when it is left out.
        snr_db: Signal-to-noise ratio by output against the float file; infinite where nothing differs.
        metric: Name of the metric, or "snr" where none was measured.
        value: The metric, or None.
        delta: Metric minus that of the base (the float file, or the all-int8 file when layers are left out), or None.
        delta_ci95: 95 % interval of `delta` over pictures, or None.
        pictures: Pictures the metric was measured on; 0 takes all.
    """

    module: str
    scheme: str
    snr_db: Mapping[str, float]
    metric: str = "snr"
    value: float | None = None
    delta: float | None = None
    delta_ci95: tuple[float, float] | None = None
    pictures: int | None = None

    @property
    def worst_snr_db(self) -> float:
        """Of the output that suffers most."""
        return min(self.snr_db.values())

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON types; infinite ratios become null."""
        snr_db = {k: _finite(v) for k, v in self.snr_db.items()}
        return {**asdict(self), "snr_db": _finite(self.worst_snr_db), "outputs_snr_db": snr_db}

    def text(self) -> str:
        """Returns the loss in words, for a recipe's `reason`."""
        base = "alone in int8" if self.scheme == "int8" else "alone in float"
        metric = ""
        if self.delta is not None:
            metric = f", {self.metric} {self.delta:+.2f} on {self.pictures or 'all'} pictures"
        return f"{base}: output SNR {self.worst_snr_db:.1f} dB{metric}"


def ranked(losses: Sequence[LayerLoss]) -> list[LayerLoss]:
    """Returns layers, those that lose most in int8 first: by the metric where it was measured, then by SNR."""

    def key(loss: LayerLoss) -> tuple[bool, float, float]:
        sign = 1 if loss.scheme == "int8" else -1  # a layer left out in float gains what it would lose
        known = loss.delta is not None
        return not known, sign * (loss.delta if loss.delta is not None else 0.0), sign * loss.worst_snr_db

    return sorted(losses, key=key)


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


class Sensitivity:
    """Measures the layers of a network that a file does not hold yet.

    Args:
        trials: The calibrated network.
        store: Where finished layers are kept.
        mode: "alone": one layer in int8, all others float. "leave_one_out": one layer float, all others in int8.
    """

    def __init__(self, trials: Trials, store: SensitivityFile, mode: Mode = "alone") -> None:
        self.trials, self.store, self.mode = trials, store, mode
        self.layers = layers_of(trials.network.graph)
        self._default, self._own = ("float", "int8") if mode == "alone" else ("int8", "float")

    def measure(self, metric: Metric | None = None, *, worst: int = 0, progress: bool = True) -> list[LayerLoss]:
        """Measures output SNR of every layer, then the metric of those where it is worst.

        Args:
            metric: Accuracy, or None for SNR alone.
            worst: How many layers are scored, those of lowest SNR (highest, where they are left out); 0 scores all.
            progress: Whether progress bars show on stderr.

        Returns:
            The layers, the most sensitive first.
        """
        for module in self._todo([x.module for x in self.layers], "output SNR", progress, {"metric": "snr"}):
            self._measure_snr(module)
        if metric is not None:
            order = [x.module for x in ranked([self._loss(x.module, None) for x in self.layers])]
            for module in self._todo(order[: worst or len(order)], metric.name, progress, _about(metric)):
                self._measure_metric(module, metric)
        return ranked([self._loss(x.module, _about(metric) if metric else None) for x in self.layers])

    def known(self, metric: str) -> list[LayerLoss]:
        """Returns the layers ranked by what the file holds of a metric, on whatever data, after their SNR is there."""
        self.measure(None)
        return ranked([self._loss(x.module, {"metric": metric}) for x in self.layers])

    def _todo(self, modules: Sequence[str], what: str, progress: bool, about: Mapping[str, Any]) -> Iterator[str]:
        from tqdm import tqdm

        missing = [m for m in modules if self.store.find(module=m, mode=self.mode, **about) is None]
        yield from tqdm(missing, desc=f"{what} of layers", unit="layer", disable=not progress, leave=False)

    def _measure_snr(self, module: str) -> None:
        found = self.trials.outputs(self._trial(module))
        snr = {name: _finite(snr_db(values, found[name])) for name, values in self._float_outputs.items()}
        self.store.add({"module": module, "mode": self.mode, "metric": "snr", "snr_db": snr})

    def _measure_metric(self, module: str, metric: Metric) -> None:
        change = metric.change(self._trial(module), self._base)
        figures = {"value": change.value, "delta": change.delta, "delta_ci95": list(change.ci95)}
        self.store.add({"module": module, "mode": self.mode, **_about(metric), **figures})

    def _trial(self, module: str) -> Path:
        return self.trials.write(Recipe(self._default, (Rule(module, self._own),)))

    @functools.cached_property
    def _float_outputs(self) -> dict[str, NDArray[np.float32]]:
        return self.trials.outputs(self.trials.float_file)

    @functools.cached_property
    def _base(self) -> Path:
        """What the metric is compared with: the float file, or the one that is int8 throughout."""
        return self.trials.float_file if self.mode == "alone" else self.trials.write(Recipe("int8"), "int8")

    def _loss(self, module: str, about: Mapping[str, Any] | None) -> LayerLoss:
        row = self.store.find(module=module, mode=self.mode, metric="snr") or {}
        snr = {name: math.inf if v is None else float(v) for name, v in row["snr_db"].items()}
        scored = self.store.find(module=module, mode=self.mode, **about) if about else None
        if scored is None:
            return LayerLoss(module, self._own, snr)
        low, high = scored["delta_ci95"]
        figures = (scored["metric"], scored["value"], scored["delta"], (low, high), scored["limit"])
        return LayerLoss(module, self._own, snr, *figures)


def _about(metric: Metric) -> dict[str, Any]:
    return {"metric": metric.name, "limit": metric.limit, "metric_data_sha256": metric.data_sha256}
