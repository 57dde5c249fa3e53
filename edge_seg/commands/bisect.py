"""`edge-seg bisect`: the operator at which GPU and CPU part; heavy imports happen inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_seg.errors import CheckFailed

if TYPE_CHECKING:
    from edge_seg.converters.gpu.accelerator import Precision

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("file", type=_FILE)
@click.option(
    "--image", "images", type=_FILE, multiple=True, help="Feed this picture; repeatable. Default: seeded ones."
)
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="Of the GPU.")
@click.option(
    "--limit", type=float, metavar="SHARE", help="Share of a tensor's range that may differ: 1e-5; fp16 2e-2."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def bisect(file: Path, images: tuple[Path, ...], precision: Precision, limit: float | None, as_json: bool) -> None:
    """Find the operator at which GPU and CPU part. Example: edge-seg bisect t/a_fp32.tflite --image street.jpg.

    Cuts the graph and runs its beginnings on LiteRT's GPU accelerator, over a GPU or a Vulkan driver in software, then
    the operator it finds on the CPU's own inputs: is it wrong by itself, wrong only where the accelerator joins it
    with those before it, or has rounding added up? Exit code 1: they part, 3: no Vulkan device here.
    """
    from edge_seg.converters.gpu.bisect_file import bisect_file

    found = bisect_file(file, _pictures(file, images), precision=precision, limit=limit)
    click.echo(json.dumps(found.to_json(), indent=2, ensure_ascii=False) if as_json else found.text())
    if found.parting is not None:
        op = found.graph.ops[found.parting.op]
        raise CheckFailed(f"GPU and CPU part at #{op.index} {op.name} of {file.name}.")


def _pictures(file: Path, images: tuple[Path, ...]) -> list[Any]:
    if not images:
        return []
    from edge_seg.converters.metadata import read_contract
    from edge_seg.data.images import read_image
    from edge_seg.steps import letterboxed

    return letterboxed(read_contract(file), [read_image(path) for path in images])
