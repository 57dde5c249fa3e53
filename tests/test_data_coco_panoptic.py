"""The COCO panoptic reader, on small data sets written here."""

import json

import numpy as np
import pytest
from PIL import Image

from edge_seg.data.coco_json import palette_rgb
from edge_seg.data.coco_panoptic import CocoPanoptic
from edge_seg.data.sample import Segment
from edge_seg.errors import DataError

BIG_ID = 70000


def write_png(path, ids):
    ids = np.asarray(ids)
    Image.fromarray(np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)).save(path)


def segment(id_, category_id, area=1, **more):
    return {"id": id_, "category_id": category_id, "area": area, "iscrowd": 0, **more}


@pytest.fixture
def document():
    return {
        "images": [{"id": 5, "file_name": "a.png", "width": 4, "height": 2}],
        "annotations": [
            {
                "image_id": 5,
                "file_name": "a.png",
                "segments_info": [segment(BIG_ID, 9), segment(2, 3, iscrowd=1), segment(7, 3, area=0)],
            }
        ],
        "categories": [
            {"id": 9, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
            {"id": 3, "name": "dog", "isthing": 1},
        ],
    }


@pytest.fixture
def open_set(tmp_path, document):
    """Writes the files, `document` as it is by then, and opens them."""
    for folder in ("train", "panoptic_train"):
        (tmp_path / folder).mkdir()
    Image.new("RGB", (4, 2), (10, 20, 30)).save(tmp_path / "train" / "a.png")
    write_png(tmp_path / "panoptic_train" / "a.png", [[0, 0, 2, 2], [BIG_ID] * 4])

    def write_and_open(**options):
        (tmp_path / "panoptic_train.json").write_text(json.dumps(document))
        return CocoPanoptic(tmp_path / "panoptic_train.json", **options)

    return write_and_open


def test_ids_classes_and_crowds_are_read(open_set):
    dataset = open_set()
    sample = dataset[0]
    assert len(dataset) == 1
    assert sample.image_id == 5
    assert sample.file_name == "a.png"
    assert sample.image_hwc_u8.tolist() == [[[10, 20, 30]] * 4] * 2
    assert sample.id_map_hw_i32.tolist() == [[0, 0, 2, 2], [BIG_ID] * 4]
    assert sample.segments == (Segment(BIG_ID, 0), Segment(2, 1, iscrowd=True))


def test_classes_keep_the_order_of_the_file_and_their_colours(open_set):
    sky, dog = open_set().classes
    assert (sky.id, sky.name, sky.isthing, sky.color_rgb) == (9, "sky", False, (1, 2, 3))
    assert (dog.id, dog.name, dog.isthing, dog.color_rgb) == (3, "dog", True, palette_rgb(1))


def test_the_palette_gives_133_classes_different_colours():
    assert len({palette_rgb(i) for i in range(133)}) == 133


@pytest.mark.parametrize("place", ["train", "images", "pictures", "."])
def test_pictures_are_found_in_usual_folders(open_set, tmp_path, place):
    if place != "train":
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / "train" / "a.png").rename(tmp_path / place / "a.png")
    assert open_set().image_folder == tmp_path / place


def test_pictures_are_found_in_the_layout_of_coco(tmp_path, document, open_set):
    open_set()
    (tmp_path / "annotations").mkdir()
    for name in ("panoptic_train.json", "panoptic_train"):
        (tmp_path / name).rename(tmp_path / "annotations" / name)
    dataset = CocoPanoptic(tmp_path / "annotations" / "panoptic_train.json")
    assert dataset.image_folder == tmp_path / "train"
    assert len(dataset[0].segments) == 2


def test_a_named_image_folder_is_the_only_one_tried(open_set, tmp_path):
    with pytest.raises(DataError, match="were not found"):
        open_set(images=tmp_path / "elsewhere")


def test_a_missing_png_folder_is_named(open_set, tmp_path):
    (tmp_path / "panoptic_train" / "a.png").unlink()
    (tmp_path / "panoptic_train").rmdir()
    with pytest.raises(DataError, match="id maps"):
        open_set()


def image(document, **changes):
    document["images"][0].update(changes)


def annotation(document, **changes):
    document["annotations"][0].update(changes)


BROKEN = {
    "an empty data set": (lambda d: d.update(images=[], annotations=[]), "empty data set"),
    "no categories": (lambda d: d.update(categories=[]), "no categories"),
    "a list that is missing": (lambda d: d.pop("categories"), "not a COCO annotation file"),
    "an image twice": (lambda d: d["images"].append(dict(d["images"][0])), "twice"),
    "an annotation twice": (lambda d: d["annotations"].append(dict(d["annotations"][0])), "twice"),
    "a category twice": (lambda d: d["categories"].append(dict(d["categories"][0])), "twice"),
    "a segment twice": (lambda d: d["annotations"][0]["segments_info"].append(segment(2, 3)), "twice"),
    "an unknown category": (lambda d: annotation(d, segments_info=[segment(2, 4)]), "unknown category"),
    "a picture without annotation": (lambda d: d.update(annotations=[]), "a picture without annotation"),
    "an annotation without picture": (
        lambda d: d["annotations"].append({"image_id": 6, "file_name": "b.png", "segments_info": []}),
        "an annotation without picture",
    ),
    "an image name that leads out": (lambda d: image(d, file_name="../a.png"), "leads out"),
    "a png name that leads out": (lambda d: annotation(d, file_name="/a.png"), "leads out"),
    "an id of zero": (lambda d: annotation(d, segments_info=[segment(0, 3)]), "out of range"),
    "an id over 24 bits": (lambda d: annotation(d, segments_info=[segment(1 << 24, 3)]), "out of range"),
    "a width of zero": (lambda d: image(d, width=0), "impossible size"),
    "a width of a million million": (lambda d: image(d, width=10**12), "impossible size"),
    "a width that is text": (lambda d: image(d, width="4"), '"width" of type int'),
    "a colour that is not three bytes": (
        lambda d: d["categories"][0].update(color=[1, 2, 300]),
        "three bytes",
    ),
    "a crowd flag of two": (lambda d: annotation(d, segments_info=[segment(2, 3, iscrowd=2)]), "iscrowd"),
    "an isthing of text": (lambda d: d["categories"][0].update(isthing="yes"), "isthing"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_json_is_refused_when_opened(open_set, document, case):
    break_it, message = BROKEN[case]
    break_it(document)
    with pytest.raises(DataError, match=message):
        open_set()


def test_a_file_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "panoptic_train.json").write_text("{")
    with pytest.raises(DataError, match="not readable"):
        CocoPanoptic(tmp_path / "panoptic_train.json")


def test_a_missing_json_is_refused(tmp_path):
    with pytest.raises(DataError, match="There is no file"):
        CocoPanoptic(tmp_path / "panoptic_train.json")


def test_a_picture_that_is_gone_is_refused_when_read(open_set, tmp_path):
    dataset = open_set()
    (tmp_path / "train" / "a.png").unlink()
    with pytest.raises(DataError, match="There is no picture"):
        dataset[0]


def test_an_id_map_of_another_size_is_refused(open_set, tmp_path):
    write_png(tmp_path / "panoptic_train" / "a.png", [[BIG_ID] * 3 + [2]])
    with pytest.raises(DataError, match="another size"):
        open_set()[0]


def test_a_picture_of_another_size_is_refused(open_set, tmp_path):
    Image.new("RGB", (2, 4)).save(tmp_path / "train" / "a.png")
    with pytest.raises(DataError, match="another size"):
        open_set()[0]


def test_png_ids_that_the_json_does_not_name_are_refused(open_set, tmp_path):
    write_png(tmp_path / "panoptic_train" / "a.png", [[0, 99, 2, 2], [BIG_ID] * 4])
    with pytest.raises(DataError, match="99 and 0 more"):
        open_set()[0]


def test_a_segment_with_area_but_without_pixels_is_refused(open_set, tmp_path):
    write_png(tmp_path / "panoptic_train" / "a.png", [[0] * 4, [BIG_ID] * 4])
    with pytest.raises(DataError, match="no pixel of id 2"):
        open_set()[0]


def test_the_fingerprint_changes_with_labels_and_pictures_only(open_set, document, tmp_path):
    first = open_set().fingerprint()
    assert open_set().fingerprint() == first
    document["categories"][0]["name"] = "cloud"
    second = open_set().fingerprint()
    Image.new("RGB", (4, 2)).save(tmp_path / "train" / "a.png", compress_level=0)
    assert len({first, second, open_set().fingerprint()}) == 3
