"""Tables of LiteRT's GPU accelerator beside the CPU, for the page of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_seg.studies.results.markdown import data_name, table


def accuracy(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per run of `edge_seg.studies.gpu_accuracy`."""
    if not runs:
        return []
    columns = (
        "file",
        "pictures",
        "device",
        "arithmetic",
        "CPU, fp32",
        "accelerator",
        "difference",
        "largest output difference",
    )
    rows = []
    for run in runs:
        low, high = run["difference_ci95"]
        worst = max(run["range_share"].values())
        rows.append(
            [
                f"`{run['file']}`",
                f"{run['images']} of `{data_name(run)}`",
                f"{run['runtime']['adapter']} ({run['runtime']['adapter_kind']})",
                run["runtime"]["precision"],
                f"{run['metric'].upper()} {run['cpu']:.2f}",
                f"{run['accelerator']:.2f}",
                f"{run['difference']:+.2f} [{low:+.2f}, {high:+.2f}]",
                f"{worst:.2g} of the range",
            ]
        )
    head = (
        "**LiteRT's GPU accelerator** beside the CPU, same file, same pictures. On a software device the numbers are "
        "those of its arithmetic; it says nothing about speed."
    )
    return [head, table(columns, rows)]


def bodies(documents: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table per document of `edge_seg.studies.gpu_bodies`; networks with equal figures share a line."""
    tables = []
    for document in documents:
        lines: dict[tuple[str, ...], list[str]] = {}
        for row in document["rows"]:
            lines.setdefault(_body_cells(row), []).append(f"`{row['network']}`")
        devices = {row["runtime"]["adapter"]: row["runtime"] for row in document["rows"] if "runtime" in row}
        told = ", ".join(f"{name} ({runtime['adapter_kind']})" for name, runtime in devices.items())
        sides = ", ".join(sorted({f"{row['input_px']} px" for row in document["rows"]}))
        tables.append(
            f"**Registered bodies on LiteRT's GPU accelerator**, {told}, {document['precision']}, {sides}, random "
            f"weights, {document['pictures']} pictures (`{document['command']}`): how far its outputs are "
            "from the CPU's, as a share of each output's range (the worst one), and from PyTorch's float64."
        )
        columns = ("network", "output", "to the CPU", "to float64", "CPU to float64", "PyTorch float32 to float64")
        tables.append(table(columns, [[", ".join(names), *cells] for cells, names in lines.items()]))
    return tables


def _body_cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if "refused" in row:
        return ("", f"refused: {str(row.get('got') or row['refused']).split('.')[0]}", "", "", "")
    output = max(row["range_share"], key=row["range_share"].get)
    off = row["from_float64"][output]
    return (f"`{output}`", f"{row['worst']:.1e}", *(f"{off[run]:.1e}" for run in ("gpu", "cpu", "torch")))
