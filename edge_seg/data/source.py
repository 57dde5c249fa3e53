"""From what the user writes after `--data` to a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edge_seg.data.cached import CachedDataset
from edge_seg.data.sample import Dataset
from edge_seg.errors import DataError, nearest

Split = Literal["train", "val"]
_KINDS = ("panoptic", "instances")


def open_dataset(spec: str, *, split: Split) -> Dataset:
    """Opens a data set.

    Args:
        spec: `synthetic:easy`, `synthetic:hard`, either with `:SEED`; a COCO panoptic or COCO instances JSON;
            or a folder that holds `panoptic_SPLIT.json` or `instances_SPLIT.json`.
        split: Which part; a JSON is opened as it is.

    Raises:
        DataError: Nothing of that kind is there, or it is broken.
    """
    if spec == "synthetic" or spec.startswith("synthetic:"):
        return _synthetic(spec, split)
    path = Path(spec)
    if path.is_dir():
        path = _annotation_file(path, split)
    if not path.is_file():
        raise DataError(
            f"There is no data set {spec!r}.",
            expected="synthetic:easy, synthetic:hard, a COCO JSON, or a folder with panoptic_SPLIT.json",
            got="neither a file nor a folder",
            todo="check the path",
        )
    return _open_json(path)


def _annotation_file(folder: Path, split: Split) -> Path:
    candidates = [folder / f"{kind}_{split}.json" for kind in _KINDS]
    for path in candidates:
        if path.is_file():
            return path
    raise DataError(
        f"{folder} has no annotations for the split {split!r}.",
        expected=" or ".join(path.name for path in candidates),
        got=", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "an empty folder",
        todo="name a COCO JSON file itself, or call it so; pictures alone are no data set",
    )


def _open_json(path: Path) -> Dataset:
    """Panoptic annotations carry `segments_info`, instances do not."""
    from edge_seg.data.coco_instances import CocoInstances
    from edge_seg.data.coco_json import read_coco
    from edge_seg.data.coco_panoptic import CocoPanoptic

    annotations = read_coco(path)["annotations"]
    panoptic = bool(annotations) and isinstance(annotations[0], dict) and "segments_info" in annotations[0]
    return CocoPanoptic(path) if panoptic else CocoInstances(path)


def _synthetic(spec: str, split: Split) -> Dataset:
    from edge_seg.data.synthetic import LEVELS, SyntheticScenes

    _, level, seed, *rest = [*spec.split(":"), "", ""][: max(3, spec.count(":") + 1)]
    if level not in LEVELS:
        raise DataError(f"There is no synthetic level {level!r}.", got=spec, todo=nearest(level, sorted(LEVELS)))
    if rest or not (seed == "" or (seed.isascii() and seed.isdigit())):
        raise DataError(f"{spec!r} is not a data set.", expected="synthetic:LEVEL or synthetic:LEVEL:SEED", got=spec)
    return SyntheticScenes(level, split=split, seed=int(seed or 0))


__all__ = ["CachedDataset", "Split", "open_dataset"]
