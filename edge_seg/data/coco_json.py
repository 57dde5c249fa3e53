"""What the two COCO readers share: checked JSON fields, the class list, and where the pictures lie."""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edge_seg.artifact import read_json, sha256_of
from edge_seg.contract import ClassInfo
from edge_seg.data.images import MAX_IMAGE_PX, path_inside, read_image
from edge_seg.errors import DataError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")


@dataclass(frozen=True)
class ImageEntry:
    """One entry of `images`: id, relative file name, width and height in pixels."""

    id: int | str
    file_name: str
    width_px: int
    height_px: int


class CocoFolder:
    """What both readers open: the JSON's classes and pictures, and the folder where the pictures lie.

    Args:
        document: The annotation file, read.
        json_path: Where it lies.
        images: Folder of the pictures; found beside the JSON when not given.

    Raises:
        DataError: The JSON is broken or empty, or the pictures are not found.
    """

    def __init__(self, document: Mapping[str, Any], json_path: Path, images: Path | None = None) -> None:
        self.json_path = json_path
        self.name = f"{json_path.resolve().parent.name}/{json_path.stem}"
        self.classes = read_classes(document, json_path)
        self.entries = read_images(document, json_path)
        self.image_folder = image_folder(json_path, self.entries[0], images)

    def read_picture(self, entry: ImageEntry) -> NDArray[np.uint8]:
        """Returns a picture, [H, W, 3]; raises DataError when it is broken or of another size than its entry says."""
        path = path_inside(self.image_folder, entry.file_name)
        image_hwc_u8 = read_image(path)
        check_size(path, image_hwc_u8.shape, entry)
        return image_hwc_u8

    def fingerprint(self, others: Iterable[Path] = ()) -> str:
        """Returns a SHA-256 over the JSON's bytes and the names and sizes of all pictures and of `others`."""
        pictures = [path_inside(self.image_folder, e.file_name) for e in self.entries]
        return fingerprint_of(self.json_path, [*pictures, *others])


def read_coco(path: Path) -> Mapping[str, Any]:
    """Reads the JSON and checks that its three lists are there.

    Raises:
        DataError: The file is missing, is not JSON, or lacks `images`, `annotations` or `categories`.
    """
    try:
        document = read_json(path, "COCO annotation file")
    except InputError as error:
        raise DataError(error.what, expected=error.expected, got=error.got, todo=error.todo) from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise DataError(
                f"{path} is not a COCO annotation file.",
                expected=f'an object with a list "{key}"',
                got=_kind(document),
                todo="give a JSON in COCO instances or COCO panoptic format, or synthetic:easy",
            )
    if not document["images"]:
        raise DataError(f"{path} is an empty data set.", expected="at least one picture", got="0 pictures")
    result: Mapping[str, Any] = document
    return result


def field(entry: Any, key: str, kind: type[T] | tuple[type, ...], where: str) -> Any:
    """Returns `entry[key]`, or raises DataError when it is missing or of another type (bool is not int)."""
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"{where} is not valid.", expected=f'"{key}" of type {_names(kind)}', got=repr(value)[:80])
    return value


def read_images(document: Mapping[str, Any], path: Path) -> list[ImageEntry]:
    """Returns the pictures in file order; raises DataError for a bad or repeated entry."""
    entries: dict[int | str, ImageEntry] = {}
    for position, item in enumerate(document["images"]):
        where = f"{path}: images[{position}]"
        entry = ImageEntry(
            id=field(item, "id", (int, str), where),
            file_name=field(item, "file_name", str, where),
            width_px=field(item, "width", int, where),
            height_px=field(item, "height", int, where),
        )
        path_inside(path.parent, entry.file_name)
        if entry.id in entries:
            raise duplicate(f"{path}: images", entry.id)
        if min(entry.width_px, entry.height_px) < 1 or entry.width_px * entry.height_px > MAX_IMAGE_PX:
            raise DataError(
                f"{where} has an impossible size.",
                expected=f"1 to {MAX_IMAGE_PX} pixels",
                got=f"{entry.width_px} x {entry.height_px}",
            )
        entries[entry.id] = entry
    return list(entries.values())


def read_classes(document: Mapping[str, Any], path: Path) -> tuple[ClassInfo, ...]:
    """Returns the class list in file order; `isthing` defaults to 1, `color` to a distinct palette.

    Raises:
        DataError: No category, a repeated id, or a colour that is not three bytes.
    """
    classes: dict[int, ClassInfo] = {}
    for position, item in enumerate(document["categories"]):
        where = f"{path}: categories[{position}]"
        category_id = field(item, "id", int, where)
        if category_id in classes:
            raise duplicate(f"{path}: categories", category_id)
        isthing = item.get("isthing", 1)
        if isthing not in (0, 1):
            raise DataError(f"{where} is not valid.", expected='"isthing" 0 or 1', got=repr(isthing)[:80])
        color_rgb = _color(item.get("color"), position, where)
        classes[category_id] = ClassInfo(category_id, field(item, "name", str, where), bool(isthing), color_rgb)
    if not classes:
        raise DataError(f"{path} has no categories.", expected="at least one category", got="0")
    return tuple(classes.values())


def palette_rgb(position: int) -> tuple[int, int, int]:
    """Returns the colour of class number `position`: hues by the golden ratio, three shades in turn."""
    hue = (position * 0.61803398875 + 0.02) % 1.0
    saturation, value = ((0.75, 0.95), (0.55, 0.75), (0.90, 0.60))[position % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def image_folder(path: Path, first: ImageEntry, given: Path | None) -> Path:
    """Returns the folder that holds the pictures of an annotation file.

    Args:
        path: The annotation file, `PREFIX_SPLIT.json`.
        first: The first picture; a folder is right when it holds this one.
        given: A folder named by the user; nothing else is tried then.

    Raises:
        DataError: No candidate holds the picture.
    """
    split = path.stem.partition("_")[2] or path.stem
    root = path.parent
    tried = [given] if given else [root / split, root / "images" / split, root.parent / split]
    if not given:
        tried += [root.parent / "images" / split, root / "images", root]
        # A folder named like a JSON holds that file's id maps, which may bear the names of the pictures.
        folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        tried += [p for p in folders if not p.with_name(f"{p.name}.json").exists()]
    for folder in tried:
        if path_inside(folder, first.file_name).is_file():
            return folder
    raise DataError(
        f"The pictures of {path} were not found.",
        expected=f"{first.file_name} in {' or '.join(str(p) for p in tried[:3])}",
        got="no such file",
        todo="place the pictures there, or name their folder",
    )


def fingerprint_of(json_path: Path, files: Iterable[Path]) -> str:
    """Returns a SHA-256 over the annotation file's bytes and the name and size of every file, in order."""
    digest = hashlib.sha256(sha256_of(json_path).encode())
    for file in files:
        size_bytes = file.stat().st_size if file.is_file() else -1
        digest.update(f"\0{file.name}\0{size_bytes}".encode())
    return digest.hexdigest()


def check_size(path: Path, got_hw: tuple[int, ...], entry: ImageEntry) -> None:
    """Raises DataError when a decoded file has another height or width than its entry says."""
    if tuple(got_hw[:2]) != (entry.height_px, entry.width_px):
        raise DataError(
            f"{path} has another size than its annotation.",
            expected=f"{entry.width_px} x {entry.height_px}",
            got=f"{got_hw[1]} x {got_hw[0]}",
            todo="use the files that the annotation was made for",
        )


def duplicate(where: str, value: object) -> DataError:
    """Returns the error for an id that occurs twice."""
    return DataError(f"{where} has the id {value!r} twice.", expected="unique ids", got=repr(value))


def unknown_category(where: str, category_id: object, classes: tuple[ClassInfo, ...]) -> DataError:
    """Returns the error for a category id that is not in the list."""
    known = ", ".join(str(c.id) for c in classes[:20]) + (", ..." if len(classes) > 20 else "")
    return DataError(f"{where} has an unknown category.", expected=f"one of {known}", got=repr(category_id)[:80])


def _color(value: Any, position: int, where: str) -> tuple[int, int, int]:
    if value is None:
        return palette_rgb(position)
    valid = isinstance(value, list) and len(value) == 3
    if not valid or not all(type(v) is int and 0 <= v <= 255 for v in value):
        raise DataError(f"{where} is not valid.", expected='"color" of three bytes', got=repr(value)[:80])
    return value[0], value[1], value[2]


def _names(kind: type | tuple[type, ...]) -> str:
    return " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))


def _kind(document: Any) -> str:
    return f"keys {', '.join(sorted(document)[:8])}" if isinstance(document, dict) else type(document).__name__
