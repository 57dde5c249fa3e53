"""How a study starts from the command line: errors become messages and exit codes, as those of `edge-seg`."""

from __future__ import annotations

import sys

import click

from edge_seg.errors import EdgeSegError


def start(command: click.Command) -> None:
    """Runs a study; an error of ours ends it with its message and its exit code."""
    try:
        command(standalone_mode=False)
    except EdgeSegError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
