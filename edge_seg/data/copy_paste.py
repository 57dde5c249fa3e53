"""Things of one training crop pasted over another, as a further source of variety.

Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation",
arXiv 2012.07177, section 3: both pictures get scale jitter and flip of their own, a random subset of objects is pasted
at its place without blending, and what is covered is taken out of the truth below. Written for id maps: stuff is
covered too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from edge_seg.data.sample import Dataset, Sample, Segment
from edge_seg.data.transforms import AugmentConfig, TrainCrop, augment

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TrainCrops:
    """Makes a training crop from a sample: augmentation and, by chance, things of a second sample.

    The generator is the only source of randomness, the choice of the second sample included: a crop depends on seed,
    step and slot, not on processes or threads. Without copy-paste nothing more is drawn than `augment` draws.

    Attributes:
        dataset: Where the second sample comes from.
        input_px: Side of the crop.
        config: The strengths.
        fill_rgb: Colour of the padding.
    """

    dataset: Dataset
    input_px: int
    config: AugmentConfig
    fill_rgb: tuple[int, int, int]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> TrainCrop:
        """Returns the crop of one sample; raises DataError when the second one cannot be read."""
        crop = self._augmented(sample, rng)
        if not self.config.copy_paste_prob or rng.random() >= self.config.copy_paste_prob:
            return crop
        other = self._augmented(self.dataset[int(rng.integers(len(self.dataset)))], rng)
        isthing = [info.isthing for info in self.dataset.classes]
        return paste_things(crop, other, isthing, self.config.copy_paste_max_things, rng)

    def _augmented(self, sample: Sample, rng: np.random.Generator) -> TrainCrop:
        return augment(sample, self.input_px, self.config, rng, self.fill_rgb)


def paste_things(
    crop: TrainCrop, other: TrainCrop, isthing: Sequence[bool], max_things: int, rng: np.random.Generator
) -> TrainCrop:
    """Returns `crop` with some things of `other` over it, at the place they have there.

    Segments below shrink; those without a pixel left are dropped. Nothing is pasted into the padding, which holds no
    object in an evaluated picture either. Groups that nobody separated (crowds) are not pasted.

    Args:
        crop: The crop below; left untouched.
        other: The crop the things come from, of the same size.
        isthing: Thing or stuff, per class.
        max_things: The number of things is drawn from 1 .. max_things; there may be fewer.
        rng: The only source of randomness.
    """
    things = [s for s in other.segments if isthing[s.class_index] and not s.iscrowd]
    wanted = int(rng.integers(1, max_things + 1))
    chosen = [things[i] for i in rng.permutation(len(things))[:wanted]]
    taken = {s.id for s in crop.segments}
    fresh = (i for i in count(1) if i not in taken)
    pasted = {s.id: Segment(next(fresh), s.class_index) for s in chosen}
    over = np.isin(other.id_map_hw_i32, list(pasted)) & crop.valid_hw & other.valid_hw
    if not over.any():
        return crop
    image, id_map = crop.image_hwc_u8.copy(), crop.id_map_hw_i32.copy()
    image[over] = other.image_hwc_u8[over]
    id_map[over] = _renamed(other.id_map_hw_i32[over], pasted)
    present = set(np.unique(id_map).tolist())
    segments = tuple(s for s in (*crop.segments, *pasted.values()) if s.id in present)
    return TrainCrop(image, id_map, crop.valid_hw, segments)


def _renamed(ids: NDArray[np.int32], pasted: dict[int, Segment]) -> NDArray[np.int32]:
    old = np.array(sorted(pasted), np.int32)
    new = np.array([pasted[i].id for i in old.tolist()], np.int32)
    return new[np.searchsorted(old, ids)]
