"""`edge-seg compare`: two results of `benchmark`, or two files within one; heavy imports happen inside."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edge_seg.errors import CheckFailed, InputError

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("baseline", type=_FILE, metavar="A.json")
@click.argument("candidate", type=_FILE, metavar="[B.json]", required=False)
@click.option("--of", multiple=True, metavar="FIELD=VALUE", help="Which records are the candidate; repeatable.")
@click.option("--against", multiple=True, metavar="FIELD=VALUE", help="Which records are the baseline; repeatable.")
@click.option("--allow", multiple=True, metavar="FIELD", help="Compare although this field differs; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def compare(
    baseline: Path,
    candidate: Path | None,
    of: tuple[str, ...],
    against: tuple[str, ...],
    allow: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare two results, or files within one. Example: edge-seg compare before.json after.json.

    Ratios are B over A: above 1 means that B is slower. Records match by model, scheme, profile and delegate; their
    files may differ, but not device, runtime, threads, precision, protocol or pictures. --allow scheme compares
    schemes with one another, --allow runtime.version two versions of the runtime. Exits with 1 where a pair is refused.

    Within one results file: edge-seg compare r.json --of scheme=w8a8 --against scheme=fp32. Fields are model, scheme,
    profile, delegate_requested, device.id and sha256 (its beginning). Files of one session were measured in turns, and
    their ratio is taken turn by turn, which is far narrower on a machine that is not quiet.
    """
    from edge_seg.benchmarks.compare import compare_files

    chosen, other = _choice(of, "--of"), _choice(against, "--against")
    if candidate is None and not (chosen and other):
        raise InputError(
            "There is one results file and nothing to tell what is compared with what.",
            expected="a second results file, or --of FIELD=VALUE and --against FIELD=VALUE",
        )
    compared = compare_files(baseline, candidate or baseline, allow=allow, of=chosen, against=other)
    click.echo(json.dumps(compared.to_json(), indent=2, ensure_ascii=False) if as_json else compared.text())
    if compared.refused:
        told = "; ".join(f"{pair.name} ({', '.join(pair.differing) or pair.no_samples})" for pair in compared.refused)
        raise CheckFailed(
            "Not everything here is comparable.",
            got=told,
            todo="measure both on one device with one runtime, or --allow FIELD",
        )


def _choice(given: tuple[str, ...], option: str) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for text in given:
        field, separator, value = text.partition("=")
        if not (field and separator and value) or field in chosen:
            raise InputError(f"{option} is not clear.", expected="FIELD=VALUE, each field once", got=" ".join(given))
        chosen[field] = value
    return chosen
