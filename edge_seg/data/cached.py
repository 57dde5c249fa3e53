"""Keeps decoded samples in memory, so that an epoch costs no JPEG and PNG decoding."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edge_seg.data.sample import Dataset, Sample, Segment
from edge_seg.data.things import object_masks
from edge_seg.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_seg.contract import ClassInfo


class _Packed(NamedTuple):
    """A sample whose id map is a position in `ids`, in the smallest unsigned dtype."""

    sample: Sample
    ids: NDArray[np.int32]
    positions_hw: NDArray[np.unsignedinteger]

    @property
    def size_bytes(self) -> int:
        """Bytes of the arrays that are kept."""
        return self.sample.image_hwc_u8.nbytes + self.positions_hw.nbytes + self.ids.nbytes


class CachedDataset:
    """Wraps a data set; the first samples that fit stay in memory, the others are read each time.

    Safe to use from several threads. Returned arrays are read-only.

    Args:
        dataset: What to wrap.
        cache_mb: Limit for the kept arrays, in units of 10^6 bytes; 0 keeps nothing.

    Raises:
        ConfigError: The limit is negative.
    """

    def __init__(self, dataset: Dataset, *, cache_mb: float) -> None:
        if cache_mb < 0:
            raise ConfigError("cache_mb is out of range.", expected="0 or more", got=str(cache_mb))
        self._dataset = dataset
        self._limit_bytes = int(cache_mb * 1e6)
        self._kept: dict[int, _Packed] = {}
        self._lock = threading.Lock()
        self.size_bytes = 0

    @property
    def name(self) -> str:
        """Name of the wrapped data set."""
        return self._dataset.name

    @property
    def classes(self) -> tuple[ClassInfo, ...]:
        """Class list of the wrapped data set."""
        return self._dataset.classes

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        """Returns a sample from memory, or reads it and keeps it while there is room."""
        packed = self._kept.get(index)
        if packed is not None:
            return _unpack(packed)
        sample = self._dataset[index]
        if self.size_bytes < self._limit_bytes:
            self._keep(index, _pack(sample))
        return sample

    def masks(self, index: int) -> list[tuple[Segment, NDArray[np.bool_]]]:
        """Returns the things of a picture with their masks, whole where the wrapped data set knows them."""
        return object_masks(self._dataset, index, self[index])

    def fingerprint(self) -> str:
        """Fingerprint of the wrapped data set."""
        return self._dataset.fingerprint()

    def _keep(self, index: int, packed: _Packed) -> None:
        with self._lock:
            fits = self.size_bytes + packed.size_bytes <= self._limit_bytes
            if fits and index not in self._kept:
                self._kept[index] = packed
                self.size_bytes += packed.size_bytes


def _pack(sample: Sample) -> _Packed:
    ids, inverse = np.unique(sample.id_map_hw_i32, return_inverse=True)
    positions = inverse.reshape(sample.id_map_hw_i32.shape).astype(np.min_scalar_type(len(ids) - 1))
    sample.image_hwc_u8.flags.writeable = False
    slim = Sample(sample.image_id, sample.file_name, sample.image_hwc_u8, np.zeros((0, 0), np.int32), sample.segments)
    return _Packed(slim, ids, positions)


def _unpack(packed: _Packed) -> Sample:
    id_map = packed.ids[packed.positions_hw]
    slim = packed.sample
    return Sample(slim.image_id, slim.file_name, slim.image_hwc_u8, id_map, slim.segments)
