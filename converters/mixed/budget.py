"""How much accuracy a mixed network may lose, and the fewest float layers that keep it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edge_seg.errors import CheckFailed, InputError, nearest

_EXPRESSION = re.compile(r"\s*(\w+)\s*>=\s*(\d+(?:\.\d+)?|\.\d+)\s*(\*\s*fp32)?\s*")
_EXAMPLE = 'METRIC>=SHARE*fp32 or METRIC>=NUMBER, as in "pq>=0.99*fp32"'
_DROPS = 8  # float layers up to which it is tried whether each of them is needed


@dataclass(frozen=True)
class Budget:
    """The least accuracy that a network may have.

    Attributes:
        text: As written.
        metric: Name of a metric.
        number: A share of the float network's value, or the value itself, in the metric's unit.
        of_fp32: Whether it is a share.
    """

    text: str
    metric: str
    number: float
    of_fp32: bool

    @classmethod
    def parse(cls, text: str, metrics: Sequence[str]) -> Budget:
        """Reads "pq>=0.99*fp32" or "pq>=60".

        Args:
            text: The expression.
            metrics: Known names.

        Raises:
            InputError: Another form, an unknown metric, a share outside (0, 1] or a value outside (0, 100].
        """
        found = _EXPRESSION.fullmatch(text)
        if found is None:
            raise InputError("Cannot read the budget.", expected=_EXAMPLE, got=text)
        metric, digits, share = found.groups()
        if metric not in metrics:
            raise InputError(f"There is no metric {metric!r}.", got=text, todo=nearest(metric, list(metrics)))
        number, top = float(digits), 1.0 if share else 100.0
        if not 0 < number <= top:
            what = "share of fp32" if share else "metric"
            other = f'the metric itself, in percent: "{metric}>=60"' if share else f'"{metric}>=0.99*fp32"'
            todo = other if share else f"percent of the metric, or a share of the float network: {other}"
            raise InputError(f"The budget's {what} is out of range.", expected=f"(0, {top:g}]", got=digits, todo=todo)
        return cls(text.strip(), metric, number, bool(share))

    def threshold(self, fp32_value: float) -> float:
        """Returns the least value, given the float network's."""
        return self.number * fp32_value if self.of_fp32 else self.number


@dataclass(frozen=True)
class Tried:
    """A choice of float layers and what it scored.

    Attributes:
        floats: Modules in float, the most sensitive first; all others are int8.
        value: The metric.
        holds: Whether it meets the budget.
    """

    floats: tuple[str, ...]
    value: float
    holds: bool


Score = Callable[[tuple[str, ...]], float]


@dataclass
class Search:
    """Looks for the fewest float layers that meet a threshold, taking layers in order of sensitivity.

    Args:
        order: Modules, the most sensitive first.
        score: The metric of the network with these modules in float.
        threshold: The least value.
    """

    order: Sequence[str]
    score: Score
    threshold: float
    tried: dict[frozenset[str], Tried] = field(default_factory=dict)

    def run(self) -> list[Tried]:
        """Returns what meets the threshold, the fewest float layers first; `tried` holds everything.

        All in int8 comes first, and ends the search where it holds. Then 1, 2, 4, ... layers go to float until the
        threshold is met, and bisection finds the least number in between. Accuracy is not quite monotone in that
        number, so its neighbours are tried as well, and whether each of a few float layers is needed at all.

        Raises:
            CheckFailed: Nothing meets it; the best is named.
        """
        if not self.all_int8().holds:
            count = self._bisect()
            count = self._below(count)
            if count < len(self.order):
                self._first(count + 1)
            self._drop(self._first(count).floats)
        holding = [t for t in self.tried.values() if t.holds]
        return sorted(holding, key=lambda t: (len(t.floats), -t.value))

    def all_int8(self) -> Tried:
        """Tries all layers in int8."""
        return self._first(0)

    def _try(self, floats: Sequence[str]) -> Tried:
        key = frozenset(floats)
        if key not in self.tried:
            value = self.score(tuple(floats))
            self.tried[key] = Tried(tuple(floats), value, math.isfinite(value) and value >= self.threshold)
        return self.tried[key]

    def _first(self, count: int) -> Tried:
        return self._try(self.order[:count])

    def _bisect(self) -> int:
        fails, holds = 0, 1
        while not self._first(holds).holds:
            if holds == len(self.order):
                raise self._impossible()
            fails, holds = holds, min(2 * holds, len(self.order))
        while holds - fails > 1:
            middle = (fails + holds) // 2
            fails, holds = (fails, middle) if self._first(middle).holds else (middle, holds)
        return holds

    def _below(self, count: int) -> int:
        """Looks past the number just below, which fails, as long as the one under it holds."""
        while count > 2 and self._first(count - 2).holds:
            count -= 2
        return count

    def _drop(self, floats: tuple[str, ...]) -> None:
        """Takes float layers away that are not needed, the least sensitive first."""
        if len(floats) > _DROPS:
            return
        for module in reversed(floats):
            fewer = tuple(m for m in floats if m != module)
            if fewer and self._try(fewer).holds:
                floats = fewer

    def _impossible(self) -> CheckFailed:
        best = max(self.tried.values(), key=lambda t: t.value)
        return CheckFailed(
            "No mixed network meets the budget.",
            expected=f"at least {self.threshold:.3f}",
            got=f"at best {best.value:.3f}, with {len(best.floats)} of {len(self.order)} layers in float",
            todo="lower the budget, or convert with --scheme fp16",
        )
