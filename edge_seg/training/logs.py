"""Where a run writes its figures: JSON lines for programs, TensorBoard for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from edge_seg.artifact import write_bytes

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Appends figures to `metrics.jsonl` and to TensorBoard.

    Args:
        folder: Folder of the run.
        start_step: Lines of later steps are dropped first, so that a resumed run leaves one clean history.
    """

    def __init__(self, folder: Path, *, start_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / METRICS_FILE
        kept = [line for line in self._lines() if json.loads(line)["step"] <= start_step]
        write_bytes(self.path, "".join(line + "\n" for line in kept).encode())
        self._kept = set(kept)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step or None)

    def _lines(self) -> list[str]:
        if not self.path.is_file():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.endswith("}")]

    def write(self, step: int, **figures: Any) -> None:
        """Appends one line; numbers also go to TensorBoard. A line that is there since before is not repeated."""
        line = json.dumps({"step": step, **figures})
        if line in self._kept:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        for name, value in figures.items():
            if isinstance(value, int | float):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes."""
        self._board.close()


class NoLog:
    """Stands for a `RunLog` in processes that do not write."""

    def write(self, step: int, **figures: Any) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""
