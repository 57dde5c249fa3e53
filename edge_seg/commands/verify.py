"""Options and steps of `edge-seg verify`, apart from `cli` for their number; heavy imports happen inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_seg.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from edge_seg.converters.layers.report import LayersReport

_FILE = click.Path(path_type=Path)
_KERNELS = ["xnnpack", "reference", "gpu", "aarch64"]
_OPTIONS = (
    click.option(
        "--against", type=_FILE, required=True, help="Exported folder the file was made from, or another .tflite of it."
    ),
    click.option("--image", "images", type=_FILE, multiple=True, help="Also compare on this picture."),
    click.option("--layers", is_flag=True, help="Compare every layer and name the first one that diverges."),
    click.option("--html", type=_FILE, help="Page of --layers; its JSON and a Model Explorer overlay go beside it."),
    click.option("--second-interpreter", is_flag=True, help="Run the .tflite of --against in tflite-runtime 2.14."),
    click.option("--kernels", type=click.Choice(_KERNELS), default="xnnpack", show_default=True),
    click.option(
        "--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True, help="Of the GPU."
    ),
)
Answer = tuple[dict[str, Any], str, CheckFailed | None]


def verify_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of `verify`; it takes them as keyword arguments and hands them to `run_verify`."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def run_verify(file: Path, against: Path, options: Mapping[str, Any]) -> Answer:
    """Compares a file with a network or another file, as the options say.

    Args:
        file: A converted file.
        against: An exported folder, or another converted file.
        options: Values of `verify_options` by parameter name, besides these two.

    Returns:
        The JSON document, the text for people, and the failed check or None; the caller prints, then raises.

    Raises:
        InputError: Options that do not go together.
        EdgeSegError: Anything is missing or broken.
    """
    _check(against, options)
    if against.is_file():
        from edge_seg.steps import compare_files

        agreement = compare_files(file, against, options["images"], second_interpreter=options["second_interpreter"])
        failed = CheckFailed(f"{file} and {against} differ by more than their schemes allow.")
        return agreement.to_json(), agreement.text(), None if agreement.passed else failed
    return _with_layers(file, against, options) if options["layers"] else _outputs(file, against, options)


def _check(against: Path, options: Mapping[str, Any]) -> None:
    if options["html"] is not None and not options["layers"]:
        raise InputError("--html is the page of --layers.", todo="add --layers")
    if options["layers"] and against.is_file():
        raise InputError("--layers compares with a program.", expected="an exported folder", got=str(against))
    if options["layers"] and options["kernels"] != "xnnpack":
        raise InputError(
            "--layers runs XNNPACK and the reference kernels by itself.",
            expected="no --kernels",
            got=options["kernels"],
            todo="a GPU accelerator does not show its intermediate tensors; verify --kernels gpu compares outputs",
        )
    if options["kernels"] != "xnnpack" and against.is_file():
        raise InputError(
            "Two files are compared on XNNPACK.",
            expected="no --kernels",
            got=options["kernels"],
            todo="--kernels runs one file against the exported folder it was made from",
        )
    if options["second_interpreter"] and not against.is_file():
        raise InputError("Only a .tflite runs in a second interpreter.", expected="--against FILE", got=str(against))


def _outputs(file: Path, against: Path, options: Mapping[str, Any], layers: LayersReport | None = None) -> Answer:
    from edge_seg.steps import verify_file

    settings = {k: options[k] for k in ("kernels", "precision")}
    report = verify_file(file, against, options["images"], layers=layers, **settings)
    failed = CheckFailed(f"{file.name} differs from PyTorch by more than its scheme allows.")
    return report.to_json(), report.text(), None if report.passed else failed


def _with_layers(file: Path, against: Path, options: Mapping[str, Any]) -> Answer:
    from edge_seg.steps import verify_layers_file

    layers = verify_layers_file(file, against, options["images"])
    found = layers.to_json()
    written = _written(layers, found, options["html"])
    try:
        outputs, text, failed = _outputs(file, against, options, layers)
    except InputError as error:
        if layers.first_divergence is None:
            raise
        # what keeps the outputs from being compared is the fault that the layers have just named
        outputs, text, failed = {"passed": False, "outputs": [], "outputs_error": str(error)}, f"FAILED: {error}", None
    document = {
        **outputs,
        "passed": outputs["passed"] and layers.passed,
        **{k: found[k] for k in ("first_divergence", "layers", "notes", "reference")},
        "files": [str(f) for f in written],
    }
    if layers.first_divergence is not None:
        failed = CheckFailed(f"{file.name} diverges at {layers.first_divergence.module}.")
    return document, "\n".join([text, layers.text(), *map(str, written)]), failed


def _written(layers: LayersReport, document: dict[str, Any], page: Path | None) -> list[Path]:
    if page is None:
        return []
    from edge_seg.artifact import write_bytes, write_json
    from edge_seg.commands.layers_page import layers_page
    from edge_seg.converters.layers.model_explorer import node_data

    files = [page, page.with_name(f"{page.stem}.layers.json"), page.with_name(f"{page.stem}.model_explorer.json")]
    write_bytes(page, layers_page(layers).encode())
    write_json(files[1], document)
    write_json(files[2], node_data(layers))
    return files
