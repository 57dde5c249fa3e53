"""What a conversion that fails leaves behind: nothing that was only made on the way."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_seg.errors import EdgeSegError

EXPORTED = "exported"
# the float file that every scheme starts from, with what lies beside it
_FLOAT_FILES = ("*_fp32.tflite", "*_fp32.tflite.manifest.json", "*_fp32.contract.json")


@contextlib.contextmanager
def removed_on_failure(out: Path, wanted: Sequence[str]) -> Iterator[None]:
    """Removes the export and the float file of a conversion that then fails, so that `out` looks as it did before.

    What was there before stays. All stays where a wanted file was finished (the export is its parent), where
    measurements were written that the next run goes on from, and where a person interrupted.

    Args:
        out: Folder of the results.
        wanted: Schemes that were asked for.
    """
    there = _names(out)
    try:
        yield
    except EdgeSegError:
        made = _names(out) - there
        finished = any(name.endswith(f"_{scheme}.tflite") for name in made for scheme in wanted)
        if not finished and not any(name.endswith(".jsonl") for name in made):
            _remove(out, made)
        raise


def _names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()} if folder.is_dir() else set()


def _remove(out: Path, made: set[str]) -> None:
    """Removes by name, never by difference alone: another program may write into the same folder."""
    with contextlib.suppress(OSError):  # the reader needs the first error, not this one
        if EXPORTED in made:
            shutil.rmtree(out / EXPORTED)
        for pattern in _FLOAT_FILES:
            for path in out.glob(pattern):
                if path.name in made:
                    path.unlink()
        if made and not _names(out):
            out.rmdir()
