"""Runs a .tflite on arrays with tflite-runtime. Runs in the environment `tflite_runtime`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(job_path: str) -> None:
    """Runs `job["tflite"]` on each picture of `job["inputs"]` and writes `job["outputs"]`.

    Inputs are an .npz with `input`, [N, H, W, 3] in the dtype of the file; outputs an .npz with one array [N, ...] for
    each tensor index of `job["indices"]`, named by it.
    """
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    runtime = importlib.import_module("tflite_runtime.interpreter")

    with np.load(job["inputs"], allow_pickle=False) as archive:
        pictures = archive["input"]
    interpreter = runtime.Interpreter(model_path=job["tflite"], num_threads=job["threads"])
    interpreter.allocate_tensors()
    found: dict[str, list[Any]] = {str(index): [] for index in job["indices"]}
    for picture in pictures:
        interpreter.set_tensor(job["input_index"], picture[None])
        interpreter.invoke()
        for name, arrays in found.items():
            arrays.append(interpreter.get_tensor(int(name))[0])
    stacked: dict[str, Any] = {name: np.stack(arrays) for name, arrays in found.items()}
    np.savez(job["outputs"], **stacked)


if __name__ == "__main__":
    main(*sys.argv[1:])
