"""`edge-seg sustain`: minutes at a frame rate; heavy imports happen inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edge_seg.commands.measuring import measuring_options

if TYPE_CHECKING:
    from edge_seg.benchmarks.result import Record


@click.command()
@click.option("--minutes", default=10.0, show_default=True, help="Wall time per file, at least 2.")
@click.option("--fps", default=15.0, show_default=True, help="Frames per second that are due; 0 makes no pause.")
@measuring_options
def sustain(
    files: tuple[Path, ...],
    minutes: float,
    fps: float,
    profiles: tuple[str, ...],
    data: str,
    count: int,
    accuracy: tuple[Path, ...],
    out: Path,
    as_json: bool,
) -> None:
    """Run files for minutes, as a camera would. Example: edge-seg sustain t/a_w8a8.tflite --fps 15 --out s.json.

    Says whether the device throttled and when, the first minute against the last, and how many frames were missed.
    """
    from edge_seg.benchmarks.bench_sustain import sustain_files
    from edge_seg.benchmarks.sustain import Sustain
    from edge_seg.steps import pictures

    def told(file: str, fraction: float, n: int) -> None:
        click.echo(f"{file}: {100 * fraction:.0f} %, {n} frames", err=True)

    plan = Sustain(minutes, fps)
    images = pictures(data, count, "val")
    records = sustain_files(files, profiles, plan, images=images, out=out, accuracy=accuracy, told=told)
    document = [record.to_json() for record in records]
    lines = "\n".join(map(_line, records))
    click.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else lines)


def _line(record: Record) -> str:
    drift, protocol = record.drift, record.protocol
    throttled = {True: "throttled", False: "did not throttle"}.get(drift["throttled"], "throttling unknown")
    return (
        f"{record.model} {record.scheme} {record.profile}: first {drift.get('window_s')} s"
        f" {drift.get('first_window_ms')} ms, last {drift.get('last_window_ms')} ms, {throttled};"
        f" {protocol.get('missed')} of {protocol.get('frames')} frames missed"
    )
