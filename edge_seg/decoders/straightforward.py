"""MaskConver's decoder without a shortcut: every peak, every mask and every pixel is computed.

It says in few lines what the fast one must give, and what that one's time is compared with. The two share kernels and
mask product, whose values both start from, and nothing after.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.decoders.base import PanopticResult, Raw, SegmentResult
from edge_seg.decoders.maskconver import MaskConverDecoder, Proposals
from edge_seg.decoders.square_merge import logit
from edge_seg.letterbox import Letterbox

Array = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class StraightforwardDecoder(MaskConverDecoder):
    """Decodes as `MaskConverDecoder` does, slowly. It is not registered."""

    def propose(self, raw: Raw) -> Proposals:
        """Finds the peaks of the whole heat map."""
        logits = raw[self._output["heatmap"]][0]
        peak = peaks_everywhere(logits) & (logits > logit(self.params["score_threshold"]))
        y, x, class_index = np.nonzero(peak)
        order = np.argsort(-logits[y, x, class_index], kind="stable")
        first = np.zeros(len(order), bool)
        first[np.unique(class_index[order], return_index=True)[1]] = True
        order = order[first | ~self._single[class_index[order]]][: self.params["top_k"]]
        score = 1 / (1 + np.exp(-np.clip(logits[y, x, class_index], -60, 60)))
        return Proposals((y * logits.shape[1] + x)[order], class_index[order], score[order])

    def assemble(self, raw: Raw, proposals: Proposals, box: Letterbox) -> PanopticResult:
        """Enlarges every mask to the size of the image and merges them pixel by pixel."""
        if not len(proposals.cell):
            return PanopticResult(np.zeros((box.image_h_px, box.image_w_px), np.int32), ())
        logits = enlarge(np.ascontiguousarray(self.mask_logits(raw, proposals)), box, self.params["stride_px"])
        winner, keep = merge_everywhere(logits, self.weights(proposals), self.params)
        ids: dict[tuple[int, int], int] = {}
        segments: dict[int, tuple[int, bool, float]] = {}
        id_map = np.zeros(winner.shape, np.int32)
        for k in np.flatnonzero(keep).tolist():
            class_index = int(proposals.class_index[k])
            thing = bool(self.isthing[class_index])
            number = ids.setdefault((class_index, k if thing else -1), len(ids) + 1)
            id_map[winner == k] = number
            segments.setdefault(number, (class_index, thing, float(proposals.score[k])))
        return PanopticResult(id_map, tuple(_segment(id_map, n, *about) for n, about in segments.items()))

    def weights(self, proposals: Proposals) -> Array:
        """Returns the factor of each mask's probability, [K]."""
        return np.asarray(proposals.score ** self.params["score_exponent"], np.float32)


def _segment(id_map: NDArray[np.int32], number: int, class_index: int, isthing: bool, score: float) -> SegmentResult:
    y, x = np.nonzero(id_map == number)
    box = (int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1)
    return SegmentResult(number, class_index, isthing, score, len(y), box)


def merge_everywhere(logits_khw: Array, weight: Array, params: Mapping[str, Any]) -> tuple[Ints, Bools]:
    """Gives each pixel to the best mask, then rejects masks.

    Args:
        logits_khw: Masks at the size of the image, [K, H, W].
        weight: [K] factor of each mask's probability.
        params: The decoder's parameters.

    Returns:
        The mask shown, [H, W], -1 where there is none, and which masks are kept, [K].
    """
    alive = np.ones(len(weight), bool)
    own_px = np.count_nonzero(logits_khw > 0, axis=(1, 2))
    winner = _best_mask(logits_khw, weight, alive)
    while True:
        seen = _without_faint(winner, logits_khw, params["mask_threshold"])
        visible_px = np.bincount(seen.ravel() + 1, minlength=len(weight) + 1)[1:]
        keep = alive & (visible_px > params["min_area_share"] * winner.size) & (own_px > 0)
        keep &= visible_px > params["overlap_threshold"] * own_px
        if not params["reassign_rejected"] or (keep == alive).all():
            return seen, keep
        rejected = np.flatnonzero(alive & ~keep)
        worst = rejected[np.argmin(weight[rejected])]
        alive[worst] = False
        freed = winner == worst
        winner[freed] = _best_mask(logits_khw[:, freed], weight, alive)


def _best_mask(logits_khw: Array, weight: Array, alive: Bools) -> Ints:
    best = np.zeros(logits_khw.shape[1:], np.float32)
    winner = np.full(logits_khw.shape[1:], -1, np.int64)
    for k in np.flatnonzero(alive):
        value = weight[k] / (1 + np.exp(-np.clip(logits_khw[k], -60, 60)))
        better = value > best
        best[better] = value[better]
        winner[better] = k
    return winner


def _without_faint(winner: Ints, logits_khw: Array, mask_threshold: float) -> Ints:
    if mask_threshold <= 0:
        return winner
    chosen = np.take_along_axis(logits_khw, np.maximum(winner, 0)[None], axis=0)[0]
    return np.where(chosen <= logit(mask_threshold), -1, winner)


def enlarge(logits_khw: Array, box: Letterbox, stride_px: int) -> Array:
    """Enlarges maps bilinearly from body cells to image pixels by one matrix per axis, [K, image_h, image_w].

    Args:
        logits_khw: Maps, [K, cells, cells].
        box: Geometry.
        stride_px: Network pixels per cell.
    """
    content_w, content_h = box.content_wh_px
    rows = _bilinear_matrix(box.image_h_px, logits_khw.shape[1], content_h / box.image_h_px / stride_px)
    columns = _bilinear_matrix(box.image_w_px, logits_khw.shape[2], content_w / box.image_w_px / stride_px)
    return np.asarray(rows @ (logits_khw @ columns.T))


def _bilinear_matrix(pixels: int, cells: int, cells_per_px: float) -> Array:
    place = np.clip((np.arange(pixels) + 0.5) * cells_per_px - 0.5, 0, cells - 1)
    left = np.minimum(place.astype(np.int64), max(cells - 2, 0))
    share = (place - left).astype(np.float32)
    matrix = np.zeros((pixels, cells), np.float32)
    matrix[np.arange(pixels), left] = 1 - share
    matrix[np.arange(pixels), np.minimum(left + 1, cells - 1)] += share
    return matrix


def peaks_everywhere(heat_hwc: Array) -> Bools:
    """Marks the 3x3 maxima of each channel, [h, w, C]; of equal neighbours only the first in reading order.

    Args:
        heat_hwc: Logits, [h, w, C].
    """
    height, width = heat_hwc.shape[:2]
    padded = np.pad(heat_hwc, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    peak = np.ones(heat_hwc.shape, bool)
    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
        earlier = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        later = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        peak &= (heat_hwc > earlier) & (heat_hwc >= later)
    return peak
