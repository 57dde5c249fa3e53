"""`edge-seg profiles`: the device profiles, all or one with its sources; heavy imports happen inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edge_seg.benchmarks.profile import CpuCluster, Profile

_HEAD = ("profile", "chip", "runner", "delegates", "threads", "CPU mask", "sessions")


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def profiles(name: str | None, as_json: bool) -> None:
    """List device profiles, or show one with its sources. Example: edge-seg profiles pixel_8.

    NAME is a profile or the path of a .toml file. One file is one profile: adding a device is adding a file.
    """
    from edge_seg.benchmarks.profile import load_profile, profile_names

    found = [load_profile(n) for n in ([name] if name else profile_names())]
    rows: list[dict[str, Any]] = [asdict(profile) for profile in found]
    shown = whole(found[0]) if name else table(found)
    click.echo(json.dumps(rows[0] if name else rows, indent=2, ensure_ascii=False) if as_json else shown)


def table(found: Sequence[Profile]) -> str:
    """Returns one line per profile under a head."""
    rows = [_HEAD, *(_row(profile) for profile in found)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(_HEAD))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(profile: Profile) -> tuple[str, ...]:
    delegates, mask = ", ".join(profile.delegates), profile.cpu_mask or "-"
    return (
        profile.name,
        profile.soc,
        profile.runner,
        delegates,
        str(profile.threads),
        mask,
        str(profile.sessions),
    )


def whole(profile: Profile) -> str:
    """Returns every field of a profile; each fact with how it is known and where from."""
    plain = {k: v for k, v in asdict(profile).items() if k not in ("clusters", "hardware") and v not in ("", None)}
    lines = [
        f"{key:16}{', '.join(map(str, value)) if isinstance(value, tuple) else value}" for key, value in plain.items()
    ]
    for cluster in profile.clusters:
        lines += _cluster_lines(cluster)
    for fact in profile.hardware:
        lines += [f"{fact.name}: {fact.value}", f"    {fact.confidence}: {fact.source}"]
    return "\n".join(lines)


def _cluster_lines(cluster: CpuCluster) -> list[str]:
    lines = [
        f"{cluster.count} x {cluster.core}, {cluster.clock_mhz:g} MHz",
        f"    {cluster.confidence}: {cluster.source}",
    ]
    if not cluster.cpus:
        return [*lines, "    which CPUs these are is not known"]
    return [*lines, f"    CPUs {', '.join(map(str, cluster.cpus))}: {cluster.cpus_confidence}: {cluster.cpus_source}"]
