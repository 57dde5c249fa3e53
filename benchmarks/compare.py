"""Two results files side by side: which records may be compared, and what the difference is.

Records match by model, scheme, profile and delegate; sessions of a match are pooled. A match whose device, runtime,
protocol or pictures differ is refused by name, since its ratio would say nothing about the files. The file's hash may
differ: that is what is compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_seg.benchmarks.result import Record, Samples, load_records, samples_path
from edge_seg.benchmarks.stats_compare import ALPHA, POWER, Comparison, compare_medians
from edge_seg.errors import ArtifactError, InputError, nearest

KEY_FIELDS = ("model", "scheme", "profile", "delegate_requested", "device.id")
_PLAIN = ("runner", "delegate_actual", "precision", "threads", "cpu_mask", "kind")
_OPEN = ("device", "runtime")
_PROTOCOL = ("version", "latency_of", "mode", "target_fps", "images_n", "images_sha256")
_ENVIRONMENT = ("governor",)
_MEDIAN_SLACK_MS = 1e-3


@dataclass(frozen=True)
class Side:
    """The sessions of one file: records and where their samples are."""

    records: tuple[Record, ...]
    results: Path

    @property
    def sha256(self) -> str:
        """Hash of the file."""
        return self.records[0].sha256

    def run_ms(self) -> list[NDArray[np.float64]]:
        """Loads `run_ms` of every session; raises ArtifactError where samples and record do not belong together."""
        return [_run_ms(self.results, record) for record in self.records]


@dataclass(frozen=True)
class Pair:
    """One file on one profile, twice.

    Attributes:
        key: Values of the fields it was matched by.
        baseline: The first results file.
        candidate: The second.
        differences: Values by field where the two sides, or sessions of one side, are not alike.
        allowed: Fields that may differ.
        comparison: Ratio of candidate to baseline; None where it is refused.
        no_samples: Why there is no latency, or nothing to draw an interval from, or "".
    """

    key: Mapping[str, str]
    baseline: Side
    candidate: Side
    differences: Mapping[str, tuple[list[Any], list[Any]]]
    allowed: tuple[str, ...]
    comparison: Comparison | None
    no_samples: str = ""

    @property
    def differing(self) -> list[str]:
        """Fields that differ and may not."""
        return [field for field in self.differences if not _is_allowed(field, self.allowed)]

    @property
    def comparable(self) -> bool:
        """Whether a ratio of the two means anything."""
        return not self.differing and not self.no_samples

    @property
    def name(self) -> str:
        """The key in one line."""
        return " ".join(filter(None, self.key.values()))

    def notes(self) -> list[str]:
        """Returns what to know before quoting the ratio."""
        found = [self.no_samples] if self.no_samples else []
        found += [f"{field} differs and was allowed" for field in self.differences if field not in self.differing]
        for label, side in (("baseline", self.baseline), ("candidate", self.candidate)):
            found += [f"{label}: {doubt}" for doubt in doubts(side.records)]
        if self.comparison is not None and self.comparison.between_pct is None:
            found.append("one session on each side: what differs from session to session is not in the interval")
        return found

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        found, told = self.comparison, self.comparable
        return {
            **{field: value for field, value in self.key.items() if value},
            "comparable": told,
            "differing": self.differing,
            "differences": {f: {"baseline": a, "candidate": b} for f, (a, b) in self.differences.items()},
            "baseline": {"sha256": self.baseline.sha256, "sessions": len(self.baseline.records)},
            "candidate": {"sha256": self.candidate.sha256, "sessions": len(self.candidate.records)},
            "same_file": self.baseline.sha256 == self.candidate.sha256,
            "ratio": round(found.ratio.value, 5) if found else None,
            "ci95": [round(found.ratio.low, 5), round(found.ratio.high, 5)] if found else None,
            "mde_pct": round(found.mde_pct, 3) if found else None,
            "between_sessions_pct": round(found.between_pct, 3) if found and found.between_pct is not None else None,
            "alpha": ALPHA,
            "power": POWER,
            "verdict": found.verdict if found else None,
            "notes": self.notes(),
        }


@dataclass(frozen=True)
class Compared:
    """All pairs, and the records without a counterpart.

    Attributes:
        pairs: In the order of the baseline.
        only_baseline: Names of the baseline's records that the candidate lacks.
        only_candidate: The other way round.
    """

    pairs: tuple[Pair, ...]
    only_baseline: tuple[str, ...]
    only_candidate: tuple[str, ...]

    @property
    def refused(self) -> list[Pair]:
        """Pairs that are not comparable."""
        return [pair for pair in self.pairs if not pair.comparable]

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return {
            "pairs": [pair.to_json() for pair in self.pairs],
            "only_baseline": list(self.only_baseline),
            "only_candidate": list(self.only_candidate),
        }

    def text(self) -> str:
        """Returns a block of lines per pair for people."""
        lines = [line for pair in self.pairs for line in pair_lines(pair)]
        lines += [f"only in the baseline: {name}" for name in self.only_baseline]
        lines += [f"only in the candidate: {name}" for name in self.only_candidate]
        judged = sum(pair.comparison is not None for pair in self.pairs)
        lines.append(
            f"Ratio: candidate / baseline. Each pair has a {100 * ALPHA:.0f} % chance of a difference that is not"
            f" there; {judged} compared."
        )
        return "\n".join(lines)


def compare_files(baseline: Path, candidate: Path, *, allow: Collection[str] = ()) -> Compared:
    """Compares two results files.

    Args:
        baseline: Results of `benchmark`, with their samples beside them.
        candidate: The other results.
        allow: Fields that may differ: one of those compared ("runtime.version"), a whole group ("device"), or one
            that records are matched by ("scheme"), which then is not matched by.

    Raises:
        InputError: A missing or broken file, an unknown field to allow, nothing in common, or two files that match
            the same record.
    """
    allowed = tuple(dict.fromkeys(allow))
    records = [(path, load_records(path)) for path in (baseline, candidate)]
    _check_allowed(allowed, [record for _, side in records for record in side])
    keys = [field for field in KEY_FIELDS if not _is_allowed(field, allowed)]
    first, second = (_sides(path, side, keys) for path, side in records)
    pairs = [_pair(dict(zip(keys, k, strict=True)), first[k], second[k], allowed) for k in first if k in second]
    compared = Compared(
        tuple(pairs),
        tuple(_line(k) for k in first if k not in second),
        tuple(_line(k) for k in second if k not in first),
    )
    if not pairs:
        raise InputError(
            "The two results have no record in common.",
            expected=f"the same {', '.join(keys)}",
            got=f"{'; '.join(compared.only_baseline)} against {'; '.join(compared.only_candidate)}",
            todo="--allow one of these fields where the difference is what you want to compare",
        )
    return compared


def doubts(records: Iterable[Record]) -> list[str]:
    """Returns the words "invalid", "throttled", "emulated", "estimated" that apply to any of the records."""
    found = [] if all(record.valid is True for record in records) else ["invalid"]
    found += ["throttled"] if any(record.drift.get("throttled") for record in records) else []
    return found + sorted({record.kind for record in records} - {"measured"})


def pair_lines(pair: Pair) -> list[str]:
    """Returns the lines of a pair for people."""
    if pair.comparison is None:
        differ = [
            f"  {f}: {_told(pair.differences[f][0])} against {_told(pair.differences[f][1])}" for f in pair.differing
        ]
        return [f"{pair.name}: not comparable", *differ, *([f"  {pair.no_samples}"] if pair.no_samples else [])]
    ratio = pair.comparison.ratio
    head = (
        f"{pair.name}: {pair.comparison.verdict}, {ratio.value:.4f} [{ratio.low:.4f}, {ratio.high:.4f}];"
        f" a slowdown of {pair.comparison.mde_pct:.2g} % would be seen {100 * POWER:.0f} times in 100"
    )
    return [head, *(f"  {note}" for note in pair.notes())]


def _told(values: Sequence[Any]) -> str:
    return " and ".join("unknown" if value is None else str(value) for value in values)


def _sides(path: Path, records: Sequence[Record], keys: Sequence[str]) -> dict[tuple[str, ...], Side]:
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(_key_value(record, key) for key in keys), []).append(record)
    for key, group in groups.items():
        if len({(record.sha256, record.model, record.scheme) for record in group}) > 1:
            raise InputError(
                f"{path} has several files that are called {_line(key)}.",
                expected="one file per name",
                got=", ".join(sorted({f"{r.model} {r.scheme} {str(r.sha256)[:8]}" for r in group})),
                todo="measure them into results of their own, or allow fewer fields to differ",
            )
        if len({(*(_key_value(record, f) for f in KEY_FIELDS), record.session) for record in group}) < len(group):
            raise InputError(
                f"{path} has the same session of {_line(key)} twice.",
                todo="compare results as `benchmark` wrote them",
            )
    return {key: Side(tuple(group), path) for key, group in groups.items()}


def _key_value(record: Record, field: str) -> str:
    if field == "device.id":  # several phones of one profile
        return str(_mapping(record, "device").get("id") or "")
    return str(getattr(record, field))


def _line(key: Sequence[str]) -> str:
    return " ".join(filter(None, key))


def _pair(key: Mapping[str, str], baseline: Side, candidate: Side, allowed: tuple[str, ...]) -> Pair:
    differences = _differences(baseline.records, candidate.records)
    refused = [field for field in differences if not _is_allowed(field, allowed)]
    without = [reason for record in (*baseline.records, *candidate.records) if (reason := _no_latency(record))]
    told = None if refused or without else compare_medians(candidate.run_ms(), baseline.run_ms())
    return Pair(key, baseline, candidate, differences, allowed, told, without[0] if without else "")


def _differences(a: Sequence[Record], b: Sequence[Record]) -> dict[str, tuple[list[Any], list[Any]]]:
    left, right = [_facts(record) for record in a], [_facts(record) for record in b]
    fields = dict.fromkeys(field for facts in (*left, *right) for field in facts)
    found = {field: (_values(left, field), _values(right, field)) for field in fields}
    return {field: (x, y) for field, (x, y) in found.items() if not (len(x) == len(y) == 1 and x == y)}


def _facts(record: Record) -> dict[str, Any]:
    """Returns what must be alike by field; an absent fact is None, and unlike a known one."""
    facts = {field: getattr(record, field) for field in _PLAIN}
    for group in _OPEN:
        facts.update({f"{group}.{key}": value for key, value in _mapping(record, group).items()})
    facts.update({f"protocol.{key}": _mapping(record, "protocol").get(key) for key in _PROTOCOL})
    facts.update({f"environment.{key}": _mapping(record, "environment").get(key) for key in _ENVIRONMENT})
    return facts


def _mapping(record: Record, name: str) -> Mapping[str, Any]:
    value = getattr(record, name)
    if not isinstance(value, Mapping):
        raise ArtifactError(f"A record's {name} is not a table.", expected="a JSON object", got=type(value).__name__)
    return value


def _no_latency(record: Record) -> str:
    """Returns why a record has no latency to compare, or ""."""
    for name, what in (("samples_file", "no raw samples"), ("median_ms", "no latency")):
        if getattr(record, name) is None:
            return f"{what}: {record.unknown.get(name, 'not recorded')}"
    return ""


def _values(facts: Sequence[Mapping[str, Any]], field: str) -> list[Any]:
    values: list[Any] = []
    for fact in facts:
        if fact.get(field) not in values:
            values.append(fact.get(field))
    return values


def _is_allowed(field: str, allowed: Collection[str]) -> bool:
    return field in allowed or field.partition(".")[0] in allowed


def _check_allowed(allowed: Sequence[str], records: Sequence[Record]) -> None:
    fields = {field for record in records for field in _facts(record)}
    known = sorted({*KEY_FIELDS, *fields, *(field.partition(".")[0] for field in fields)})
    for name in allowed:
        if name not in known:
            raise InputError("There is no such field to allow.", got=name, todo=nearest(name, known))


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
