"""Every registered body on the GPU accelerator beside the CPU: `python -m edge_seg.studies.gpu_bodies`.

Weights are random and seeded: this is about operators and arithmetic, not about accuracy. Written for a software Vulkan
device, whose numbers are those of a GPU of that precision; its times are not, and none is written down.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import torch

from edge_seg.artifact import write_json
from edge_seg.benchmarks import machine
from edge_seg.contract import ClassInfo
from edge_seg.converters.convert import convert
from edge_seg.converters.gpu.accelerator import Precision
from edge_seg.converters.gpu.runner import GpuRunner
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.errors import ArtifactError
from edge_seg.export import export_network
from edge_seg.models.base import MODELS
from edge_seg.studies.gpu_accuracy import Beside
from edge_seg.studies.start import start

_PICTURES = 3


def compared(name: str, input_px: int, precision: Precision, folder: Path) -> dict[str, Any]:
    """Converts a network with random weights and compares its outputs on both devices.

    Args:
        name: Registered name.
        input_px: Side of its input; another than its own only changes the sizes of maps.
        precision: Arithmetic of the accelerator.
        folder: Where its files go.

    Returns:
        `network input_px`, then `range_share` of every output and the `worst`, or `refused` with the reason.

    Raises:
        MissingHere: No Vulkan implementation here runs the accelerator in this precision.
    """
    torch.manual_seed(0)
    network = MODELS[name](num_classes=8, input_px=input_px).eval()
    classes = [ClassInfo(i + 1, f"class {i}", True, (0, 0, 0)) for i in range(network.num_classes)]
    exported = export_network(network, classes, {}, folder / "exported")
    file = convert(exported, scheme="fp32", out=folder).file
    row: dict[str, Any] = {"network": name, "input_px": input_px}
    try:
        with GpuRunner(file, precision=precision) as gpu:
            beside = Beside(gpu, TfliteRunner(file))
            for seed in range(_PICTURES):
                beside(np.random.default_rng(seed).integers(0, 256, (input_px, input_px, 3), np.uint8))
            row["runtime"] = {k: v for k, v in gpu.runtime.items() if k != "vulkan"}
    except ArtifactError as error:
        return {**row, "refused": str(error).splitlines()[0]}
    shares = {output: float(f"{share:.3g}") for output, share in beside.range_share.items()}
    return {**row, "range_share": shares, "worst": max(shares.values())}


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Returns one line per network: the largest difference as a share of the output's range, and in which output."""
    lines = []
    for row in rows:
        if "refused" in row:
            lines.append(f"{row['network']:28}{row['input_px']:5} px  refused: {row['refused']}")
            continue
        output = max(row["range_share"], key=row["range_share"].get)
        lines.append(f"{row['network']:28}{row['input_px']:5} px  {row['worst']:.2g}  {output}")
    return "\n".join(lines)


@click.command()
@click.option("--only", multiple=True, help="Name of a network; repeat for several. Default: all.")
@click.option("--px", "input_px", default=128, show_default=True, help="Side of the input.")
@click.option("--precision", type=click.Choice(get_args(Precision)), default="fp32", show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the document here.")
def main(only: tuple[str, ...], input_px: int, precision: Precision, json_file: Path | None) -> None:
    """Runs every registered body on the GPU accelerator and on the CPU and compares the outputs."""
    from tqdm import tqdm

    rows = []
    for name in tqdm(only or sorted(MODELS), unit="network"):
        with tempfile.TemporaryDirectory(prefix="edge_seg_") as folder:
            rows.append(compared(name, input_px, precision, Path(folder)))
        if json_file is not None:
            command = shlex.join(["python", "-m", "edge_seg.studies.gpu_bodies", *sys.argv[1:]])
            about = {"format": "edge_seg.gpu_bodies", "command": command, "device": machine.host_device()}
            write_json(json_file, {**about, "precision": precision, "pictures": _PICTURES, "rows": rows})
    click.echo(text(rows))


if __name__ == "__main__":
    start(main)
