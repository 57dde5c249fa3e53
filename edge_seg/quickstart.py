"""The whole chain, small: train, evaluate, export, convert, verify, check, score, benchmark, predict, report."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from PIL import Image

from edge_seg.artifact import write_json
from edge_seg.config import apply_overrides, from_mapping, load_toml
from edge_seg.contract import Contract
from edge_seg.data.sample import Dataset, Sample
from edge_seg.data.source import open_dataset
from edge_seg.data.synthetic import SyntheticScenes
from edge_seg.data.things import for_task
from edge_seg.decoders.base import PanopticResult
from edge_seg.evaluation.evaluate import spread
from edge_seg.evaluation.overlay import overlay
from edge_seg.evaluation.predict import segments_json, write_png
from edge_seg.model_file import open_predictor
from edge_seg.steps import convert_source, evaluate_model, letterboxed, pictures
from edge_seg.training.settings import TrainSettings, checked

SCHEMES = ("fp32", "fp16", "w8_dynamic", "w8a8")
CONFIGS = Path(__file__).parent / "configs"
DEFAULT_DATA = "synthetic:easy"
_OVERLAYS = 6
_SCORED_SCENES = 96
_SCORED_PHOTOS = 48
_BENCHMARK_LIMIT_S = 10.0
_CALIBRATION_PICTURES = 48


@dataclass(frozen=True)
class _Chain:
    """What the steps share."""

    data: str
    out: Path
    settings: TrainSettings
    limit: int
    command: str

    @property
    def checkpoint(self) -> Path:
        return self.out / "train" / "model.safetensors"

    @property
    def exported(self) -> Path:
        return self.out / "exported"

    def files(self) -> dict[str, Path]:
        name = Contract.load(self.exported / "contract.json").model.name
        return {s: self.out / "convert" / f"{name}_{s}.tflite" for s in SCHEMES}


def quickstart(
    data: str,
    out: Path,
    *,
    config: Path | None = None,
    model: str = "",
    overrides: Sequence[str] = (),
    limit: int | None = None,
) -> dict[str, Any]:
    """Runs the chain and returns the verb's document; an interrupted training goes on where it stopped.

    Args:
        data: DATA argument.
        out: Folder of the run.
        config: Training recipe; by default the one for synthetic scenes or for photos.
        model: Network, instead of the recipe's.
        overrides: `section.key=value` texts for the recipe.
        limit: Pictures scored; by default 96 scenes or 48 photos, evenly spread; 0 takes all.
    """
    pictures_scored = limit if limit is not None else _limit(data)
    options = [*(["--config", str(config)] if config else []), *(["--model", model] if model else [])]
    command = shlex.join(["edge-seg", "quickstart", "--data", data, *options, *overrides])
    chain = _Chain(data, out, _settings(data, config, model, overrides), pictures_scored, command)
    results: dict[str, Any] = {}
    started = time.perf_counter()
    for name, step in _STEPS:
        click.echo(f"[{time.perf_counter() - started:5.0f} s] {name}", err=True)
        results[name] = step(chain)
    scores = results["score every file"]
    return {
        "report": str(results["report"]),
        "metric": scores["torch"]["metric"],
        scores["torch"]["metric"]: {k: v[v["metric"]] for k, v in scores.items() if k in ("torch", *SCHEMES)},
        "controls": scores["torch"]["controls"],
        "files": [str(f) for f in chain.files().values()],
        "seconds": round(time.perf_counter() - started, 1),
    }


def default_out(data: str) -> Path:
    """Returns the folder of a run on `data`, one for each data set."""
    if data == DEFAULT_DATA:
        return Path("runs/quickstart")
    return Path("runs") / ("quickstart_" + re.sub(r"[^a-z0-9]+", "_", Path(data).name.lower()).strip("_"))


def summary(document: dict[str, Any]) -> str:
    """Returns the verb's document as text: PQ or AP of each file, the controls, and where the report lies."""
    metric = document["metric"]
    title = metric.upper()
    lines = [f"{title} {name:12} {value:6.2f}" for name, value in document[metric].items()]
    for name, row in document["controls"].items():
        before, after = row.get(f"{metric}_classes_before"), row.get(f"{metric}_classes")
        hit = f", the two classes {before} -> {after}" if "classes" in row else ""
        lines.append(f"control: {name}: {title} {row[metric]}{hit}")
    return "\n".join([*lines, f"{document['seconds']:.0f} s: {document['report']}"])


def _settings(data: str, config: Path | None, model: str, overrides: Sequence[str]) -> TrainSettings:
    recipe = config or _recipe("synthetic" if data.startswith("synthetic:") else "photos", model)
    texts = [f'data.train="{data}"', *([f'model.name="{model}"'] if model else []), *overrides]
    return checked(from_mapping(TrainSettings, apply_overrides(load_toml(recipe), texts)))


def _recipe(kind: str, model: str) -> Path:
    """The family's own recipe where there is one; criterion and decoder settings differ between families."""
    from edge_seg.models.base import family_of

    own = CONFIGS / f"quickstart_{kind}_{family_of(model)}.toml" if model else None
    return own if own is not None and own.is_file() else CONFIGS / f"quickstart_{kind}.toml"


def _limit(data: str) -> int:
    return _SCORED_SCENES if data.startswith("synthetic:") else _SCORED_PHOTOS


def _train(chain: _Chain) -> None:
    from edge_seg.training.loop import STATE_FILE, same_experiment, train

    folder = chain.out / "train"
    train(
        chain.settings,
        folder,
        resume=(folder / STATE_FILE).is_file() and same_experiment(folder, chain.settings),
    )


def _export(chain: _Chain) -> None:
    from edge_seg.export import export

    export(chain.checkpoint, chain.exported)


def _convert(chain: _Chain) -> None:
    done = convert_source(
        chain.exported,
        SCHEMES,
        chain.out / "convert",
        calibration=chain.data,
        calibration_images=_CALIBRATION_PICTURES,
    )
    for one in done:
        write_json(chain.out / "convert" / f"{one.scheme}.json", one.to_json())


def _verify(chain: _Chain) -> None:
    from edge_seg.converters.layers.explained import verify_explained

    contract = Contract.load(chain.exported / "contract.json")
    images = letterboxed(contract, pictures(chain.data, 4, "val"))
    for scheme, file in chain.files().items():
        write_json(chain.out / "verify" / f"{scheme}.json", verify_explained(file, chain.exported, images).to_json())


def _check(chain: _Chain) -> None:
    from edge_seg.converters.delegates import check

    for scheme, file in chain.files().items():
        for delegate in ("gpu", "xnnpack"):
            write_json(chain.out / "check" / f"{scheme}_{delegate}.json", check(file, delegate).to_json())


def _score(chain: _Chain) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for name, file in {"torch": chain.checkpoint, **chain.files()}.items():
        scores[name] = evaluate_model(file, chain.data, limit=chain.limit, controls=name == "torch")
        write_json(chain.out / "evaluate" / f"{name}.json", {"name": name, **scores[name]})
    torch = scores["torch"]
    if Contract.load(chain.exported / "contract.json").decoder.name == "maskconver":
        published = published_decoder(chain.settings.model.input_px)
        document = evaluate_model(chain.checkpoint, chain.data, limit=chain.limit, decoder=published)
        name = "torch_published_decoder"
        scores[name] = document
        write_json(chain.out / "evaluate" / f"{name}.json", {"name": name, **document})
    metric = torch["metric"]
    write_json(chain.out / "controls.json", {f"reference_{metric}": torch[metric], **torch["controls"]})
    return scores


def published_decoder(input_px: int) -> dict[str, Any]:
    """Returns the decoder settings of the published mobile recipe.

    Its smallest segment is 256 pixels of the 640-pixel output whatever the input size; as a share of the picture
    that is 256 / 640^2 for the 640-pixel network, and 256 / input^2 where the output has the input's size.

    Args:
        input_px: Side of the input; 0 or 256 and less use the input's own size.
    """
    side = input_px or 256
    return {
        "top_k": 50,
        "score_threshold": 0.01,
        "score_exponent": 1.0,
        "overlap_threshold": 0.7,
        "min_area_share": 256 / side**2,
        "mask_threshold": 0.0,
        "one_peak_per_stuff_class": False,
    }


def _benchmark(chain: _Chain) -> None:
    from edge_seg.benchmarks.bench import benchmark

    accuracy = [chain.out / "evaluate" / f"{s}.json" for s in SCHEMES]
    benchmark(
        list(chain.files().values()),
        ["host_cpu_1t", "host_cpu_2t"],
        images=pictures(chain.data, 8, "val"),
        out=chain.out / "benchmark" / "results.json",
        accuracy=accuracy,
        max_time_s=_BENCHMARK_LIMIT_S,
        progress=sys.stderr,
    )


def _unseen(chain: _Chain) -> Dataset:
    """Scenes of another seed, or the validation photos."""
    if chain.data.startswith("synthetic:"):
        level = chain.data.split(":")[1]
        return SyntheticScenes("hard" if level == "hard" else "easy", split="val", seed=999, length=_OVERLAYS)
    return open_dataset(chain.data, split="val")


def _predict(chain: _Chain) -> None:
    dataset = for_task(_unseen(chain), Contract.load(chain.exported / "contract.json").model.task)
    models = {"torch": chain.checkpoint, **chain.files()}
    predictors = {name: open_predictor(file, threads=2) for name, file in models.items()}
    rows: list[dict[str, str]] = []
    for number in spread(len(dataset), _OVERLAYS):
        sample = dataset[number]
        stem = f"{number:04d}"
        row = {"image": f"{stem}.image.png", "truth": f"{stem}.truth.png"}
        write_png(chain.out / "predict" / row["image"], Image.fromarray(sample.image_hwc_u8))
        _draw(chain, row["truth"], sample, sample, dataset)
        for name, predictor in predictors.items():
            prediction = predictor.predict(sample.image_hwc_u8)
            row[name] = f"{stem}.{name}.png"
            _draw(chain, row[name], sample, prediction.result.panoptic(), dataset)
            write_json(
                chain.out / "predict" / f"{stem}.{name}.segments.json",
                segments_json(predictor, prediction, sample.file_name),
            )
        rows.append(row)
    write_json(chain.out / "predict" / "overlays.json", rows)


def _draw(chain: _Chain, name: str, sample: Sample, shown: Sample | PanopticResult, dataset: Dataset) -> None:
    picture = overlay(sample.image_hwc_u8, shown.id_map_hw_i32, shown.segments, dataset.classes)
    write_png(chain.out / "predict" / name, Image.fromarray(picture))


def _report(chain: _Chain) -> Path:
    from edge_seg.benchmarks.report import write_report

    settings = chain.settings
    notes = [] if settings.model.weights else ["Trained from random weights: no backbone weights were given."]
    write_json(
        chain.out / "quickstart.json",
        {
            "title": f"{settings.model.name} on {chain.data}",
            "command": chain.command,
            "data": chain.data,
            "model": settings.model.name,
            "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": "this host's CPU",
            "notes": notes,
        },
    )
    return write_report(chain.out, chain.out / "report.html")


_STEPS: tuple[tuple[str, Callable[[_Chain], Any]], ...] = (
    ("train", _train),
    ("export", _export),
    ("convert four schemes", _convert),
    ("verify", _verify),
    ("check", _check),
    ("score every file", _score),
    ("benchmark", _benchmark),
    ("predict unseen pictures", _predict),
    ("report", _report),
)
