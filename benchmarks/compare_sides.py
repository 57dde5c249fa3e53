"""The two sides of a comparison: which records of a results file belong to a file, and where their samples are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.benchmarks.compare_facts import KEY_FIELDS, mapping
from edge_seg.benchmarks.result import Record, Samples, samples_path
from edge_seg.errors import ArtifactError, InputError, nearest

CHOICE_FIELDS = (*KEY_FIELDS, "sha256")
_MEDIAN_SLACK_MS = 1e-3


@dataclass(frozen=True)
class Side:
    """The sessions of one file.

    Attributes:
        records: One per session.
        results: The results file, with the samples beside it.
        chosen: Values by field that picked these records out of their file; empty where nothing was chosen.
    """

    records: tuple[Record, ...]
    results: Path
    chosen: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        return self.records[0].sha256

    def run_ms(self) -> list[NDArray[np.float64]]:
        """Loads `run_ms` of every session; raises ArtifactError where samples and record do not belong together."""
        return [_run_ms(self.results, record) for record in self.records]


def choose(records: Sequence[Record], chosen: Mapping[str, str], path: Path) -> list[Record]:
    """Returns the records whose fields have these values.

    Args:
        records: Records of a results file.
        chosen: Values by field, of `CHOICE_FIELDS`; of `sha256` its beginning is enough.
        path: The results file, for messages.

    Raises:
        InputError: An unknown field, or no such record.
    """
    for name in chosen:
        if name not in CHOICE_FIELDS:
            raise InputError("There is no such field to choose by.", got=name, todo=nearest(name, CHOICE_FIELDS))
    found = [record for record in records if all(_has(record, name, value) for name, value in chosen.items())]
    if not found:
        there = dict.fromkeys(tuple(key_value(record, name) for name in KEY_FIELDS) for record in records)
        raise InputError(
            f"{path} has no record with {told_choice(chosen)}.",
            got="; ".join(map(line, there)),
            todo="choose by values that are there",
        )
    return found


def _has(record: Record, name: str, value: str) -> bool:
    there = key_value(record, name)
    return bool(value) and there.startswith(value) if name == "sha256" else there == value


def told_choice(chosen: Mapping[str, str]) -> str:
    """Returns a choice in one line."""
    return " ".join(f"{name}={value}" for name, value in chosen.items())


def sides(
    path: Path, records: Sequence[Record], keys: Sequence[str], chosen: Mapping[str, str]
) -> dict[tuple[str, ...], Side]:
    """Returns the records of each file by the values of its key fields.

    Args:
        path: The results file.
        records: Its records, or those chosen of it.
        keys: Fields to match by.
        chosen: What they were chosen by.

    Raises:
        InputError: Several files have the same key, or a session is there twice.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(key_value(record, key) for key in keys), []).append(record)
    for key, group in groups.items():
        if len({(record.sha256, record.model, record.scheme) for record in group}) > 1:
            raise InputError(
                f"{path} has several files that are called {line(key)}.",
                expected="one file per name",
                got=", ".join(sorted({f"{r.model} {r.scheme} {str(r.sha256)[:8]}" for r in group})),
                todo="measure them into results of their own, or allow fewer fields to differ",
            )
        if len({(*(key_value(record, f) for f in KEY_FIELDS), record.session) for record in group}) < len(group):
            raise InputError(
                f"{path} has the same session of {line(key)} twice.",
                todo="compare results as `benchmark` wrote them",
            )
    return {key: Side(tuple(group), path, chosen) for key, group in groups.items()}


def key_value(record: Record, name: str) -> str:
    """Returns a field that records are matched or chosen by, as text."""
    if name == "device.id":  # several phones of one profile
        return str(mapping(record, "device").get("id") or "")
    return str(getattr(record, name))


def line(key: Sequence[str]) -> str:
    """Returns a key in one line."""
    return " ".join(filter(None, key))


def no_latency(record: Record) -> str:
    """Returns why a record has no latency to compare, or ""."""
    for name, what in (("samples_file", "no raw samples"), ("median_ms", "no latency")):
        if getattr(record, name) is None:
            return f"{what}: {record.unknown.get(name, 'not recorded')}"
    return ""


def in_turns(a: Side, b: Side) -> tuple[Side, Side, int] | None:
    """Returns both sides with their sessions in one order and the runs per block, where they took turns; else None.

    Files took turns that were measured by one call in one session: records of one results file whose profile, delegate,
    device, session and start are the same, in the order A-B-B-A.
    """
    if a.results.resolve() != b.results.resolve():
        return None
    sessions = [{_session(record): record for record in side.records} for side in (a, b)]
    same = sorted(sessions[0]) == sorted(sessions[1]) and all(len(s) == len(a.records) for s in sessions)
    protocols = [mapping(record, "protocol") for record in (*a.records, *b.records)]
    block_runs = protocols[0].get("block_runs")
    alike = all(p.get("order") == "A-B-B-A" and p.get("block_runs") == block_runs for p in protocols)
    if not (same and alike and isinstance(block_runs, int) and block_runs > 0 and len(a.records) == len(b.records)):
        return None
    ordered = [replace(side, records=tuple(s[k] for k in sorted(s))) for side, s in zip((a, b), sessions, strict=True)]
    return ordered[0], ordered[1], block_runs


def _session(record: Record) -> tuple[str, ...]:
    """Returns what files of one session share, and those of another do not."""
    device = json.dumps(dict(mapping(record, "device")), sort_keys=True)
    return str(record.session).rjust(9), str(record.started_utc), record.profile, record.delegate_requested, device


def _run_ms(results: Path, record: Record) -> NDArray[np.float64]:
    samples = Samples.load(samples_path(results, record)).run_ms.astype(np.float64)
    middle = float(np.median(samples)) if samples.size else float("nan")
    if samples.size != record.n or not abs(middle - _number(record.median_ms)) <= _MEDIAN_SLACK_MS + 1e-6 * middle:
        raise ArtifactError(
            f"{record.samples_file} does not belong to its record.",
            expected=f"{record.n} samples with a median of {record.median_ms} ms",
            got=f"{samples.size} samples with a median of {middle:.4f} ms",
            todo="keep results and samples of one `benchmark` together",
        )
    return samples


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
