"""What an instance network sees of a panoptic data set, and where whole masks come from."""

import json

import numpy as np
import pytest
from PIL import Image

from edge_seg.contract import ClassInfo
from edge_seg.data.cached import CachedDataset
from edge_seg.data.coco_instances import CocoInstances
from edge_seg.data.sample import Sample, Segment
from edge_seg.data.source import open_dataset
from edge_seg.data.things import ThingsOnly, for_task, object_masks
from edge_seg.errors import InputError


class Panoptic:
    """One picture: stuff 0 on the left, things of class 1 and 2 on the right, void in the last row."""

    name = "panoptic"
    classes = tuple(ClassInfo(10 + i, n, n != "sky", (i, i, i)) for i, n in enumerate(("sky", "cat", "dog")))

    def __len__(self):
        return 1

    def __getitem__(self, index):
        ids = np.array([[7, 7, 3, 5], [7, 7, 3, 5], [0, 0, 0, 0]], np.int32)
        segments = (Segment(7, 0), Segment(3, 1), Segment(5, 2, iscrowd=True))
        return Sample(1, "a.png", np.zeros((3, 4, 3), np.uint8), ids, segments)

    def fingerprint(self):
        return "f" * 64


def test_stuff_becomes_void_and_classes_are_renumbered():
    things = ThingsOnly(Panoptic())
    sample = things[0]
    assert [c.name for c in things.classes] == ["cat", "dog"]
    assert sample.id_map_hw_i32.tolist() == [[0, 0, 3, 5], [0, 0, 3, 5], [0, 0, 0, 0]]
    assert sample.segments == (Segment(3, 0), Segment(5, 1, iscrowd=True))
    assert things.fingerprint() != Panoptic().fingerprint()
    masks = things.masks(0)
    assert [(s.class_index, int(m.sum())) for s, m in masks] == [(0, 2), (1, 2)]


def test_only_instance_networks_lose_the_stuff():
    panoptic = Panoptic()
    assert for_task(panoptic, "panoptic") is panoptic
    things = for_task(panoptic, "instance")
    assert isinstance(things, ThingsOnly)
    assert for_task(things, "instance") is things


def test_a_data_set_without_things_is_refused():
    class Sky(Panoptic):
        classes = Panoptic.classes[:1]

    with pytest.raises(InputError, match="no things"):
        for_task(Sky(), "instance")


def test_synthetic_scenes_have_things():
    scenes = open_dataset("synthetic:easy", split="val")
    things = for_task(scenes, "instance")
    assert 0 < len(things.classes) < len(scenes.classes)
    sample = things[0]
    assert {s.id for s in sample.segments} == set(np.unique(sample.id_map_hw_i32)) - {0}


def test_hidden_parts_of_coco_objects_survive_wrapping(tmp_path):
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(tmp_path / "a.png")
    square = lambda x0, y0, x1, y1: [[x0, y0, x1, y0, x1, y1, x0, y1]]  # noqa: E731
    boxes = ((0, 0, 8, 8), (4, 4, 8, 8))
    annotations = [
        {"id": n, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": square(*b), "area": 1, "bbox": b}
        for n, b in enumerate(boxes, 1)
    ]
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 10, "height": 10}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": annotations,
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    dataset = CocoInstances(tmp_path / "instances.json", images=tmp_path)
    sample = dataset[0]
    visible = [int((sample.id_map_hw_i32 == s.id).sum()) for s in sample.segments]
    for source in (dataset, CachedDataset(dataset, cache_mb=1)):
        whole = [int(mask.sum()) for _, mask in object_masks(source, 0, source[0])]
        assert whole == [64, 16]
    assert visible == [48, 16]
