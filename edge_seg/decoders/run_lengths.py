"""Masks as run lengths, column by column as COCO stores them: small, exact, and quick to make from a box's crop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.errors import InputError


@dataclass(frozen=True)
class RunLengths:
    """One mask.

    Attributes:
        size_hw: Height and width of the picture in pixels.
        counts: Lengths of the runs in column-major order, [R] int64; the first counts zeros (0 when the first pixel
            belongs to the mask), then ones and zeros in turn. They add up to height * width.
    """

    size_hw: tuple[int, int]
    counts: NDArray[np.int64]

    @classmethod
    def from_mask(cls, mask_hw: NDArray[np.bool_]) -> RunLengths:
        """Returns the runs of a whole mask, [H, W] bool."""
        height, width = mask_hw.shape
        return cls.from_crop(mask_hw, (0, 0), (height, width))

    @classmethod
    def from_crop(
        cls, crop_hw: NDArray[np.bool_], top_left_px: tuple[int, int], size_hw: tuple[int, int]
    ) -> RunLengths:
        """Returns the runs of a mask that is empty outside a crop.

        Args:
            crop_hw: The part of the mask inside the crop, [h, w] bool.
            top_left_px: Row and column of the crop's first pixel; the crop lies inside the picture.
            size_hw: Height and width of the picture.
        """
        height, width = size_hw
        total = height * width
        rows, columns = crop_hw.shape
        # A row of zeros below the crop ends every run at the column's foot: no run crosses from column to column,
        # unless the crop is as tall as the picture, where it must. A zero before and after gives every run both ends.
        step = rows + (rows < height)
        line = np.zeros(columns * step + 2, np.bool_)
        line[1:-1].reshape(columns, step)[:, :rows] = crop_hw.T
        places = (line[1:] != line[:-1]).nonzero()[0]
        if step != height:
            places += places // max(step, 1) * (height - step)
        places += top_left_px[1] * height + top_left_px[0]
        counts = np.empty(len(places) + 1, np.int64)
        counts[:-1], counts[-1] = places, total
        counts[1:] -= places
        if len(places) and not counts[-1]:
            counts = counts[:-1]
        return cls(size_hw, counts)

    def mask(self) -> NDArray[np.bool_]:
        """Returns the mask, [H, W] bool; raises InputError when the runs do not add up to the picture."""
        height, width = self.size_hw
        if int(self.counts.sum()) != height * width:
            raise InputError(
                "The run lengths do not fit the picture.",
                expected=f"a sum of {height * width}",
                got=str(int(self.counts.sum())),
            )
        values = np.arange(len(self.counts)) % 2 == 1
        return np.ascontiguousarray(np.repeat(values, self.counts).reshape(width, height).T)

    @property
    def area_px(self) -> int:
        """Pixels of the mask."""
        return int(self.counts[1::2].sum())

    @property
    def bbox_xywh_px(self) -> tuple[int, int, int, int]:
        """Tight box: left, top, width, height; all 0 for an empty mask."""
        starts, lengths = self.counts.cumsum()[0:-1:2], self.counts[1::2]
        if not len(starts):
            return 0, 0, 0, 0
        height = self.size_hw[0]
        left, right = int(starts[0]) // height, int(starts[-1] + lengths[-1] - 1) // height
        tops = starts % height
        top, bottom = int(tops.min()), int((tops + lengths).max())
        if bottom > height:  # a run goes on at the head of the next column
            top, bottom = 0, height
        return left, top, right - left + 1, bottom - top

    def to_coco(self) -> dict[str, Any]:
        """Returns COCO's form: `{"size": [h, w], "counts": text}`."""
        return {"size": list(self.size_hw), "counts": _compressed(self.counts)}


def _compressed(counts: NDArray[np.int64]) -> str:
    """COCO's string: from the third run on the difference to the run two before, 5 bits a character, low bits first.

    Source: cocoapi `maskApi.c`, `rleToString` (described there; written anew).
    """
    values = counts.copy()
    values[3:] -= counts[1:-2]
    text: list[str] = []
    for value in values.tolist():
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(bits + (32 if more else 0) + 48))
    return "".join(text)
