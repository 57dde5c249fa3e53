"""Steps of the chain as plain functions: what a verb of the command line does, without printing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_seg.artifact import sha256_of
from edge_seg.contract import Contract
from edge_seg.data.images import read_image
from edge_seg.data.sample import Dataset
from edge_seg.data.source import open_dataset
from edge_seg.data.things import for_task
from edge_seg.errors import InputError
from edge_seg.evaluation.controls import shift_masks, swap_classes
from edge_seg.evaluation.evaluate import Control, evaluate, spread
from edge_seg.evaluation.predictor import Predictor
from edge_seg.letterbox import letterbox_image
from edge_seg.model_file import open_predictor

if TYPE_CHECKING:
    from edge_seg.benchmarks.result import Record
    from edge_seg.converters.compare_routes import AgreementReport
    from edge_seg.converters.convert import Converted
    from edge_seg.converters.layers.report import LayersReport
    from edge_seg.converters.ptq.post_training import PtqSettings
    from edge_seg.converters.verify import VerifyReport

Split = Literal["train", "val"]
SHIFT_PX = 8


def pictures(data: str, count: int, split: Split) -> list[NDArray[np.uint8]]:
    """Returns `count` images of a data set, evenly spread, each [H, W, 3] uint8; at least one, or InputError."""
    if count < 1:
        raise InputError(
            f"No picture of {data} is asked for.",
            expected="1 picture or more",
            got=str(count),
            todo="64 pictures are usual for calibration, 8 for a benchmark",
        )
    dataset = open_dataset(data, split=split)
    return [dataset[i].image_hwc_u8 for i in spread(len(dataset), count)]


def letterboxed(contract: Contract, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Returns images as the network's input, each [H, W, 3] uint8."""
    fill = contract.preprocess.fill_rgb
    return [letterbox_image(image, contract.input_wh_px, fill)[0] for image in images]


def exported_folder(source: Path, out: Path, *, split_7x7: bool = True) -> Path:
    """Returns an exported folder: the source itself, or what a checkpoint is exported to, beside the results.

    Args:
        source: Exported folder or checkpoint.
        out: Folder of the results.
        split_7x7: Whether the export of a checkpoint splits 7x7 depthwise convolutions (see `edge_seg.export`).

    Raises:
        InputError: `split_7x7` is off for a folder, which is split or not since its export.
    """
    if source.is_file():
        from edge_seg.export import export

        return export(source, out / "exported", split_7x7=split_7x7).folder
    if source.is_dir() and not split_7x7:
        raise InputError(
            "The 7x7 convolutions of an exported folder cannot be joined again.",
            expected="a checkpoint",
            got=str(source),
            todo="export again with --no-split-7x7, or convert the checkpoint",
        )
    return source


def convert_source(
    source: Path,
    schemes: Sequence[str],
    out: Path,
    *,
    route: str = "litert",
    calibration: str | None = None,
    calibration_images: int = 64,
    split_7x7: bool = True,
    settings: PtqSettings | None = None,
) -> list[Converted]:
    """Converts an exported folder or a checkpoint to one file per scheme.

    Args:
        source: Exported folder, or a checkpoint that is exported first (beside the results).
        schemes: Names of schemes.
        out: Folder of the results.
        route: Converter.
        calibration: DATA argument whose train split calibrates static schemes.
        calibration_images: Pictures used for it.
        split_7x7: As in `exported_folder`.
        settings: Ranges, corrections and the recipe of calibrated schemes.

    Raises:
        EdgeSegError: Anything is missing or broken; finished files are kept.
    """
    from edge_seg.converters.convert import check_wanted, convert_many
    from edge_seg.converters.ptq.post_training import PtqSettings

    # what can be refused without the network is, before the slow export writes anything
    check_wanted(schemes, route, settings or PtqSettings(), with_pictures=calibration is not None)
    images = None if calibration is None else pictures(calibration, calibration_images, "train")
    folder = exported_folder(source, out, split_7x7=split_7x7)
    samples = None if images is None else letterboxed(Contract.load(folder / "contract.json"), images)
    done: list[Converted] = convert_many(folder, schemes, out=out, route=route, calibration=samples, settings=settings)
    return done


def verify_file(
    file: Path,
    against: Path,
    images: Sequence[Path] = (),
    *,
    kernels: Literal["xnnpack", "reference", "gpu", "aarch64"] = "xnnpack",
    precision: Literal["fp32", "fp16"] = "fp32",
    layers: LayersReport | None = None,
) -> VerifyReport:
    """Compares a converted file with the exported folder it came from.

    Args:
        file: `.tflite`.
        against: Exported folder.
        images: Pictures to compare on besides the seeded reference inputs.
        kernels: What runs the file; "gpu" is LiteRT's GPU accelerator, "aarch64" XNNPACK on an emulated processor.
        precision: Arithmetic of the GPU accelerator.
        layers: Every layer of the file, where they have been compared already.

    Returns:
        Figures per output; with XNNPACK, where an output is far, the verdict of every layer.
    """
    from edge_seg.converters.layers.explained import verify_explained
    from edge_seg.converters.verify import verify

    contract = Contract.load(against / "contract.json")
    photos = letterboxed(contract, [read_image(p) for p in images])
    if kernels == "xnnpack":
        return verify_explained(file, against, photos, layers=layers)
    return verify(file, against, images=photos or None, kernels=kernels, precision=precision)


def verify_layers_file(file: Path, against: Path, images: Sequence[Path] = ()) -> LayersReport:
    """Compares every layer of a converted file with the exported folder it came from.

    Args:
        file: `.tflite`.
        against: Exported folder.
        images: Pictures to compare on besides the seeded reference inputs.
    """
    from edge_seg.converters.layers.verify import verify_layers

    contract = Contract.load(against / "contract.json")
    return verify_layers(file, against, letterboxed(contract, [read_image(p) for p in images]))


def compare_files(
    file: Path, other: Path, images: Sequence[Path] = (), *, second_interpreter: bool = False
) -> AgreementReport:
    """Compares two converted files of one network.

    Args:
        file: The first `.tflite`.
        other: The second, of another route or scheme; or the same.
        images: Pictures to compare on; seeded noise where there are none.
        second_interpreter: Whether `other` runs in tflite-runtime, in its side environment.
    """
    from edge_seg.converters.compare_routes import compare_routes
    from edge_seg.converters.metadata import read_contract

    photos = letterboxed(read_contract(file), [read_image(p) for p in images])
    return compare_routes(file, other, photos, second_interpreter=second_interpreter)


def control_damages(dataset: Dataset) -> dict[str, Control]:
    """Returns two damages that a working metric must punish: masks shifted by 8 px, two classes swapped.

    The swapped classes are the two most frequent things. A swap takes 2 / (number of classes) of the overall PQ at
    most, so the quality of the two classes is reported apart. With less than two things there is nothing to swap.
    """
    damages = {f"shift by {SHIFT_PX} px": Control(lambda result: shift_masks(result, SHIFT_PX))}
    things = [i for i, c in enumerate(dataset.classes) if c.isthing]
    if len(things) < 2:
        return damages
    counts = np.zeros(len(dataset.classes), np.int64)
    for index in spread(len(dataset), 32):
        for segment in dataset[index].segments:
            counts[segment.class_index] += 1
    a, b = sorted(things, key=lambda i: -counts[i])[:2]
    names = f"swap {dataset.classes[a].name} and {dataset.classes[b].name}"
    return {**damages, names: Control(lambda result: swap_classes(result, a, b), (a, b))}


def evaluate_model(
    model: Path,
    data: str,
    *,
    limit: int = 0,
    threads: int = 2,
    controls: bool = False,
    decoder: dict[str, Any] | None = None,
    metric: str = "",
    second_interpreter: bool = False,
) -> dict[str, Any]:
    """Scores a checkpoint or a converted file on the `val` split of a data set; returns plain JSON types.

    Args:
        model: Checkpoint or `.tflite`.
        data: DATA argument.
        limit: Pictures, evenly spread; 0 takes all.
        threads: CPU threads.
        controls: Whether damaged predictions are scored as well.
        decoder: Decoder parameters instead of the contract's.
        metric: "pq" or "ap"; empty takes the task's own.
        second_interpreter: Whether a `.tflite` runs in tflite-runtime, in its side environment.
    """
    dataset = open_dataset(data, split="val")
    predictor = open_predictor(model, threads=threads, second_interpreter=second_interpreter, **(decoder or {}))
    task = predictor.contract.model.task
    result = evaluate(
        predictor,
        dataset,
        limit=limit,
        teacher_forced=True,
        controls=control_damages(for_task(dataset, task)) if controls else None,
        metric=metric,
        progress=f"evaluate {model.name}",
    )
    return result.to_json(
        model=model.name,
        file_sha256=sha256_of(model),
        scheme=predictor.contract.model.scheme,
        **_runtime_of(predictor),
        data=data,
        data_sha256=dataset.fingerprint(),
        decoder=dict(predictor.contract.decoder.params),
    )


def _runtime_of(predictor: Predictor) -> dict[str, Any]:
    """Name and version of the TFLite runtime; nothing for PyTorch, whose checkpoint says what made it."""
    runtime = getattr(predictor.runner, "runtime", None)
    return {} if runtime is None else {"runtime": runtime}


_NAMES = {"pq_th": "things", "pq_st": "stuff", "pq_teacher_forced": "with true centres"}


def evaluation_text(document: dict[str, Any]) -> str:
    """Returns an evaluation as text for people."""
    metric = document["metric"]
    low, high = document[f"{metric}_ci95"]
    keys = list(document)
    figures = keys[keys.index("metric") + 2 : keys.index(f"{metric}_ci95")]
    rest = [k for k in ("pq_teacher_forced",) if k in document]
    told = "  ".join(f"{_NAMES.get(k, k.upper())} {_figure(document[k])}" for k in [*figures, *rest])
    lines = [
        f"{metric.upper()} {_figure(document[metric])} [{_figure(low)}, {_figure(high)}]  {told}  "
        f"on {document['images']} images"
    ]
    for name, row in document.get("controls", {}).items():
        hit = ""
        if "classes" in row:
            before, after = row[f"{metric}_classes_before"], row[f"{metric}_classes"]
            hit = f"; of the two classes {_figure(before)} -> {_figure(after)}"
        lines.append(f"{metric.upper()} after {name}: {_figure(row[metric])}{hit}")
    for row in document["per_class"]:
        if row[metric] is not None:
            counts = "  ".join(f"{k} {row[k]:5}" for k in ("tp", "fp", "fn", "objects") if k in row)
            lines.append(f"  {row['name']:28} {metric.upper()} {row[metric]:6.2f}  {counts}")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _median_text(row: Mapping[str, Any]) -> str:
    """Returns median and interval; other programs on a device give no interval, and older ones no median."""
    if row["median_ms"] is None:
        return "median unknown"
    ends = row["ci95_median_ms"]
    return f"median {row['median_ms']:.2f} ms " + (f"[{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "[no interval]")


def benchmark_text(records: Sequence[Record]) -> str:
    """Returns benchmark records as aligned text."""
    rows = [r.to_json() for r in records]
    return "\n".join(
        f"{r['model']:32} {r['scheme']:10} {r['profile']:12} {_median_text(r)}  n {r['n']}"
        + ("" if r["valid"] else "  NOT VALID: " + "; ".join(r["warnings"]))
        for r in rows
    )
