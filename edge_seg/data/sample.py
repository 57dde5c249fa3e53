"""What a data set hands out: one picture with an id map, and the segments that the ids name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_seg.contract import ClassInfo

VOID_ID = 0


@dataclass(frozen=True)
class Segment:
    """One region of an id map.

    Attributes:
        id: Its value in the id map, greater than 0.
        class_index: Contiguous class index, a position in `Dataset.classes`.
        iscrowd: Whether it is a group that nobody separated; scored as "do not care".
    """

    id: int
    class_index: int
    iscrowd: bool = False


@dataclass(frozen=True)
class Sample:
    """One picture with its truth. The arrays may be read-only: copy before writing.

    Attributes:
        image_id: The picture's id in its data set.
        file_name: Its file name, or a made-up one.
        image_hwc_u8: Picture, [H, W, 3] uint8, RGB.
        id_map_hw_i32: Segment id of every pixel, [H, W] int32; 0 is void.
        segments: The segments of the id map; every id other than 0 has exactly one.
    """

    image_id: int | str
    file_name: str
    image_hwc_u8: NDArray[np.uint8]
    id_map_hw_i32: NDArray[np.int32]
    segments: tuple[Segment, ...]


class Dataset(Protocol):
    """A finite, indexable set of samples over one class list."""

    @property
    def name(self) -> str:
        """Short name for logs and reports."""

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """The class list; a segment's `class_index` is a position in it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def fingerprint(self) -> str:
        """Returns a SHA-256 (64 hexadecimal digits) of what the data is."""
