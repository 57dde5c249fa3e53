"""`edge-seg compare`: two results of `benchmark`, pair by pair; heavy imports happen inside."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edge_seg.errors import CheckFailed

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("baseline", type=_FILE, metavar="A.json")
@click.argument("candidate", type=_FILE, metavar="B.json")
@click.option("--allow", multiple=True, metavar="FIELD", help="Compare although this field differs; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def compare(baseline: Path, candidate: Path, allow: tuple[str, ...], as_json: bool) -> None:
    """Compare two results. Example: edge-seg compare before.json after.json.

    Ratios are B over A: above 1 means that B is slower. Records match by model, scheme, profile and delegate; their
    files may differ, but not device, runtime, threads, precision, protocol or pictures. --allow scheme compares
    schemes with one another, --allow runtime.version two versions of the runtime. Exits with 1 where a pair is refused.
    """
    from edge_seg.benchmarks.compare import compare_files

    compared = compare_files(baseline, candidate, allow=allow)
    click.echo(json.dumps(compared.to_json(), indent=2, ensure_ascii=False) if as_json else compared.text())
    if compared.refused:
        told = "; ".join(f"{pair.name} ({', '.join(pair.differing) or pair.no_samples})" for pair in compared.refused)
        raise CheckFailed(
            "Not everything here is comparable.",
            got=told,
            todo="measure both on one device with one runtime, or --allow FIELD",
        )
