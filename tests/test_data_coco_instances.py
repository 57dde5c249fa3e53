"""The COCO instances reader; masks are compared with pycocotools and with boxes drawn by hand."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from edge_seg.data.coco_instances import CocoInstances, rasterise
from edge_seg.data.sample import Segment
from edge_seg.errors import DataError

H, W = 6, 8


def rectangle(x0, y0, x1, y1):
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def annotation(id_, shape, category_id=1, **more):
    return {"id": id_, "image_id": 1, "category_id": category_id, "segmentation": shape, "iscrowd": 0, **more}


@pytest.fixture
def document():
    return {
        "images": [
            {"id": 1, "file_name": "a.png", "width": W, "height": H},
            {"id": 2, "file_name": "b.png", "width": W, "height": H},
        ],
        "annotations": [annotation(11, rectangle(1, 1, 3, 3)), annotation(12, rectangle(0, 0, 6, 6), 4)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 4, "name": "dog"}],
    }


@pytest.fixture
def open_set(tmp_path, document):
    (tmp_path / "train").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (W, H)).save(tmp_path / "train" / name)

    def write_and_open():
        (tmp_path / "instances_train.json").write_text(json.dumps(document))
        return CocoInstances(tmp_path / "instances_train.json")

    return write_and_open


def test_the_smaller_object_is_painted_over_the_larger(open_set):
    sample = open_set()[0]
    expected = np.zeros((H, W), int)
    expected[0:6, 0:6] = 2
    expected[1:3, 1:3] = 1
    assert sample.id_map_hw_i32.tolist() == expected.tolist()
    assert sample.segments == (Segment(1, 0), Segment(2, 1))


def test_whole_masks_keep_the_overlap(open_set):
    (first, small), (second, large) = open_set().masks(0)
    assert (first.id, second.id) == (1, 2)
    assert (small.sum(), large.sum(), (small & large).sum()) == (4, 36, 4)


def test_a_picture_without_objects_is_all_void(open_set):
    sample = open_set()[1]
    assert not sample.id_map_hw_i32.any()
    assert sample.segments == ()


def test_crowds_lie_below_objects_and_are_marked(open_set, document):
    crowd = {"size": [H, W], "counts": [0, 2, H * W - 2]}
    document["annotations"].append(annotation(13, crowd, iscrowd=1))
    sample = open_set()[0]
    assert Segment(3, 0, iscrowd=True) not in sample.segments
    document["annotations"].pop(1)
    sample = open_set()[0]
    assert sample.segments == (Segment(1, 0), Segment(2, 0, iscrowd=True))
    assert sample.id_map_hw_i32[:2, 0].tolist() == [2, 2]


def test_every_class_is_a_thing(open_set):
    assert [c.isthing for c in open_set().classes] == [True, True]


@pytest.mark.parametrize("seed", range(8))
def test_run_lengths_decode_as_pycocotools_encoded_them(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((37, 53)) < rng.random()
    mask[:, :10] = seed % 2
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    shape = {"size": [37, 53], "counts": encoded["counts"].decode()}
    assert np.array_equal(rasterise(shape, 37, 53, "here"), mask)


@pytest.mark.parametrize(
    "shape",
    [
        [],
        [[0, 0, 1, 1]],
        [[0, 0, 1, 1, 2, 2, 3]],
        [[0, 0, 1, float("nan"), 2, 2]],
        [[0, 0, 1, 1e9, 2, 2]],
        [["a"] * 6],
        [[0, 0, 1, True, 2, 2]],
        {"size": [H, W], "counts": [10]},
        {"size": [W, H], "counts": [H * W]},
        {"size": [H, W], "counts": [-1, H * W + 1]},
        {"size": [H, W], "counts": "~~~"},
        {"size": [H, W], "counts": "o" * 50},
        {"size": [H, W], "counts": "P"},
        {"size": [H, W], "counts": None},
        {},
    ],
    ids=repr,
)
def test_a_malformed_segmentation_is_refused(shape):
    with pytest.raises(DataError, match=r"polygon|run"):
        rasterise(shape, H, W, "here")


BROKEN = {
    "an annotation twice": (lambda d: d["annotations"].append(d["annotations"][0]), "twice"),
    "an unknown category": (lambda d: d["annotations"][0].update(category_id=2), "unknown category"),
    "an unknown picture": (lambda d: d["annotations"][0].update(image_id=9), "belongs to no picture"),
    "no segmentation": (lambda d: d["annotations"][0].pop("segmentation"), '"segmentation"'),
    "a name that leads out": (lambda d: d["images"][1].update(file_name="../b.png"), "leads out"),
    "no pictures": (lambda d: d.update(images=[]), "empty data set"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_json_is_refused_when_opened(open_set, document, case):
    break_it, message = BROKEN[case]
    break_it(document)
    with pytest.raises(DataError, match=message):
        open_set()


def test_a_picture_of_another_size_is_refused(open_set, tmp_path):
    Image.new("RGB", (3, 3)).save(tmp_path / "train" / "a.png")
    with pytest.raises(DataError, match="another size"):
        open_set()[0]
