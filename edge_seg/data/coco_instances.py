"""COCO instances format: polygons or run lengths, painted into one id map with the larger objects first.

Source: cocodataset.org/#format-data, section 1 (object detection).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_seg.data.coco_json import (
    CocoFolder,
    ImageEntry,
    duplicate,
    field,
    read_coco,
    unknown_category,
)
from edge_seg.data.sample import Sample, Segment
from edge_seg.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_seg.contract import ClassInfo

_MAX_COUNT = 1 << 31


@dataclass(frozen=True)
class _Instance:
    """One annotation; `shape` is what the JSON calls segmentation (polygons or run lengths)."""

    class_index: int
    iscrowd: bool
    shape: Any
    where: str


class CocoInstances:
    """An instance data set as id maps; every class is a thing, pixels without object are void (0).

    Where objects overlap, the smaller one is on top; an object that is hidden completely has no segment in
    the sample (`masks` still returns it). Segment ids count from 1 in file order.

    Args:
        json_path: The annotation file.
        images: Folder of the pictures; found beside the JSON when not given.

    Raises:
        DataError: The JSON is missing, broken, empty or inconsistent, or the pictures are not found.
    """

    def __init__(self, json_path: Path, *, images: Path | None = None) -> None:
        document = read_coco(json_path)
        self._folder = folder = CocoFolder(document, json_path, images)
        self.json_path, self.image_folder, self.name = json_path, folder.image_folder, folder.name
        self.classes: tuple[ClassInfo, ...] = folder.classes
        self._instances = _read_instances(document, json_path, self.classes, folder.entries)

    def __len__(self) -> int:
        return len(self._folder.entries)

    def __getitem__(self, index: int) -> Sample:
        """Reads one sample; raises DataError when the picture or a mask is broken."""
        entry = self._folder.entries[index]
        image_hwc_u8 = self._folder.read_picture(entry)
        id_map_hw_i32, segments = _paint(self.masks(index), entry)
        return Sample(entry.id, entry.file_name, image_hwc_u8, id_map_hw_i32, segments)

    def masks(self, index: int) -> list[tuple[Segment, NDArray[np.bool_]]]:
        """Returns every object of a picture with its whole mask, [H, W] bool, overlaps included."""
        entry = self._folder.entries[index]
        found = []
        for number, instance in enumerate(self._instances[entry.id], start=1):
            mask_hw = rasterise(instance.shape, entry.height_px, entry.width_px, instance.where)
            found.append((Segment(number, instance.class_index, instance.iscrowd), mask_hw))
        return found

    def fingerprint(self) -> str:
        """Returns a SHA-256 over the JSON's bytes and the names and sizes of all pictures."""
        return self._folder.fingerprint()


def rasterise(shape: Any, height_px: int, width_px: int, where: str) -> NDArray[np.bool_]:
    """Turns a COCO segmentation into a mask.

    Args:
        shape: A list of polygons `[x0, y0, x1, y1, ...]` in pixels, or `{"size": [h, w], "counts": ...}` with
            the counts as a list or as COCO's compressed string.
        height_px: Height of the picture.
        width_px: Width of the picture.
        where: What to call the annotation in messages.

    Returns:
        [H, W] bool.

    Raises:
        DataError: The segmentation is malformed, or does not fit the picture.
    """
    if isinstance(shape, dict):
        return _from_run_lengths(shape, height_px, width_px, where)
    from pycocotools import mask as coco_mask

    polygons = _checked_polygons(shape, height_px, width_px, where)
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, height_px, width_px))
    return _from_run_lengths({**merged, "counts": merged["counts"].decode()}, height_px, width_px, where)


def _read_instances(
    document: Mapping[str, Any], path: Path, classes: tuple[ClassInfo, ...], entries: list[ImageEntry]
) -> dict[int | str, list[_Instance]]:
    index_of = {info.id: index for index, info in enumerate(classes)}
    instances: dict[int | str, list[_Instance]] = {entry.id: [] for entry in entries}
    seen: set[int | str] = set()
    for position, item in enumerate(document["annotations"]):
        where = f"{path}: annotations[{position}]"
        annotation_id = field(item, "id", (int, str), where)
        if annotation_id in seen:
            raise duplicate(f"{path}: annotations", annotation_id)
        seen.add(annotation_id)
        image_id = field(item, "image_id", (int, str), where)
        if image_id not in instances:
            raise DataError(f"{where} belongs to no picture.", expected="an image_id of images", got=repr(image_id))
        category_id = field(item, "category_id", int, where)
        if category_id not in index_of:
            raise unknown_category(where, category_id, classes)
        shape = field(item, "segmentation", (list, dict), where)
        iscrowd = bool(item.get("iscrowd", 0))
        instances[image_id].append(_Instance(index_of[category_id], iscrowd, shape, where))
    return instances


def _paint(
    masks: list[tuple[Segment, NDArray[np.bool_]]], entry: ImageEntry
) -> tuple[NDArray[np.int32], tuple[Segment, ...]]:
    """Paints crowds first, then larger before smaller, so that small objects stay visible."""
    id_map = np.zeros((entry.height_px, entry.width_px), np.int32)
    for segment, mask_hw in sorted(masks, key=lambda m: (not m[0].iscrowd, -int(m[1].sum()))):
        id_map[mask_hw] = segment.id
    visible = set(np.unique(id_map).tolist())
    return id_map, tuple(segment for segment, _ in masks if segment.id in visible)


def _checked_polygons(shape: Any, height_px: int, width_px: int, where: str) -> list[list[float]]:
    """The rasteriser is C and walks every outline pixel: coordinates must be finite and near the picture."""
    limit = 2.0 * max(height_px, width_px) + 16.0
    polygons: list[Any] = shape if isinstance(shape, list) and shape else [None]
    for polygon in polygons:
        valid = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        numbers = valid and all(type(v) in (int, float) and math.isfinite(v) for v in polygon)
        if not numbers or max(abs(v) for v in polygon) > limit:
            raise DataError(
                f"{where} has a broken polygon.",
                expected=f"an even number (at least 6) of finite coordinates within {limit:.0f} px",
                got=repr(polygon)[:80],
            )
    return [[float(v) for v in polygon] for polygon in polygons]


def _from_run_lengths(shape: Mapping[str, Any], height_px: int, width_px: int, where: str) -> NDArray[np.bool_]:
    """Runs of 0 and 1 in turn, column by column; checked before they are expanded."""
    counts = shape.get("counts")
    counts = _decompress(counts, where) if isinstance(counts, str) else counts
    runs: list[int] = counts if isinstance(counts, list) else []
    total = sum(runs) if all(type(run) is int and run >= 0 for run in runs) else -1
    if shape.get("size") != [height_px, width_px] or total != height_px * width_px:
        raise DataError(
            f"{where} has run lengths of another picture.",
            expected=f"size [{height_px}, {width_px}] and counts that sum to {height_px * width_px}",
            got=f"size {shape.get('size')!r}, sum {total}"[:120],
        )
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(width_px, height_px).T)


def _decompress(text: str, where: str) -> list[int]:
    """COCO's string: 5 bits per character (code - 48), bit 6 continues; from the third on, a difference.

    Source: cocoapi `maskApi.c`, `rleFrString` (described there; written anew).
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 30:
            raise DataError(f"{where} has a broken run-length string.", got=repr(character))
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift or any(abs(c) >= _MAX_COUNT for c in counts):
        raise DataError(f"{where} has a broken run-length string.", got=text[-16:])
    return counts
