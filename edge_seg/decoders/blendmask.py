"""BlendMask's decoder: FCOS boxes, their attention over a few shared bases, and the blender. NumPy only.

Source: arXiv 2001.00309; boxes from arXiv 1904.01355.
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
from edge_seg.decoders.nms import best, box_nms
from edge_seg.decoders.paste import paste_boxes
from edge_seg.decoders.roi_align import MERGES, roi_align
from edge_seg.decoders.square_merge import logit
from edge_seg.letterbox import Letterbox

Array = NDArray[np.float32]
Ints = NDArray[np.int64]

_RULES: dict[str, Number | Choice] = {
    "score_threshold": SHARE,
    "threshold_with_centerness": FLAG,
    "score": Choice(("sqrt", "product")),
    "pre_nms_top_k": Number(0, 10_000, whole=True),
    "nms_iou": SHARE,
    "class_aware": FLAG,
    "max_instances": COUNT,
    "mask_threshold": SHARE,
    "attention_size": Number(1, 64, whole=True),
    "bases": Number(1, 64, whole=True),
    "mask_size": Number(1, 256, whole=True),
    "merge": Choice(tuple(MERGES)),
    "overlap_threshold": SHARE,
    "show_threshold": SHARE,
    "box_quality": Choice(("centerness", "iou")),
}
_REACH_STRIDES = np.float32(4096)  # a longer distance of a box's side is no number of a network any more


@dataclass(frozen=True)
class FoundBoxes:
    """Boxes, best first.

    Attributes:
        level: [N] position in the decoder's list of levels.
        cell: [N] flat cell of the level.
        class_index: [N].
        score: [N] 0..1.
        boxes_xyxy_px: [N, 4] in pixels of the network's input, not clipped.
    """

    level: Ints
    cell: Ints
    class_index: Ints
    score: Array
    boxes_xyxy_px: Array

    def take(self, places: Ints) -> FoundBoxes:
        """Returns some of the boxes, in the order given."""
        return FoundBoxes(
            self.level[places],
            self.cell[places],
            self.class_index[places],
            self.score[places],
            self.boxes_xyxy_px[places],
        )


@DECODERS.register("blendmask")
class BlendMaskDecoder:
    """Decodes class, box, centerness and attention of each level, and the bases.

    `pre_nms_top_k` holds for all levels together, so that the work is bounded whatever the levels. (The published
    network takes the best 1000 of each level: the same as long as no level has more.)

    Args:
        contract: Parameters, class list and output roles.
        constants: The attention's convolution, where it was left out of the graph.

    Raises:
        InputError: A parameter is out of range, or outputs and parameters do not belong together.
    """

    def __init__(self, contract: Contract, constants: Mapping[str, Array]) -> None:
        self.params = checked_params(contract.decoder.params, _RULES)
        roles = {role: outputs_of(contract, role) for role in ("class_logit", "box_ltrb", "centerness", "attention")}
        self._levels = [{r: roles[r][level] for r in roles} for level in same_levels(roles)]
        self._bases = next(iter(outputs_of(contract, "bases").values()))
        values = self.params["bases"] * self.params["attention_size"] ** 2
        inputs = self._levels[0]["attention"].shape[-1]
        self._attention = lazy_conv(constants, "attention", inputs=inputs, outputs=values)
        need_channels(self._bases, self.params["bases"])
        for outputs in self._levels:
            need_channels(outputs["attention"], inputs if self._attention else values)
            need_channels(outputs["class_logit"], len(contract.classes))
            need_channels(outputs["box_ltrb"], 4)
            need_channels(outputs["centerness"], 1)

    def __call__(self, raw: Raw, box: Letterbox) -> InstanceResult:
        """Decodes one picture (see `Decoder`)."""
        return self.assemble(raw, self.propose(raw), box)

    def propose(self, raw: Raw) -> FoundBoxes:
        """Finds the boxes above the score threshold and suppresses worse ones of the same object."""
        parts = [self._level(raw, level) for level in range(len(self._levels))]
        names = (field.name for field in fields(FoundBoxes))
        found = FoundBoxes(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
        found = found.take(best(found.score, self.params["pre_nms_top_k"]))
        labels = found.class_index if self.params["class_aware"] else np.zeros_like(found.class_index)
        return found.take(box_nms(found.boxes_xyxy_px, labels, self.params["nms_iou"], self.params["max_instances"]))

    def _level(self, raw: Raw, level: int) -> FoundBoxes:
        """The best boxes of one level above the threshold, at most as many as all levels together may have."""
        outputs, threshold = self._levels[level], self.params["score_threshold"]
        heat = raw[outputs["class_logit"].name][0]
        joined = self.params["threshold_with_centerness"]
        # the product of two probabilities is above the threshold only where each is: a look at logits spares the rest
        floor = logit(threshold) - np.float32(1e-4 if joined else 0)
        place = np.flatnonzero(heat > floor)
        cell, class_index = np.divmod(place, heat.shape[-1])
        quality = raw[outputs["centerness"].name].ravel().take(cell)
        product = sigmoid(heat.ravel().take(place)) * sigmoid(quality)
        chosen = np.flatnonzero(product > threshold) if joined else np.arange(len(place))
        chosen = chosen[best(product[chosen], self.params["pre_nms_top_k"])]
        cell = cell[chosen]
        boxes = self._boxes(raw[outputs["box_ltrb"].name][0], cell, outputs["box_ltrb"].stride_px)
        score = np.sqrt(product[chosen]) if self.params["score"] == "sqrt" else product[chosen]
        return FoundBoxes(np.full(len(cell), level), cell, class_index[chosen], score, boxes)

    @staticmethod
    def _boxes(ltrb_hwc: Array, cell: Ints, stride_px: int) -> Array:
        """Boxes at cells, [n, 4]: distances from the middle of the cell, in strides."""
        y, x = np.divmod(cell, ltrb_hwc.shape[1])
        middle = np.stack([x, y, x, y], axis=1) * stride_px + stride_px // 2
        distance = np.clip(ltrb_hwc.reshape(-1, 4)[cell], 0, _REACH_STRIDES) * np.float32(stride_px)
        return np.asarray(middle + distance * np.array([-1, -1, 1, 1], np.float32), np.float32)

    def assemble(self, raw: Raw, found: FoundBoxes, box: Letterbox) -> InstanceResult:
        """Makes the masks of given boxes at the size of the image; a box outside the picture is left out.

        Args:
            raw: Raw outputs.
            found: Boxes; from `propose`, or from the truth to judge the masks alone.
            box: Geometry.
        """
        size_hw = (box.image_h_px, box.image_w_px)
        content_w, content_h = box.content_wh_px
        grow = np.array([box.image_w_px / content_w, box.image_h_px / content_h] * 2)
        clipped = np.clip(found.boxes_xyxy_px * grow, 0, np.array(size_hw[::-1] * 2))
        inside = np.flatnonzero((clipped[:, 2:] > clipped[:, :2]).all(axis=1))
        found, boxes = found.take(inside), clipped[inside].tolist()
        probability = sigmoid(self.mask_logits(raw, found))
        crops = paste_boxes(probability, found.boxes_xyxy_px, box, self.params["mask_threshold"])
        instances = tuple(
            Instance(class_index, score, tuple(xyxy), crop.run_lengths(size_hw))
            for class_index, score, xyxy, crop in zip(
                found.class_index.tolist(), found.score.tolist(), boxes, crops, strict=True
            )
        )
        return InstanceResult(size_hw, instances, self.params["overlap_threshold"], self.params["show_threshold"])

    def mask_logits(self, raw: Raw, found: FoundBoxes) -> Array:
        """Returns the masks of boxes, [N, mask_size, mask_size] logits; texel (0, 0) is the box's upper left."""
        bases = np.ascontiguousarray(np.moveaxis(raw[self._bases.name][0], -1, 0))
        crops = roi_align(bases, found.boxes_xyxy_px, self._bases.stride_px, self.params["mask_size"])
        merged: Array = MERGES[self.params["merge"]](crops, self._attention_at(raw, found))
        return merged

    def _attention_at(self, raw: Raw, found: FoundBoxes) -> Array:
        """Attention of the boxes, [N, bases, attention_size, attention_size]."""
        bases, size = self.params["bases"], self.params["attention_size"]
        attention = np.empty((len(found.cell), bases * size * size), np.float32)
        for level, outputs in enumerate(self._levels):
            here = np.flatnonzero(found.level == level)
            features = raw[outputs["attention"].name][0]
            if len(here) and self._attention:
                attention[here] = self._attention.at(features, found.cell[here])
            elif len(here):
                attention[here] = features.reshape(-1, features.shape[-1])[found.cell[here]]
        return attention.reshape(-1, bases, size, size)
