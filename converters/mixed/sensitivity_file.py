"""Finished layers of a sensitivity run as JSON lines: appended one by one, so that an interrupted run goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_seg.artifact import write_bytes
from edge_seg.errors import ArtifactError, InputError

FORMAT = "edge_seg.sensitivity"


class SensitivityFile:
    """Finished layers as JSON lines; the first line says what they are about.

    Args:
        path: The file; created with the first layer. None keeps layers in memory.
        about: What decides the figures. A file about something else is refused.

    Raises:
        ArtifactError: The file is not of this kind, or a line within it is broken.
        InputError: It is about another network, other data or other settings.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        self.path, self.about = path, {"format": FORMAT, **about}
        self.rows: list[dict[str, Any]] = []
        if path is not None and path.exists():
            self.rows = _checked(path, self.about)
            # what a killed run left of its last line must not stick to the next one
            self._rewrite(path)

    def _rewrite(self, path: Path) -> None:
        write_bytes(path, "".join(_line(row) for row in (self.about, *self.rows)).encode())

    def add(self, row: dict[str, Any]) -> None:
        """Appends a finished row."""
        self.rows.append(row)
        if self.path is None:
            return
        if not self.path.exists():
            self._rewrite(self.path)
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(row))
        except OSError as error:
            raise InputError(f"Cannot write {self.path}.", got=str(error), todo="free space; then run again") from error

    def find(self, **wanted: Any) -> dict[str, Any] | None:
        """Returns the row with these values, or None."""
        return next((r for r in self.rows if all(r.get(k) == v for k, v in wanted.items())), None)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads a sensitivity file: what it is about, then its rows. A last line without its end is left out.

    Raises:
        InputError: It cannot be read.
        ArtifactError: It is not of this kind, or a line is broken.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read.", expected="a file of edge-seg sensitivity", got=str(error)
        ) from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise _not_ours(path, f"line {number}: {error}") from error
        if not isinstance(row, dict) or not (number == 1 or _is_row(row)):
            raise _not_ours(path, f"line {number}: {line[:80]}")
        rows.append(row)
    if not rows or rows[0].get("format") != FORMAT:
        raise _not_ours(path, "another format" if rows else "nothing")
    return rows


def _is_row(row: Mapping[str, Any]) -> bool:
    """Whether a line holds what is read from it; such a file may come from anywhere."""
    if not isinstance(row.get("module"), str) or row.get("mode") not in ("alone", "leave_one_out"):
        return False
    if row.get("metric") == "snr":
        snr = row.get("snr_db")
        return isinstance(snr, dict) and bool(snr) and all(v is None or _is_number(v) for v in snr.values())
    ends = row.get("delta_ci95")
    pair = isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends))
    numbers = all(_is_number(row.get(k)) for k in ("value", "delta", "limit"))
    return pair and numbers and isinstance(row.get("metric"), str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _not_ours(path: Path, got: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is not a sensitivity file.",
        expected="JSON lines of edge-seg sensitivity",
        got=got,
        todo="delete it, or choose another --out",
    )


def _checked(path: Path, about: Mapping[str, Any]) -> list[dict[str, Any]]:
    found, *rows = read_rows(path)
    for key, value in about.items():
        if found.get(key) != value:
            raise InputError(
                f"{path} is about another run: {key.replace('_', ' ')} differs.",
                expected=str(value),
                got=str(found.get(key)),
                todo="measure again into another file, or with what this one was measured with",
            )
    return rows
