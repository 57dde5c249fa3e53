"""MaskConver's decoder: peaks of the heat map, one kernel each, mask product, panoptic merge. NumPy only.

Source: arXiv 2312.06052 and its published generator; the exact foldings, relative position, score exponent, single
stuff peaks and re-assignment are options of the contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.decoders.base import DECODERS, PanopticResult, Raw, SegmentResult, segment_boxes_px
from edge_seg.errors import InputError
from edge_seg.letterbox import Letterbox

Array = NDArray[np.float32]
_LAYER_NORM_EPS = 1e-6


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
        self.isthing = np.array([c.isthing for c in contract.classes])
        self._output = {o.role: o.name for o in contract.outputs}

    def __call__(self, raw: Raw, box: Letterbox) -> PanopticResult:
        """Decodes one picture (see `Decoder`)."""
        return self.assemble(raw, self.propose(raw), box)

    def propose(self, raw: Raw) -> Proposals:
        """Finds the 3x3 peaks of every class and keeps the best `top_k` above the score threshold."""
        logits = raw[self._output["heatmap"]][0]
        floor = _logit(self.params["score_threshold"])
        peak = _peaks(logits) & (logits > floor)
        if self.params["one_peak_per_stuff_class"]:
            peak &= self.isthing | (logits == logits.max(axis=(0, 1)))
        y, x, class_index = np.nonzero(peak)
        score = logits[y, x, class_index]
        order = np.argsort(-score, kind="stable")
        if self.params["one_peak_per_stuff_class"]:
            # before the cut: on an int8 grid a class may reach its maximum at hundreds of cells
            order = order[_first_of_stuff(class_index[order], self.isthing)]
        order = order[: self.params["top_k"]]
        return Proposals((y * logits.shape[1] + x)[order], class_index[order], _sigmoid(score[order]))

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
        return self._merge(enlarge(logits, box, self.params["stride_px"]), proposals)

    def mask_logits(self, raw: Raw, proposals: Proposals) -> Array:
        """Returns the masks of the centres at body resolution, [K, h, w] logits."""
        features = raw[self._output["mask_features"]][0]
        height, width, channels = features.shape
        kernel = self._kernels(raw[self._output["embedding"]][0], proposals)
        main, amplitude = np.split(kernel, [self._class_embedding.shape[1]], axis=1)
        offset: Array | np.float32 = np.float32(0)
        if "mask_predict.weight" in self.constants:
            offset = main @ self.constants["mask_predict.bias"]
            main = main @ self.constants["mask_predict.weight"]
        logits = main @ features.reshape(-1, channels).T
        logits = np.asarray(logits + np.reshape(offset, (-1, 1)), np.float32).reshape(-1, height, width)
        if self.params["wavelengths_cells"]:
            logits += position_logits(amplitude, proposals.cell, (height, width), self.params["wavelengths_cells"])
        return logits

    @property
    def _class_embedding(self) -> Array:
        return self.constants["class_embedding.weight"]

    def _kernels(self, embedding: Array, proposals: Proposals) -> Array:
        """Gathers embeddings and sends them through class embedding and MLP, [K, width + 4 wavelengths]."""
        k = self.constants
        e = embedding.reshape(-1, embedding.shape[-1])[proposals.cell]
        if "embedding_predict.weight" in k:
            e = e @ k["embedding_predict.weight"].T + k["embedding_predict.bias"]
        c = self._class_embedding[proposals.class_index]
        z = e * c if self.params["class_embedding"] == "multiply" else e + c
        z = z @ k["fc1.weight"].T + k["fc1.bias"]
        z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + _LAYER_NORM_EPS)
        z = np.maximum(z * k["norm.weight"] + k["norm.bias"], 0)
        return np.asarray(z @ k["fc2.weight"].T + k["fc2.bias"], np.float32)

    def _merge(self, logits_khw: Array, proposals: Proposals) -> PanopticResult:
        """Arg-max of score ** exponent * probability, then rejects small and overlapped segments."""
        weight = proposals.score ** self.params["score_exponent"]
        alive = np.ones(len(weight), bool)
        area_min_px = self.params["min_area_share"] * logits_khw[0].size
        own_px = np.count_nonzero(logits_khw > 0, axis=(1, 2))
        winner = _argmax(logits_khw, weight, alive)
        while True:
            seen = _without_faint(winner, logits_khw, self.params["mask_threshold"])
            visible_px = np.bincount(seen.ravel() + 1, minlength=len(weight) + 1)[1:]
            keep = alive & (visible_px > area_min_px) & (own_px > 0)
            keep &= visible_px > self.params["overlap_threshold"] * own_px
            if not self.params["reassign_rejected"] or (keep == alive).all():
                return self._result(seen, keep, proposals)
            # give up the worst rejected segment only: its pixels may save another
            rejected = np.flatnonzero(alive & ~keep)
            worst = rejected[np.argmin(weight[rejected])]
            alive[worst] = False
            freed = winner == worst
            winner[freed] = _argmax(logits_khw[:, freed], weight, alive)

    def _result(self, winner_hw: NDArray[np.int64], keep: NDArray[np.bool_], proposals: Proposals) -> PanopticResult:
        table = np.zeros(len(keep) + 1, np.int32)
        ids: dict[tuple[int, int], int] = {}
        members: list[int] = []
        for k in np.flatnonzero(keep):
            class_index = int(proposals.class_index[k])
            key = (class_index, int(k) if self.isthing[class_index] else -1)
            if key not in ids:
                ids[key] = len(ids) + 1
                members.append(int(k))
            table[k + 1] = ids[key]
        id_map = table[winner_hw + 1]
        areas = np.bincount(id_map.ravel(), minlength=len(members) + 1)[1:]
        boxes = segment_boxes_px(id_map, len(members))
        segments = tuple(
            SegmentResult(
                id=index + 1,
                class_index=int(proposals.class_index[k]),
                isthing=bool(self.isthing[proposals.class_index[k]]),
                score=float(proposals.score[k]),
                area_px=int(areas[index]),
                bbox_xywh_px=(
                    int(boxes[index, 0]),
                    int(boxes[index, 1]),
                    int(boxes[index, 2]),
                    int(boxes[index, 3]),
                ),
            )
            for index, k in enumerate(members)
        )
        return PanopticResult(id_map, segments)


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
    amplitude: Array, cell: NDArray[np.int64], size_hw: tuple[int, int], wavelengths_cells: list[float]
) -> Array:
    """Row and column terms of each kernel around its cell, [K, h, w].

    Args:
        amplitude: [K, 4 * wavelengths]; for each wavelength cos x, sin x, cos y, sin y.
        cell: [K] flat cells.
        size_hw: Rows and columns.
        wavelengths_cells: Wavelengths in cells.
    """
    height, width = size_hw
    a = amplitude.reshape(len(cell), -1, 4)
    angle = (2 * np.pi / np.array(wavelengths_cells, np.float32))[:, None]
    dx = (np.arange(width) - (cell % width)[:, None])[:, None].astype(np.float32) * angle
    dy = (np.arange(height) - (cell // width)[:, None])[:, None].astype(np.float32) * angle
    columns = (a[:, :, 0, None] * np.cos(dx) + a[:, :, 1, None] * np.sin(dx)).sum(1)
    rows = (a[:, :, 2, None] * np.cos(dy) + a[:, :, 3, None] * np.sin(dy)).sum(1)
    return np.asarray(rows[:, :, None] + columns[:, None, :], np.float32)


def enlarge(logits_khw: Array, box: Letterbox, stride_px: int) -> Array:
    """Bilinear enlargement from body cells straight to image pixels, [K, image_h, image_w].

    Args:
        logits_khw: Masks at body resolution.
        box: Geometry; the padding is left out.
        stride_px: Network pixels per cell.
    """
    content_w, content_h = box.content_wh_px
    rows = _bilinear(box.image_h_px, logits_khw.shape[1], content_h / box.image_h_px / stride_px)
    columns = _bilinear(box.image_w_px, logits_khw.shape[2], content_w / box.image_w_px / stride_px)
    return np.asarray(rows @ (logits_khw @ columns.T), np.float32)


def _bilinear(pixels: int, cells: int, cells_per_px: float) -> Array:
    """Interpolation matrix [pixels, cells], half-pixel centres, clamped at the border."""
    place = np.clip((np.arange(pixels) + 0.5) * cells_per_px - 0.5, 0, cells - 1)
    left = np.minimum(place.astype(np.int64), max(cells - 2, 0))
    share = (place - left).astype(np.float32)
    matrix = np.zeros((pixels, cells), np.float32)
    matrix[np.arange(pixels), left] = 1 - share
    matrix[np.arange(pixels), np.minimum(left + 1, cells - 1)] += share
    return matrix


def _argmax(logits_khw: Array, weight: Array, alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Index of the living mask with the largest weight * probability at each pixel, -1 where there is none."""
    best = np.zeros(logits_khw.shape[1:], np.float32)
    winner = np.full(logits_khw.shape[1:], -1, np.int64)
    for k in np.flatnonzero(alive):
        value = weight[k] / (1 + np.exp(-np.clip(logits_khw[k], -60, 60)))
        better = value > best
        best[better] = value[better]
        winner[better] = k
    return winner


def _without_faint(winner: NDArray[np.int64], logits_khw: Array, mask_threshold: float) -> NDArray[np.int64]:
    """Returns the winners, with void (-1) where the winner's own probability is not above the threshold."""
    if mask_threshold <= 0:
        return winner
    chosen = np.take_along_axis(logits_khw, np.maximum(winner, 0)[None], axis=0)[0]
    return np.where(chosen <= _logit(mask_threshold), -1, winner)


def _first_of_stuff(class_index: NDArray[np.int64], isthing: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Positions to keep when equal maxima left several peaks of one stuff class."""
    first = np.zeros(len(class_index), bool)
    first[np.unique(class_index, return_index=True)[1]] = True
    return np.flatnonzero(first | isthing[class_index])


def _peaks(x_hwc: Array) -> NDArray[np.bool_]:
    """Cells that are the 3x3 maximum of their channel; of equal neighbours only the first in reading order is one.

    Ties are common on an int8 grid, where two cells of one object often share the largest value.
    """
    height, width = x_hwc.shape[:2]
    padded = np.pad(x_hwc, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    peak = np.ones(x_hwc.shape, bool)
    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
        earlier = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        later = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        peak &= (x_hwc > earlier) & (x_hwc >= later)
    return peak


def _logit(p: float) -> np.float32:
    if p <= 0:
        return np.float32(-np.inf)
    return np.float32(np.log(p / (1 - p))) if p < 1 else np.float32(np.inf)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))), np.float32)
