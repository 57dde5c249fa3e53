"""What an instance network sees of any data set: its things, each with a whole mask."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from edge_seg.data.sample import Dataset, Sample, Segment
from edge_seg.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_seg.contract import ClassInfo


@runtime_checkable
class WholeMasks(Protocol):
    """A data set that knows the hidden parts of its objects."""

    def masks(self, index: int) -> list[tuple[Segment, NDArray[np.bool_]]]:
        """Returns every object of a picture with its whole mask, [H, W] bool, overlaps included."""
        ...


def object_masks(dataset: Dataset, index: int, sample: Sample) -> list[tuple[Segment, NDArray[np.bool_]]]:
    """Returns every thing of a picture with its mask, [H, W] bool.

    The mask is whole where the data set knows it, and what the id map shows elsewhere.

    Args:
        dataset: The data set.
        index: Position of the picture.
        sample: The picture.
    """
    if isinstance(dataset, WholeMasks):
        return dataset.masks(index)
    things = [s for s in sample.segments if dataset.classes[s.class_index].isthing]
    return [(segment, sample.id_map_hw_i32 == segment.id) for segment in things]


class ThingsOnly:
    """A data set without its stuff: fewer classes, and what was stuff is void.

    Args:
        dataset: What to wrap.

    Raises:
        InputError: It has no things.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        things = [index for index, info in enumerate(dataset.classes) if info.isthing]
        if not things:
            raise InputError(
                f"{dataset.name} has no things.",
                expected="at least one class of countable objects",
                got=f"{len(dataset.classes)} stuff classes",
                todo="take a panoptic network",
            )
        self._index = {old: new for new, old in enumerate(things)}
        self.classes: tuple[ClassInfo, ...] = tuple(dataset.classes[index] for index in things)

    @property
    def name(self) -> str:
        """Name of the wrapped data set."""
        return self._dataset.name

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        """Returns a sample in which stuff is void."""
        sample = self._dataset[index]
        stuff = [s.id for s in sample.segments if s.class_index not in self._index]
        ids = sample.id_map_hw_i32
        shown = np.where(np.isin(ids, stuff), 0, ids).astype(np.int32) if stuff else ids
        return replace(sample, id_map_hw_i32=shown, segments=tuple(map(self._renamed, self._kept(sample.segments))))

    def masks(self, index: int) -> list[tuple[Segment, NDArray[np.bool_]]]:
        """Returns every thing of a picture with its mask, [H, W] bool."""
        found = object_masks(self._dataset, index, self._dataset[index])
        return [(self._renamed(segment), mask) for segment, mask in found if segment.class_index in self._index]

    def fingerprint(self) -> str:
        """Returns a SHA-256 of what the data is, other than that of the wrapped data set."""
        return hashlib.sha256(f"things only of {self._dataset.fingerprint()}".encode()).hexdigest()

    def _kept(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        return tuple(s for s in segments if s.class_index in self._index)

    def _renamed(self, segment: Segment) -> Segment:
        return replace(segment, class_index=self._index[segment.class_index])


def for_task(dataset: Dataset, task: str) -> Dataset:
    """Returns a data set as networks of a task see it.

    Args:
        dataset: Any data set.
        task: "panoptic" or "instance".

    Raises:
        InputError: An instance network and a data set without things.
    """
    if task != "instance" or all(info.isthing for info in dataset.classes):
        return dataset
    return ThingsOnly(dataset)
