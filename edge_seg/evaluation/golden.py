"""Golden files: input bytes, raw outputs and decoded result of a picture, for readers in other languages.

Little-endian arrays in C order, one `.bin` each, and an `index.json` that names, shapes and types them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import sha256_of, write_bytes, write_json
from edge_seg.data.images import read_image
from edge_seg.decoders.base import Instance, InstanceResult
from edge_seg.evaluation.predict import require_distinct_names
from edge_seg.evaluation.predictor import Predictor
from edge_seg.letterbox import letterbox_image


@runtime_checkable
class StoredOutputs(Protocol):
    """A runner that keeps its last outputs in the file's own dtype (integers of a quantised file)."""

    def raw_outputs(self) -> dict[str, NDArray[Any]]:
        """Returns the last outputs by contract name, not dequantised."""
        ...


def write_golden(predictor: Predictor, model: Path, images: Sequence[Path], out: Path) -> list[Path]:
    """Writes the golden files of some pictures.

    Args:
        predictor: Runs `model`.
        model: The file the vectors belong to.
        images: Pictures.
        out: Folder.

    Returns:
        The files written, `index.json` last.

    Raises:
        InputError: Two pictures share a name, or there are none.
        DataError: A picture is missing or broken.
    """
    require_distinct_names(images)
    files: list[Path] = []
    pictures = [_write_picture(predictor, path, out, files) for path in images]
    index = out / "index.json"
    write_json(
        index,
        {
            "format": "edge_seg.golden",
            "version": 1,
            "model": model.name,
            "model_sha256": sha256_of(model),
            "byte_order": "little",
            "contract": predictor.contract.to_json(),
            "pictures": pictures,
        },
    )
    return [*files, index]


def _write_picture(predictor: Predictor, path: Path, out: Path, files: list[Path]) -> dict[str, Any]:
    image = read_image(path)
    contract = predictor.contract
    canvas, box = letterbox_image(image, contract.input_wh_px, contract.preprocess.fill_rgb)
    prediction = predictor.predict(image)
    shown = prediction.result.panoptic()
    arrays: dict[str, NDArray[Any]] = {
        "image": image,
        "input": canvas,
        "id_map": shown.id_map_hw_i32,
        **{f"output_{k}": v for k, v in prediction.raw.items()},
    }
    if isinstance(predictor.runner, StoredOutputs):
        stored = predictor.runner.raw_outputs()
        arrays |= {f"stored_{k}": v for k, v in stored.items() if v.dtype != np.float32}
    entries = []
    for name, array in arrays.items():
        file = out / f"{path.stem}.{name}.bin"
        write_bytes(file, np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        files.append(file)
        entries.append({"name": name, "file": file.name, "dtype": array.dtype.name, "shape": list(array.shape)})
    entry: dict[str, Any] = {
        "image": path.name,
        "letterbox": asdict(box),
        "arrays": entries,
        "segments": [asdict(s) for s in shown.segments],
    }
    if isinstance(prediction.result, InstanceResult):
        entry["instances"] = [_instance(i) for i in prediction.result.instances]
    return entry


def _instance(instance: Instance) -> dict[str, Any]:
    return {
        "class_index": instance.class_index,
        "score": instance.score,
        "box_xyxy_px": list(instance.box_xyxy_px),
        "mask": instance.mask.to_coco(),
    }
