"""How much of a float file's accuracy other files keep: `python -m edge_seg.studies.kept_accuracy --help`.

All files are scored on the same pictures; shares and differences come with intervals from the same resampled pictures.
Several files under one title are seeds of one recipe: their median is compared.
"""

from __future__ import annotations

import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from edge_seg.artifact import sha256_of, write_json
from edge_seg.data.source import open_dataset
from edge_seg.errors import InputError
from edge_seg.evaluation.average_precision import AveragePrecision
from edge_seg.evaluation.bootstrap import Resampled, interval, paired_ratio
from edge_seg.evaluation.evaluate import Quality, evaluate
from edge_seg.model_file import open_predictor
from edge_seg.studies.start import start

_SEED = 0
_FURTHER = ("ap50", "boundary_ap")


def row(title: str, files: Sequence[Path], scores: Sequence[Quality], base: Quality) -> dict[str, Any]:
    """Returns what a recipe scores and keeps of the base's score.

    Args:
        title: What the recipe is called.
        files: Its files, one for each seed.
        scores: Their scores.
        base: Score of the float file.
    """
    values = [score.value() for score in scores]
    about = [{"file": f.name, "sha256": sha256_of(f), "value": round(v, 3)} for f, v in zip(files, values, strict=True)]
    found = {"title": title, "files": about, **_kept(scores, base)}
    if isinstance(base, AveragePrecision):
        of_ap = [score for score in scores if isinstance(score, AveragePrecision)]
        found["figures"] = {n: _kept([s.figure(n) for s in of_ap], base.figure(n)) for n in _FURTHER}
    return found


def _kept(scores: Sequence[Resampled], base: Resampled) -> dict[str, Any]:
    """Returns the median value, its interval where there is one score, and the share of the base with its interval."""
    share = paired_ratio(base, scores, seed=_SEED)
    alone = interval(scores[0], seed=_SEED) if len(scores) == 1 else None
    return {
        "value": round(statistics.median(score.value() for score in scores), 3),
        "value_ci95": [round(alone.low, 3), round(alone.high, 3)] if alone else None,
        "share": round(share.value, 4),
        "share_ci95": [round(share.low, 4), round(share.high, 4)],
    }


def document(base: Path, others: Mapping[str, Sequence[Path]], data: str, *, limit: int = 0) -> dict[str, Any]:
    """Scores all files and compares them.

    Args:
        base: The float file.
        others: Files by title, the seeds of a recipe together.
        data: DATA argument; its `val` split is scored.
        limit: Pictures, evenly spread; 0 takes all.

    Raises:
        InputError: The files are not of one task, or a file is missing.
    """
    dataset = open_dataset(data, split="val")

    def score(file: Path) -> Quality:
        return evaluate(open_predictor(file, threads=1), dataset, limit=limit, progress=file.name).quality

    reference = score(base)
    rows = [row("fp32", [base], [reference], reference)]
    rows += [row(title, files, [score(f) for f in files], reference) for title, files in others.items()]
    return {
        "format": "edge_seg.kept_accuracy",
        "metric": reference.metric,
        "data": data,
        "data_sha256": dataset.fingerprint(),
        "images": len(reference.image_ids),
        "resampling_seed": _SEED,
        "rows": rows,
    }


def text(found: Mapping[str, Any]) -> str:
    """Returns the comparison as aligned text."""
    lines = [f"{found['metric'].upper()} on {found['images']} pictures of {found['data']}"]
    for item in found["rows"]:
        low, high = item["share_ci95"]
        seeds = f", median of {len(item['files'])}" if len(item["files"]) > 1 else ""
        lines.append(
            f"{item['title']:24} {item['value']:6.2f}  keeps {item['share']:.4f} [{low:.4f}, {high:.4f}]{seeds}"
        )
    return "\n".join(lines)


def _titled(given: Sequence[str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for text_ in given:
        title, _, file = text_.partition("=")
        if not title or not file:
            raise InputError("A file needs a title.", expected="TITLE=FILE", got=text_)
        found.setdefault(title, []).append(Path(file))
    return found


@click.command()
@click.option("--base", type=click.Path(path_type=Path), required=True, help="The float file.")
@click.option("--file", "files", multiple=True, metavar="TITLE=FILE", help="Repeat a title for several seeds.")
@click.option("--data", required=True, help="DATA whose val split is scored.")
@click.option("--limit", default=0, help="Only this many pictures, evenly spread.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the document here.")
def main(base: Path, files: tuple[str, ...], data: str, limit: int, json_file: Path | None) -> None:
    """Scores files on the same pictures and says what share of the float file's accuracy each keeps."""
    found = document(base, _titled(files), data, limit=limit)
    found["command"] = shlex.join(["python", "-m", "edge_seg.studies.kept_accuracy", *sys.argv[1:]])
    if json_file is not None:
        write_json(json_file, found)
    click.echo(text(found))


if __name__ == "__main__":
    start(main)
