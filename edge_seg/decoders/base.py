"""What every decoder takes and gives, and the registry that finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
from edge_seg.decoders.run_lengths import RunLengths
from edge_seg.letterbox import Letterbox
from edge_seg.registry import Registry

Raw = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True)
class SegmentResult:
    """One decoded segment.

    Attributes:
        id: Its number in the id map, greater than 0.
        class_index: Position in the contract's class list.
        isthing: Whether the class is a thing.
        score: Confidence, 0..1.
        area_px: Visible pixels.
        bbox_xywh_px: Tight box of the visible pixels: left, top, width, height.
    """

    id: int
    class_index: int
    isthing: bool
    score: float
    area_px: int
    bbox_xywh_px: tuple[int, int, int, int]


@dataclass(frozen=True)
class PanopticResult:
    """A decoded picture: [H, W] int32 segment ids (0 = void) and what each id is."""

    id_map_hw_i32: NDArray[np.int32]
    segments: tuple[SegmentResult, ...]

    def panoptic(self) -> PanopticResult:
        """Returns itself."""
        return self

    def objects(self) -> InstanceResult:
        """Returns the things, best first, each with its visible pixels."""
        things = sorted((s for s in self.segments if s.isthing), key=lambda s: -s.score)
        height, width = self.id_map_hw_i32.shape
        found = []
        for s in things:
            x, y, w, h = s.bbox_xywh_px
            crop = self.id_map_hw_i32[y : y + h, x : x + w] == s.id
            mask = RunLengths.from_crop(crop, (y, x), (height, width))
            found.append(Instance(s.class_index, s.score, (float(x), float(y), float(x + w), float(y + h)), mask))
        return InstanceResult((height, width), tuple(found))


@dataclass(frozen=True)
class Instance:
    """One found object. Objects may overlap.

    Attributes:
        class_index: Position in the contract's class list.
        score: Confidence, 0..1.
        box_xyxy_px: Box in pixels of the image: left, top, right, bottom; of the network where it predicts boxes,
            else the tight box of the mask.
        mask: Its pixels at the size of the image.
    """

    class_index: int
    score: float
    box_xyxy_px: tuple[float, float, float, float]
    mask: RunLengths


@dataclass(frozen=True)
class InstanceResult:
    """A decoded picture of an instance network.

    Attributes:
        size_hw: Height and width of the image in pixels.
        instances: What was found, best first.
        overlap_threshold: Share of its mask an object must keep when objects are laid over each other.
        score_threshold: Lowest score of an object that `panoptic` shows.
    """

    size_hw: tuple[int, int]
    instances: tuple[Instance, ...]
    overlap_threshold: float = 0.5
    score_threshold: float = 0.3

    def objects(self) -> InstanceResult:
        """Returns itself."""
        return self

    def panoptic(self) -> PanopticResult:
        """Lays the objects over each other, the best on top, so that each pixel has one owner.

        An object whose uncovered share is below `overlap_threshold` is left out (arXiv 1801.00868, section 5).
        """
        id_map = np.zeros(self.size_hw, np.int32)
        segments: list[SegmentResult] = []
        for instance in self.instances:
            if instance.score < self.score_threshold or not instance.mask.area_px:
                continue
            x, y, w, h = instance.mask.bbox_xywh_px
            window = id_map[y : y + h, x : x + w]
            free = instance.mask.mask()[y : y + h, x : x + w] & (window == 0)
            area_px = int(free.sum())
            if not area_px or area_px < self.overlap_threshold * instance.mask.area_px:
                continue
            window[free] = len(segments) + 1
            rows, columns = np.flatnonzero(free.any(1)), np.flatnonzero(free.any(0))
            left, top = x + int(columns[0]), y + int(rows[0])
            tight = (left, top, int(columns[-1] - columns[0]) + 1, int(rows[-1] - rows[0]) + 1)
            number = len(segments) + 1
            segments.append(SegmentResult(number, instance.class_index, True, instance.score, area_px, tight))
        return PanopticResult(id_map, tuple(segments))


Result = PanopticResult | InstanceResult


class Decoder(Protocol):
    """Turns raw outputs into segments at the size of the original image."""

    def __call__(self, raw: Raw, box: Letterbox) -> Result:
        """Decodes one picture.

        Args:
            raw: Outputs by contract name, float32, [1, h, w, c].
            box: Geometry between the image and the network's input.
        """
        ...


DecoderFactory = Callable[[Contract, Mapping[str, NDArray[np.float32]]], Decoder]
DECODERS: Registry[DecoderFactory] = Registry("decoder", "edge_seg.decoders")
