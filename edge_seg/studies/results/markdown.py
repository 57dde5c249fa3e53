"""Markdown of tables, for the page of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def number(value: float | None, digits: int) -> str:
    """Returns a number with so many digits, nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; bars in cells are escaped."""
    ruler = ["---"] * len(columns)
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (columns, ruler, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def data_name(document: Mapping[str, Any]) -> str:
    """Returns a document's data set by the name of its folder: where it lay on a disk is nobody's business."""
    data = str(document["data"])
    return data if data.startswith("synthetic:") else Path(data).name
