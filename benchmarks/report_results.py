"""What the page of a benchmark shows, from results files and what is given beside them; all matched by hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_seg.artifact import read_json
from edge_seg.benchmarks.report import Document, ReportInput, measured_parts
from edge_seg.benchmarks.report_html import is_number
from edge_seg.benchmarks.report_metric import METRICS, metric_of
from edge_seg.benchmarks.report_names import file_labels
from edge_seg.benchmarks.report_operations import read_operations
from edge_seg.benchmarks.report_plots import variant_key
from edge_seg.benchmarks.report_records import Measured, read_measured
from edge_seg.errors import InputError


@dataclass(frozen=True)
class Beside:
    """What is shown beside the records.

    Attributes:
        accuracy: Documents of `evaluate --json` or of `edge_seg.studies.kept_accuracy`.
        operations: Documents of `edge_seg.studies.operation_speed`.
        checks: Verdicts of `check`, each with `file_sha256` and `delegate`.
    """

    accuracy: Sequence[Path] = ()
    operations: Sequence[Path] = ()
    checks: Sequence[Document] = ()


def load_results_input(results: Sequence[Path], beside: Beside | None = None) -> ReportInput:
    """Reads results files for a page.

    Args:
        results: Results files of `benchmark`, `sustain` or `fleet`.
        beside: What else to show.

    Raises:
        InputError: A missing or broken file, or no record in any of them.
        ArtifactError: A record that is not complete.
    """
    given, remarks = beside or Beside(), list[str]()
    measured = read_measured(results, remarks)
    if not measured:
        raise InputError("There is no record to report.", expected="results of edge-seg benchmark, sustain or fleet")
    labels = file_labels([item.record for item in measured])
    return ReportInput(
        folder=", ".join(dict.fromkeys(_short(path) for path in results)),
        of_results=True,
        evaluations=_evaluations(given.accuracy, labels, measured, remarks),
        checks=_checks(given.checks, labels, remarks),
        operations=tuple(read_operations(path) for path in given.operations),
        **measured_parts(measured),
        remarks=tuple(remarks),
    )


def _short(path: Path) -> str:
    whole = path.resolve()
    return f"{whole.parent.name}/{whole.name}"


def _checks(
    given: Sequence[Document], labels: Mapping[str, str], remarks: list[str]
) -> tuple[tuple[str, Document], ...]:
    found = []
    for check in given:
        name = labels.get(str(check.get("file_sha256")))
        if name is None:
            remarks.append(f"The verdict on {check.get('file')} is left out: no record is of this file.")
        else:
            found.append((name, check))
    return tuple(sorted(found, key=lambda pair: (str(pair[1].get("delegate", "")), variant_key(pair[0]))))


def _evaluations(
    paths: Sequence[Path], labels: Mapping[str, str], measured: Sequence[Measured], remarks: list[str]
) -> tuple[Document, ...]:
    """Returns one evaluation per file: a given one, else what its record holds, which has no interval."""
    by_hash: dict[str, Document] = {}
    for item in measured:
        told = item.record.accuracy
        if told and told.get("metric") in [metric.key for metric in METRICS] and is_number(told.get("value")):
            own = {str(told["metric"]): told["value"], "data_sha256": told.get("data_sha256")}
            by_hash[item.record.sha256] = {"file_sha256": item.record.sha256, **own}
    for path in paths:
        listed = list(_scores(path))
        kept = [item for item in listed if item["file_sha256"] in labels]
        if not kept:
            remarks.append(f"{path.name} is left out: no record is of a file that it scores.")
        by_hash |= {str(item["file_sha256"]): item for item in kept}
    named: list[Document] = [{**item, "name": labels[sha]} for sha, item in by_hash.items()]
    return tuple(sorted(named, key=lambda item: variant_key(str(item["name"]))))


def _scores(path: Path) -> list[dict[str, Any]]:
    """Returns the scores of files in a document, each with `file_sha256`, a metric and perhaps its interval."""
    document = read_json(path, "evaluation document")
    if isinstance(document, dict) and document.get("format") == "edge_seg.kept_accuracy":
        return _kept(document, path)
    if not isinstance(document, dict) or not is_number(metric_of([document]).value(document)):
        raise InputError(f"{path} is not an evaluation document.", expected='"pq" or "ap": a number in percent')
    metric = metric_of([document])
    return [{**document, metric.interval_key: _ends(document.get(metric.interval_key))}]


def _kept(document: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    key = document.get("metric")
    rows = document.get("rows")
    if key not in [metric.key for metric in METRICS] or not isinstance(rows, list):
        raise InputError(f"{path} is not a document of kept accuracy.", expected='"metric" and "rows"')
    shared = {name: document.get(name) for name in ("data", "data_sha256", "images")}
    found = []
    for row in (row for row in rows if isinstance(row, dict) and is_number(row.get("value"))):
        files = [file for file in row.get("files") or [] if isinstance(file, dict)]
        for file in files:
            alone = len(files) == 1  # the interval of several files' mean is not that of one of them
            score = {
                key: file.get("value", row["value"]),
                f"{key}_ci95": _ends(row.get("value_ci95")) if alone else None,
            }
            if is_number(score[key]):
                found.append({**shared, **score, "file_sha256": str(file.get("sha256"))})
    return found


def _ends(value: Any) -> list[float] | None:
    if isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value)):
        return [float(end) for end in value]
    return None
