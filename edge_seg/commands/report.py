"""`edge-seg report`: the page of a run's folder, or of results files; heavy imports happen inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edge_seg.errors import InputError

if TYPE_CHECKING:
    from edge_seg.benchmarks.report import Written

_FILE = click.Path(path_type=Path)
_OF_RESULTS = {"accuracy": "--accuracy", "operations": "--operations", "checked": "--check"}


@click.command()
@click.argument("sources", type=_FILE, nargs=-1, required=True)
@click.option("--accuracy", type=_FILE, multiple=True, help="JSON of `evaluate`, or of studies.kept_accuracy.")
@click.option("--operations", type=_FILE, multiple=True, help="JSON of studies.operation_speed.")
@click.option("--check", "checked", type=_FILE, multiple=True, help="A measured .tflite: adds the GPU rules' verdict.")
@click.option("--out", type=_FILE, help="HTML file; default report.html beside the results. .md, .csv go with it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
def report(sources: tuple[Path, ...], out: Path | None, as_json: bool, **beside: tuple[Path, ...]) -> None:
    """Write one self-contained HTML page. Example: edge-seg report runs/quickstart; edge-seg report r.json.

    SOURCES is the folder of a run, or results files of `benchmark`, `sustain` and `fleet`. The same goes to Markdown
    and the records to CSV. All parts are matched by the hash of the measured file.
    """
    written = _write_run(sources[0], out, beside) if _is_folder(sources) else _write_results(sources, out, beside)
    files = [str(path) for path in (written.html, written.markdown, written.csv) if path is not None]
    document = dict(zip(("file", "markdown", "csv"), [*files, None][:3], strict=True))
    click.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else "\n".join(files))


def _is_folder(sources: tuple[Path, ...]) -> bool:
    folders = [path for path in sources if path.is_dir()]
    if folders and len(sources) > 1:
        raise InputError("A page is of one folder or of results files.", got=", ".join(map(str, sources)))
    return bool(folders)


def _write_run(folder: Path, out: Path | None, beside: dict[str, tuple[Path, ...]]) -> Written:
    from edge_seg.benchmarks.report import load_report_input, write_page

    given = [_OF_RESULTS[name] for name, values in beside.items() if values]
    if given:
        todo = f"give {folder / 'benchmark' / 'results.json'} instead"
        raise InputError(f"{', '.join(given)}: a folder brings its own files.", expected="results files", todo=todo)
    return write_page(load_report_input(folder), out or folder / "report.html")


def _write_results(sources: tuple[Path, ...], out: Path | None, beside: dict[str, tuple[Path, ...]]) -> Written:
    from edge_seg.benchmarks.report import write_page
    from edge_seg.benchmarks.report_results import Beside, load_results_input

    checks = [_gpu_verdict(path) for path in beside["checked"]]
    found = load_results_input(sources, Beside(beside["accuracy"], beside["operations"], checks))
    return write_page(found, out or sources[0].parent / "report.html")


def _gpu_verdict(file: Path) -> dict[str, Any]:
    from edge_seg.artifact import sha256_of
    from edge_seg.converters.delegates import check

    return {**check(file, "gpu").to_json(), "file": file.name, "file_sha256": sha256_of(file)}
