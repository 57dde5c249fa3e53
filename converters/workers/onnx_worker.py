"""Exported program -> ONNX with channels first. Runs in our own interpreter, with the environment `onnx` on its path.

The program takes and returns channels last; onnx2tf expects channels first and turns them last itself. Wrapping the
program in the opposite permutations makes every pair cancel in the exporter's optimiser: no Transpose is left.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

OPSET = 18  # what torch 2.13 writes without converting down, and onnx2tf 1.29 reads


def main(packages: str, job_path: str) -> None:
    """Writes `job["onnx"]` from `job["program"]`; names and shape are those of the job."""
    sys.path.insert(0, packages)  # these versions, even where others are installed beside torch
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    import torch

    from edge_seg.converters.program import load_program

    batch, height, width, channels = job["shape_nhwc"]
    sample = (torch.zeros(batch, channels, height, width),)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        wrapped = _channels_first(load_program(Path(job["program"])).module())
        names = {"input_names": [job["input"]], "output_names": job["outputs"]}
        written = torch.onnx.export(wrapped, sample, dynamo=True, opset_version=OPSET, verbose=False, **names)
    if written is None:
        raise SystemExit("torch.onnx.export returned nothing")
    written.save(job["onnx"], external_data=False)


def _channels_first(inner: Any) -> Any:
    from torch import nn

    class ChannelsFirst(nn.Module):
        """The program with [N, C, H, W] at both ends."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, image_nchw: Any) -> Any:
            """Maps [1, 3, H, W] to maps [1, c, h, w]."""
            return tuple(o.permute(0, 3, 1, 2) for o in self.inner(image_nchw.permute(0, 2, 3, 1)))

    module = ChannelsFirst()
    for part in module.modules():
        part.training = False  # an exported program is fixed in evaluation mode but does not say so
    return module


if __name__ == "__main__":
    main(*sys.argv[1:])
