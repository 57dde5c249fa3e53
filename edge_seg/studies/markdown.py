"""Markdown of tables, for the results block of the README."""

from __future__ import annotations

from collections.abc import Sequence


def number(value: float | None, digits: int) -> str:
    """Returns a number with so many digits, nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table; bars in cells are escaped."""
    ruler = ["---"] * len(columns)
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (columns, ruler, *rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
