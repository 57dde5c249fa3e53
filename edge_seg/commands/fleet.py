"""`edge-seg fleet`: one plan on many devices at once; heavy imports happen inside."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_seg.errors import CheckFailed

if TYPE_CHECKING:
    from edge_seg.benchmarks.fleet import Fleet

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("plan", type=_FILE)
@click.option("--data", default="synthetic:easy", show_default=True, help="Pictures to run on.")
@click.option("--images", "count", default=8, show_default=True)
@click.option("--out", type=_FILE, required=True, help="Folder of the results; a second call goes on in it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def fleet(plan: Path, data: str, count: int, out: Path, as_json: bool) -> None:
    """Measure a plan on all its devices at once. Example: edge-seg fleet plan.toml --out runs/fleet.

    The plan, a TOML file: files = ["a.tflite"], then for each device a table [[device]] with a name, profiles =
    ["raspberry_pi_5"], and where needed address = "pi@host", delegates and sessions. What was measured is never
    measured again. Exit code 1: a job failed.
    """
    from edge_seg.benchmarks.fleet import run_fleet
    from edge_seg.steps import pictures

    done = run_fleet(plan, images=pictures(data, count, "val"), out=out, progress=sys.stderr)
    document = to_json(done)
    click.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else text(done))
    if done.failures:
        raise CheckFailed(
            f"{len(done.failures)} jobs did not get to their end.",
            got="; ".join(failure.job for failure in done.failures[:5]),
            todo=f"see {out / 'failures.json'}; the same call measures what is missing",
        )


def to_json(done: Fleet) -> dict[str, Any]:
    """Returns the keys `results records measured skipped failures`."""
    return {
        "results": str(done.results),
        "records": len(done.records),
        "measured": done.measured,
        "skipped": done.skipped,
        "failures": [vars(failure) for failure in done.failures],
    }


def text(done: Fleet) -> str:
    """Returns one line per failed job and one for the results."""
    lines = [f"{failure.job}: {failure.error.splitlines()[0]}" for failure in done.failures]
    return "\n".join([*lines, f"{done.measured} measured, {done.skipped} were there already: {done.results}"])
