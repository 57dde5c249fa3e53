"""`convert --scheme mixed --budget`: search, latency, choice, and the recipe that a person can read and edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edge_seg.artifact import sha256_of, write_bytes, write_manifest
from edge_seg.commands.mixed_choice import LATENCY_NOTE, Candidate, advice_on, cheapest, latency_ms
from edge_seg.commands.mixed_network import FIGURES, Accuracy, Calibration, figure, float_file, metric_of_figure
from edge_seg.converters.convert import Converted, check_wanted
from edge_seg.converters.interpreter import TfliteRunner
from edge_seg.converters.metadata import read_contract
from edge_seg.converters.mixed.budget import Budget, Search, Tried
from edge_seg.converters.mixed.sensitivity import LayerLoss, Sensitivity
from edge_seg.converters.mixed.sensitivity_file import SensitivityFile, read_rows
from edge_seg.converters.mixed.trials import Trials, about_trials, open_trials
from edge_seg.converters.ptq.post_training import PtqSettings
from edge_seg.converters.ptq.recipe import Recipe, Rule
from edge_seg.data.source import open_dataset
from edge_seg.errors import ArtifactError, CheckFailed, InputError
from edge_seg.evaluation.bootstrap import paired_bootstrap
from edge_seg.evaluation.evaluate import Quality
from edge_seg.steps import convert_source, exported_folder, pictures

Say = Callable[[str], None]
MEASURED = 6


@dataclass(frozen=True)
class Wish:
    """What a budget's search is asked.

    Attributes:
        budget: The least accuracy.
        data: DATA argument whose `val` split is scored.
        limit: Pictures scored; 0 takes all.
        calibration: Pictures for ranges.
        route: Converter.
        settings: Ranges and corrections.
        sensitivity: File of layers measured before, or None.
    """

    budget: Budget
    data: str
    limit: int
    calibration: Calibration
    route: str
    settings: PtqSettings
    sensitivity: Path | None = None


@dataclass(frozen=True)
class Chosen:
    """The result of a search.

    Attributes:
        converted: `NAME_mixed.tflite`.
        recipe_path: `NAME_mixed.recipe.toml`.
        chosen: What it is.
        candidates: fp32, all int8 and everything that was tried; the chosen one is among them.
        document: The search as plain JSON types.
        advice: Where an unmixed network is the better one, a sentence that says so.
    """

    converted: Converted
    recipe_path: Path
    chosen: Candidate
    candidates: tuple[Candidate, ...]
    document: Mapping[str, Any]
    advice: tuple[str, ...]

    def text(self) -> str:
        """Returns the candidates and the choice for people."""
        lines = [c.text() + ("  <- chosen" if c is self.chosen else "") for c in self.candidates]
        return "\n".join([*lines, LATENCY_NOTE, *self.advice, f"{self.converted.file}", f"{self.recipe_path}"])


def convert_within(source: Path, out: Path, wish: Wish, *, split_7x7: bool = True, say: Say = print) -> Chosen:
    """Converts to the cheapest mixed network that meets a budget.

    Args:
        source: Exported folder or checkpoint.
        out: Folder of the results; the fp32 file and the measured layers are kept there for the next run.
        wish: The budget, and what it is judged on.
        split_7x7: As in `exported_folder`.
        say: Takes a line about each network that was scored.

    Raises:
        CheckFailed: Nothing meets the budget; no mixed file is written.
        InputError: Anything given does not fit.
    """
    check_wanted(("mixed",), wish.route, replace(wish.settings, recipe=Recipe()), with_pictures=True)
    wish.calibration.check()
    open_dataset(wish.data, split="val")  # as above: what does not fit is told before the long work
    folder = exported_folder(source, out, split_7x7=split_7x7)
    file = float_file(folder, out, route=wish.route)
    judge = _Judge(file, wish)
    say(f"fp32: {wish.budget.metric} {judge.fp32:.2f}, so the budget is {judge.threshold:.2f}")
    with open_trials(file, wish.calibration.images(read_contract(file)), wish.settings) as trials:
        work = _Work(trials, judge, wish, say)
        holding, losses = work.search(out / f"{file.stem.removesuffix('_fp32')}.sensitivity.jsonl")
        candidates = work.candidates(holding)
        chosen = cheapest([c for c in candidates if c.holds and c.name != "fp32"])
        recipe, tried = work.recipe(chosen.floats, losses), work.file(chosen.floats)
        tried_sha256, difference = sha256_of(tried), judge.difference(tried)
        doubt = judge.doubt(work.file(()))
    settings = replace(wish.settings, recipe=recipe)
    (done,) = convert_source(
        folder,
        ["mixed"],
        out,
        route=wish.route,
        calibration=wish.calibration.data,
        calibration_images=wish.calibration.count,
        settings=settings,
    )
    if done.sha256 != tried_sha256:
        raise ArtifactError(
            f"{done.file} is not the file that was scored.", expected=tried_sha256, got=done.sha256, todo="convert anew"
        )
    advice = (*advice_on(candidates), *doubt)
    document = {
        **judge.document(),
        "difference_to_fp32_ci95": difference,
        "candidates": [asdict(c) | {"chosen": c is chosen} for c in candidates],
        "latency_note": LATENCY_NOTE,
        "advice": list(advice),
    }
    path = done.file.with_suffix(".recipe.toml")
    write_bytes(path, (judge.heading(chosen, difference) + recipe.to_toml()).encode())
    write_manifest(path, kind="recipe", step="convert", config=document, parents=[file])
    return Chosen(done, path, chosen, candidates, {**document, "recipe": str(path)}, advice)


class _Judge:
    """Scores files against the budget; raises CheckFailed at once where even the float file is below it."""

    def __init__(self, float_file: Path, wish: Wish) -> None:
        self.float_file, self.wish = float_file, wish
        self.metric = Accuracy(wish.data, wish.limit, metric_of_figure(wish.budget.metric))
        self._qualities: dict[Path, Quality] = {}
        self.fp32 = self.value(float_file)
        self.threshold = wish.budget.threshold(self.fp32)
        if self.fp32 < self.threshold:
            raise CheckFailed(
                "The float network does not meet the budget.",
                expected=wish.budget.text,
                got=f"fp32 scores {self.fp32:.3f}",
                todo=f'ask for a share of it, as in "{wish.budget.metric}>=0.99*fp32"',
            )

    def value(self, file: Path) -> float:
        """Returns the budget's metric of a file."""
        quality = self._qualities[file] = self.metric.quality(file)
        return figure(quality, self.wish.budget.metric)

    def difference(self, file: Path) -> tuple[float, float] | None:
        """Returns the 95 % interval of PQ or AP minus the float file's; None for other figures."""
        one, two = self._qualities.get(self.float_file), self._qualities.get(file)
        if one is None or two is None or self.wish.budget.metric != self.metric.name:
            return None
        found = paired_bootstrap(one, two, seed=0)
        return round(found.low, 3), round(found.high, 3)

    def doubt(self, file: Path) -> tuple[str, ...]:
        """Says where an all-int8 file misses the budget by less than the pictures can tell."""
        interval, quality = self.difference(file), self._qualities.get(file)
        if interval is None or quality is None:
            return ()
        gap = self.threshold - figure(quality, self.metric.name)
        if gap <= 0 or self.fp32 + interval[1] < self.threshold:
            return ()
        words = (
            f"int8 misses the budget by {gap:.2f}, which {self.wish.limit or 'all'} pictures cannot tell from meeting"
        )
        return (f"{words} it (int8 - fp32 within [{interval[0]:+.2f}, {interval[1]:+.2f}]): raise --limit.",)

    def document(self) -> dict[str, Any]:
        """Returns what was asked, as plain JSON types."""
        return {
            "budget": self.wish.budget.text,
            "metric": self.wish.budget.metric,
            "fp32_value": round(self.fp32, 3),
            "threshold": round(self.threshold, 3),
            "data": self.wish.data,
            "data_sha256": self.metric.data_sha256,
            "limit": self.wish.limit,
            "calibration": self.wish.calibration.data,
            "calibration_images": self.wish.calibration.count,
        }

    def heading(self, chosen: Candidate, difference: tuple[float, float] | None) -> str:
        """Returns comment lines for the recipe: what was asked, what it scored."""
        wish = self.wish
        score = f"{wish.budget.metric} {chosen.value:.2f}, fp32 {self.fp32:.2f}"
        apart = f", difference within [{difference[0]:+.2f}, {difference[1]:+.2f}]" if difference else ""
        lines = [f"{wish.budget.text} on {wish.limit or 'all'} pictures of {wish.data}: {score}{apart}"]
        lines += [f"to make the same file: --scheme mixed --recipe THIS {_flags(wish)}"]
        return "".join(f"# {' '.join(line.split())}\n" for line in lines)


def _flags(wish: Wish) -> str:
    """Returns the options of `convert` that the scored file was quantised with."""
    settings, calibration = wish.settings, wish.calibration
    flags = f"--calibration {calibration.data} --calibration-images {calibration.count} --ranges {settings.ranges}"
    flags += " --bias-correction" if settings.bias_correction else " --no-bias-correction"
    return flags + (" --equalize" if settings.equalize else " --no-equalize")


class _Work:
    """One search: files by their float layers, and what they scored."""

    def __init__(self, trials: Trials, judge: _Judge, wish: Wish, say: Say) -> None:
        self.trials, self.judge, self.wish, self.say = trials, judge, wish, say
        self._files: dict[frozenset[str], Path] = {}
        self._search: Search | None = None

    def search(self, place: Path) -> tuple[list[Tried], dict[str, LayerLoss]]:
        """Returns what meets the budget, and the losses of layers where they were needed."""
        about, given = about_trials(self.trials, self.wish.calibration.sha256()), self.wish.sensitivity
        store = SensitivityFile(given, about) if given else None  # another network's is refused, needed or not
        whole = Search((), self._score, self.judge.threshold)
        if whole.all_int8().holds:
            self._search = whole
            return whole.run(), {}
        losses = Sensitivity(self.trials, store or SensitivityFile(place, about)).known(self.judge.metric.name)
        self._search = Search([x.module for x in losses], self._score, self.judge.threshold, tried=whole.tried)
        return self._search.run(), {x.module: x for x in losses}

    def _score(self, floats: tuple[str, ...]) -> float:
        value = self.judge.value(self.file(floats))
        self.say(f"{_name(floats)}: {self.wish.budget.metric} {value:.2f}")
        return value

    def file(self, floats: Sequence[str]) -> Path:
        """Returns the file with these layers in float, made when it is first asked for."""
        key = frozenset(floats)
        if key not in self._files:
            recipe = Recipe("int8", tuple(Rule(m, "float") for m in floats))
            self._files[key] = self.trials.write(recipe, f"mixed_{len(self._files)}")
        return self._files[key]

    def recipe(self, floats: Sequence[str], losses: Mapping[str, LayerLoss]) -> Recipe:
        """Returns the recipe, with what each float layer would lose."""
        return Recipe("int8", tuple(Rule(m, "float", losses[m].text()) for m in floats))

    def candidates(self, holding: Sequence[Tried]) -> tuple[Candidate, ...]:
        """Measures fp32, all int8 and the first of what meets the budget; the rest of what was tried is listed."""
        tried = list(self._search.tried.values()) if self._search else []
        rows = [(self._of("fp32", (), self.judge.fp32, self.trials.float_file), self.trials.float_file)]
        rows += [
            (self._of(_name(t.floats), t.floats, t.value, self.file(t.floats)), self.file(t.floats)) for t in tried
        ]
        timed = {self.file(t.floats) for t in holding[:MEASURED]} | {self.trials.float_file, self.file(())}
        files = [file for _, file in rows if file in timed]
        images = pictures(self.wish.data, 8, "val")
        latencies = latency_ms(files, images)
        return tuple(replace(c, **latencies.get(file, {})) for c, file in rows)

    def _of(self, name: str, floats: tuple[str, ...], value: float, file: Path) -> Candidate:
        holds = value >= self.judge.threshold
        partitions = TfliteRunner(file).xnnpack_partitions().partitions
        return Candidate(name, floats, round(value, 3), holds, file.stat().st_size, partitions)


def _name(floats: Sequence[str]) -> str:
    return f"int8, {len(floats)} in float" if floats else "int8"


def wish_of(options: Mapping[str, Any], settings: PtqSettings) -> Wish:
    """Reads the options of `convert` that belong to a budget.

    Raises:
        InputError: The expression is broken, options do not go together, or the sensitivity file cannot be read.
        ArtifactError: It is another file.
    """
    budget = Budget.parse(options["budget"], FIGURES)
    if options["schemes"] != ("mixed",):
        raise InputError(
            "--budget is for the scheme mixed.", expected="--scheme mixed", got=", ".join(options["schemes"]) or "fp32"
        )
    if options["recipe"] is not None:
        raise InputError("--budget looks for the recipe.", expected="--budget or --recipe", got="both")
    if not options["calibration"]:
        raise InputError("A budget needs pictures.", expected="--calibration DATA", got="none")
    limit = 24 if options["limit"] is None else options["limit"]
    if limit < 0:
        raise InputError("--limit is negative.", expected=">= 0", got=str(limit))
    if options["sensitivity"] is not None:
        read_rows(options["sensitivity"])  # a wrong file is told before the long work
    return Wish(
        budget=budget,
        data=options["budget_data"] or options["calibration"],
        limit=limit,
        calibration=Calibration(options["calibration"], options["calibration_images"]),
        route=options["route"],
        settings=settings,
        sensitivity=options["sensitivity"],
    )
