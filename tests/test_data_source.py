"""From `--data` to a data set, and the cache around it."""

import json
import threading

import numpy as np
import pytest
from PIL import Image

from edge_seg.contract import ClassInfo
from edge_seg.data.cached import CachedDataset
from edge_seg.data.coco_instances import CocoInstances
from edge_seg.data.coco_panoptic import CocoPanoptic
from edge_seg.data.sample import Sample, Segment
from edge_seg.data.source import open_dataset
from edge_seg.errors import ConfigError, DataError


def write_set(folder, kind, split):
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 2, "height": 2}],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}],
    }
    if kind == "panoptic":
        document["annotations"] = [{"image_id": 1, "file_name": "a.png", "segments_info": []}]
        (folder / f"panoptic_{split}").mkdir()
        Image.new("RGB", (2, 2)).save(folder / f"panoptic_{split}" / "a.png")
    (folder / split).mkdir(exist_ok=True)
    Image.new("RGB", (2, 2)).save(folder / split / "a.png")
    path = folder / f"{kind}_{split}.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(("kind", "reader"), [("panoptic", CocoPanoptic), ("instances", CocoInstances)])
def test_a_folder_and_a_json_open_the_same_data(tmp_path, kind, reader):
    path = write_set(tmp_path, kind, "val")
    by_folder, by_file = open_dataset(str(tmp_path), split="val"), open_dataset(str(path), split="train")
    assert isinstance(by_folder, reader)
    assert isinstance(by_file, reader)
    assert by_folder.fingerprint() == by_file.fingerprint()


def test_panoptic_annotations_win_over_instances_in_one_folder(tmp_path):
    write_set(tmp_path, "instances", "val")
    write_set(tmp_path, "panoptic", "val")
    assert isinstance(open_dataset(str(tmp_path), split="val"), CocoPanoptic)


def test_a_folder_without_the_split_says_what_it_looked_for(tmp_path):
    write_set(tmp_path, "panoptic", "val")
    with pytest.raises(DataError, match=r"panoptic_train\.json or instances_train\.json"):
        open_dataset(str(tmp_path), split="train")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/no/such/folder", "There is no data set"),
        ("synthetic", "There is no synthetic level"),
        ("synthetic:eazy", "did you mean easy"),
        ("synthetic:easy:x", "is not a data set"),
        ("synthetic:easy:-1", "is not a data set"),
        ("synthetic:easy:1:2", "is not a data set"),
    ],
)
def test_a_wrong_spec_is_refused_with_a_hint(spec, message):
    with pytest.raises(DataError, match=message):
        open_dataset(spec, split="val")


def test_the_seed_of_a_synthetic_spec_gives_other_scenes():
    plain, zero, one = (open_dataset(f"synthetic:easy{s}", split="val") for s in ("", ":0", ":1"))
    assert plain.fingerprint() == zero.fingerprint() != one.fingerprint()
    assert np.array_equal(plain[0].image_hwc_u8, zero[0].image_hwc_u8)
    assert not np.array_equal(plain[0].image_hwc_u8, one[0].image_hwc_u8)


class Counted:
    """Ten 10 x 10 samples with an id over 16 bits; counts how often each is read."""

    name = "counted"
    classes = (ClassInfo(1, "cat", True, (0, 0, 0)),)

    def __init__(self):
        self.reads = [0] * 10

    def __len__(self):
        return 10

    def __getitem__(self, index):
        self.reads[index] += 1
        id_map = np.zeros((10, 10), np.int32)
        id_map[index] = 9_000_000 + index
        segments = (Segment(9_000_000 + index, 0),)
        return Sample(index, f"{index}.png", np.full((10, 10, 3), index, np.uint8), id_map, segments)

    def fingerprint(self):
        return "f" * 64


def test_the_cache_returns_the_same_samples_and_reads_each_once():
    plain, counted = Counted(), Counted()
    cached = CachedDataset(counted, cache_mb=1)
    for _ in range(3):
        for index in range(10):
            want, got = plain[index], cached[index]
            assert np.array_equal(want.image_hwc_u8, got.image_hwc_u8)
            assert np.array_equal(want.id_map_hw_i32, got.id_map_hw_i32)
            assert got.id_map_hw_i32.dtype == np.int32
            assert (want.segments, want.image_id, want.file_name) == (
                got.segments,
                got.image_id,
                got.file_name,
            )
    assert counted.reads == [1] * 10
    assert (len(cached), cached.name, cached.fingerprint()) == (10, "counted", "f" * 64)


def test_ids_are_kept_in_one_byte_per_pixel():
    cached = CachedDataset(Counted(), cache_mb=1)
    cached[0]
    assert cached.size_bytes == 300 + 100 + 2 * 4


def test_the_cache_stops_at_its_limit():
    counted = Counted()
    cached = CachedDataset(counted, cache_mb=0.001)
    for index in [*range(10), *range(10)]:
        cached[index]
    assert cached.size_bytes <= 1000
    assert counted.reads == [1, 1] + [2] * 8


def test_a_cache_of_zero_keeps_nothing_and_a_negative_one_is_refused():
    counted = Counted()
    cached = CachedDataset(counted, cache_mb=0)
    cached[0], cached[0]
    assert counted.reads[0] == 2
    with pytest.raises(ConfigError):
        CachedDataset(counted, cache_mb=-1)


def test_cached_pictures_cannot_be_changed_by_a_caller():
    cached = CachedDataset(Counted(), cache_mb=1)
    cached[0]
    with pytest.raises(ValueError, match="read-only"):
        cached[0].image_hwc_u8[0] = 1


def test_threads_that_share_a_cache_count_every_sample_once():
    cached = CachedDataset(Counted(), cache_mb=1)
    threads = [threading.Thread(target=lambda: [cached[i] for i in range(10)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cached.size_bytes == 10 * (300 + 100 + 2 * 4)
