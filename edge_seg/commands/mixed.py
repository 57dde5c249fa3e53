"""`edge-seg sensitivity` and `convert --budget`: options, and what they say to people; heavy imports inside."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_seg.commands.leftovers import removed_on_failure
from edge_seg.errors import InputError

if TYPE_CHECKING:
    from edge_seg.converters.mixed.sensitivity import LayerLoss
    from edge_seg.converters.ptq.post_training import PtqSettings

_FILE = click.Path(path_type=Path)
_SENSITIVITY_OPTIONS = (
    click.option("--data", required=True, help="DATA whose val split is scored."),
    click.option("--calibration", help="DATA whose train split calibrates; default --data."),
    click.option("--calibration-images", default=64, show_default=True),
    click.option("--ranges", metavar="METHOD", help="As in `convert`."),
    click.option("--bias-correction/--no-bias-correction", default=None, help="As in `convert`."),
    click.option("--equalize/--no-equalize", default=None, help="As in `convert`."),
    click.option("--limit", default=24, show_default=True, help="Pictures scored; 0 takes all."),
    click.option(
        "--metric",
        type=click.Choice(["auto", "pq", "ap", "snr"]),
        default="auto",
        show_default=True,
        help="pq or ap beside output SNR, or SNR alone; auto is the metric of the network's task.",
    ),
    click.option("--worst", default=0, show_default=True, help="Score only this many layers of worst SNR; 0 all."),
    click.option("--leave-one-out", is_flag=True, help="The opposite: all in int8 but one layer."),
    click.option("--threads", default=2, show_default=True),
    click.option("--out", type=_FILE, help="JSON lines of finished layers; default beside MODEL. Run again to go on."),
)
_BUDGET_OPTIONS = (
    click.option("--budget", metavar="EXPR", help='For mixed: cheapest recipe with e.g. "pq>=0.99*fp32".'),
    click.option("--budget-data", help="DATA whose val split judges the budget; default --calibration."),
    click.option("--limit", type=int, help="Pictures that judge the budget; 0 takes all.  [default: 24]"),
    click.option("--sensitivity", type=_FILE, help="Layers measured before, by `edge-seg sensitivity`."),
)


def sensitivity_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of `sensitivity`."""
    for option in reversed(_SENSITIVITY_OPTIONS):
        function = option(function)
    return function


def budget_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of a budget."""
    for option in reversed(_BUDGET_OPTIONS):
        function = option(function)
    return function


def run_sensitivity(model: Path, options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Ranks layers as the options say.

    Args:
        model: Exported folder, checkpoint or fp32 `.tflite`.
        options: Values of `sensitivity_options` by parameter name.

    Returns:
        The JSON document and the text for people.
    """
    from edge_seg.commands.convert import ptq_settings
    from edge_seg.commands.mixed_network import Calibration, Question, sensitivity

    question = Question(
        Calibration(options["calibration"] or options["data"], options["calibration_images"]),
        options["data"],
        options["metric"],
        limit=options["limit"],
        worst=options["worst"],
        mode="leave_one_out" if options["leave_one_out"] else "alone",
        threads=options["threads"],
        settings=ptq_settings({**options, "recipe": None}),
    )
    out = options["out"] or _beside(model)
    with removed_on_failure(out.parent, ()):
        document, losses = sensitivity(model, question, out)
    return document, sensitivity_text(losses, question.mode)


def _beside(model: Path) -> Path:
    return model / "sensitivity.jsonl" if model.is_dir() else model.with_suffix(".sensitivity.jsonl")


def sensitivity_text(losses: Sequence[LayerLoss], mode: str) -> str:
    """Returns the ranking as a table for people.

    Args:
        losses: Layers, the most sensitive first.
        mode: How they were measured.
    """
    wide = max(len(loss.module) for loss in losses)
    lines = ["each layer in int8 alone" if mode == "alone" else "all in int8 but one layer"]
    for place, loss in enumerate(losses, 1):
        scored = ""
        if loss.delta is not None and loss.delta_ci95 is not None:
            low, high = loss.delta_ci95
            scored = f"  {loss.metric} {loss.delta:+.2f} [{low:+.1f}, {high:+.1f}]"
        lines.append(f"{place:4}  {loss.module:{wide}}  SNR {loss.worst_snr_db:6.1f} dB{scored}")
    idle = sum(loss.worst_snr_db == math.inf for loss in losses)
    if mode == "alone" and idle:
        lines.append(f"{idle} layers change no output at all: int8 is exact there, or the network ignores them")
    return "\n".join(lines)


def check_budget(options: Mapping[str, Any]) -> None:
    """Raises InputError for options of a budget without one."""
    given = [
        f"--{name.replace('_', '-')}" for name in ("budget_data", "limit", "sensitivity") if options[name] is not None
    ]
    if given and options["budget"] is None:
        raise InputError(f"{given[0]} needs a budget.", expected='--budget "pq>=0.99*fp32"', got="none")


def run_budget(
    source: Path, out: Path, *, split_7x7: bool, options: Mapping[str, Any], settings: PtqSettings
) -> tuple[dict[str, Any], str]:
    """Converts to the cheapest mixed network within a budget.

    Args:
        source: Exported folder or checkpoint.
        out: Folder of the results.
        split_7x7: Whether the export of a checkpoint splits 7x7 convolutions.
        options: Values of `convert_options` by parameter name.
        settings: Ranges and corrections.

    Returns:
        The JSON document and the text for people; what was tried goes to stderr as it is scored.
    """
    from edge_seg.commands.mixed_budget import convert_within, wish_of

    wish = wish_of(options, settings)
    done = convert_within(source, out, wish, split_7x7=split_7x7, say=lambda line: click.echo(line, err=True))
    for warning in done.converted.warnings:
        click.echo(f"warning: {warning}", err=True)
    return {**done.converted.to_json(), "search": dict(done.document)}, done.text()
