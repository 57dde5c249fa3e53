"""Two results files side by side: which records may be compared, and what the difference is.

Records match by model, scheme, profile and delegate; sessions of a match are pooled. A match whose device, runtime,
protocol or pictures differ is refused by name, since its ratio would say nothing about the files. The file's hash may
differ: that is what is compared. Two files of one results file that were measured in one session took turns, and are
compared turn by turn (`stats_paired`); others by their medians (`stats_compare`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_seg.benchmarks.compare_facts import KEY_FIELDS, check_allowed, differences, is_allowed
from edge_seg.benchmarks.compare_sides import Side, choose, in_turns, line, no_latency, sides, told_choice
from edge_seg.benchmarks.result import Record, load_records
from edge_seg.benchmarks.stats_compare import ALPHA, POWER, Comparison, compare_medians
from edge_seg.benchmarks.stats_paired import LEAST_BLOCKS, PairedComparison, common_blocks, compare_turns
from edge_seg.errors import InputError


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
        apart: Why two files that took turns were not compared turn by turn, or "".
    """

    key: Mapping[str, str]
    baseline: Side
    candidate: Side
    differences: Mapping[str, tuple[list[Any], list[Any]]]
    allowed: tuple[str, ...]
    comparison: Comparison | None
    no_samples: str = ""
    apart: str = ""

    @property
    def differing(self) -> list[str]:
        """Fields that differ and may not."""
        return [field for field in self.differences if not is_allowed(field, self.allowed)]

    @property
    def comparable(self) -> bool:
        """Whether a ratio of the two means anything."""
        return not self.differing and not self.no_samples

    @property
    def name(self) -> str:
        """The key in one line."""
        chosen = filter(None, (told_choice(side.chosen) for side in (self.candidate, self.baseline)))
        return line([*self.key.values(), " against ".join(chosen)])

    def notes(self) -> list[str]:
        """Returns what to know before quoting the ratio."""
        found = [self.no_samples] if self.no_samples else []
        found += [f"{field} differs and was allowed" for field in self.differences if field not in self.differing]
        for label, side in (("baseline", self.baseline), ("candidate", self.candidate)):
            found += [f"{label}: {doubt}" for doubt in doubts(side.records)]
        if isinstance(self.comparison, PairedComparison):
            found.append(_told_turns(self.comparison))
        found += [self.apart] if self.apart else []
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
            "baseline": _told_side(self.baseline),
            "candidate": _told_side(self.candidate),
            "same_file": self.baseline.sha256 == self.candidate.sha256,
            "ratio": round(found.ratio.value, 5) if found else None,
            "ci95": [round(found.ratio.low, 5), round(found.ratio.high, 5)] if found else None,
            "mde_pct": round(found.mde_pct, 3) if found else None,
            "between_sessions_pct": round(found.between_pct, 3) if found and found.between_pct is not None else None,
            "alpha": ALPHA,
            "power": POWER,
            "verdict": found.verdict if found else None,
            "paired": isinstance(found, PairedComparison),
            "blocks": list(found.blocks) if isinstance(found, PairedComparison) else None,
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


def compare_files(
    baseline: Path,
    candidate: Path,
    *,
    allow: Collection[str] = (),
    of: Mapping[str, str] | None = None,
    against: Mapping[str, str] | None = None,
) -> Compared:
    """Compares two results files, or records of one with others of the same.

    Args:
        baseline: Results of `benchmark`, with their samples beside them.
        candidate: The other results, or the same file again.
        allow: Fields that may differ: one of those compared ("runtime.version"), a whole group ("device"), or one
            that records are matched by ("scheme"), which then is not matched by.
        of: Values by field that choose the candidate's records (`choose`); these fields are not matched by.
        against: The same for the baseline.

    Raises:
        InputError: A missing or broken file, an unknown field to allow or to choose by, nothing in common, two files
            that match the same record, or a record against itself.
    """
    chosen = (against or {}, of or {})
    allowed = tuple(dict.fromkeys((*allow, *chosen[0], *chosen[1])))
    loaded = [(path, load_records(path)) for path in (baseline, candidate)]
    check_allowed(tuple(allow), [record for _, side in loaded for record in side])
    keys = [field for field in KEY_FIELDS if not is_allowed(field, allowed)]
    first, second = (
        sides(path, choose(side, by, path), keys, by) for (path, side), by in zip(loaded, chosen, strict=True)
    )
    pairs = [_pair(dict(zip(keys, k, strict=True)), first[k], second[k], allowed) for k in first if k in second]
    compared = Compared(
        tuple(pairs),
        tuple(line(k) for k in first if k not in second),
        tuple(line(k) for k in second if k not in first),
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


def _pair(key: Mapping[str, str], baseline: Side, candidate: Side, allowed: tuple[str, ...]) -> Pair:
    if baseline.results.resolve() == candidate.results.resolve() and baseline.records == candidate.records:
        raise InputError(
            "A record is to be compared with itself.",
            got=line(list(key.values())),
            todo="name two results files, or choose other records by --of and --against",
        )
    differing = differences(baseline.records, candidate.records)
    refused = [field for field in differing if not is_allowed(field, allowed)]
    without = [reason for record in (*baseline.records, *candidate.records) if (reason := no_latency(record))]
    told, apart = (None, "") if refused or without else _compared(baseline, candidate)
    return Pair(key, baseline, candidate, differing, allowed, told, without[0] if without else "", apart)


def _compared(baseline: Side, candidate: Side) -> tuple[Comparison, str]:
    """Returns the comparison, turn by turn where they took turns, and why not where they did and it cannot be."""
    turns = in_turns(candidate, baseline)
    if turns is None:
        return compare_medians(candidate.run_ms(), baseline.run_ms()), ""
    above, below, block_runs = turns[0].run_ms(), turns[1].run_ms(), turns[2]
    least = min(common_blocks(a.size, b.size, block_runs) for a, b in zip(above, below, strict=True))
    if least < LEAST_BLOCKS:
        apart = (
            f"they took turns, but {least} common blocks of the {LEAST_BLOCKS} that are needed: compared as if apart"
        )
        return compare_medians(above, below), apart
    return compare_turns(above, below, block_runs=block_runs), ""


def _told_turns(found: PairedComparison) -> str:
    left = f"; {found.left_out} without a counterpart are left out" if found.left_out else ""
    return f"they took turns: the ratio is of {sum(found.blocks)} common blocks{left}"


def _told_side(side: Side) -> dict[str, Any]:
    chosen = {"chosen": dict(side.chosen)} if side.chosen else {}
    return {"sha256": side.sha256, "sessions": len(side.records), **chosen}
