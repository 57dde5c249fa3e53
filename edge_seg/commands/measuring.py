"""Options that the verbs which measure latency share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_FILE = click.Path(path_type=Path)
_OPTIONS = (
    click.argument("files", type=_FILE, nargs=-1, required=True),
    click.option("--profile", "profiles", multiple=True, default=("host_cpu_1t",), show_default=True),
    click.option("--data", default="synthetic:easy", show_default=True, help="Pictures to run on."),
    click.option("--images", "count", default=8, show_default=True),
    click.option("--accuracy", type=_FILE, multiple=True, help="JSON of `evaluate` for the same file."),
    click.option("--out", type=_FILE, required=True, help="Results (JSON)."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout."),
)


def measuring_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `files profiles data count accuracy out as_json` to a verb."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
