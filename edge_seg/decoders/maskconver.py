"""MaskConver's decoder: peaks of the heat map, one kernel each, mask product, panoptic merge. NumPy only.

Source: arXiv 2312.06052 and its published generator; the exact foldings, relative position, score exponent, single
stuff peaks and re-assignment are options of the contract.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.decoders.base import DECODERS, PanopticResult, Raw, SegmentResult
from edge_seg.decoders.heat_peaks import peaks
from edge_seg.decoders.square_grid import SquareGrid, square_grid
from edge_seg.decoders.square_merge import Merged, MergeRules, logit, merge
from edge_seg.errors import InputError
from edge_seg.letterbox import Letterbox

Array = NDArray[np.float32]
_LAYER_NORM_EPS = 1e-6
_LAYERS = ("embedding_predict.weight", "fc1.weight")


@dataclass(frozen=True)
class Proposals:
    """Kept centres: flat cell, class and score, each [K]."""

    cell: NDArray[np.int64]
    class_index: NDArray[np.int64]
    score: Array


@DECODERS.register("maskconver")
class MaskConverDecoder:
    """Decodes heat map, embedding and mask features.

    Args:
        contract: Parameters, class list and output roles.
        constants: Class embedding, MLP, and the last 1x1 layers that were folded out of the graph.
    """

    def __init__(self, contract: Contract, constants: Mapping[str, Array]) -> None:
        self.params = checked_params(contract.decoder.params)
        self.constants = constants
        self._layers = {name: np.ascontiguousarray(constants[name].T) for name in _LAYERS if name in constants}
        self._last_weight, self._last_bias = last_layer(constants)
        self.isthing = np.array([c.isthing for c in contract.classes])
        self._single = ~self.isthing & self.params["one_peak_per_stuff_class"]
        self._rules = MergeRules(**{f.name: self.params[f.name] for f in fields(MergeRules)})
        self._output = {o.role: o.name for o in contract.outputs}

    def __call__(self, raw: Raw, box: Letterbox) -> PanopticResult:
        """Decodes one picture (see `Decoder`)."""
        return self.assemble(raw, self.propose(raw), box)

    def propose(self, raw: Raw) -> Proposals:
        """Finds the 3x3 peaks of every class and keeps the best `top_k` above the score threshold."""
        floor = logit(self.params["score_threshold"])
        cell, class_index, score = peaks(raw[self._output["heatmap"]][0], floor, self._single)
        k = self.params["top_k"]
        return Proposals(cell[:k], class_index[:k], _sigmoid(score[:k]))

    def assemble(self, raw: Raw, proposals: Proposals, box: Letterbox) -> PanopticResult:
        """Computes the masks of given centres and merges them at the size of the image.

        Args:
            raw: Raw outputs.
            proposals: Centres; from `propose`, or from the truth to judge the masks alone.
            box: Geometry.
        """
        if not len(proposals.cell):
            return PanopticResult(np.zeros((box.image_h_px, box.image_w_px), np.int32), ())
        logits = self.mask_logits(raw, proposals)
        grid = square_grid(box, (logits.shape[1], logits.shape[2]), self.params["stride_px"])
        weight = proposals.score ** self.params["score_exponent"]
        return self._result(merge(logits, weight, grid, self._rules), grid, proposals)

    def mask_logits(self, raw: Raw, proposals: Proposals) -> Array:
        """Returns the masks of the centres at body resolution, [K, h, w] logits."""
        features = raw[self._output["mask_features"]][0]
        height, width, channels = features.shape
        kernel = self._kernels(raw[self._output["embedding"]][0], proposals)
        # cells by masks: the product is a third faster than masks by cells, and so is the merge
        logits: Array = (features.reshape(-1, channels) @ kernel[:, :channels].T).reshape(height, width, -1)
        rows = np.broadcast_to(kernel[:, -1], (height, len(kernel)))
        if self.params["wavelengths_cells"]:
            wavelengths = self.params["wavelengths_cells"]
            y, x = np.divmod(proposals.cell, width)
            amplitude = kernel[:, channels:-1].reshape(len(kernel), len(wavelengths), 4)
            rows = rows + position_logits(amplitude[:, :, 2:], y, height, wavelengths)
            logits += position_logits(amplitude[:, :, :2], x, width, wavelengths)
        logits += rows[:, None]
        return np.moveaxis(logits, -1, 0)

    def _kernels(self, embedding: Array, proposals: Proposals) -> Array:
        """Gathers embeddings and sends them through class embedding and MLP, [K, channels + 4 wavelengths + 1]."""
        k = self.constants
        e = embedding.reshape(-1, embedding.shape[-1])[proposals.cell]
        if "embedding_predict.weight" in k:
            e = e @ self._layers["embedding_predict.weight"] + k["embedding_predict.bias"]
        c = k["class_embedding.weight"][proposals.class_index]
        z = e * c if self.params["class_embedding"] == "multiply" else e + c
        z = z @ self._layers["fc1.weight"] + k["fc1.bias"]
        z -= z.mean(axis=1, keepdims=True)
        z /= np.sqrt(np.square(z).mean(axis=1, keepdims=True) + np.float32(_LAYER_NORM_EPS))
        z = np.maximum(z * k["norm.weight"] + k["norm.bias"], 0)
        return np.asarray(z @ self._last_weight + self._last_bias, np.float32)

    def _result(self, merged: Merged, grid: SquareGrid, proposals: Proposals) -> PanopticResult:
        """Numbers the segments: a thing is one mask, a stuff class all its masks."""
        number = np.zeros(len(merged.keep) + 1, np.int32)
        ids: dict[tuple[int, int], int] = {}
        members: list[int] = []
        for k in np.flatnonzero(merged.keep).tolist():
            class_index = int(proposals.class_index[k])
            key = (class_index, k if self.isthing[class_index] else -1)
            if key not in ids:
                ids[key] = len(ids) + 1
                members.append(k)
            number[k + 1] = ids[key]
        id_map = merged.shown.id_map(number, grid)
        areas = np.bincount(number[1:], weights=merged.visible_px, minlength=len(members) + 1)[1:].astype(np.int64)
        boxes = merged.shown.boxes_xywh_px(number, len(members), grid)
        return PanopticResult(
            id_map,
            tuple(
                SegmentResult(
                    id=index,
                    class_index=int(proposals.class_index[k]),
                    isthing=bool(self.isthing[proposals.class_index[k]]),
                    score=float(proposals.score[k]),
                    area_px=area,
                    bbox_xywh_px=(x, y, w, h),
                )
                for index, (k, area, (x, y, w, h)) in enumerate(
                    zip(members, areas.tolist(), boxes.tolist(), strict=True), 1
                )
            ),
        )


_RANGES = {
    "top_k": (0, 10_000),
    "score_threshold": (0.0, 1.0),
    "score_exponent": (0.0, 10.0),
    "overlap_threshold": (0.0, 1.0),
    "min_area_share": (0.0, 1.0),
    "mask_threshold": (0.0, 1.0),
}


def checked_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the decoder's parameters; raises InputError for one that is missing or out of range."""
    for name, (low, high) in _RANGES.items():
        if name not in params or not low <= params[name] <= high:
            raise InputError(
                f"The decoder parameter {name!r} is out of range.",
                expected=f"{low} to {high}",
                got=repr(params.get(name)),
                todo="correct the recipe's [decoder] section or the --set option",
            )
    return dict(params)


def position_logits(
    amplitude: Array, center_cells: NDArray[np.int64], size_cells: int, wavelengths_cells: Sequence[float]
) -> Array:
    """Terms of each kernel along one axis, around its centre, [size, K].

    Args:
        amplitude: [K, wavelengths, 2] of cosine and sine.
        center_cells: [K] place of the centre along the axis.
        size_cells: Cells of the axis.
        wavelengths_cells: Wavelengths.
    """
    waves = _waves(size_cells, tuple(wavelengths_cells))[size_cells - 1 - center_cells]
    terms = amplitude.reshape(len(amplitude), 1, -1) @ waves
    return np.ascontiguousarray(terms[:, 0].T)


@lru_cache(maxsize=8)
def _waves(size_cells: int, wavelengths_cells: tuple[float, ...]) -> Array:
    """Cosines and sines around each possible centre, the last cell first, [size, 2 wavelengths, size]."""
    distance = np.arange(1 - size_cells, size_cells, dtype=np.float32)
    angle = distance[:, None] * (2 * np.pi / np.array(wavelengths_cells, np.float32))
    waves = np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(len(distance), -1)
    return sliding_window_view(waves, size_cells, axis=0)


def last_layer(constants: Mapping[str, Array]) -> tuple[Array, Array]:
    """Folds the mask head's 1x1, where it was taken out of the graph, into the kernels' last layer.

    Args:
        constants: The decoder's constants.

    Returns:
        Weight [width, channels + position terms + 1] and bias of a layer whose last output is the mask's offset.
    """
    weight, bias = constants["fc2.weight"].T, constants["fc2.bias"]
    layer = np.concatenate([weight, bias[None]]).astype(np.float64)
    width = constants["class_embedding.weight"].shape[1]
    main, rest, offset = layer[:, :width], layer[:, width:], np.zeros((len(layer), 1))
    if "mask_predict.weight" in constants:
        offset = main @ constants["mask_predict.bias"][:, None]
        main = main @ constants["mask_predict.weight"]
    layer = np.concatenate([main, rest, offset], axis=1).astype(np.float32)
    return np.ascontiguousarray(layer[:-1]), layer[-1]


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))), np.float32)
