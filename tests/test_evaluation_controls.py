"""Known damage must be exactly what it says, and the metric must collapse under it."""

from types import SimpleNamespace

import numpy as np
import pytest

from edge_seg.contract import ClassInfo
from edge_seg.data.sample import Segment
from edge_seg.data.synthetic import SyntheticScenes
from edge_seg.decoders.base import Instance, InstanceResult, PanopticResult, SegmentResult
from edge_seg.decoders.run_lengths import RunLengths
from edge_seg.errors import InputError
from edge_seg.evaluation.controls import shift_masks, swap_classes
from edge_seg.evaluation.panoptic_quality import PanopticQuality
from edge_seg.steps import control_damages


def result_of(ids, class_of):
    ids = np.array(ids, np.int32)
    return PanopticResult(ids, tuple(SegmentResult(i, c, True, 0.5, 0, (0, 0, 0, 0)) for i, c in class_of.items()))


def test_a_shift_moves_right_and_down_and_fills_with_void():
    moved = shift_masks(result_of([[1, 1, 0], [0, 2, 0], [3, 0, 0]], {1: 0, 2: 0, 3: 1}), 1)
    assert moved.id_map_hw_i32.tolist() == [[0, 0, 0], [0, 1, 1], [0, 0, 2]]
    assert moved.id_map_hw_i32.dtype == np.int32


def test_a_shift_drops_what_left_the_picture_and_measures_the_rest():
    moved = shift_masks(result_of([[1, 1, 0], [0, 2, 0], [3, 0, 0]], {1: 0, 2: 0, 3: 1}), 1)
    assert [(s.id, s.area_px, s.bbox_xywh_px, s.score) for s in moved.segments] == [
        (1, 2, (1, 1, 2, 1), 0.5),
        (2, 1, (2, 2, 1, 1), 0.5),
    ]


def test_a_negative_shift_moves_left_and_up_and_a_large_one_clears():
    result = result_of([[1, 0], [0, 2]], {1: 0, 2: 1})
    assert shift_masks(result, -1).id_map_hw_i32.tolist() == [[2, 0], [0, 0]]
    assert shift_masks(result, 5).segments == ()
    assert not shift_masks(result, 5).id_map_hw_i32.any()


def test_a_swap_exchanges_two_classes_and_nothing_else():
    result = result_of([[1, 2, 3]], {1: 0, 2: 1, 3: 2})
    swapped = swap_classes(result, 0, 2)
    assert [s.class_index for s in swapped.segments] == [2, 1, 0]
    assert swapped.id_map_hw_i32 is result.id_map_hw_i32
    assert swap_classes(swapped, 0, 2) == result
    with pytest.raises(InputError, match="two classes"):
        swap_classes(result, 1, 1)


@pytest.mark.parametrize("level", ["easy", "hard"])
def test_the_metric_collapses_under_a_shift_and_a_swap(level):
    """A perfect prediction of 20 scenes; the swapped two classes must lose everything."""
    scenes = SyntheticScenes(level, split="val")
    damage = {"none": lambda r: r, "shift": lambda r: shift_masks(r, 8), "swap": lambda r: swap_classes(r, 0, 1)}
    scores = {name: PanopticQuality(scenes.classes) for name in damage}
    for sample in (scenes[i] for i in range(20)):
        perfect = result_of(sample.id_map_hw_i32, {s.id: s.class_index for s in sample.segments})
        for name, change in damage.items():
            result = change(perfect)
            scores[name].update(result.id_map_hw_i32, result.segments, sample.id_map_hw_i32, sample.segments)
    computed = {name: quality.compute() for name, quality in scores.items()}
    assert computed["none"].pq == 100.0
    assert computed["shift"].pq < 50.0
    assert computed["shift"].pq_th < 20.0
    assert [row.tp for row in computed["swap"].per_class[:2]] == [0, 0]


@pytest.mark.parametrize(("things", "names"), [(0, ["shift by 8 px"]), (1, ["shift by 8 px"]), (2, 2)])
def test_a_data_set_with_one_kind_of_thing_has_nothing_to_swap(things, names):
    """A data set of one class is what many users bring."""

    class Pictures:
        classes = tuple(ClassInfo(n, f"class {n}", n < things, (0, 0, 0)) for n in range(3))

        def __len__(self):
            return 1

        def __getitem__(self, index):
            return SimpleNamespace(segments=(Segment(1, 0),))

    found = list(control_damages(Pictures()))
    assert found == names if isinstance(names, list) else len(found) == names


def test_objects_are_shifted_and_swapped_like_an_id_map():
    mask = np.zeros((6, 7), bool)
    mask[1:3, 4:6] = True
    thing = Instance(2, 0.9, (4.0, 1.0, 6.0, 3.0), RunLengths.from_mask(mask))
    result = InstanceResult((6, 7), (thing,))
    (moved,) = shift_masks(result, 2).instances
    expected = np.zeros((6, 7), bool)
    expected[3:5, 6] = True  # one of two columns left the picture
    assert np.array_equal(moved.mask.mask(), expected)
    assert moved.box_xyxy_px == (6.0, 3.0, 8.0, 5.0)
    assert [i.class_index for i in swap_classes(result, 2, 0).instances] == [0]
    assert swap_classes(result, 1, 0) == result
