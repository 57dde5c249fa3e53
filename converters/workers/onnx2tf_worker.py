"""ONNX -> TensorFlow by onnx2tf -> TFLite by TensorFlow's own converter. Runs in the environment `onnx2tf`.

onnx2tf itself writes .tflite files too, but without signature, with outputs called Identity, Identity_1: which is
which could only be guessed from shapes. It returns the Keras model with its outputs in the order of the ONNX graph;
here that model gets a named signature, and TensorFlow converts it.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# onnx2tf downloads this array, to compare layouts on, unless it lies in the working folder. Any content will do.
_SAMPLE = ("calibration_image_sample_data_20x128x128x3_float32.npy", (20, 128, 128, 3))


def main(job_path: str) -> None:
    """Writes `job["tflite"]` from `job["onnx"]`: float32, or int8 where the job names pictures for calibration."""
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    saved = _saved_model(_keras_model(job), job)
    tf = importlib.import_module("tensorflow")

    converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=["serving_default"])
    if job["calibration"]:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
        converter.representative_dataset = lambda: _samples(job)
    Path(job["tflite"]).write_bytes(converter.convert())


def _keras_model(job: dict[str, Any]) -> Any:
    name, shape = _SAMPLE
    np.save(Path.cwd() / name, np.random.default_rng(0).random(shape, np.float32))
    onnx2tf = importlib.import_module("onnx2tf")

    model = onnx2tf.convert(
        input_onnx_file_path=job["onnx"], disable_model_save=True, non_verbose=True, verbosity="error"
    )
    if len(model.outputs) != len(job["outputs"]):
        raise SystemExit(f"onnx2tf kept {len(model.outputs)} of {len(job['outputs'])} outputs")
    return model


def _saved_model(model: Any, job: dict[str, Any]) -> str:
    """Saves the model with a named signature.

    Its variables become constants first: onnx2tf keeps some where Keras does not track them, and saving would fail.
    """
    tf = importlib.import_module("tensorflow")
    constants = importlib.import_module("tensorflow.python.framework.convert_to_constants")

    spec = tf.TensorSpec(job["shape_nhwc"], tf.float32, name=job["input"])
    run = tf.function(lambda x: _listed(model(x))).get_concrete_function(spec)
    frozen = constants.convert_variables_to_constants_v2(run)

    def serve(**inputs: Any) -> dict[str, Any]:
        """Runs the network on its only argument."""
        return dict(zip(job["outputs"], _listed(frozen(inputs[job["input"]])), strict=True))

    module = tf.Module()
    module.serve = tf.function(serve)
    folder = str(Path.cwd() / "saved_model")
    signature = module.serve.get_concrete_function(**{job["input"]: spec})
    tf.saved_model.save(module, folder, signatures={"serving_default": signature})
    return folder


def _listed(outputs: Any) -> list[Any]:
    """Returns outputs as a list: a single one does not come in one."""
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _samples(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields pictures, float32 [1, H, W, 3], by input name."""
    with np.load(job["calibration"], allow_pickle=False) as archive:
        pictures = archive["pictures_nhwc_u8"]
    for picture in pictures:
        yield {job["input"]: picture[None].astype(np.float32)}


if __name__ == "__main__":
    main(*sys.argv[1:])
