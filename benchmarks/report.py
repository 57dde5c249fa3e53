"""One self-contained HTML page from the folder of a run: what was measured, and nothing else.

Every part reads the file of the step that made it. A step that was not run has no file, and its section says so.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edge_seg.artifact import read_json, write_bytes
from edge_seg.benchmarks.report_metric import METRICS, Metric, metric_of
from edge_seg.benchmarks.report_names import file_labels
from edge_seg.benchmarks.report_plots import variant_key
from edge_seg.benchmarks.report_records import MAX_JSON_BYTES, Measured, read_measured
from edge_seg.benchmarks.result import Record, Samples
from edge_seg.errors import InputError

Document = Mapping[str, Any]
_MAX_PICTURE_BYTES = 32 << 20
_MAX_PICTURE_PIXELS = 64_000_000
_MAX_PICTURE_SIDE_PX = 512
_MAX_PICTURE_ROWS = 12


@dataclass(frozen=True)
class Picture:
    """One cell of the picture table.

    Attributes:
        name: File name.
        data_uri: JPEG of at most 512 px as a data URI, or "" where the file is missing.
    """

    name: str
    data_uri: str


@dataclass(frozen=True)
class ReportInput:
    """What a run folder or a few results files hold; an empty part was not run.

    Attributes:
        folder: Name of the folder, or of the results files.
        of_results: Whether it is of results files: a page of a benchmark, not of a whole run.
        quickstart: `quickstart.json`: title, command, data, model, created_utc, device, notes.
        training: Lines of `train/metrics.jsonl` with a loss.
        progress: Lines of `train/metrics.jsonl` with a PQ or an AP.
        evaluations: `evaluate/*.json`, PyTorch first; figures in percent.
        controls: `controls.json`.
        conversions: `convert/*.json`.
        verifications: `verify/*.json`, each with its variant.
        checks: `check/*.json`, each with its variant; one per delegate.
        records: `benchmark/results.json`: runs back to back.
        samples: Raw samples by position in `records`.
        sustained: Runs of minutes at a frame rate, from there or from `sustain/results.json`.
        operations: `operations.json`: times of operators run alone.
        pictures: Rows of `predict/overlays.json`: column name to picture.
        remarks: What the loader had to leave out, and why.
    """

    folder: str
    of_results: bool = False
    quickstart: Document | None = None
    training: tuple[Document, ...] = ()
    progress: tuple[Document, ...] = ()
    evaluations: tuple[Document, ...] = ()
    controls: Document | None = None
    conversions: tuple[Document, ...] = ()
    verifications: tuple[tuple[str, Document], ...] = ()
    checks: tuple[tuple[str, Document], ...] = ()
    records: tuple[Record, ...] = ()
    samples: Mapping[int, Samples] = field(default_factory=dict)
    sustained: tuple[Measured, ...] = ()
    operations: tuple[Document, ...] = ()
    pictures: tuple[Mapping[str, Picture], ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def metric(self) -> Metric:
        """The metric that the files were scored with."""
        return metric_of([*self.evaluations, *self.progress])

    @property
    def all_records(self) -> tuple[Record, ...]:
        """All records, those of sustained runs last."""
        return (*self.records, *(item.record for item in self.sustained))

    @cached_property
    def labels(self) -> dict[str, str]:
        """What the page calls each file, by hash."""
        return file_labels(self.all_records)


@dataclass(frozen=True)
class Written:
    """The files of a report.

    Attributes:
        html: The page.
        markdown: The same as text.
        csv: The records, None where there are none.
    """

    html: Path
    markdown: Path
    csv: Path | None


def write_report(folder: Path, out: Path) -> Path:
    """Writes the page of a run folder, with `.md` and `.csv` of the same beside it.

    Args:
        folder: Folder of a run, as the quickstart lays it out.
        out: The HTML file.

    Returns:
        `out`.

    Raises:
        InputError: No such folder, nothing in it to report, or a file in it that is broken.
    """
    return write_page(load_report_input(folder), out).html


def write_page(found: ReportInput, out: Path) -> Written:
    """Writes a page, its Markdown and, where there are records, their CSV.

    Args:
        found: What to show.
        out: The HTML file; the others are named like it.

    Raises:
        InputError: `out` is named like one of the others.
    """
    from edge_seg.benchmarks.report_csv import records_csv
    from edge_seg.benchmarks.report_markdown import markdown_of
    from edge_seg.benchmarks.report_page import body, page

    if out.suffix in (".md", ".csv"):
        raise InputError("The report's main file is a page.", expected="a name that ends in .html", got=str(out))
    whole, csv = page(found), records_csv(found) if found.all_records else ""
    write_bytes(out, whole.encode("utf-8"))
    markdown, table = out.with_suffix(".md"), out.with_suffix(".csv")
    write_bytes(markdown, markdown_of(body(found).text).encode("utf-8"))
    if csv:
        write_bytes(table, csv.encode("utf-8"))
    return Written(out, markdown, table if csv else None)


def measured_parts(measured: Sequence[Measured]) -> dict[str, Any]:
    """Returns the fields `records samples sustained` of a `ReportInput`."""
    steady = [item for item in measured if not item.sustained]
    return {
        "records": tuple(item.record for item in steady),
        "samples": {i: item.samples for i, item in enumerate(steady) if item.samples is not None},
        "sustained": tuple(item for item in measured if item.sustained),
    }


def load_report_input(folder: Path) -> ReportInput:
    """Reads whatever of a run is in `folder`.

    Args:
        folder: Folder of a run.

    Raises:
        InputError: No such folder, nothing in it to report, or a file in it that is broken.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}.", expected="the folder of a run")
    remarks: list[str] = []
    lines = _lines(folder / "train" / "metrics.jsonl", remarks)
    conversions = _documents(folder / "convert")
    results = [folder / name / "results.json" for name in ("benchmark", "sustain")]
    measured = read_measured([path for path in results if path.is_file()], remarks)
    found = ReportInput(
        folder=folder.resolve().name,
        quickstart=_document(folder / "quickstart.json"),
        training=tuple(line for line in lines if "loss" in line),
        progress=tuple(line for line in lines if any(metric.key in line for metric in METRICS)),
        evaluations=_evaluations(folder / "evaluate"),
        controls=_document(folder / "controls.json"),
        conversions=tuple(conversions[name] for name in sorted(conversions, key=variant_key)),
        verifications=_by_variant(_documents(folder / "verify"), conversions),
        checks=_by_variant(_documents(folder / "check"), conversions),
        operations=_operations(folder / "operations.json"),
        **measured_parts(measured),
        pictures=_pictures(folder / "predict", remarks),
        remarks=tuple(remarks),
    )
    if found == ReportInput(folder=found.folder, remarks=found.remarks):
        raise InputError(
            f"There is nothing to report in {folder}.",
            expected="evaluate/*.json, benchmark/results.json or another step's files",
            todo="run edge-seg quickstart, or give the folder of a run",
        )
    return found


def _document(path: Path) -> Document | None:
    """Returns a JSON object, or None where there is no such file."""
    if not path.is_file():
        return None
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{path} is too large.", expected=f"<= {MAX_JSON_BYTES} bytes")
    document = read_json(path, "JSON object")
    if not isinstance(document, dict):
        raise InputError(f"{path} is not a JSON object.", got=type(document).__name__)
    return document


def _documents(folder: Path) -> dict[str, Document]:
    """Returns the JSON objects of a folder by the stem of their files, manifests and contracts left out."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        document = None if path.stem.endswith((".manifest", ".contract")) else _document(path)
        if document is not None:
            found[path.stem] = document
    return found


def _evaluations(folder: Path) -> tuple[Document, ...]:
    found = []
    for stem, document in _documents(folder).items():
        if metric_of([document]).value(document) is None:
            raise InputError(f"{folder / stem}.json has no PQ or AP.", expected='"pq" or "ap": a number in percent')
        found.append({"name": stem, **document})
    return tuple(sorted(found, key=lambda item: variant_key(str(item["name"]))))


def _by_variant(
    documents: Mapping[str, Document], conversions: Mapping[str, Document]
) -> tuple[tuple[str, Document], ...]:
    """Pairs documents with their variant: their own scheme, that of the same converted file, or the file's stem."""
    schemes = {Path(str(item["file"])).name: str(item["scheme"]) for item in conversions.values() if "file" in item}
    named = []
    for stem, document in documents.items():
        own = document.get("scheme") or schemes.get(Path(str(document.get("file", ""))).name)
        named.append((str(own or stem.removesuffix(f"_{document.get('delegate', '')}")), document))
    return tuple(sorted(named, key=lambda pair: (str(pair[1].get("delegate", "")), variant_key(pair[0]))))


def _lines(path: Path, remarks: list[str]) -> list[Document]:
    """Reads JSON lines; a last line that was cut off is left out with a remark, any other is an error."""
    if not path.is_file():
        return []
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{path} is too large.", expected=f"<= {MAX_JSON_BYTES} bytes")
    texts = [t for t in path.read_text(encoding="utf-8", errors="replace").splitlines() if t.strip()]
    found: list[Document] = []
    for index, text in enumerate(texts):
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if index == len(texts) - 1:
                remarks.append(f"The last line of {path.name} was cut off and is left out.")
                break
            raise InputError(f"{path} line {index + 1} is not JSON.", got=str(error)) from error
        if isinstance(line, dict):
            found.append(line)
    return found


def _operations(path: Path) -> tuple[Document, ...]:
    from edge_seg.benchmarks.report_operations import read_operations

    return (read_operations(path),) if path.is_file() else ()


def _pictures(folder: Path, remarks: list[str]) -> tuple[Mapping[str, Picture], ...]:
    path = folder / "overlays.json"
    if not path.is_file():
        return ()
    rows = read_json(path, "list of rows of pictures")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path} is not a list of rows.", expected='[{"image": "a.png", "truth": ...}]')
    if len(rows) > _MAX_PICTURE_ROWS:
        remarks.append(f"{len(rows) - _MAX_PICTURE_ROWS} rows of pictures are left out to keep the page small.")
    return tuple(
        {str(k): _picture(folder, str(v), remarks) for k, v in row.items()} for row in rows[:_MAX_PICTURE_ROWS]
    )


def _picture(folder: Path, name: str, remarks: list[str]) -> Picture:
    """Returns a picture scaled to at most 512 px as JPEG; raises InputError for a path that leaves the folder."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError("A picture lies outside its folder.", expected=f"a name in {folder}", got=name)
    if not path.is_file():
        remarks.append(f"The picture {name} is missing.")
        return Picture(name, "")
    if path.stat().st_size > _MAX_PICTURE_BYTES:
        raise InputError(f"{path} is too large.", expected=f"<= {_MAX_PICTURE_BYTES} bytes")
    return Picture(name, "data:image/jpeg;base64," + base64.b64encode(_jpeg(path)).decode("ascii"))


def _jpeg(path: Path) -> bytes:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.width * image.height > _MAX_PICTURE_PIXELS:
                raise InputError(f"{path} has too many pixels.", expected=f"<= {_MAX_PICTURE_PIXELS}")
            small = image.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a picture.", got=str(error)) from error
    small.thumbnail((_MAX_PICTURE_SIDE_PX, _MAX_PICTURE_SIDE_PX))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
