"""Tables of what is exact, and of one file measured against itself, for the page of results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_seg.studies.results.markdown import data_name, number, table


def trained(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of `edge-seg verify --json` of retrained files: trained numbers, and outputs of integer arithmetic."""
    rows = []
    for found in documents.values():
        if "trained_numbers" not in found:
            continue
        numbers, mirror = found["trained_numbers"], found["integer_mirror"]
        count, equal = sum(numbers["total"].values()), sum(numbers["equal"].values())
        outputs = f"{100 * mirror['equal']:g} % equal, at most {mirror['max_lsb']} apart"
        rows.append([f"`{Path(found['file']).name}`", f"{equal} of {count}", str(mirror["pictures"]), outputs])
    head = (
        "**Retrained files beside their training**: scales, zero points, operations and the tensors of weights and "
        "biases that are the trained ones, and every output beside the network run in integers (`edge-seg verify`)."
    )
    return [head, table(("file", "numbers equal", "pictures", "outputs"), rows)] if rows else []


def processors(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One table per document of files on other processors."""
    tables = []
    for found in (document for document in documents.values() if "runs" in document):
        rows = []
        for run in found["runs"]:
            counts = [f"{run[key]:,}" for key in ("pictures", "integers", "differing", "max_lsb")]
            rows.append([f"`{run['file']}`", f"`{run['qemu_cpu']}`", *counts])
        columns = ("file", "processor", "pictures", "integers", "differing", "furthest")
        head = f"**Integers on another processor**: {found['claim']} ({found['emulator']}; `{found['command']}`)."
        tables += [head, table(columns, rows)]
    return tables


def interpreters(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of files in a second interpreter (`edge_seg.studies.second_interpreter`)."""
    rows = []
    for found in (document for document in documents.values() if "value_second" in document):
        metric, (low, high) = found["metric"].upper(), found["difference_ci95"]
        values = [
            f"{metric} {found[f'value_{side}']:.2f} in {found[side]['name']} {found[side]['version']}"
            for side in ("first", "second")
        ]
        difference = f"{found['difference']:+.2f} [{low:+.2f}, {high:+.2f}]"
        rows.append([f"`{found['file']}`", f"{found['images']} of `{data_name(found)}`", *values, difference])
    columns = ("file", "pictures", "first", "second", "difference")
    return ["**A second interpreter**, same file, same pictures.", table(columns, rows)] if rows else []


def same_file(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of `edge_seg.studies.same_file`: how near 1 the ratio of a file to itself comes."""
    rows = [_same_file_row(name, profile) for name, found in documents.items() for profile in found["profiles"]]
    if not rows:
        return []
    within = number(next(iter(documents.values()))["profiles"][0]["within_pct"], 0)
    head = (
        f"**A file against itself**, measured again and again on a shared machine (`edge_seg.studies.same_file`; the "
        f"[README](README.md) says how the series differ): how often the ratio was within {within} % of 1, how far it "
        "was at most, how often its interval left out 1, and what share of the cores others took."
    )
    columns = ("series", "threads", f"within {within} %", "in a row", "furthest", "alarms", "taken by others")
    return [head, table(columns, rows)]


def _same_file_row(name: str, profile: Mapping[str, Any]) -> list[str]:
    steal = profile["steal_pct"]
    return [
        name,
        str(profile["threads"]),
        f"{profile['within_n']} of {profile['times_n']}",
        str(profile["within_in_a_row"]),
        f"{profile['furthest_pct']:.1f} %",
        f"{profile['alarms_n']} ({profile['alarms_stated']:g} stated)",
        f"{steal['median']:.0f} %, at most {steal['most']:.0f} %",
    ]
