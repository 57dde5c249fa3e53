"""Speed of the networks in one interleaved run on one core: the first part of `make bench`.

Weights are random: they do not change the time of a convolution. Each network is exported, converted to float32 and
int8 and measured in turns (A-B-B-A), so that a machine that slows down slows all of them, and ratios are taken turn by
turn. The yardstick is a plain 3x3 convolution of 256 channels on 64x64, the most work per second that this machine's
kernels do.
"""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edge_seg.artifact import write_json
from edge_seg.benchmarks import machine
from edge_seg.benchmarks.harness import Plan, Series, measure
from edge_seg.benchmarks.runner import Opened, StageTimes
from edge_seg.benchmarks.stats_paired import LEAST_BLOCKS, common_blocks, compare_turns
from edge_seg.contract import ClassInfo
from edge_seg.converters.interpreter import PlainRunner, TfliteRunner
from edge_seg.errors import EdgeSegError, InputError
from edge_seg.layers.ops import Normalize
from edge_seg.models.base import MEAN_RGB, MODELS, STD_RGB, ExportGraph, Network, OutputSpec, conv_macs

SCHEMES = ("fp32", "w8a8")
YARDSTICK = "plain 3x3 convolutions"
PUBLISHED = "maskconver_mh_256, 7x7 as published"
_THINGS = 80  # classes of COCO that are things
_CALIBRATION_PICTURES = 8
_BLOCK_RUNS = 4
_RATIOS = (
    "Hodges-Lehmann estimate and 95 % interval of the ratios of neighbouring blocks (paired: benchmarks.stats_paired)"
)


class PlainConvolutions(Network):
    """Two 3x3 convolutions, 256 to 256 channels on 64x64, between thin 1x1 layers: the yardstick."""

    family, task, decoder_name = "yardstick", "none", "none"

    def __init__(self) -> None:
        super().__init__()
        self.name, self.input_px, self.num_classes = "plain_3x3", 64, 1
        self.body = _PlainBody()

    def export_graph(self, **_options: bool) -> ExportGraph:
        """Returns the body as it is."""
        return ExportGraph(self.body.eval(), (OutputSpec("map", "map", 1, "none"),), {})

    def decoder_params(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Returns nothing: there is no decoder."""
        return {}

    def macs(self) -> dict[str, int]:
        """Returns the multiply-accumulates."""
        total = sum(conv_macs(self.body, self.input_px).values())
        return {"macs": total, "macs_graph": total, "macs_decoder": 0}


class _PlainBody(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize(MEAN_RGB, STD_RGB)
        layers: list[nn.Module] = [nn.Conv2d(3, 256, 1), nn.ReLU()]
        for _ in range(2):
            layers += [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Conv2d(256, 8, 1))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"map": self.layers(self.normalize(image))}


@dataclass(frozen=True)
class Candidate:
    """A network to measure.

    Attributes:
        title: Name in the table.
        model: Registered name; empty is the yardstick.
        split_7x7: Whether the export rewrites 7x7 depthwise convolutions.
        classes: Number of classes, those of COCO for the task.
    """

    title: str
    model: str
    split_7x7: bool = True
    classes: int = 133


CANDIDATES = (
    Candidate(YARDSTICK, ""),
    Candidate(PUBLISHED, "maskconver_mh_256", split_7x7=False),
    Candidate("maskconver_mh_256", "maskconver_mh_256"),
    Candidate("maskconver_mh_256_k5", "maskconver_mh_256_k5"),
    Candidate("maskconver_mnv2_256", "maskconver_mnv2_256"),
    Candidate("maskconver_mnv2_256_k5", "maskconver_mnv2_256_k5"),
    Candidate("maskconver_mnv4s_256", "maskconver_mnv4s_256"),
    Candidate("maskconver_lite_256", "maskconver_lite_256"),
    Candidate("maskconver_lite_mnv4s_256", "maskconver_lite_mnv4s_256"),
    Candidate("blendmask_mobile_256", "blendmask_mobile_256", classes=_THINGS),
    Candidate("blendmask_mobile_mnv4s_256", "blendmask_mobile_mnv4s_256", classes=_THINGS),
    Candidate("solov2_mobile_256", "solov2_mobile_256", classes=_THINGS),
    Candidate("solov2_mobile_mnv4s_256", "solov2_mobile_mnv4s_256", classes=_THINGS),
)


@dataclass(frozen=True)
class Peer:
    """Somebody else's file in the same run.

    Attributes:
        title: Name in the table.
        scheme: Scheme of ours whose files it is compared with.
        file: The file.
    """

    title: str
    scheme: str
    file: Path

    @classmethod
    def parse(cls, given: str) -> Peer:
        """Reads TITLE:SCHEME=FILE.

        Raises:
            InputError: It is not of that form, or the scheme is not measured here.
        """
        named, _, file = given.partition("=")
        title, _, scheme = named.rpartition(":")
        if not title or not file or scheme not in SCHEMES:
            wanted = f"TITLE:SCHEME=FILE.tflite, the scheme one of {', '.join(SCHEMES)}"
            raise InputError("A peer is not clear.", expected=wanted, got=given)
        return cls(title, scheme, Path(file))


class _Timed:
    """A converted file as an executor whose only stage is the network."""

    def __init__(self, title: str, file: Path, *, foreign: str = "") -> None:
        self.title, self.file, self.foreign = title, file, foreign
        self.facts = Opened(title, foreign, None, {})
        self.macs = 0
        if foreign:
            self._plain = PlainRunner(file)
            return
        self._runner = TfliteRunner(file)
        contract = self._runner.contract
        self.macs = contract.model.macs_graph
        self._picture = _noise(contract.input_wh_px)
        self.facts = Opened(title, contract.model.scheme, None, self._runner.runtime)
        self.partitions = self._runner.xnnpack_partitions().partitions

    def step(self, image_hwc_u8: NDArray[np.uint8]) -> StageTimes:
        began_s = time.perf_counter()
        if self.foreign:
            self._plain.run()
        else:  # outputs as the file has them, as with other people's files: making them real is the decoder's work
            self._runner.invoke(self._picture)
            self._runner.raw_outputs()
        return StageTimes(0.0, (time.perf_counter() - began_s) * 1e3, 0.0)

    def close(self) -> None:
        """Keeps nothing open outside this process."""


def _noise(wh_px: tuple[int, int]) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (wh_px[1], wh_px[0], 3), np.uint8)


def convert_candidate(candidate: Candidate, out: Path) -> list[Path]:
    """Exports and converts a network with random weights; returns one file per scheme.

    Args:
        candidate: What to build.
        out: Folder of the files.
    """
    from edge_seg.converters.convert import convert_many
    from edge_seg.export import export_network

    torch.manual_seed(0)
    network = MODELS[candidate.model](num_classes=candidate.classes) if candidate.model else PlainConvolutions()
    classes = [ClassInfo(i + 1, f"class {i}", True, (0, 0, 0)) for i in range(network.num_classes)]
    pictures = [_noise((network.input_px, network.input_px)) for _ in range(_CALIBRATION_PICTURES)]
    _settle(network, pictures)
    folder = export_network(network.eval(), classes, {}, out / "exported", split_7x7=candidate.split_7x7)
    done = convert_many(folder, SCHEMES, out=out, calibration=pictures)
    return [one.file for one in done]


def _settle(network: Network, pictures: Sequence[NDArray[np.uint8]]) -> None:
    """Gives BatchNorm the statistics of what it sees, as in a trained network.

    Else maps grow from layer to layer, and XNNPACK leaves an int8 ADD whose inputs' scales are too far apart.
    """
    image = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 1.0
    with torch.no_grad():
        network.train().body(image)


def run(out: Path, titles: Sequence[str], peers: Sequence[Peer], plan: Plan, *, command: str = "") -> dict[str, Any]:
    """Converts and measures; returns the document.

    Args:
        out: Folder for files and results.
        titles: Which candidates; empty takes all. The yardstick and the published form are always measured.
        peers: Other people's files.
        plan: When to stop.
        command: What to write down as the command.
    """
    chosen = [c for c in CANDIDATES if not titles or c.title in (YARDSTICK, PUBLISHED, *titles)]
    executors: list[_Timed] = []
    for number, candidate in enumerate(chosen):
        click.echo(f"[{number + 1} of {len(chosen)}] convert {candidate.title}", err=True)
        folder = out / "files" / f"{number:02d}"
        shutil.rmtree(folder, ignore_errors=True)
        executors += [_Timed(candidate.title, file) for file in convert_candidate(candidate, folder)]
    executors += [_Timed(peer.title, peer.file, foreign=peer.scheme) for peer in peers]
    watch = machine.watch()
    click.echo(f"measure {len(executors)} files in turns, one thread", err=True)
    series = measure(executors, [np.zeros((1, 1, 3), np.uint8)], plan)
    rows = [_row(executor, one) for executor, one in zip(executors, series, strict=True)]
    document = {
        "command": command,
        "device": machine.host_device(),
        "environment": watch(),
        "threads": 1,
        "ratios": {"method": _RATIOS, "block_runs": series[0].block_runs, "least_blocks": LEAST_BLOCKS},
        "rows": _with_ratios(rows, series, series[0].block_runs, [peer.title for peer in peers]),
    }
    write_json(out / "networks.json", document)
    return document


def _row(executor: _Timed, series: Series) -> dict[str, Any]:
    median_ms = series.interval.value
    return {
        "network": executor.title,
        "scheme": executor.facts.scheme,
        "macs_graph": executor.macs or None,
        "xnnpack_partitions": None if executor.foreign else executor.partitions,
        "median_ms": round(median_ms, 3),
        "ci95_median_ms": [round(series.interval.low, 3), round(series.interval.high, 3)],
        "n": len(series.samples.run_ms),
        "interval_met": series.target_met,
        "gmacs_per_s": round(executor.macs / median_ms / 1e6, 1) if executor.macs else None,
        "size_bytes": executor.file.stat().st_size,
    }


def _with_ratios(
    rows: list[dict[str, Any]], series: Sequence[Series], block_runs: int, peers: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Adds ratios to the published form, the own float file and peers, with intervals, and the share of the peak."""
    place = {(row["network"], row["scheme"]): number for number, row in enumerate(rows)}
    for number, row in enumerate(rows):
        scheme = row["scheme"]
        published = None if row["network"] == YARDSTICK else place.get((PUBLISHED, scheme))
        row["of_published"] = _ratio(series, number, published, block_runs)
        row["of_own_fp32"] = _ratio(series, number, place.get((row["network"], "fp32")), block_runs)
        others = {t: None if row["network"] == YARDSTICK else place.get((t, scheme)) for t in peers}
        row["of_peer"] = {t: _ratio(series, number, other, block_runs) for t, other in others.items()}
        peak = rows[place[YARDSTICK, scheme]]["gmacs_per_s"] if (YARDSTICK, scheme) in place else None
        row["share_of_3x3"] = round(row["gmacs_per_s"] / peak, 3) if peak and row["gmacs_per_s"] else None
    return rows


def _ratio(series: Sequence[Series], number: int, base: int | None, block_runs: int) -> list[float] | None:
    """Low end, value and high end of the 95 % interval of a ratio; None without a base or with too few common turns."""
    if base is None:
        return None
    if base == number:
        return [1.0, 1.0, 1.0]
    above, below = series[number].samples.run_ms, series[base].samples.run_ms
    if common_blocks(above.size, below.size, block_runs) < LEAST_BLOCKS:
        return None
    found = compare_turns([above], [below], block_runs=block_runs).ratio
    return [round(found.low, 3), round(found.value, 3), round(found.high, 3)]


def text(document: Mapping[str, Any]) -> str:
    """Returns the document as an aligned table."""
    head = f"{'network':38}{'scheme':9}{'GMAC':>6}{'ms':>9}  {'95 %':17}{'of published':>13}{'of own fp32':>12}"
    lines = [f"{head}{'of peer':>9}{'of 3x3':>8}{'parts':>6}"]
    for row in document["rows"]:
        low, high = row["ci95_median_ms"]
        gmac = f"{row['macs_graph'] / 1e9:.2f}" if row["macs_graph"] else ""
        share = f"{row['share_of_3x3']:.0%}" if row["share_of_3x3"] else ""
        peer = next((r for r in row["of_peer"].values() if r), None)
        parts = "" if row["xnnpack_partitions"] is None else str(row["xnnpack_partitions"])
        lines.append(
            f"{row['network']:38}{row['scheme']:9}{gmac:>6}{row['median_ms']:9.2f}  [{low:6.2f}, {high:6.2f}] "
            f"{_factor(row['of_published']):>13}{_factor(row['of_own_fp32']):>12}{_factor(peer):>9}{share:>8}{parts:>6}"
            f"{'' if row['interval_met'] else '  interval not met'}"
        )
    return "\n".join(lines)


def _factor(ratio: list[float] | None) -> str:
    return f"{ratio[1]:.2f}x" if ratio else ""


def _command(only: Sequence[str], peers: Sequence[Peer], max_time_s: float) -> str:
    """The command line without where files lie, which is this machine's own."""
    told = ["python", "-m", "edge_seg.studies.network_speed", "--max-time", f"{max_time_s:g}"]
    told += [word for title in only for word in ("--only", title)]
    return shlex.join(told + [word for peer in peers for word in ("--peer", f"{peer.title}:{peer.scheme}=FILE")])


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/bench"), show_default=True)
@click.option("--only", multiple=True, help="Title of a network; repeat for several. Default: all.")
@click.option("--peer", multiple=True, metavar="TITLE:SCHEME=FILE", help="Another .tflite for the same run.")
@click.option("--max-time", "max_time_s", type=float, default=15.0, show_default=True, help="Seconds per file.")
def main(out: Path, only: tuple[str, ...], peer: tuple[str, ...], max_time_s: float) -> None:
    """Prints the table and writes OUT/networks.json."""
    try:
        plan = Plan(min_runs=32, min_time_s=1.0, max_time_s=max_time_s, target_ci_pct=2.0, block_runs=_BLOCK_RUNS)
        peers = list(map(Peer.parse, peer))
        document = run(out, only, peers, plan, command=_command(only, peers, max_time_s))
    except EdgeSegError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    click.echo(text(document))


if __name__ == "__main__":
    main()
