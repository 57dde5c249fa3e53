"""The two genuine COCO panoptic pictures: what is documented about the format must hold for them."""

import json

import numpy as np
import pytest

from edge_seg.data.coco_panoptic import CocoPanoptic
from edge_seg.data.sample import Segment
from edge_seg.data.source import open_dataset
from edge_seg.evaluation.panoptic_quality import PanopticQuality

pytestmark = pytest.mark.shared


@pytest.fixture
def json_path(shared_dir):
    return shared_dir / "data" / "panoptic_format" / "sample_data" / "panoptic_examples.json"


@pytest.fixture
def dataset(json_path):
    return open_dataset(str(json_path), split="val")


def test_the_set_is_recognised_as_panoptic_with_133_classes(dataset, shared_dir):
    listed = json.loads((shared_dir / "data/panoptic_format/panoptic_coco_categories.json").read_text())
    assert isinstance(dataset, CocoPanoptic)
    assert [c.id for c in dataset.classes] == [c["id"] for c in listed]
    assert [list(c.color_rgb) for c in dataset.classes] == [c["color"] for c in listed]
    assert sum(c.isthing for c in dataset.classes) == 80
    assert len(dataset) == 2


def test_areas_and_boxes_of_the_json_are_those_of_the_pixels(dataset, json_path):
    document = json.loads(json_path.read_text())
    infos = {a["image_id"]: {s["id"]: s for s in a["segments_info"]} for a in document["annotations"]}
    for sample in (dataset[0], dataset[1]):
        for segment in sample.segments:
            info = infos[sample.image_id][segment.id]
            rows, columns = np.nonzero(sample.id_map_hw_i32 == segment.id)
            assert rows.size == info["area"]
            assert [columns.min(), rows.min()] == info["bbox"][:2]
            assert dataset.classes[segment.class_index].id == info["category_id"]
            assert segment.iscrowd == bool(info["iscrowd"])


def test_the_truth_scores_100_against_itself(dataset):
    quality = PanopticQuality(dataset.classes)
    for sample in (dataset[0], dataset[1]):
        quality.update(sample.id_map_hw_i32, sample.segments, sample.id_map_hw_i32, sample.segments)
    result = quality.compute()
    assert (result.pq, result.sq, result.rq, result.pq_th, result.pq_st) == (100.0,) * 5
    separate = sum(not s.iscrowd for sample in (dataset[0], dataset[1]) for s in sample.segments)
    assert sum(row.tp for row in result.per_class) == separate


def test_without_its_things_the_truth_scores_0_on_things_and_100_on_stuff(dataset):
    quality = PanopticQuality(dataset.classes)
    for sample in (dataset[0], dataset[1]):
        stuff = [s for s in sample.segments if not dataset.classes[s.class_index].isthing]
        kept = np.where(np.isin(sample.id_map_hw_i32, [s.id for s in stuff]), sample.id_map_hw_i32, 0)
        quality.update(kept, stuff, sample.id_map_hw_i32, sample.segments)
    result = quality.compute()
    assert (result.pq_th, result.pq_st) == (0.0, 100.0)


def test_painting_the_void_costs_nothing(dataset):
    """Void grows into the largest segment: the union leaves it out."""
    quality = PanopticQuality(dataset.classes)
    for sample in (dataset[0], dataset[1]):
        ids = sample.id_map_hw_i32
        largest = max(sample.segments, key=lambda s: int((ids == s.id).sum()))
        assert (ids == 0).any()
        quality.update(np.where(ids == 0, largest.id, ids), sample.segments, ids, sample.segments)
    assert quality.compute().pq == 100.0


def test_a_wrong_class_costs_a_miss_and_a_false_alarm(dataset):
    sample = dataset[0]
    first = next(s for s in sample.segments if not s.iscrowd)
    wrong = (first.class_index + 1) % len(dataset.classes)
    renamed = [Segment(s.id, wrong) if s.id == first.id else s for s in sample.segments]
    quality = PanopticQuality(dataset.classes)
    quality.update(sample.id_map_hw_i32, renamed, sample.id_map_hw_i32, sample.segments)
    rows = quality.compute().per_class
    assert rows[first.class_index].fn == 1
    assert rows[wrong].fp == 1


def test_facade_reads_without_error_and_scores_100_against_itself(shared_dir):
    dataset = open_dataset(str(shared_dir / "data" / "facade"), split="val")
    quality = PanopticQuality(dataset.classes)
    for sample in (dataset[i] for i in range(0, len(dataset), 8)):
        quality.update(sample.id_map_hw_i32, sample.segments, sample.id_map_hw_i32, sample.segments)
    assert [c.isthing for c in dataset.classes] == [True] * 5 + [False] * 5
    assert len(dataset) == 107
    assert quality.compute().pq == 100.0


def test_animals_read_as_instances(shared_dir):
    dataset = open_dataset(str(shared_dir / "data" / "animals"), split="val")
    assert len(dataset) == 145
    assert all(c.isthing for c in dataset.classes)
    for sample in (dataset[i] for i in range(0, 145, 12)):
        assert sample.image_hwc_u8.shape[:2] == sample.id_map_hw_i32.shape
        assert sample.segments
