"""The figures of the README, made from committed JSON by `make results`: intervals beside a line they are held to."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_seg.artifact import read_json, write_bytes
from edge_seg.benchmarks.machine import chip_name
from edge_seg.benchmarks.report_plots import color_of
from edge_seg.studies import ablation_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPEED, ABLATION = "speed.svg", "ablation.svg"
_ROW_INCHES = 0.3
_STYLE: Any = {"svg.hashsalt": "edge_seg", "svg.fonttype": "none", "font.size": 9, "axes.titlesize": 10}
_SCHEMES = ("fp32", "w8a8")


@dataclass(frozen=True)
class Mark:
    """A value with its 95 % interval.

    Attributes:
        row: What it belongs to; marks of one row stand on one line.
        series: Its name in the legend; empty has no legend.
        ends: Low end, value, high end.
    """

    row: str
    series: str
    ends: tuple[float, float, float]


def write_figures(results: Path, out: Path) -> list[Path]:
    """Draws what a results folder has documents for; returns the files.

    Args:
        results: Holds `speed/networks.json` and `ablation/*.json`, or not.
        out: Folder of the figures.
    """
    drawn: dict[str, bytes] = {}
    if (results / "speed" / "networks.json").is_file():
        run = read_json(results / "speed" / "networks.json", "speed run")
        if any(row["of_peer"] for row in run["rows"]):
            drawn[SPEED] = speed_figure(run)
    if any((results / "ablation").glob("*.json")):
        documents = ablation_table.read_documents(results / "ablation")
        drawn[ABLATION] = ablation_figure(ablation_table.table(documents))
    out.mkdir(parents=True, exist_ok=True)
    for name, data in drawn.items():
        write_bytes(out / name, data)
    return [out / name for name in drawn]


def speed_figure(run: Mapping[str, Any]) -> bytes:
    """Draws every network's time as a ratio to the first peer's, as SVG; networks without such a ratio are left out.

    So is the published form, which is so much slower that the others would fall together.
    """
    peer = next(iter(run["rows"][0]["of_peer"]))
    marks = [
        Mark(row["network"], row["scheme"], tuple(row["of_peer"][peer]))
        for row in run["rows"]
        if row["scheme"] in _SCHEMES and row["network"] != peer and "published" not in row["network"]
        if row["of_peer"].get(peer)
    ]

    def finish(axes: Axes) -> None:
        axes.set_xlim(left=0)
        where = f"{chip_name(run['device']) or 'an unnamed CPU'}, threads: {run['threads']}"
        axes.set_title(f"Time of one picture, of {peer}'s in the same precision\n{where}")
        axes.set_xlabel("ratio of times, with its 95 % interval; left of 1 is faster")

    return _intervals(marks, 1.0, finish)


def ablation_figure(comparison: Mapping[str, Any]) -> bytes:
    """Draws the differences of an ablation (see `ablation_table.table`) as SVG; the band is what counts as noise."""
    marks = []
    for row in comparison["rows"]:
        if found := row["difference"]:
            (low, high), count = found["ci95"], len(found["seeds"])
            title = f"{row['change']}, {count} seed{'s' if count > 1 else ''}"
            marks.append(Mark(title, "", (low, found["value"], high)))
    smallest = ablation_table.SMALLEST_DIFFERENCE_PQ

    def finish(axes: Axes) -> None:
        axes.axvspan(-smallest, smallest, color="#8fa3b5", alpha=0.2, linewidth=0)
        axes.set_title(f"One choice at a time, {comparison['epochs']:g} epochs on {comparison['data']}")
        axes.set_xlabel(f"PQ minus the recipe's, 95 % interval\nwithin {smallest:g} is noise")

    return _intervals(marks, 0.0, finish)


def _intervals(marks: Sequence[Mark], held_to: float, finish: Callable[[Axes], None]) -> bytes:
    """Draws marks row by row from top to bottom beside an upright line; the same marks give the same bytes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows, series = list(dict.fromkeys(m.row for m in marks)), list(dict.fromkeys(m.series for m in marks))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.0, 1.2 + _ROW_INCHES * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(held_to, color="#7f8c9b", linewidth=1)
        for name in series:
            own = [m for m in marks if m.series == name]
            apart = 0.25 * (series.index(name) - (len(series) - 1) / 2)
            values = [m.ends[1] for m in own]
            reach = [[v - m.ends[0] for v, m in zip(values, own, strict=True)], [m.ends[2] - m.ends[1] for m in own]]
            places = [rows.index(m.row) + apart for m in own]
            color = color_of(name or "fp32")
            axes.errorbar(values, places, xerr=reach, fmt="o", markersize=4, color=color, label=name or None)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x", linewidth=0.4, alpha=0.6)
        if any(series):
            axes.legend(loc="lower right", frameon=False)
        finish(axes)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None}, facecolor="white")
    return drawn.getvalue()
