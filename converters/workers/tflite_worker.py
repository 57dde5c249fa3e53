"""Runs a .tflite on arrays with the runtime that the job names.

Runs in the environment `tflite_runtime`, and in any Python 3.11 of another processor that has NumPy and ai-edge-litert.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(job_path: str) -> None:
    """Runs `job["tflite"]` on each picture of `job["inputs"]` and writes `job["outputs"]`.

    Inputs are an .npz with `input`, [N, H, W, 3] in the dtype of the file; outputs an .npz with one array [N, ...] for
    each tensor index of `job["indices"]`, named by it. `job["facts"]` is written where it is named: what ran, and
    where. A job without `job["tflite"]` asks for these only.
    """
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    runtime = importlib.import_module(job["runtime"])
    facts = _facts(job)
    if "tflite" in job:
        interpreter = runtime.Interpreter(model_path=job["tflite"], num_threads=job["threads"])
        interpreter.allocate_tensors()
        facts["delegate_kernels"] = _delegate_kernels(interpreter)
        np.savez(job["outputs"], **_outputs(interpreter, job))
    if "facts" in job:
        Path(job["facts"]).write_text(json.dumps(facts), encoding="utf-8")


def _outputs(interpreter: Any, job: dict[str, Any]) -> dict[str, Any]:
    with np.load(job["inputs"], allow_pickle=False) as archive:
        pictures = archive["input"]
    found: dict[str, list[Any]] = {str(index): [] for index in job["indices"]}
    for picture in pictures:
        interpreter.set_tensor(job["input_index"], picture[None])
        interpreter.invoke()
        for name, arrays in found.items():
            arrays.append(interpreter.get_tensor(int(name))[0])
    return {name: np.stack(arrays) for name, arrays in found.items()}


def _delegate_kernels(interpreter: Any) -> int | None:
    """Returns how many pieces of the graph a delegate took; None where the runtime does not list its nodes."""
    if not hasattr(interpreter, "_get_ops_details"):
        return None
    return [node["op_name"] for node in interpreter._get_ops_details()].count("DELEGATE")


def _facts(job: dict[str, Any]) -> dict[str, Any]:
    """Returns versions and the processor: the one that programs see, which an emulator makes up."""
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "runtime_version": importlib.metadata.version(job["package"]) if "package" in job else "",
        **_processor(),
    }


def _processor() -> dict[str, str]:
    """Returns the part number and the features of an Arm processor from /proc/cpuinfo; empty text elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {"cpu_part": told.get("CPU part", ""), "cpu_features": told.get("Features", "")}


if __name__ == "__main__":
    main(*sys.argv[1:])
