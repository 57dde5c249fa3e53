"""What limits an instance network: `python -m edge_seg.studies.instance_limits FILE --data D`.

The same predictions are scored as they are, with the class of the object they lie on, with that object's true mask, and
with both: what is then missing was not found, or found twice. Last come the true masks drawn on the network's own grid
and brought back to the picture as its masks are: no training can get beyond that.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edge_seg.artifact import sha256_of, write_json
from edge_seg.data.source import open_dataset
from edge_seg.data.things import for_task, object_masks
from edge_seg.decoders.base import Instance, InstanceResult
from edge_seg.decoders.paste import paste_boxes, paste_map
from edge_seg.decoders.run_lengths import RunLengths
from edge_seg.errors import InputError
from edge_seg.evaluation.average_precision import AveragePrecision, TrueObject, mask_iou
from edge_seg.evaluation.bootstrap import interval
from edge_seg.evaluation.evaluate import spread
from edge_seg.letterbox import Letterbox
from edge_seg.model_file import open_predictor
from edge_seg.studies.start import start

FIGURES = ("ap", "ap50", "boundary_ap")
_LEAST_IOU = 0.5  # a prediction lies on an object from here on
_MASK_STRIDE_PX = 4
_SEED = 0


def corrected(
    result: InstanceResult, truth: Sequence[TrueObject], *, classes: bool = False, masks: bool = False
) -> InstanceResult:
    """Gives each prediction the class or the mask of the object it lies on.

    Args:
        result: Predictions of one picture.
        truth: Its objects; crowds correct nothing.
        classes: Whether classes are corrected; the object of any class counts then.
        masks: Whether masks are.
    """
    objects = [o for o in truth if not o.iscrowd]
    iou = mask_iou([i.mask for i in result.instances], [o.mask for o in objects])
    changed = []
    for instance, row in zip(result.instances, iou, strict=True):
        same = np.array([classes or o.class_index == instance.class_index for o in objects], np.bool_)
        best = int(np.argmax(np.where(same, row, -1.0))) if len(objects) else -1
        if best >= 0 and same[best] and row[best] >= _LEAST_IOU:
            instance = replace(instance, class_index=objects[best].class_index)
            instance = replace(instance, mask=objects[best].mask) if masks else instance
        changed.append(instance)
    return replace(result, instances=tuple(changed))


def on_box_grid(mask_hw: NDArray[np.bool_], box: Letterbox, size: int) -> NDArray[np.bool_]:
    """Returns a true mask after a grid of `size` x `size` cells in its tight box, as BlendMask draws masks."""
    top, left, bottom, right = _bounds(mask_hw)
    crop = Image.fromarray(mask_hw[top:bottom, left:right].astype(np.float32))
    cells = np.asarray(crop.resize((size, size), Image.Resampling.BOX), np.float32)
    corners = np.array([[*box.to_network(left, top), *box.to_network(right, bottom)]], np.float32)
    (pasted,) = paste_boxes(cells[None], corners, box, 0.5)
    return pasted.run_lengths(mask_hw.shape).mask()


def on_map_grid(mask_hw: NDArray[np.bool_], box: Letterbox, stride_px: int) -> NDArray[np.bool_]:
    """Returns a true mask after cells of `stride_px` pixels of the network's input, as SOLOv2 draws masks."""
    width, height = box.content_wh_px
    small = Image.fromarray(mask_hw.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    canvas = np.zeros((box.input_h_px, box.input_w_px), np.float32)
    canvas[:height, :width] = np.asarray(small, np.float32)
    rows, columns = box.input_h_px // stride_px, box.input_w_px // stride_px
    cells = canvas.reshape(rows, stride_px, columns, stride_px).mean((1, 3)).clip(1e-6, 1 - 1e-6)
    inside = np.argwhere(cells > 0.5)
    if not len(inside):
        return np.zeros_like(mask_hw)
    (first_y, first_x), (last_y, last_x) = inside.min(0).tolist(), inside.max(0).tolist()
    logits = np.asarray(np.log(cells / (1 - cells)), np.float32)
    crop = paste_map(logits, (first_y, first_x, last_y, last_x), box, 0.5)
    return crop.run_lengths(mask_hw.shape).mask()


def _bounds(mask_hw: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask_hw.any(1)), np.flatnonzero(mask_hw.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _drawn(truth: Sequence[TrueObject], redraw: Callable[[NDArray[np.bool_]], NDArray[np.bool_]]) -> Iterator[Instance]:
    """Yields the objects as perfect predictions whose masks went through a grid."""
    for thing in truth:
        if not thing.iscrowd and thing.mask.area_px:
            mask = RunLengths.from_mask(redraw(thing.mask.mask()))
            yield Instance(thing.class_index, 1.0, (0.0, 0.0, 0.0, 0.0), mask)


def measured(file: Path, data: str, limit: int = 0) -> dict[str, Any]:
    """Scores the predictions of a network with what could be better put right, one thing at a time.

    Args:
        file: A checkpoint or `.tflite` of an instance network.
        data: DATA argument; its `val` split is scored.
        limit: Pictures, evenly spread; 0 takes all.

    Raises:
        InputError: It is not an instance network.
    """
    predictor = open_predictor(file, threads=1)
    if predictor.contract.model.task != "instance":
        raise InputError("This is not an instance network.", got=predictor.contract.model.name)
    dataset = for_task(open_dataset(data, split="val"), "instance")
    size = int(predictor.contract.decoder.params.get("mask_size", 0))
    grid = f"true masks, {size} x {size} cells in their boxes" if size else f"true masks, {_MASK_STRIDE_PX} px cells"
    titles = ("as they are", "true classes", "true masks", "true classes and masks", grid)
    scores = {title: AveragePrecision(dataset.classes) for title in titles}
    from tqdm import tqdm

    for index in tqdm(spread(len(dataset), limit), unit="img"):
        sample = dataset[index]
        truth = [
            TrueObject(segment.class_index, segment.iscrowd, RunLengths.from_mask(mask))
            for segment, mask in object_masks(dataset, index, sample)
        ]
        prediction = predictor.predict(sample.image_hwc_u8)
        box, result = prediction.box, prediction.result.objects()

        def redraw(mask: NDArray[np.bool_], box: Letterbox = box) -> NDArray[np.bool_]:
            return on_box_grid(mask, box, size) if size else on_map_grid(mask, box, _MASK_STRIDE_PX)

        versions = (
            result,
            corrected(result, truth, classes=True),
            corrected(result, truth, masks=True),
            corrected(result, truth, classes=True, masks=True),
            InstanceResult(result.size_hw, tuple(_drawn(truth, redraw))),
        )
        for title, version in zip(titles, versions, strict=True):
            scores[title].update(version, truth, image_id=index)
    return {
        "format": "edge_seg.instance_limits",
        "file": file.name,
        "sha256": sha256_of(file),
        "network": predictor.contract.model.name,
        "data": data,
        "data_sha256": dataset.fingerprint(),
        "images": len(scores["as they are"].image_ids),
        "rows": [_row(title, score) for title, score in scores.items()],
    }


def _row(title: str, score: AveragePrecision) -> dict[str, Any]:
    row: dict[str, Any] = {"title": title}
    for name in FIGURES:
        found = interval(score.figure(name), seed=_SEED)
        row[name], row[f"{name}_ci95"] = round(found.value, 2), [round(found.low, 2), round(found.high, 2)]
    return row


def text(found: dict[str, Any]) -> str:
    """Returns the figures as aligned lines."""
    lines = [f"{found['network']} on {found['images']} pictures of {found['data']}"]
    lines.append(f"{'predictions':44}{'AP':>7}{'AP50':>8}{'boundary AP':>13}")
    for row in found["rows"]:
        lines.append(f"{row['title']:44}{row['ap']:7.2f}{row['ap50']:8.2f}{row['boundary_ap']:13.2f}")
    return "\n".join(lines)


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="DATA whose val split is scored.")
@click.option("--limit", default=0, help="Only this many pictures, evenly spread.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the document here.")
def main(file: Path, data: str, limit: int, json_file: Path | None) -> None:
    """Says what of an instance network's predictions costs its accuracy."""
    found = measured(file, data, limit)
    found["command"] = shlex.join(["python", "-m", "edge_seg.studies.instance_limits", *sys.argv[1:]])
    if json_file is not None:
        write_json(json_file, found)
    click.echo(text(found))


if __name__ == "__main__":
    start(main)
