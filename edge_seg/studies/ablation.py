"""Choices compared one at a time on one short schedule: `make ablation`.

Every variation of `ablation_table.VARIATIONS` is trained once per seed, scored on all validation pictures
and written as one document; the table is made from the documents. It may be stopped at any moment: the same command
takes finished trainings, goes on with begun ones and scores what has no document or a document of another checkpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from edge_seg.artifact import read_json, read_manifest, sha256_of, write_bytes
from edge_seg.config import apply_overrides, from_mapping, load_toml
from edge_seg.data.sample import Dataset
from edge_seg.data.source import open_dataset
from edge_seg.errors import ArtifactError, ConfigError, EdgeSegError, InputError, nearest
from edge_seg.evaluation.evaluate import evaluate
from edge_seg.evaluation.predictor import Predictor
from edge_seg.studies import ablation_table
from edge_seg.studies.ablation_table import MAIN, VARIATIONS, Variation, document_name, read_document
from edge_seg.training.settings import TrainSettings, load_settings

if TYPE_CHECKING:
    from edge_seg.contract import Contract

Say = Callable[[str], None]
State = Literal["missing", "begun", "finished"]
CHECKPOINT_FILE = "model.safetensors"
TABLE_FILE = "table.md"


@dataclass(frozen=True)
class Run:
    """One variation with one seed.

    Attributes:
        variation: What differs.
        seed: Seed of the training.
        overrides: Everything that the recipe is overridden with.
        settings: The experiment.
        folder: Folder of the training; variations of the decoder share one.
    """

    variation: Variation
    seed: int
    overrides: tuple[str, ...]
    settings: TrainSettings
    folder: Path

    @property
    def name(self) -> str:
        """Name of the document."""
        return document_name(self.variation.name, self.seed)

    def state(self) -> State:
        """Says how far the training is.

        Raises:
            InputError: The folder holds files, but no settings.
            ArtifactError: It holds another experiment, or a checkpoint that is not what its manifest says.
        """
        settings = self.folder / "settings.json"
        if not settings.is_file() and not any(self.folder.glob("*")):
            return "missing"
        self._check(settings, read_json(settings, "settings of a training"))
        if not (self.folder / "metrics.json").is_file():
            return "begun"
        manifest = read_manifest(self.folder / CHECKPOINT_FILE)
        if manifest is not None:
            self._check(self.folder / CHECKPOINT_FILE, manifest.config)
        return "finished"

    def _check(self, path: Path, found: Mapping[str, Any]) -> None:
        wanted, got = _flat(experiment(self.settings)), _flat(_experiment_of(path, found))
        if other := sorted(k for k in wanted.keys() | got.keys() if wanted.get(k) != got.get(k)):
            key = other[0]
            raise ArtifactError(
                f"{path} is of another experiment than {self.name}.",
                expected=f"{key} = {wanted.get(key, 'not set')}",
                got=f"{key} = {got.get(key, 'not set')}" + (f", and {len(other) - 1} more" if other[1:] else ""),
                todo=f"move {self.folder} away, or choose another --out",
            )


def experiment(settings: TrainSettings) -> dict[str, Any]:
    """Returns the settings that decide the weights: all but how a run logs, saves and waits."""
    return {k: v for k, v in asdict(settings).items() if k != "run"}


def _experiment_of(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return experiment(from_mapping(TrainSettings, document))
    except ConfigError as error:
        raise ArtifactError(f"{path} has settings of another version.", got=error.what, todo="move it away") from error


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Values by dotted path; as JSON has them, so that a tuple equals a list."""
    if isinstance(value, Mapping):
        return {k: v for key, one in value.items() for k, v in _flat(one, f"{path}.{key}" if path else key).items()}
    return {path: json.loads(json.dumps(value))}


def chosen(names: Sequence[str], wanted: Sequence[str]) -> list[Variation]:
    """Returns the variations of some names, or where there is none of some groups.

    Args:
        names: Names; empty takes the groups.
        wanted: Names of groups.

    Raises:
        InputError: A name or a group is not known.
    """
    known = [v.name for v in VARIATIONS]
    for name, valid in (*((n, known) for n in names), *((g, ablation_table.groups()) for g in wanted)):
        if name not in valid:
            raise InputError(f"There is no variation or group {name!r}.", got=name, todo=nearest(name, list(valid)))
    return [v for v in VARIATIONS if (v.name in names if names else v.group in wanted)]


class Ablation:
    """Runs of one recipe.

    Args:
        config: The recipe.
        out: Folder of the trainings.
        results: Folder of the documents and of the table.
        say: Where progress goes.
    """

    def __init__(self, config: Path, out: Path, results: Path, say: Say) -> None:
        self.config, self.out, self.results, self.say = config, out, results, say
        self.recipe = load_settings(config)

    def run_of(self, variation: Variation, seed: int) -> Run:
        """Returns the run of a variation and a seed."""
        trained = next(v for v in VARIATIONS if v.name == (variation.weights_of or variation.name))
        overrides = (f"seed={seed}", *trained.overrides)
        folder = self.out / document_name(trained.name, seed)
        return Run(variation, seed, overrides, load_settings(self.config, overrides), folder)

    def execute(self, runs: Sequence[Run], *, score_only: bool = False) -> list[EdgeSegError]:
        """Trains, scores and writes; returns what went wrong, after everything else was done.

        Args:
            runs: What to do, in this order.
            score_only: Whether trainings that are not finished stay as they are.

        Raises:
            ArtifactError: A folder holds another experiment; nothing was trained.
        """
        for run in runs:
            run.state()
        failed: list[EdgeSegError] = []
        for number, run in enumerate(runs):
            try:
                self._one(run, f"[{number + 1} of {len(runs)}] {run.name}", score_only=score_only)
            except EdgeSegError as error:
                self.say(f"{run.name} failed: {error}")
                failed.append(error)
        return failed

    def _one(self, run: Run, title: str, *, score_only: bool) -> None:
        state = run.state()
        if state != "finished" and score_only:
            self.say(f"{title}: the training is {state}")
            return
        if state != "finished":
            self.say(f"{title}: train" + (", going on" if state == "begun" else ""))
            train(run)
        self.say(f"{title}: {self.score(run)}")
        self.write_table()

    def score(self, run: Run) -> str:
        """Writes the document of a finished run unless it is there; returns PQ as text."""
        from edge_seg.training.checkpoint import checkpoint_runner

        path = self.results / f"{run.name}.json"
        decoder = apply_overrides({}, run.variation.decoder)
        predictor = Predictor(checkpoint_runner(run.folder / CHECKPOINT_FILE), **decoder)
        about = self._about(run, predictor.contract)
        if path.is_file() and _is_about(read_document(path), about):
            return "scored before"
        began_s = time.perf_counter()
        result = evaluate(predictor, self._val, limit=run.settings.run.eval_limit, progress=run.name)
        seconds = {"train_s": _trained_s(run.folder), "evaluate_s": round(time.perf_counter() - began_s, 1)}
        figures = {k: v for k, v in result.to_json().items() if k != "per_class"}
        ablation_table.write_document(path, {**about, **figures, **seconds}, result.panoptic.statistics)
        return f"PQ {figures['pq']:.2f} [{figures['pq_ci95'][0]:.1f}, {figures['pq_ci95'][1]:.1f}]"

    @cached_property
    def _recipe_sha256(self) -> str:
        """Hash of what the recipe says, not of settings in full: a later version may know more of them."""
        said = {k: v for k, v in load_toml(self.config).items() if k != "run"}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _val(self) -> Dataset:
        return open_dataset(self.recipe.data.val or self.recipe.data.train, split="val")

    @cached_property
    def _data(self) -> dict[str, Any]:
        """The pictures by name and hash: where they lay on a disk is nobody's business."""
        train_set = open_dataset(self.recipe.data.train, split="train")
        spec = self.recipe.data.val or self.recipe.data.train
        pictures_shown = self.recipe.total_steps(len(train_set)) * self.recipe.optim.batch_size
        return {
            "epochs": round(pictures_shown / len(train_set), 3),
            "data": spec if spec.startswith("synthetic") else Path(spec).name,
            "data_sha256": self._val.fingerprint(),
            "train_data_sha256": train_set.fingerprint(),
        }

    def _about(self, run: Run, contract: Contract) -> dict[str, Any]:
        """Everything of a document that is known before it is scored."""
        checkpoint = run.folder / CHECKPOINT_FILE
        manifest = read_manifest(checkpoint)
        train_command = ["edge-seg", "train", str(self.config), *run.overrides, "--out", str(run.folder)]
        command = ["python", "-m", "edge_seg.studies.ablation", str(self.config), "--only", run.variation.name]
        return {
            "name": run.variation.name,
            "seed": run.seed,
            "change": run.variation.change,
            "command": shlex.join([*command, "--seed", str(run.seed)]),
            "train_command": shlex.join(train_command),
            "config": self.config.name,
            "experiment_sha256": self._recipe_sha256,
            "overrides": list(run.overrides),
            "decoder": dict(contract.decoder.params),
            "network": contract.model.name,
            "params": contract.model.params,
            "macs_graph": contract.model.macs_graph,
            "macs_decoder": contract.model.macs_decoder,
            **self._data,
            "classes": [{"name": c.name, "isthing": c.isthing} for c in contract.classes],
            "checkpoint_sha256": sha256_of(checkpoint),
            "trained_utc": manifest.created_utc if manifest else "",
            "tools": dict(manifest.tools) if manifest else {},
        }

    def write_table(self) -> dict[str, Any]:
        """Writes the table of all documents and returns it as plain JSON types."""
        comparison = ablation_table.table(ablation_table.read_documents(self.results))
        write_bytes(self.results / TABLE_FILE, f"{ablation_table.markdown(comparison)}\n".encode())
        return comparison

    def listing(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """Returns what each run is, what it costs and how far it is; trains nothing."""
        from edge_seg.training.checkpoint import build_network

        rows = []
        for run in runs:
            network = build_network(run.settings, self._val.classes)
            row = {
                "name": run.name,
                "group": run.variation.group,
                "overrides": list(run.overrides),
                "decoder": list(run.variation.decoder),
                "macs_graph": network.macs()["macs_graph"],
                "params": sum(p.numel() for p in network.parameters()),
                "training": run.state(),
            }
            rows.append(row)
        return rows


def train(run: Run) -> None:
    """Trains a run to its end; one that was begun goes on where its state is."""
    from edge_seg.training.loop import STATE_FILE
    from edge_seg.training.loop import train as train_settings

    train_settings(run.settings, run.folder, resume=(run.folder / STATE_FILE).is_file())


def _trained_s(folder: Path) -> float:
    """Seconds of the training's steps, over all its resumptions."""
    from edge_seg.training.checkpoint import load_state
    from edge_seg.training.loop import STATE_FILE

    return round(float(load_state(folder / STATE_FILE)["seconds"]), 1)


def _is_about(document: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Whether a document was written for just this; how the command was spelt does not matter."""
    spelt = {"command", "train_command", "change"}
    plain = json.loads(json.dumps(about))
    return all(document.get(k) == v for k, v in plain.items() if k not in spelt)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a second run of this program out of a folder: two trainings of one run would overwrite each other.

    Raises:
        InputError: Another one works there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"Another ablation works in {folder}.", todo="wait for it, or use --score-only") from error
        yield


def list_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a listing as aligned text."""
    lines = [f"{'run':24}{'group':7}{'GMAC':>6}{'params':>10}  {'training':10}changes"]
    for row in rows:
        changes = " ".join([*row["overrides"], *(f"decoder.{d}" for d in row["decoder"])])
        lines.append(
            f"{row['name']:24}{row['group']:7}{row['macs_graph'] / 1e9:6.2f}{row['params']:10,}  "
            f"{row['training']:10}{changes}"
        )
    return "\n".join(lines)


@click.command(help=__doc__)
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/ablation"), show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=Path("results/ablation"), show_default=True)
@click.option("--seed", "seeds", multiple=True, type=int, default=(0, 1), show_default=True)
@click.option("--only", multiple=True, metavar="NAME", help="A variation; repeat for several. Default: the groups.")
@click.option("--group", "wanted", multiple=True, default=(MAIN,), show_default=True, help="A group of variations.")
@click.option("--list", "listed", is_flag=True, help="Say what there is and how far it is; train nothing.")
@click.option("--score-only", is_flag=True, help="Score finished trainings; start and resume none.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def main(
    config: Path,
    out: Path,
    results: Path,
    seeds: tuple[int, ...],
    only: tuple[str, ...],
    wanted: tuple[str, ...],
    listed: bool,
    score_only: bool,
    as_json: bool,
) -> None:
    """Prints the table and writes RESULTS/NAME_sSEED.json and RESULTS/table.md."""
    try:
        ablation = Ablation(config, out, results, lambda text: click.echo(text, err=True))
        runs = [ablation.run_of(v, s) for s in dict.fromkeys(seeds) for v in chosen(only, wanted)]
        if listed:
            rows = ablation.listing(runs)
            click.echo(json.dumps(rows, indent=2) if as_json else list_text(rows))
            return
        with contextlib.nullcontext() if score_only else alone(out):
            failed = ablation.execute(runs, score_only=score_only)
        comparison = ablation.write_table()
        click.echo(json.dumps(comparison, indent=2) if as_json else ablation_table.markdown(comparison))
    except EdgeSegError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("interrupted; what was finished is kept, the same command goes on", err=True)
        sys.exit(130)
    sys.exit(failed[0].exit_code if failed else 0)


if __name__ == "__main__":
    main()
