"""Which operators a network's time goes to: each run alone by the same kernels, files and operators in turns."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from edge_seg.artifact import write_json
from edge_seg.benchmarks import machine
from edge_seg.converters.operations import profile_operations
from edge_seg.errors import EdgeSegError


@click.command(help=__doc__)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--threads", type=int, default=1, show_default=True, help="CPU threads.")
@click.option("--rounds", type=int, default=40, show_default=True, help="Turns that every operator has.")
@click.option("--json", "out", type=click.Path(path_type=Path), help="Where the document goes.")
def main(files: tuple[Path, ...], threads: int, rounds: int, out: Path | None) -> None:
    """Prints sums by kind and the most expensive operators of every file; writes the document."""
    from tqdm import tqdm

    try:
        watch = machine.watch()
        with tqdm(total=rounds, unit="round", desc="operators") as bar:
            found = profile_operations(files, threads=threads, rounds=rounds, on_round=bar.update)
    except EdgeSegError as error:
        click.echo(str(error), err=True)
        sys.exit(error.exit_code)
    if out is not None:
        document = {
            "command": shlex.join(["python", "-m", "edge_seg.studies.operation_speed", *sys.argv[1:]]),
            "what": "operations",
            "kind": "measured",
            "device": machine.host_device(),
            "environment": watch(),
            "profiles": [profile.to_json() for profile in found],
        }
        write_json(out, document)
    click.echo("\n\n".join(profile.text() for profile in found))


if __name__ == "__main__":
    main()
