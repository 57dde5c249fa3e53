"""What a page calls a file and a record: short where that is enough, never the same name for two things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from edge_seg.benchmarks.result import Record

_HASH_CHARS = 6


def file_labels(records: Sequence[Record]) -> dict[str, str]:
    """Returns a label for every file by its hash.

    Args:
        records: All records of a page.

    Returns:
        The scheme where all records are of one model, else model and scheme; with the beginning of the hash where two
        files would have the same label.
    """
    one_model = len({record.model for record in records}) == 1
    plain = {r.sha256: r.scheme if one_model else f"{r.model} {r.scheme}" for r in records}
    count = Counter(plain.values())
    return {h: f"{label} #{h[:_HASH_CHARS]}" if count[label] > 1 else label for h, label in plain.items()}


def record_labels(records: Sequence[Record], labels: dict[str, str] | None = None) -> list[str]:
    """Returns a label for every record: its file, and profile, delegate and session where they differ.

    Args:
        records: Records that are shown together.
        labels: Labels of files, or None for those of these records alone.
    """
    named = labels or file_labels(records)
    profiles = len({record.profile for record in records}) > 1
    delegates = len({(r.profile, r.delegate_requested) for r in records}) > len({r.profile for r in records})
    sessions = any(record.session > 1 for record in records)
    found = []
    for record in records:
        parts = [named[record.sha256], *([record.profile] if profiles else [])]
        parts += [record.delegate_requested] if delegates else []
        parts += [f"session {record.session}"] if sessions else []
        found.append(", ".join(parts))
    return found
