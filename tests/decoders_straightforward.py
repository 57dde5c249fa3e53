"""The straightforward decoder that the fast one must equal: every peak, every mask and every pixel is computed.

It shares with the fast decoder the kernels and the mask product, whose values both start from, and nothing after.
"""

import numpy as np

from edge_seg.decoders.base import PanopticResult, SegmentResult
from edge_seg.decoders.maskconver import MaskConverDecoder, Proposals


class StraightforwardDecoder(MaskConverDecoder):
    """MaskConver's decoder without a shortcut."""

    def propose(self, raw):
        logits = raw[self._output["heatmap"]][0]
        stuff_once = self.params["one_peak_per_stuff_class"]
        peak = peaks_everywhere(logits) & (logits > logit(self.params["score_threshold"]))
        if stuff_once:
            peak &= self.isthing | (logits == logits.max(axis=(0, 1)))
        y, x, class_index = np.nonzero(peak)
        score = logits[y, x, class_index]
        order = np.argsort(-score, kind="stable")
        if stuff_once:
            first = np.zeros(len(order), bool)
            first[np.unique(class_index[order], return_index=True)[1]] = True
            order = order[first | self.isthing[class_index[order]]]
        order = order[: self.params["top_k"]]
        return Proposals((y * logits.shape[1] + x)[order], class_index[order], sigmoid(score[order]))

    def assemble(self, raw, proposals, box):
        if not len(proposals.cell):
            return PanopticResult(np.zeros((box.image_h_px, box.image_w_px), np.int32), ())
        logits = enlarge(self.mask_logits(raw, proposals), box, self.params["stride_px"])
        return self._numbered(*merge_straightforward(logits, self.weights(proposals), self.params), proposals)

    def weights(self, proposals):
        return proposals.score ** self.params["score_exponent"]

    def _numbered(self, winner, keep, proposals):
        ids, id_map, segments = {}, np.zeros(winner.shape, np.int32), {}
        for k in np.flatnonzero(keep):
            c = int(proposals.class_index[k])
            thing = bool(self.isthing[c])
            number = ids.setdefault((c, k if thing else None), len(ids) + 1)
            id_map[winner == k] = number
            segments.setdefault(number, (c, thing, float(proposals.score[k])))
        return PanopticResult(id_map, tuple(segment(id_map, n, *about) for n, about in segments.items()))


def segment(id_map, number, class_index, isthing, score):
    y, x = np.nonzero(id_map == number)
    box = (int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1)
    return SegmentResult(number, class_index, isthing, score, len(y), box)


def merge_straightforward(logits_khw, weight, params):
    """Arg-max of weight * probability over all pixels, then rejects; returns the mask shown [H, W] and what is kept."""
    alive = np.ones(len(weight), bool)
    own_px = np.count_nonzero(logits_khw > 0, axis=(1, 2))
    winner = best_mask(logits_khw, weight, alive)
    while True:
        seen = without_faint(winner, logits_khw, params["mask_threshold"])
        visible_px = np.bincount(seen.ravel() + 1, minlength=len(weight) + 1)[1:]
        keep = alive & (visible_px > params["min_area_share"] * winner.size) & (own_px > 0)
        keep &= visible_px > params["overlap_threshold"] * own_px
        if not params["reassign_rejected"] or (keep == alive).all():
            return seen, keep
        rejected = np.flatnonzero(alive & ~keep)
        worst = rejected[np.argmin(weight[rejected])]
        alive[worst] = False
        freed = winner == worst
        winner[freed] = best_mask(logits_khw[:, freed], weight, alive)


def best_mask(logits_khw, weight, alive):
    best = np.zeros(logits_khw.shape[1:], np.float32)
    winner = np.full(logits_khw.shape[1:], -1, np.int64)
    for k in np.flatnonzero(alive):
        value = weight[k] / (1 + np.exp(-np.clip(logits_khw[k], -60, 60)))
        better = value > best
        best[better] = value[better]
        winner[better] = k
    return winner


def without_faint(winner, logits_khw, mask_threshold):
    if mask_threshold <= 0:
        return winner
    chosen = np.take_along_axis(logits_khw, np.maximum(winner, 0)[None], axis=0)[0]
    return np.where(chosen <= logit(mask_threshold), -1, winner)


def enlarge(logits_khw, box, stride_px):
    """Bilinear enlargement from body cells straight to image pixels by one matrix per axis, [K, image_h, image_w]."""
    content_w, content_h = box.content_wh_px
    rows = bilinear_matrix(box.image_h_px, logits_khw.shape[1], content_h / box.image_h_px / stride_px)
    columns = bilinear_matrix(box.image_w_px, logits_khw.shape[2], content_w / box.image_w_px / stride_px)
    return rows @ (logits_khw @ columns.T)


def bilinear_matrix(pixels, cells, cells_per_px):
    place = np.clip((np.arange(pixels) + 0.5) * cells_per_px - 0.5, 0, cells - 1)
    left = np.minimum(place.astype(np.int64), max(cells - 2, 0))
    share = (place - left).astype(np.float32)
    matrix = np.zeros((pixels, cells), np.float32)
    matrix[np.arange(pixels), left] = 1 - share
    matrix[np.arange(pixels), np.minimum(left + 1, cells - 1)] += share
    return matrix


def peaks_everywhere(x_hwc):
    """Cells that are the 3x3 maximum of their channel; of equal neighbours only the first in reading order."""
    height, width = x_hwc.shape[:2]
    padded = np.pad(x_hwc, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    peak = np.ones(x_hwc.shape, bool)
    for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1)):
        earlier = padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        later = padded[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
        peak &= (x_hwc > earlier) & (x_hwc >= later)
    return peak


def logit(p):
    if p <= 0:
        return np.float32(-np.inf)
    return np.float32(np.log(p / (1 - p))) if p < 1 else np.float32(np.inf)


def sigmoid(x):
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -60, 60))), np.float32)
