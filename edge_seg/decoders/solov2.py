"""SOLOv2's decoder: cells of grids, one kernel each, mask product, Matrix NMS on packed bits. NumPy only.

Source: arXiv 2003.10152.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.decoders.base import DECODERS, Instance, InstanceResult, Raw
from edge_seg.decoders.checked import (
    COUNT,
    FLAG,
    SHARE,
    Choice,
    Number,
    checked_params,
    lazy_conv,
    need_channels,
    outputs_of,
    same_levels,
    sigmoid,
)
from edge_seg.decoders.nms import PackedMasks, best, mask_ious, matrix_decay, points_peaks
from edge_seg.decoders.paste import paste_map
from edge_seg.decoders.square_merge import logit
from edge_seg.letterbox import Letterbox

Array = NDArray[np.float32]
Ints = NDArray[np.int64]

_RULES: dict[str, Number | Choice] = {
    "score_threshold": SHARE,
    "pre_nms_top_k": COUNT,
    "mask_threshold": SHARE,
    "nms": Choice(("gaussian", "linear")),
    "nms_sigma": Number(0.0, 1000.0),
    "update_threshold": SHARE,
    "max_instances": COUNT,
    "class_aware": FLAG,
    "overlap_threshold": SHARE,
    "show_threshold": SHARE,
}


@dataclass(frozen=True)
class FoundCells:
    """Cells with an object, the surest class first.

    Attributes:
        level: [N] position in the decoder's list of levels.
        cell: [N] flat cell of the level's grid.
        class_index: [N].
        score: [N] probability of the class.
    """

    level: Ints
    cell: Ints
    class_index: Ints
    score: Array

    def take(self, places: Ints) -> FoundCells:
        """Returns some of the cells, in the order given."""
        return FoundCells(self.level[places], self.cell[places], self.class_index[places], self.score[places])


@dataclass(frozen=True)
class KeptMasks:
    """Objects that Matrix NMS kept, best first.

    Attributes:
        place: [k] their places in the list of cells.
        score: [k] probability of the class, times mean probability of the mask, times the decay.
        spans: [k, 4] first row, first column, last row, last column of the mask in cells.
    """

    place: Ints
    score: Array
    spans: Ints


@DECODERS.register("solov2")
class SOLOv2Decoder:
    """Decodes category and kernel of each level, and the mask features.

    Only the best `pre_nms_top_k` cells by class get a mask, so that time and memory are bounded: the logits take
    pre_nms_top_k * cells * 4 bytes. (The published network makes the masks of all cells above the threshold and takes
    the best 500 by class and mask: the same as long as no more cells are above the threshold.)

    Args:
        contract: Parameters, class list and output roles.
        constants: The kernels' convolution, where it was left out of the graph.

    Raises:
        InputError: A parameter is out of range, or outputs and parameters do not belong together.
    """

    def __init__(self, contract: Contract, constants: Mapping[str, Array]) -> None:
        self.params = checked_params(contract.decoder.params, _RULES)
        roles = {role: outputs_of(contract, role) for role in ("category", "kernel")}
        self._levels = [{r: roles[r][level] for r in roles} for level in same_levels(roles)]
        self._strides = np.array([outputs["category"].stride_px for outputs in self._levels])
        self._features = next(iter(outputs_of(contract, "mask_features").values()))
        inputs, width = self._levels[0]["kernel"].shape[-1], self._features.shape[-1]
        self._kernel = lazy_conv(constants, "kernel", inputs=inputs, outputs=width)
        for outputs in self._levels:
            need_channels(outputs["category"], len(contract.classes))
            need_channels(outputs["kernel"], inputs if self._kernel else width)

    def __call__(self, raw: Raw, box: Letterbox) -> InstanceResult:
        """Decodes one picture (see `Decoder`)."""
        return self.assemble(raw, self.propose(raw), box)

    def propose(self, raw: Raw) -> FoundCells:
        """Finds the cells above the score threshold that points NMS keeps, and of these the best."""
        floor = logit(self.params["score_threshold"])
        parts = []
        for level, outputs in enumerate(self._levels):
            heat = raw[outputs["category"].name][0]
            place = points_peaks(heat, floor)
            cell, class_index = np.divmod(place, heat.shape[-1])
            parts.append(FoundCells(np.full(len(place), level), cell, class_index, sigmoid(heat.ravel().take(place))))
        names = (field.name for field in fields(FoundCells))
        found = FoundCells(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
        return found.take(best(found.score, self.params["pre_nms_top_k"]))

    def assemble(self, raw: Raw, found: FoundCells, box: Letterbox) -> InstanceResult:
        """Makes the masks of given cells, suppresses doubles, and enlarges the rest to the image.

        An object without a pixel of the image has no box either and is left out.

        Args:
            raw: Raw outputs.
            found: Cells; from `propose`, or from the truth to judge the masks alone.
            box: Geometry.
        """
        size_hw = (box.image_h_px, box.image_w_px)
        logits = self.mask_logits(raw, found)
        kept = self.suppress(logits, found)
        instances = []
        for place, score, span in zip(kept.place.tolist(), kept.score.tolist(), kept.spans.tolist(), strict=True):
            mask = paste_map(logits[place], span, box, self.params["mask_threshold"]).run_lengths(size_hw)
            x, y, w, h = mask.bbox_xywh_px
            if w:
                instances.append(Instance(int(found.class_index[place]), score, (x, y, x + w, y + h), mask))
        return InstanceResult(
            size_hw, tuple(instances), self.params["overlap_threshold"], self.params["show_threshold"]
        )

    def mask_logits(self, raw: Raw, found: FoundCells) -> Array:
        """Returns the masks of cells, [N, h, w] logits: all in one product of kernels and features."""
        features = raw[self._features.name][0]
        logits = self._kernels(raw, found) @ features.reshape(-1, features.shape[-1]).T
        return np.asarray(logits[: len(found.cell)].reshape(-1, *features.shape[:2]))

    def _kernels(self, raw: Raw, found: FoundCells) -> Array:
        """Gathers the kernels of cells, [N, channels]: level by level what is read, then one product for all.

        More rows follow, up to a multiple of four, and mean nothing: OpenBLAS is slower with a remainder.
        """
        lazy = self._kernel
        width = self._features.shape[-1] if lazy is None else lazy.size**2 * lazy.inputs
        count = len(found.cell)
        read = np.zeros((count + -count % 4, width), np.float32)
        for level, outputs in enumerate(self._levels):
            here = np.flatnonzero(found.level == level)
            if len(here):
                grid = raw[outputs["kernel"].name][0]
                cells = found.cell[here]
                read[here] = lazy.patches(grid, cells) if lazy else grid.reshape(-1, width).take(cells, axis=0)
        return lazy.of_patches(read) if lazy else read

    def suppress(self, logits_nhw: Array, found: FoundCells) -> KeptMasks:
        """Weighs classes with masks and keeps what Matrix NMS leaves above `update_threshold`.

        Args:
            logits_nhw: Masks of the cells, [N, h, w].
            found: The cells.
        """
        above = logits_nhw > logit(self.params["mask_threshold"])
        masks = PackedMasks.of(above)
        score = found.score * _mean_inside(logits_nhw, above, masks.areas)
        order = np.flatnonzero(masks.areas > self._strides[found.level])
        order = order[np.argsort(-score[order], kind="stable")]
        masks, score = masks.take(order), score[order]
        labels = found.class_index[order] if self.params["class_aware"] else np.zeros_like(order)
        score = score * matrix_decay(mask_ious(masks, labels), self.params["nms"], self.params["nms_sigma"])
        kept = np.flatnonzero(score >= self.params["update_threshold"])
        kept = kept[best(score[kept], self.params["max_instances"])]
        return KeptMasks(order[kept], score[kept], masks.spans[kept])


def _mean_inside(logits_nhw: Array, above: NDArray[np.bool_], areas: Ints) -> Array:
    """Mean probability of each mask's own cells, [N]; 0 of an empty mask."""
    inside = np.append(sigmoid(logits_nhw[above]), np.float32(0))
    start = np.cumsum(areas) - areas
    sums = np.add.reduceat(inside, start) if len(areas) else np.zeros(0, np.float32)
    return np.asarray(np.where(areas > 0, sums, 0) / np.maximum(areas, 1), np.float32)
