"""Predictions as files: overlay PNG, id PNG and segments JSON of each picture."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from edge_seg.artifact import write_bytes, write_json
from edge_seg.contract import ClassInfo
from edge_seg.data.images import read_image
from edge_seg.decoders.base import InstanceResult
from edge_seg.errors import InputError
from edge_seg.evaluation.overlay import id_png, overlay
from edge_seg.evaluation.predictor import Prediction, Predictor


def predict_files(predictor: Predictor, images: Sequence[Path], out: Path) -> list[dict[str, Any]]:
    """Runs pictures and writes `NAME.overlay.png`, `NAME.ids.png` and `NAME.segments.json` for each.

    Args:
        predictor: The network.
        images: Pictures; their names must differ.
        out: Folder.

    Returns:
        One document per picture, as in the segments JSON.

    Raises:
        InputError: Two pictures share a name, or there are none.
        DataError: A picture is missing or broken.
    """
    require_distinct_names(images)
    documents = []
    for path in tqdm(images, desc="predict", unit="img", disable=len(images) < 4):
        image = read_image(path)
        prediction = predictor.predict(image)
        document = segments_json(predictor, prediction, path.name)
        shown = prediction.result.panoptic()
        picture = overlay(image, shown.id_map_hw_i32, shown.segments, predictor.contract.classes)
        write_png(out / f"{path.stem}.overlay.png", Image.fromarray(picture))
        write_png(out / f"{path.stem}.ids.png", id_png(shown.id_map_hw_i32))
        write_json(out / f"{path.stem}.segments.json", document)
        documents.append(document)
    return documents


def require_distinct_names(images: Sequence[Path]) -> None:
    """Raises InputError unless there are pictures and the files made from their names cannot collide."""
    stems = [p.stem for p in images]
    if not images or len(set(stems)) != len(stems):
        raise InputError(
            "The pictures cannot be told apart by name.",
            expected="at least one picture, each with a name of its own",
            got=f"{len(images)} pictures, {len(set(stems))} names",
            todo="rename one of them, or run them one after the other into different folders",
        )


def write_png(path: Path, image: Image.Image) -> None:
    """Writes a PNG atomically."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())


def segments_json(predictor: Predictor, prediction: Prediction, file_name: str) -> dict[str, Any]:
    """Returns a prediction as JSON types (command line, verb `predict`).

    `segments` are those of the id map. An instance network's objects may overlap and be weaker than what is shown:
    all of them are in `instances`, with COCO's run lengths.
    """
    classes = predictor.contract.classes
    document: dict[str, Any] = {
        "image": file_name,
        "segments": [
            {
                "id": s.id,
                **_category(classes[s.class_index]),
                "score": round(s.score, 4),
                "area_px": s.area_px,
                "bbox_xywh_px": list(s.bbox_xywh_px),
            }
            for s in prediction.result.panoptic().segments
        ],
        "pre_ms": round(prediction.pre_ms, 3),
        "run_ms": round(prediction.run_ms, 3),
        "post_ms": round(prediction.post_ms, 3),
    }
    if isinstance(prediction.result, InstanceResult):
        document["instances"] = [
            {
                **_category(classes[i.class_index]),
                "score": round(i.score, 4),
                "area_px": i.mask.area_px,
                "box_xyxy_px": [round(v, 2) for v in i.box_xyxy_px],
                "segmentation": i.mask.to_coco(),
            }
            for i in prediction.result.instances
        ]
    return document


def _category(info: ClassInfo) -> dict[str, Any]:
    return {"category_id": info.id, "name": info.name, "isthing": info.isthing}
