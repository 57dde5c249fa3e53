"""COCO panoptic format: one JSON, a folder of PNG id maps beside it, and the pictures.

Source: cocodataset.org/#format-data, section 4 (panoptic segmentation).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_seg.data.coco_json import (
    CocoFolder,
    ImageEntry,
    check_size,
    duplicate,
    field,
    read_coco,
    unknown_category,
)
from edge_seg.data.images import path_inside, read_id_png
from edge_seg.data.sample import Sample, Segment
from edge_seg.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edge_seg.contract import ClassInfo

_MAX_ID = (1 << 24) - 1


@dataclass(frozen=True)
class _Annotation:
    """`png_name` relative to the PNG folder; `areas_px[i]` is what the JSON says of `segments[i]`."""

    png_name: str
    segments: tuple[Segment, ...]
    areas_px: tuple[float, ...]


class CocoPanoptic:
    """A panoptic data set. The JSON is checked when it is opened, pixels when a sample is read.

    Args:
        json_path: The annotation file; its PNGs lie in the folder of the same name without suffix.
        images: Folder of the pictures; found beside the JSON when not given.

    Raises:
        DataError: The JSON is missing, broken, empty or inconsistent, or the folders are not found.
    """

    def __init__(self, json_path: Path, *, images: Path | None = None) -> None:
        document = read_coco(json_path)
        self._folder = folder = CocoFolder(document, json_path, images)
        self.json_path, self.image_folder, self.name = json_path, folder.image_folder, folder.name
        self.classes: tuple[ClassInfo, ...] = folder.classes
        self._annotations = _read_annotations(document, json_path, self.classes)
        self._check_pairs()
        self.png_folder = json_path.with_suffix("")
        if not self.png_folder.is_dir():
            raise DataError(
                f"The id maps of {json_path} were not found.",
                expected=f"a folder {self.png_folder}",
                todo="place the panoptic PNGs there",
            )

    def __len__(self) -> int:
        return len(self._folder.entries)

    def __getitem__(self, index: int) -> Sample:
        """Reads one sample; raises DataError when pixels and JSON disagree."""
        entry = self._folder.entries[index]
        annotation = self._annotations[entry.id]
        png_path = path_inside(self.png_folder, annotation.png_name)
        image_hwc_u8 = self._folder.read_picture(entry)
        id_map_hw_i32 = read_id_png(png_path)
        check_size(png_path, id_map_hw_i32.shape, entry)
        segments = _present(id_map_hw_i32, annotation, png_path)
        return Sample(entry.id, entry.file_name, image_hwc_u8, id_map_hw_i32, segments)

    def fingerprint(self) -> str:
        """Returns a SHA-256 over the JSON's bytes and the names and sizes of all pictures and PNGs."""
        names = [self._annotations[e.id].png_name for e in self._folder.entries]
        return self._folder.fingerprint(path_inside(self.png_folder, name) for name in names)

    def _check_pairs(self) -> None:
        """Every picture needs an annotation, and every annotation a picture."""
        ids = {entry.id for entry in self._folder.entries}
        for one, other, what in (
            (ids, set(self._annotations), "a picture without annotation"),
            (set(self._annotations), ids, "an annotation without picture"),
        ):
            if missing := sorted(one - other, key=str):
                raise DataError(
                    f"{self.json_path} has {what}.",
                    expected="exactly one annotation per picture",
                    got=f"image id {missing[0]!r} and {len(missing) - 1} more",
                )


def _read_annotations(
    document: Mapping[str, Any], path: Path, classes: tuple[ClassInfo, ...]
) -> dict[int | str, _Annotation]:
    index_of = {info.id: index for index, info in enumerate(classes)}
    annotations: dict[int | str, _Annotation] = {}
    for position, item in enumerate(document["annotations"]):
        where = f"{path}: annotations[{position}]"
        image_id = field(item, "image_id", (int, str), where)
        png_name = field(item, "file_name", str, where)
        path_inside(path.parent, png_name)
        if image_id in annotations:
            raise duplicate(f"{path}: annotations", image_id)
        infos = field(item, "segments_info", list, where)
        segments = tuple(_read_segment(info, index_of, classes, where) for info in infos)
        seen: set[int] = set()
        for segment in segments:
            if segment.id in seen:
                raise duplicate(where, segment.id)
            seen.add(segment.id)
        areas_px = tuple(float(field(info, "area", (int, float), where)) for info in infos)
        annotations[image_id] = _Annotation(png_name, segments, areas_px)
    return annotations


def _read_segment(info: Any, index_of: Mapping[int, int], classes: tuple[ClassInfo, ...], where: str) -> Segment:
    segment_id = field(info, "id", int, where)
    if not 0 < segment_id <= _MAX_ID:
        raise DataError(f"{where} has a segment id out of range.", expected=f"1..{_MAX_ID}", got=str(segment_id))
    category_id = field(info, "category_id", int, where)
    if category_id not in index_of:
        raise unknown_category(where, category_id, classes)
    iscrowd = info.get("iscrowd", 0)
    if iscrowd not in (0, 1):
        raise DataError(f"{where} is not valid.", expected='"iscrowd" 0 or 1', got=repr(iscrowd)[:80])
    return Segment(segment_id, index_of[category_id], bool(iscrowd))


def _present(id_map_hw_i32: NDArray[np.int32], annotation: _Annotation, path: Path) -> tuple[Segment, ...]:
    """Returns the segments that have pixels; raises DataError when PNG and JSON name different ids."""
    in_png = set(np.unique(id_map_hw_i32).tolist()) - {0}
    in_json = {segment.id for segment in annotation.segments}
    if unnamed := sorted(in_png - in_json):
        raise DataError(
            f"{path} has ids that its JSON does not name.",
            expected=f"only ids among the {len(in_json)} of segments_info",
            got=f"{unnamed[0]} and {len(unnamed) - 1} more",
            todo="use the JSON and PNG files of one release",
        )
    pairs = zip(annotation.segments, annotation.areas_px, strict=True)
    lost = [segment.id for segment, area_px in pairs if area_px > 0 and segment.id not in in_png]
    if lost:
        raise DataError(
            f"{path} lacks segments that its JSON says are visible.",
            expected="pixels for every segment with area > 0",
            got=f"no pixel of id {lost[0]} and {len(lost) - 1} more",
            todo="use the JSON and PNG files of one release",
        )
    return tuple(segment for segment in annotation.segments if segment.id in in_png)


__all__ = ["CocoPanoptic", "ImageEntry"]
