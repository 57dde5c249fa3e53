"""Options and steps of `edge-seg convert`, apart from `cli` for their number; heavy imports happen inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_seg.commands.leftovers import removed_on_failure
from edge_seg.commands.mixed import budget_options, check_budget, run_budget
from edge_seg.errors import InputError
from edge_seg.schemes import SCHEMES

if TYPE_CHECKING:
    from edge_seg.converters.convert import Converted
    from edge_seg.converters.ptq.post_training import PtqSettings
    from edge_seg.converters.ptq.targets import Advice

_FILE = click.Path(path_type=Path)
_OPTIONS = (
    click.option("--scheme", "schemes", multiple=True, help=f"{' | '.join(SCHEMES)}  [default: fp32]"),
    click.option("--for", "target", metavar="gpu|cpu|npu", help="Pick the scheme for this processor and say why."),
    click.option("--route", default="litert", show_default=True),
    click.option("--calibration", help="DATA whose train split calibrates static schemes."),
    click.option("--calibration-images", default=64, show_default=True),
    click.option(
        "--ranges",
        metavar="METHOD",
        help="minmax, percentile:P or mse: how much of a range is kept.  [default: mse]",
    ),
    click.option("--bias-correction/--no-bias-correction", default=None, help="Take mean shifts off the biases."),
    click.option("--equalize/--no-equalize", default=None, help="Give channels like ranges first; exact in float."),
    click.option("--recipe", type=_FILE, help="TOML or JSON for --scheme mixed: precision by module path."),
    click.option("--report", "with_report", is_flag=True, help="Print the calibration report on stderr."),
)


def convert_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of `convert`; it takes them as keyword arguments and hands them to `run_convert`."""
    function = budget_options(function)
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def run_convert(source: Path, out: Path, *, split_7x7: bool, options: Mapping[str, Any]) -> tuple[Any, str]:
    """Converts as the options say.

    Args:
        source: Exported folder or checkpoint.
        out: Folder of the results.
        split_7x7: Whether the export of a checkpoint splits 7x7 convolutions.
        options: Values of `convert_options` by parameter name.

    Returns:
        The JSON document and the text for people. Warnings and summaries go to stderr.

    Raises:
        InputError: Options that do not go together.
        EdgeSegError: Anything is missing or broken.
    """
    settings = ptq_settings(options)
    check_budget(options)
    if options["budget"] is not None:
        with removed_on_failure(out, ("mixed",)):
            return run_budget(source, out, split_7x7=split_7x7, options=options, settings=settings)
    with removed_on_failure(out, options["schemes"] or ("fp32",)):
        advice, done = _converted(source, out, split_7x7=split_7x7, options=options, settings=settings)
    _tell(done, whole=options["with_report"])
    rows = [c.to_json() | ({"advice": vars(advice)} if advice else {}) for c in done]
    text = "\n".join(f"{c.file}  {c.size_bytes / 1e6:.2f} MB  {c.seconds:.1f} s" for c in done)
    return rows[0] if len(rows) == 1 else rows, text


def _converted(
    source: Path, out: Path, *, split_7x7: bool, options: Mapping[str, Any], settings: PtqSettings
) -> tuple[Advice | None, list[Converted]]:
    """Returns why a scheme was picked, where --for asks for it, and the converted files."""
    from edge_seg.steps import convert_source, exported_folder

    advice = None
    if options["target"] is not None:
        _check_target(options)
        source, split_7x7 = exported_folder(source, out, split_7x7=split_7x7), True
        advice = _advice(source, out, options)
    schemes = (advice.scheme,) if advice else options["schemes"] or ("fp32",)
    _check_static(schemes, options)
    done = convert_source(
        source,
        schemes,
        out,
        route=options["route"],
        calibration=options["calibration"],
        calibration_images=options["calibration_images"],
        split_7x7=split_7x7,
        settings=settings,
    )
    return advice, done


def ptq_settings(options: Mapping[str, Any]) -> PtqSettings:
    """Reads ranges, corrections and the recipe from the values of options; None takes the default."""
    from edge_seg.converters.ptq.post_training import PtqSettings
    from edge_seg.converters.ptq.ranges import RangeMethod
    from edge_seg.converters.ptq.recipe import read_recipe

    given: dict[str, Any] = {}
    if options["ranges"] is not None:
        given["ranges"] = RangeMethod.parse(options["ranges"])
    if options["recipe"] is not None:
        given["recipe"] = read_recipe(options["recipe"])
    given |= {k: options[k] for k in ("bias_correction", "equalize") if options[k] is not None}
    return PtqSettings(**given)


def _check_target(options: Mapping[str, Any]) -> None:
    """Refuses a --for that does not fit, before anything slow."""
    from edge_seg.converters.ptq.targets import check_target

    if options["schemes"]:
        raise InputError("--for picks the scheme.", expected="--for or --scheme", got="both")
    check_target(options["target"])


def _advice(folder: Path, out: Path, options: Mapping[str, Any]) -> Advice:
    """Returns the scheme for --for, and says why on stderr; the float file it is judged by is kept for later."""
    from edge_seg.converters.convert import convert
    from edge_seg.converters.flatbuffer import read_graph
    from edge_seg.converters.ptq.targets import advise

    advice = advise(read_graph(convert(folder, scheme="fp32", out=out, route=options["route"]).file), options["target"])
    click.echo(f"{advice.scheme} for {advice.target}: {advice.why}", err=True)
    return advice


def _check_static(schemes: tuple[str, ...], options: Mapping[str, Any]) -> None:
    """Refuses options that no chosen scheme would use."""
    known = [SCHEMES[s] for s in schemes if s in SCHEMES]
    used = {"ranges": "--ranges", "bias_correction": "--bias-correction", "equalize": "--equalize"}
    given = [flag for name, flag in used.items() if options[name]] + (["--report"] if options["with_report"] else [])
    static = ", ".join(s.name for s in SCHEMES.values() if s.needs_calibration)
    if given and known and not any(s.needs_calibration for s in known):
        raise InputError(f"{given[0]} needs a scheme that is calibrated.", expected=static, got=", ".join(schemes))
    if options["recipe"] and "mixed" not in schemes:
        raise InputError("--recipe is for the scheme mixed.", expected="--scheme mixed", got=", ".join(schemes))


def _tell(done: list[Converted], *, whole: bool) -> None:
    for one in done:
        if one.calibration_text:
            click.echo(one.calibration_text if whole else one.calibration_text.splitlines()[0], err=True)
        for warning in one.warnings:
            click.echo(f"warning: {warning}", err=True)
