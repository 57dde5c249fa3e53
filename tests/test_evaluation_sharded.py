"""Pictures shared out between processes give the score of one process, to the last digit."""

import pickle
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from edge_seg.data.synthetic import SyntheticScenes
from edge_seg.decoders.base import PanopticResult, SegmentResult
from edge_seg.errors import InputError
from edge_seg.evaluation.evaluate import Control, evaluate
from edge_seg.evaluation.panoptic_quality import PanopticQuality

COUNT = 7


@pytest.fixture(scope="module")
def scenes():
    return SyntheticScenes("easy", split="val", length=COUNT)


@dataclass
class Shifted:
    """Stands for a predictor: the truth, moved by as many pixels as the picture's number + 1."""

    scenes: SyntheticScenes

    def __post_init__(self):
        self.contract = SimpleNamespace(classes=self.scenes.classes, model=SimpleNamespace(task="panoptic"))
        self.number = {self.scenes[n].image_hwc_u8.tobytes(): n for n in range(COUNT)}

    def predict(self, image):
        number = self.number[image.tobytes()]
        sample = self.scenes[number]
        segments = tuple(SegmentResult(s.id, s.class_index, True, 1.0, 0, (0, 0, 0, 0)) for s in sample.segments)
        moved = np.roll(sample.id_map_hw_i32, number + 1, (0, 1))
        return SimpleNamespace(result=PanopticResult(moved, segments))


def half(result):
    """A known damage: every second segment is lost."""
    kept = result.segments[::2]
    ids = np.where(np.isin(result.id_map_hw_i32, [s.id for s in kept]), result.id_map_hw_i32, 0)
    return PanopticResult(ids, kept)


CONTROLS = {"half": Control(half, (0,)), "teacher forced": Control(lambda result: result)}


def parts_of(scenes, world, **options):
    return [
        evaluate(Shifted(scenes), scenes, controls=CONTROLS, rank=rank, world=world, **options) for rank in range(world)
    ]


def exchanged(parts):
    """What the processes hand to one another; it has to survive pickling."""
    sent = []

    def note(own):
        sent.append(pickle.loads(pickle.dumps(own)))
        raise InterruptedError

    for part in parts:
        with pytest.raises(InterruptedError):
            part.merged(note)
    return sent


@pytest.mark.parametrize("limit", [0, 5])
@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_merged_parts_equal_the_whole_to_the_last_digit(scenes, world, limit):
    """Also with more processes than pictures."""
    whole = evaluate(Shifted(scenes), scenes, controls=CONTROLS, limit=limit)
    assert 0 < whole.quality.compute().pq < 100
    parts = parts_of(scenes, world, limit=limit)
    assert sum(part.images for part in parts) == (limit or COUNT)
    sent = exchanged(parts)
    for part in parts:
        merged = part.merged(lambda own: sent)
        assert merged.to_json() == whole.to_json()
        assert merged.images == whole.images
        assert np.array_equal(merged.quality.statistics, whole.quality.statistics)


def test_the_order_of_the_pictures_comes_back(scenes):
    """Sums of floating-point numbers depend on it, and so does the pairing of two evaluations."""
    qualities = []
    for numbers in ([0, 2, 4], [1, 3]):
        quality = PanopticQuality(scenes.classes)
        for number in numbers:
            sample = scenes[number]
            quality.update(
                sample.id_map_hw_i32, sample.segments, sample.id_map_hw_i32, sample.segments, image_id=number
            )
        qualities.append(quality)
    assert PanopticQuality.interleaved(qualities).image_ids == (0, 1, 2, 3, 4)
    for wrong in (qualities[::-1], [qualities[1], qualities[1], qualities[0]], []):
        with pytest.raises(InputError, match="do not belong together"):
            PanopticQuality.interleaved(wrong)
    other = PanopticQuality(scenes.classes[:1])
    with pytest.raises(InputError, match="do not belong together"):
        PanopticQuality.interleaved([PanopticQuality(scenes.classes), other])


def test_parts_with_other_controls_and_a_rank_out_of_range_are_refused(scenes):
    part = parts_of(scenes, 1)[0]
    with pytest.raises(InputError, match="do not belong together"):
        part.merged(lambda own: [own, {"": own[""]}])
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(InputError, match="does not fit"):
            evaluate(Shifted(scenes), scenes, rank=rank, world=world)
