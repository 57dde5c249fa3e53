"""`edge-seg gate`: whether a change may go in, by its latency; heavy imports happen inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from edge_seg.errors import InputError

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("candidate", type=_FILE, metavar="R.json")
@click.option("--baseline", type=_FILE, required=True, help="Results to hold it against.")
@click.option("--max-slowdown", required=True, metavar="PERCENT", help="Largest slowdown that passes, such as 5%.")
@click.option("--accuracy", type=_FILE, multiple=True, help="JSON of `evaluate` for the same file; repeatable.")
@click.option("--min-accuracy", default=0.99, show_default=True, help="Least accuracy as a share of the fp32 file's.")
@click.option("--no-accuracy", is_flag=True, help="Judge latency without looking at accuracy.")
@click.option("--allow", multiple=True, metavar="WORD", help="A field that may differ, or: invalid throttled emulated.")
@click.option("--allow-undecided", is_flag=True, help="Let pairs pass that the measurement cannot decide.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def gate(candidate: Path, baseline: Path, max_slowdown: str, as_json: bool, **options: Any) -> None:
    """Fail if it became slower. Example: edge-seg gate r.json --baseline main.json --max-slowdown 5%.

    Fails where the whole 95 % interval of the ratio is above the limit, and where the measurement cannot tell. Passes
    where the whole interval is within the limit, or the ratio is and a slowdown that large would have been seen 80
    times in 100. A latency does not count without the accuracy of the same file. Exit code 1: did not pass, 2: not
    comparable or bad input.
    """
    from edge_seg.benchmarks.bench import load_accuracy
    from edge_seg.benchmarks.gate import Rules, gate_files

    rules = Rules(
        max_slowdown_pct=percent(max_slowdown),
        min_accuracy=None if options["no_accuracy"] else options["min_accuracy"],
        allow=options["allow"],
        accuracy=load_accuracy(options["accuracy"]),
        undecided_passes=options["allow_undecided"],
    )
    gated = gate_files(candidate, baseline, rules)
    click.echo(json.dumps(gated.to_json(), indent=2, ensure_ascii=False) if as_json else gated.text())
    failure = gated.failure()
    if failure is not None:
        raise failure


def percent(text: str) -> float:
    """Reads "5%" as 5.0; raises InputError without the sign, since 0.05 could mean either."""
    number, sign, rest = text.strip().partition("%")
    try:
        value = float(number)
    except ValueError as error:
        raise InputError("This is not a percentage.", expected="such as 5%", got=text) from error
    if not sign or rest:
        raise InputError("A percentage needs its sign.", expected="such as 5%", got=text)
    return value
