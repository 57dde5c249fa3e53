"""Every registered body on the GPU accelerator beside the CPU: `python -m edge_seg.studies.gpu_bodies`.

Weights are random and seeded: this is about operators and arithmetic, not about accuracy. Written for a software Vulkan
device, whose numbers are those of a GPU of that precision; its times are not, and none is written down.

Two devices in float32 differ by rounding, and by how much depends on the network: an output that is a small difference
of large sums, as an untrained one often is, loses more. So each output is also compared with PyTorch in float64, and
the accelerator's distance from it stands beside those of the CPU and of PyTorch in float32.
"""

from __future__ import annotations

import copy
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import torch
from numpy.typing import NDArray

from edge_seg.artifact import read_json, write_json
from edge_seg.benchmarks import machine
from edge_seg.contract import ClassInfo
from edge_seg.converters.convert import convert
from edge_seg.converters.gpu.accelerator import Precision
from edge_seg.converters.gpu.runner import GpuRunner
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.errors import ArtifactError
from edge_seg.export import NhwcBody, export_network
from edge_seg.models.base import MODELS, Network
from edge_seg.studies.start import start

_PICTURES = 3


class FromFloat64:
    """How far runs of a body are from the same body in float64, as shares of each output's range.

    Args:
        network: The network, in evaluation mode.
        names: Names of its outputs.
    """

    def __init__(self, network: Network, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._single = NhwcBody(network.export_graph().body, self.names).eval()
        self._double = copy.deepcopy(self._single).double()
        self.shares: dict[str, dict[str, float]] = {name: {} for name in self.names}

    def __call__(self, input_hwc_u8: NDArray[np.uint8], runs: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
        """Compares the outputs of `runs`, by the name of the run, and those of PyTorch in float32 ("torch")."""
        image = torch.from_numpy(input_hwc_u8[None])
        with torch.inference_mode():
            truth = dict(zip(self.names, self._double(image.double()), strict=True))
            single = dict(zip(self.names, self._single(image.float()), strict=True))
        for run, outputs in (*runs.items(), ("torch", {n: v.numpy() for n, v in single.items()})):
            for name, wanted in truth.items():
                share = range_share(wanted.numpy(), np.reshape(outputs[name], wanted.shape))
                self.shares[name][run] = max(share, self.shares[name].get(run, 0.0))


def range_share(wanted: NDArray[Any], found: NDArray[Any]) -> float:
    """Returns the largest difference as a share of the range of `wanted`; of 1 where that has none."""
    difference = np.abs(found.astype(np.float64) - wanted.astype(np.float64))
    return float(difference.max()) / (float(np.ptp(wanted)) or 1.0)


def compared(name: str, input_px: int, precision: Precision, folder: Path) -> dict[str, Any]:
    """Converts a network with random weights and compares its outputs on both devices, and with float64.

    Args:
        name: Registered name.
        input_px: Side of its input; another than its own only changes the sizes of maps.
        precision: Arithmetic of the accelerator.
        folder: Where its files go.

    Returns:
        `network input_px`, then `range_share` of every output between accelerator and CPU, the `worst` of them, and
        `from_float64`, by output the shares of "gpu", "cpu" and "torch"; or `refused` and what the accelerator said.

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
            row["runtime"] = {k: v for k, v in gpu.runtime.items() if k != "vulkan"}
            return {**row, **_shares(gpu, TfliteRunner(file), network)}
    except ArtifactError as error:
        return {**row, "refused": error.what, "got": error.got}


def _shares(gpu: GpuRunner, cpu: TfliteRunner, network: Network) -> dict[str, Any]:
    beside: dict[str, float] = {}
    truth = FromFloat64(network, [o.name for o in gpu.contract.outputs])
    side = gpu.contract.model.input_px
    for seed in range(_PICTURES):
        image = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
        runs = {"gpu": gpu(image), "cpu": cpu(image)}
        truth(image, runs)
        for name, wanted in runs["cpu"].items():
            beside[name] = max(range_share(wanted, runs["gpu"][name]), beside.get(name, 0.0))
    return {
        "range_share": {name: _short(share) for name, share in beside.items()},
        "worst": _short(max(beside.values())),
        "from_float64": {n: {run: _short(v) for run, v in found.items()} for n, found in truth.shares.items()},
    }


def _short(share: float) -> float:
    return float(f"{share:.3g}")


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Returns one line per network: the output with the largest difference, and how far each run of it is off."""
    lines = []
    for row in rows:
        start = f"{row['network']:28}{row['input_px']:5} px"
        if "refused" in row:
            lines.append(f"{start}  refused: {row.get('got') or row['refused']}")
            continue
        output = max(row["range_share"], key=row["range_share"].get)
        off = ", ".join(f"{run} {share:.2g}" for run, share in row["from_float64"][output].items())
        lines.append(f"{start}  {row['worst']:.2g}  {output} (from float64: {off})")
    return "\n".join(lines)


def _kept(json_file: Path | None, input_px: int, precision: str) -> list[dict[str, Any]]:
    """Returns the rows of an interrupted run with the same settings, each with the machine it was measured on."""
    if json_file is None or not json_file.is_file():
        return []
    document = read_json(json_file, "comparison of bodies")
    same = document.get("precision") == precision and document.get("pictures") == _PICTURES
    rows = [row for row in document.get("rows", []) if same and row.get("input_px") == input_px]
    return [{**row, "device": row.get("device", document.get("device"))} for row in rows]


def _sorted(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: str(row["network"]))


@click.command()
@click.option("--only", multiple=True, help="Name of a network; repeat for several. Default: all.")
@click.option("--px", "input_px", default=128, show_default=True, help="Side of the input.")
@click.option("--precision", type=click.Choice(get_args(Precision)), default="fp32", show_default=True)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the document here.")
@click.option("--resume", is_flag=True, help="Keep the networks that the document of --json has already.")
def main(only: tuple[str, ...], input_px: int, precision: Precision, json_file: Path | None, *, resume: bool) -> None:
    """Runs every registered body on the GPU accelerator and on the CPU and compares the outputs."""
    from tqdm import tqdm

    rows = _kept(json_file, input_px, precision) if resume else []
    done = {row["network"] for row in rows}
    command = shlex.join(["python", "-m", "edge_seg.studies.gpu_bodies", *(a for a in sys.argv[1:] if a != "--resume")])
    about = {"format": "edge_seg.gpu_bodies", "command": command}
    for name in tqdm([n for n in (only or sorted(MODELS)) if n not in done], unit="network"):
        with tempfile.TemporaryDirectory(prefix="edge_seg_") as folder:
            rows.append({**compared(name, input_px, precision, Path(folder)), "device": machine.host_device()})
        if json_file is not None:
            write_json(json_file, {**about, "precision": precision, "pictures": _PICTURES, "rows": _sorted(rows)})
    click.echo(text(_sorted(rows)))


if __name__ == "__main__":
    start(main)
