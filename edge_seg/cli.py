"""The command line `edge-seg`: one verb is one function; heavy imports happen inside."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edge_seg import __version__
from edge_seg.commands.bisect import bisect
from edge_seg.commands.compare import compare
from edge_seg.commands.convert import convert_options, run_convert
from edge_seg.commands.devices import devices
from edge_seg.commands.fleet import fleet
from edge_seg.commands.gate import gate
from edge_seg.commands.measuring import measuring_options
from edge_seg.commands.mixed import run_sensitivity, sensitivity_options
from edge_seg.commands.profiles import profiles
from edge_seg.commands.report import report
from edge_seg.commands.sustain import sustain
from edge_seg.commands.verify import run_verify, verify_options
from edge_seg.errors import CheckFailed, EdgeSegError, InputError

Document = dict[str, Any] | list[Any]
_FILE = click.Path(path_type=Path)


def _emit(document: Document, text: str, as_json: bool) -> None:
    click.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else text)


def _json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")(function)


def _set_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--set",
        "decoder",
        multiple=True,
        metavar="KEY=VALUE",
        help="Decoder parameter instead of the contract's.",
    )(function)


def _split_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--split-7x7/--no-split-7x7",
        default=True,
        show_default=True,
        help="Run 7x7 depthwise convolutions as sums of three smaller ones: exact, faster.",
    )(function)


def _decoder_params(texts: tuple[str, ...]) -> dict[str, Any]:
    from edge_seg.config import apply_overrides

    return apply_overrides({}, texts)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """Panoptic and instance segmentation from PyTorch to TFLite on a phone, measured on the way.

    Start with `edge-seg quickstart`, then `edge-seg train --help`.
    """


@cli.command()
@click.argument("name", required=False)
@click.option("--num-classes", type=int, help="Default: 133 of panoptic, 80 of instance networks (COCO).")
@click.option("--input", "input_px", default=0, help="Side of the input in pixels; 0 takes the network's own.")
@_json_option
def models(name: str | None, num_classes: int | None, input_px: int, as_json: bool) -> None:
    """List networks with their size and cost. Example: edge-seg models maskconver_mh_256 --num-classes 10."""
    from edge_seg.models.base import MODELS
    from edge_seg.models.describe import describe, table

    rows = [describe(n, num_classes, input_px) for n in ([name] if name else MODELS.names())]
    _emit(rows[0] if name else rows, table(rows), as_json)


@cli.command()
@click.argument("config", type=_FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--out", type=_FILE, required=True, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from the state in --out.")
@_json_option
def train(config: Path, overrides: tuple[str, ...], out: Path, resume: bool, as_json: bool) -> None:
    """Train. Example: edge-seg train edge_seg/configs/quickstart_synthetic.toml optim.lr=0.001 --out runs/a."""
    _train(config, overrides, out, resume=resume, as_json=as_json)


@cli.command()
@click.argument("config", type=_FILE)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--from", "start", type=_FILE, required=True, help="Checkpoint of the float network.")
@click.option("--out", type=_FILE, required=True, help="Folder of the run.")
@click.option("--resume", is_flag=True, help="Go on from the state in --out.")
@_json_option
def qat(config: Path, overrides: tuple[str, ...], start: Path, out: Path, resume: bool, as_json: bool) -> None:
    """Retrain on int8 grids. Example: edge-seg qat C.toml optim.lr=1e-4 --from runs/a/model.safetensors --out runs/q.

    The result converts with --scheme qat_w8a8: scales, zero points, weights and biases arrive as they were trained.
    """
    _train(config, (*overrides, f"qat.start={start}"), out, resume=resume, as_json=as_json)


def _train(config: Path, overrides: tuple[str, ...], out: Path, *, resume: bool, as_json: bool) -> None:
    from edge_seg.training.loop import train as run
    from edge_seg.training.settings import load_settings

    done = run(load_settings(config, overrides), out, resume=resume)
    if done.rank:  # under torchrun only the first process reports
        return
    document = {
        "checkpoint": str(done.checkpoint),
        "metrics": done.metrics,
        "epochs": done.epochs,
        "seconds": done.seconds,
    }
    metric = done.metrics["metric"]
    score = f"{metric.upper()} {done.metrics[metric]:.2f}"
    _emit(document, f"{score} after {done.seconds:.0f} s: {done.checkpoint}", as_json)


@cli.command(name="import")
@click.argument("file", type=_FILE)
@click.option("--from", "kind", required=True, help="Whose checkpoint: adelaidet, solo.")
@click.option("--model", required=True, help="Network to fill, e.g. blendmask_rt_mnv2.")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="Option of the network; repeatable.")
@click.option("--input", "input_px", default=0, help="Side of the input in pixels; 0 takes the network's own.")
@click.option("--num-classes", default=80, show_default=True)
@click.option("--classes", type=_FILE, help="COCO JSON that names the classes, instead of --num-classes.")
@click.option("--out", type=_FILE, required=True, help="The checkpoint, .safetensors.")
@_json_option
def import_(file: Path, out: Path, options: tuple[str, ...], as_json: bool, **wanted: Any) -> None:
    """Take another project's checkpoint. Example: edge-seg import a.pth --from solo --model M --out m.safetensors.

    Strict: every tensor of the network is found, or nothing is written. The licence of the weights goes along.
    """
    from edge_seg.commands.import_checkpoint import Wanted, import_checkpoint

    document = import_checkpoint(file, Wanted(options=_decoder_params(options), **wanted), out)
    unmapped = document["unmapped"]
    left = f"; left out: {', '.join(unmapped[:5])} ({len(unmapped)})" if unmapped else ""
    _emit(document, f"{document['mapped']} tensors{left}\nlicence: {document['licence']}\n{out}", as_json)


@cli.command()
@click.argument("checkpoint", type=_FILE)
@click.option("--out", type=_FILE, required=True, help="Folder of the exported program.")
@click.option("--fold/--no-fold", default=True, show_default=True, help="Let the decoder run the last 1x1 layers.")
@_split_option
@_json_option
def export(checkpoint: Path, out: Path, fold: bool, split_7x7: bool, as_json: bool) -> None:
    """Write model.pt2, contract.json and reference.npz. Example: edge-seg export runs/a/model.safetensors --out e."""
    from edge_seg.export import export as run

    done = run(checkpoint, out, fold=fold, split_7x7=split_7x7)
    document = {"exported": str(done.exported), "contract": str(done.contract), "sha256": done.sha256}
    _emit(document, f"{done.exported}\n{done.contract}", as_json)


@cli.command()
@click.argument("source", type=_FILE)
@convert_options
@click.option("--out", type=_FILE, required=True)
@_split_option
@_json_option
def convert(source: Path, out: Path, split_7x7: bool, as_json: bool, **options: Any) -> None:
    """Convert to TFLite. Example: edge-seg convert runs/a/model.safetensors --scheme w8a8 --calibration DIR --out t.

    SOURCE is an exported folder or a checkpoint, which is exported first. Calibrated schemes leave
    NAME_SCHEME.calibration.json beside the file.
    """
    document, text = run_convert(source, out, split_7x7=split_7x7, options=options)
    _emit(document, text, as_json)


@cli.command()
@click.argument("model", type=_FILE)
@sensitivity_options
@_json_option
def sensitivity(model: Path, as_json: bool, **options: Any) -> None:
    """Rank layers by what they lose in int8. Example: edge-seg sensitivity t/a_fp32.tflite --data DIR --worst 10.

    MODEL is an exported folder, a checkpoint or an fp32 .tflite.
    """
    document, text = run_sensitivity(model, options)
    _emit(document, text, as_json)


@cli.command()
@click.argument("file", type=_FILE)
@verify_options
@_json_option
def verify(file: Path, against: Path, as_json: bool, **options: Any) -> None:
    """Compare a file with PyTorch. Example: edge-seg verify t/a_w8a8.tflite --against e --layers --html layers.html.

    --layers also compares every layer and names the first one that is not right by itself. Against another .tflite
    of the same network (other route, scheme or interpreter) the two files are compared. --kernels gpu runs the file
    on LiteRT's GPU accelerator, over a GPU or a Vulkan driver in software; --kernels aarch64 runs it on an emulated
    phone processor and counts the integers that differ from this machine's.
    """
    document, text, failed = run_verify(file, against, options)
    _emit(document, text, as_json)
    if failed is not None:
        raise failed


@cli.command()
@click.argument("file", type=_FILE)
@click.option("--delegate", default="gpu", show_default=True)
@_json_option
def check(file: Path, delegate: str, as_json: bool) -> None:
    """Say what a delegate would refuse, by rules, offline. Example: edge-seg check t/a_fp16.tflite --delegate gpu."""
    from edge_seg.converters.delegates import check as run

    verdict = run(file, delegate)
    _emit(verdict.to_json(), verdict.text(), as_json)
    if not verdict.fully_delegable:
        raise CheckFailed(f"{len(verdict.refused)} operations of {file.name} would not run on {delegate}.")


@cli.command()
@click.argument("model", type=_FILE)
@click.option("--data", required=True, help="DATA: synthetic:easy, synthetic:hard[:SEED], a folder or a JSON.")
@click.option("--limit", default=0, help="Only this many pictures, evenly spread.")
@click.option("--threads", default=2, show_default=True)
@click.option("--controls", is_flag=True, help="Also score shifted masks and swapped classes.")
@click.option("--metric", type=click.Choice(["pq", "ap"]), help="Instead of the task's own: PQ panoptic, AP instance.")
@click.option("--second-interpreter", is_flag=True, help="Run a .tflite in tflite-runtime 2.14; slow.")
@_set_option
@_json_option
def evaluate(model: Path, data: str, decoder: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Score a checkpoint or a .tflite. Example: edge-seg evaluate t/a_w8a8.tflite --data synthetic:easy."""
    from edge_seg.steps import evaluate_model, evaluation_text

    options["metric"] = options["metric"] or ""
    document = evaluate_model(model, data, decoder=_decoder_params(decoder), **options)
    _emit(document, evaluation_text(document), as_json)


@cli.command()
@click.argument("model", type=_FILE)
@click.argument("images", type=_FILE, nargs=-1, required=True)
@click.option("--out", type=_FILE, required=True)
@_set_option
@_json_option
def predict(model: Path, images: tuple[Path, ...], out: Path, decoder: tuple[str, ...], as_json: bool) -> None:
    """Write overlay, id PNG and segments of pictures. Example: edge-seg predict t/a_fp32.tflite a.jpg --out p."""
    from edge_seg.evaluation.predict import predict_files
    from edge_seg.model_file import open_predictor

    rows = predict_files(open_predictor(model, **_decoder_params(decoder)), images, out)
    text = "\n".join(f"{r['image']}: {len(r['segments'])} segments, {r['run_ms']:.1f} ms" for r in rows)
    _emit(rows, text, as_json)


@cli.command()
@click.argument("file", type=_FILE)
@click.argument("images", type=_FILE, nargs=-1, required=True)
@click.option("--out", type=_FILE, required=True)
@_json_option
def golden(file: Path, images: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Write golden vectors for readers in other languages. Example: edge-seg golden t/a_w8a8.tflite a.jpg --out g."""
    from edge_seg.evaluation.golden import write_golden
    from edge_seg.model_file import open_predictor

    files = write_golden(open_predictor(file), file, images, out)
    _emit({"files": [str(f) for f in files]}, "\n".join(map(str, files)), as_json)


@cli.command()
@click.option("--memory", is_flag=True, help="Read peak memory too: each file once in a process of its own.")
@click.option("--max-time-s", type=float, help="Seconds a file may be measured instead of the profile's.")
@click.option("--ratio-ci-pct", type=float, help="Stop when ratios to the first FILE are known so well; see below.")
@measuring_options
def benchmark(
    files: tuple[Path, ...],
    profiles: tuple[str, ...],
    data: str,
    count: int,
    accuracy: tuple[Path, ...],
    memory: bool,
    max_time_s: float | None,
    ratio_ci_pct: float | None,
    out: Path,
    as_json: bool,
) -> None:
    """Measure latency on device profiles. Example: edge-seg benchmark t/a_fp32.tflite t/a_w8a8.tflite --out r.json.

    A file is run until its median is known as well as the profile asks. On a machine that others use that may never be,
    while the ratio of files that take turns is soon known: --ratio-ci-pct 2 stops when the 95 % interval of every
    ratio to the first FILE is at most 2 % wide. `edge-seg compare` then gives the ratios.
    """
    from edge_seg.benchmarks.bench import benchmark as run
    from edge_seg.steps import benchmark_text, pictures

    records = run(
        files,
        profiles,
        images=pictures(data, count, "val"),
        out=out,
        accuracy=accuracy,
        max_time_s=max_time_s,
        ratio_ci_pct=ratio_ci_pct,
        memory=memory,
        progress=sys.stderr,
    )
    _emit([r.to_json() for r in records], benchmark_text(records), as_json)


for _command in (bisect, profiles, devices, sustain, compare, gate, fleet, report):
    cli.add_command(_command)


@cli.command()
@click.option("--setup", metavar="NAME", help="Fetch onnx2tf (2.7 GB), tflite_runtime (115 MB) or vulkan (68 MB).")
@_json_option
def doctor(setup: str | None, as_json: bool) -> None:
    """Say what is installed, what works here and how to get the rest. Example: edge-seg doctor --json.

    --setup creates a side environment in a folder of its own, $EDGE_SEG_ENVS or ~/.cache/edge_seg/envs; "vulkan" is
    SwiftShader, which runs LiteRT's GPU accelerator without a GPU, in ~/.cache/edge_seg/vulkan.
    """
    from dataclasses import asdict

    from edge_seg.doctor import run_checks, set_up
    from edge_seg.errors import MissingHere

    if setup:
        folder = set_up(setup)
        _emit({"environment": setup, "folder": str(folder)}, f"{setup} is set up in {folder}", as_json)
        return
    checks = run_checks()
    lines = [f"{'ok ' if c.ok else '-- '} {c.name:18} {c.detail}" + ("" if c.ok else f"\n     {c.fix}") for c in checks]
    _emit({"checks": [asdict(c) for c in checks]}, "\n".join(lines), as_json)
    missing = [c.name for c in checks if c.required and not c.ok]
    if missing:
        raise MissingHere(f"Not working here: {', '.join(missing)}.", todo="see the lines above")


@cli.command()
@click.option("--data", default="synthetic:easy", show_default=True, help="DATA to train and score on.")
@click.option("--model", "name", default="", help="Network; default is the recipe's.")
@click.option("--config", type=_FILE, help="Training recipe; default fits --data.")
@click.option("--limit", type=int, help="Pictures scored; default 96 scenes or 48 photos, 0 takes all.")
@click.option(
    "--out", type=_FILE, help="Folder; default runs/quickstart, with the data's name where that is not the default."
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@_json_option
def quickstart(
    data: str,
    name: str,
    config: Path | None,
    limit: int | None,
    out: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """The whole chain, small, in minutes. Example: edge-seg quickstart --data FOLDER model.weights=W.safetensors.

    Trains, exports, converts four schemes, verifies, checks, scores, benchmarks, predicts and writes a report.
    """
    from edge_seg.quickstart import default_out, summary
    from edge_seg.quickstart import quickstart as run

    document = run(data, out or default_out(data), config=config, model=name, overrides=overrides, limit=limit)
    _emit(document, summary(document), as_json)


def main() -> None:
    """Runs the command line and turns errors into messages and exit codes."""
    try:
        code = cli.main(standalone_mode=False)
    except EdgeSegError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted; what was finished is kept, `--resume` goes on where there is one", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(InputError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
