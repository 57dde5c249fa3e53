"""What values every tensor of a float network takes on pictures: extremes, extremes per channel, a histogram."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.converters.graph import Graph
from edge_seg.converters.interpreter import plain_interpreter
from edge_seg.errors import DataError

Images = Sequence[NDArray[np.uint8]]
BINS = 1 << 14
_SMALLEST_REACH = 2.0**-30


class Histogram:
    """Counts of values in equal bins over [-reach, reach).

    The reach is a power of two and doubles when a value asks for it. Pairs of bins then become one, so that one walk
    over the pictures gives the counts that a second walk with known extremes would give.

    Attributes:
        reach: End of the last bin.
        counts: int64 [BINS].
    """

    def __init__(self) -> None:
        self.reach = 0.0
        self.counts = np.zeros(BINS, np.int64)

    def add(self, values: NDArray[np.float32], largest: float) -> None:
        """Counts values of any shape; `largest` is their largest magnitude, all finite."""
        needed = 2.0 ** math.ceil(math.log2(max(largest * (1 + 1e-6), _SMALLEST_REACH)))
        if not self.reach:
            self.reach = needed
        while self.reach < needed:
            self._double()
        places = values.reshape(-1) * np.float32(BINS / 2 / self.reach)
        np.floor(places, out=places)
        self.counts += np.bincount(places.astype(np.int32) + BINS // 2, minlength=BINS)

    def _double(self) -> None:
        pairs = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.zeros(BINS, np.int64)
        self.counts[BINS // 4 : 3 * BINS // 4] = pairs
        self.reach *= 2

    def merged(self, other: Histogram) -> Histogram:
        """Returns the histogram of both sets of values."""
        total = Histogram()
        total.reach, total.counts = self.reach, self.counts.copy()
        added = Histogram()
        added.reach, added.counts = other.reach, other.counts.copy()
        for one, two in ((total, added), (added, total)):
            while one.reach < two.reach:
                one._double()
        total.counts += added.counts
        return total

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2 * self.reach / BINS

    def filled(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Returns the centres and the counts of the bins that hold something."""
        places = np.flatnonzero(self.counts)
        return (places.astype(np.float64) - BINS // 2 + 0.5) * self.width, self.counts[places]


@dataclass
class Statistics:
    """Values of one tensor over all pictures.

    Attributes:
        channel_low: Smallest value per channel (last axis), float32 [C].
        channel_high: Largest value per channel, float32 [C].
        histogram: Of all values.
    """

    channel_low: NDArray[np.float32]
    channel_high: NDArray[np.float32]
    histogram: Histogram = field(default_factory=Histogram)

    @property
    def low(self) -> float:
        """Smallest value."""
        return float(self.channel_low.min())

    @property
    def high(self) -> float:
        """Largest value."""
        return float(self.channel_high.max())

    @property
    def channel_magnitude(self) -> NDArray[np.float32]:
        """Largest magnitude per channel, float32 [C]."""
        return np.maximum(np.abs(self.channel_low), np.abs(self.channel_high))


def observe(data: bytes, graph: Graph, images: Images, *, progress: str = "calibrate") -> dict[int, Statistics]:
    """Runs the float network on pictures and gathers what its tensors hold.

    Args:
        data: The float file.
        graph: What it contains.
        images: Letterboxed pictures, uint8 [H, W, 3]; at least one.
        progress: Label of the progress bar on stderr; "" shows none.

    Returns:
        Statistics by index of the input and of every tensor that an operator writes in float32.

    Raises:
        DataError: There are no pictures, or a tensor is not finite; the first module is named.
    """
    from tqdm import tqdm

    if not len(images):
        raise DataError("There are no calibration pictures.", expected="at least one; 64 or more is usual")
    interpreter = plain_interpreter(data, keep_all=True)
    wanted = runtime_floats(graph)
    found: dict[int, Statistics] = {}
    for place, image in enumerate(tqdm(images, desc=progress, disable=not progress, unit="img", leave=False)):
        interpreter.set_tensor(graph.inputs[0], image[None].astype(np.float32))
        interpreter.invoke()
        for index in wanted:
            _add(found, graph, index, interpreter.get_tensor(index), place)
    return found


def runtime_floats(graph: Graph) -> list[int]:
    """Returns the float32 tensors computed at run time: the input, then the outputs of operators in their order."""
    written = [t for op in graph.ops for t in op.outputs]
    return [t for t in (*graph.inputs, *written) if graph.tensors[t].dtype == "float32"]


def _add(found: dict[int, Statistics], graph: Graph, index: int, values: NDArray[np.float32], picture: int) -> None:
    rows = values.reshape(-1, values.shape[-1] if values.ndim else 1)
    low, high = rows.min(0), rows.max(0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise _not_finite(graph, index, picture)
    known = found.get(index)
    if known is None:
        known = found[index] = Statistics(low, high)
    else:
        np.minimum(known.channel_low, low, out=known.channel_low)
        np.maximum(known.channel_high, high, out=known.channel_high)
    known.histogram.add(values, max(float(high.max()), -float(low.min())))


def _not_finite(graph: Graph, index: int, picture: int) -> DataError:
    op = graph.producer(index)
    module = graph.source(op) if op is not None else "the input"
    name = f"{op.name} of {module}" if op is not None else module
    return DataError(
        f"{name} gives values that are not finite on calibration picture {picture}.",
        expected="finite activations",
        got=f"NaN or infinity in {graph.tensors[index].name!r}, the first such tensor",
        todo="look at the weights and the training of that module; a network with NaN cannot be quantised",
    )


def channel_means(values: Sequence[Mapping[int, NDArray[Any]]]) -> dict[int, NDArray[np.float64]]:
    """Returns the mean per channel (last axis) of each tensor over runs; all runs hold the same tensors."""
    return {
        index: np.mean([run[index].mean(tuple(range(run[index].ndim - 1)), dtype=np.float64) for run in values], 0)
        for index in values[0]
    }
