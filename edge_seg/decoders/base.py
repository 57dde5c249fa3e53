"""What every decoder takes and gives, and the registry that finds them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_seg.contract import Contract
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


class Decoder(Protocol):
    """Turns raw outputs into segments at the size of the original image."""

    def __call__(self, raw: Raw, box: Letterbox) -> PanopticResult:
        """Decodes one picture.

        Args:
            raw: Outputs by contract name, float32, [1, h, w, c].
            box: Geometry between the image and the network's input.
        """
        ...


DecoderFactory = Callable[[Contract, Mapping[str, NDArray[np.float32]]], Decoder]
DECODERS: Registry[DecoderFactory] = Registry("decoder", "edge_seg.decoders")
