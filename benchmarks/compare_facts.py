"""What of two records must be alike for their times to be compared."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from edge_seg.benchmarks.result import Record
from edge_seg.errors import ArtifactError, InputError, nearest

KEY_FIELDS = ("model", "scheme", "profile", "delegate_requested", "device.id")
_PLAIN = ("runner", "delegate_actual", "precision", "threads", "cpu_mask", "kind")
_OPEN = ("device", "runtime")
_PROTOCOL = ("version", "latency_of", "mode", "target_fps", "images_n", "images_sha256")
_ENVIRONMENT = ("governor",)


def differences(a: Sequence[Record], b: Sequence[Record]) -> dict[str, tuple[list[Any], list[Any]]]:
    """Returns the values of both sides by field, where the sides, or records of one side, are not alike."""
    left, right = [_facts(record) for record in a], [_facts(record) for record in b]
    fields = dict.fromkeys(field for facts in (*left, *right) for field in facts)
    found = {field: (_values(left, field), _values(right, field)) for field in fields}
    return {field: (x, y) for field, (x, y) in found.items() if not (len(x) == len(y) == 1 and x == y)}


def _facts(record: Record) -> dict[str, Any]:
    """Returns what must be alike by field; an absent fact is None, and unlike a known one."""
    facts = {field: getattr(record, field) for field in _PLAIN}
    for group in _OPEN:
        facts.update({f"{group}.{key}": value for key, value in mapping(record, group).items()})
    facts.update({f"protocol.{key}": mapping(record, "protocol").get(key) for key in _PROTOCOL})
    facts.update({f"environment.{key}": mapping(record, "environment").get(key) for key in _ENVIRONMENT})
    return facts


def mapping(record: Record, name: str) -> Mapping[str, Any]:
    """Returns a record's field that must be a table; ArtifactError where it is none."""
    value = getattr(record, name)
    if not isinstance(value, Mapping):
        raise ArtifactError(f"A record's {name} is not a table.", expected="a JSON object", got=type(value).__name__)
    return value


def _values(facts: Sequence[Mapping[str, Any]], field: str) -> list[Any]:
    values: list[Any] = []
    for fact in facts:
        if fact.get(field) not in values:
            values.append(fact.get(field))
    return values


def is_allowed(field: str, allowed: Collection[str]) -> bool:
    """Whether a field, or the group it belongs to, is among the allowed ones."""
    return field in allowed or field.partition(".")[0] in allowed


def check_allowed(allowed: Sequence[str], records: Sequence[Record]) -> None:
    """Raises InputError for a field to allow that no record has, and names the nearest."""
    fields = {field for record in records for field in _facts(record)}
    known = sorted({*KEY_FIELDS, *fields, *(field.partition(".")[0] for field in fields)})
    for name in allowed:
        if name not in known:
            raise InputError("There is no such field to allow.", got=name, todo=nearest(name, known))
