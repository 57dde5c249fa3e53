"""The verb `devices`: what can be measured on from here."""

from __future__ import annotations

import json
from typing import Any

import click


def find_devices() -> dict[str, Any]:
    """Returns `host`, `adb` (the client: `program version reason`) and `attached` (`serial state ready facts todo`).

    A missing client, or a server that cannot be reached, is said in `adb.reason`; the host is always there.
    """
    from edge_seg.benchmarks import machine
    from edge_seg.benchmarks.adb.attached import attached
    from edge_seg.benchmarks.adb.client import Adb, not_ready
    from edge_seg.errors import MissingHere

    client: dict[str, Any] = {"program": None, "version": None, "reason": None}
    rows: list[dict[str, Any]] = []
    try:
        adb = Adb()
        client |= {"program": adb.program, "version": adb.version()}
        for item in attached(adb):
            todo = None if item.ready else not_ready(item.serial, item.state).todo
            row = {"serial": item.serial, "state": item.state, "ready": item.ready}
            rows.append({**row, "facts": item.facts, "todo": todo})
    except MissingHere as error:
        client["reason"] = f"{error.what} {error.todo}".strip()
    return {"host": machine.host_device(), "adb": client, "attached": rows}


def devices_text(document: dict[str, Any]) -> str:
    """Returns the document of `find_devices` for people."""
    host, client = document["host"], document["adb"]
    lines = [f"host      {host['cpu'] or 'unknown processor'}, {host['cores']} cores, {host['os']}"]
    for row in document["attached"]:
        model = row["facts"].get("model", "")
        lines.append(f"android   {row['serial']}  {row['state']}  {model}".rstrip())
        if row["todo"]:
            lines.append(f"          {row['todo']}")
    if client["reason"]:
        lines.append(f"android   not looked for: {client['reason']}")
    elif not document["attached"]:
        lines.append("android   none attached; switch on USB debugging in the phone's developer options")
    return "\n".join(lines)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def devices(as_json: bool) -> None:
    """List this host and the attached phones. Example: edge-seg devices --json."""
    document = find_devices()
    click.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else devices_text(document))
