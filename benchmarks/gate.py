"""May this go in: is a results file slower than its baseline by more than a limit, and is it worth judging at all.

The rule, per pair of records, with the 95 % interval of candidate over baseline:

- `slower`: the lower end is above the limit. The slowdown is larger than the limit, with the stated confidence.
- `passed`: the upper end is at or below the limit; or the ratio itself is, and a slowdown as large as the limit would
  have been seen with the stated power (the minimum detectable effect is at or below the limit).
- `undecided`: neither. The measurement cannot tell; it needs more runs, sessions or a quieter machine.
- `invalid`: a record broke its protocol, throttled, is emulated or estimated, or the file's accuracy is unknown or
  too low. A fast file that finds nothing is not an improvement.
- `not comparable`: device, runtime, protocol or pictures differ.

A gate passes when every pair passed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edge_seg.benchmarks.compare import Compared, Pair, compare_files, doubts, pair_lines
from edge_seg.benchmarks.result import Record
from edge_seg.errors import CheckFailed, InputError

Outcome = Literal["passed", "slower", "undecided", "invalid", "not comparable"]
DOUBTS = ("invalid", "throttled", "emulated", "estimated")


@dataclass(frozen=True)
class Rules:
    """What passes.

    Attributes:
        max_slowdown_pct: Largest slowdown that is all right, percent above zero.
        min_accuracy: Least accuracy as a share of the fp32 file's, or None to not look at accuracy.
        allow: Fields that may differ (see `compare_files`), and doubts ("invalid", "throttled", "emulated",
            "estimated") that a person takes on.
        accuracy: Accuracy by file hash (`load_accuracy`), for records that bring none.
        undecided_passes: Whether an undecided pair lets the gate pass.
    """

    max_slowdown_pct: float
    min_accuracy: float | None = 0.99
    allow: Collection[str] = ()
    accuracy: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    undecided_passes: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.max_slowdown_pct) and self.max_slowdown_pct > 0):
            raise InputError("The limit is wrong.", expected="a slowdown above 0 %", got=f"{self.max_slowdown_pct} %")
        if self.min_accuracy is not None and not 0 < self.min_accuracy <= 1:
            raise InputError("The least accuracy is wrong.", expected="0..1 of fp32", got=str(self.min_accuracy))


@dataclass(frozen=True)
class Judgement:
    """A pair and what the gate says about it."""

    pair: Pair
    outcome: Outcome
    reason: str

    def to_json(self) -> dict[str, Any]:
        """Returns the pair with `outcome reason`."""
        return {**self.pair.to_json(), "outcome": self.outcome, "reason": self.reason}


@dataclass(frozen=True)
class Gated:
    """All judgements.

    Attributes:
        judgements: One per pair.
        compared: The pairs, and what had no counterpart.
        rules: What they were judged by.
    """

    judgements: tuple[Judgement, ...]
    compared: Compared
    rules: Rules

    @property
    def passed(self) -> bool:
        """Whether nothing stands against it."""
        fine = {"passed", "undecided"} if self.rules.undecided_passes else {"passed"}
        return all(j.outcome in fine for j in self.judgements)

    def failure(self) -> CheckFailed | InputError | None:
        """Returns the error to raise: InputError for what cannot be compared, CheckFailed for what did not pass."""
        refused = [j for j in self.judgements if j.outcome == "not comparable"]
        if refused:
            got = "; ".join(f"{j.pair.name}: {j.reason}" for j in refused)
            return InputError("The baseline is not comparable.", got=got, todo="measure the baseline anew here")
        if self.passed:
            return None
        bad = [j for j in self.judgements if j.outcome != "passed"]
        return CheckFailed(
            f"The gate did not pass: {', '.join(f'{j.pair.name} {j.outcome}' for j in bad)}.",
            expected=f"no slowdown above {self.rules.max_slowdown_pct:g} %",
            todo="; ".join(dict.fromkeys(_TODO[j.outcome] for j in bad)),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return {
            "passed": self.passed,
            "max_slowdown_pct": self.rules.max_slowdown_pct,
            "min_accuracy": self.rules.min_accuracy,
            "allowed": list(self.rules.allow),
            **self.compared.to_json(),
            "pairs": [j.to_json() for j in self.judgements],
        }

    def text(self) -> str:
        """Returns lines for people."""
        lines = []
        for j in self.judgements:
            lines += [f"{j.outcome.upper()} {pair_lines(j.pair)[0]}", *pair_lines(j.pair)[1:], f"  {j.reason}"]
        lines += [f"not gated, only in the baseline: {name}" for name in self.compared.only_baseline]
        lines += [f"not gated, without a baseline: {name}" for name in self.compared.only_candidate]
        return "\n".join(lines)


_TODO: dict[Outcome, str] = {
    "slower": "find what made it slower, or measure a new baseline",
    "undecided": "measure longer, in more sessions, or on a quieter machine",
    "invalid": "measure again within the protocol, with --accuracy, or --allow what you take on",
    "not comparable": "measure the baseline anew here",
}


def gate_files(candidate: Path, baseline: Path, rules: Rules) -> Gated:
    """Judges a results file against its baseline.

    Args:
        candidate: Results of `benchmark`, with their samples beside them.
        baseline: The results to hold it against.
        rules: What passes.

    Raises:
        InputError: As `compare_files`.
    """
    fields = [name for name in rules.allow if name not in DOUBTS]
    compared = compare_files(baseline, candidate, allow=fields)
    return Gated(tuple(judge(pair, rules) for pair in compared.pairs), compared, rules)


def judge(pair: Pair, rules: Rules) -> Judgement:
    """Judges one pair by the rule at the top of this file."""
    if pair.comparison is None:
        why = f"{', '.join(pair.differing)} differ" if pair.differing else pair.no_samples
        return Judgement(pair, "not comparable", why)
    against = _against(pair, rules)
    if against:
        return Judgement(pair, "invalid", "; ".join(against))
    limit, ratio, mde_pct = 1.0 + rules.max_slowdown_pct / 100.0, pair.comparison.ratio, pair.comparison.mde_pct
    told = f"limit {limit:.4f}"
    if ratio.low > limit:
        return Judgement(pair, "slower", f"the whole interval is above the {told}")
    if ratio.high <= limit:
        return Judgement(pair, "passed", f"the whole interval is within the {told}")
    if ratio.value <= limit and mde_pct <= rules.max_slowdown_pct:
        return Judgement(pair, "passed", f"the ratio is within the {told}, and more would have been seen")
    return Judgement(pair, "undecided", f"the interval reaches from below to above the {told}")


def _against(pair: Pair, rules: Rules) -> list[str]:
    found = []
    for label, side in (("baseline", pair.baseline), ("candidate", pair.candidate)):
        found += [f"the {label} is {doubt}" for doubt in doubts(side.records) if doubt not in rules.allow]
    if rules.min_accuracy is not None:
        found += _accuracy_doubts(pair.candidate.records, rules.accuracy, rules.min_accuracy)
    return found


def _accuracy_doubts(records: Sequence[Record], given: Mapping[str, Mapping[str, Any]], least: float) -> list[str]:
    """Returns why the accuracy of a file does not let its latency count; of a given and a recorded one, the given."""
    told = given.get(records[0].sha256) or next((r.accuracy for r in records if r.accuracy), None)
    if not isinstance(told, Mapping):
        return ["the accuracy of the candidate's file is not known"]
    value, fp32 = told.get("value"), told.get("fp32_value")
    if not _is_score(value):
        return ["the accuracy of the candidate's file is not a number"]
    if not _is_score(fp32) or fp32 == 0:
        return ["the accuracy of the fp32 file, which the candidate's is held against, is not known"]
    share = float(value) / float(fp32)  # type: ignore[arg-type]
    if share < least:
        return [f"its {told.get('metric')} is {share:.4f} of fp32, less than {least:g}"]
    return []


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
