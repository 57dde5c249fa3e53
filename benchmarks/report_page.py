"""The page of a report: head, cards, sections in reading order."""

from __future__ import annotations

from collections.abc import Callable

from edge_seg.benchmarks import (
    report_accuracy,
    report_delegates,
    report_devices,
    report_latency,
    report_operations,
    report_pareto,
    report_samples,
    report_training,
)
from edge_seg.benchmarks.report import ReportInput
from edge_seg.benchmarks.report_cards import cards
from edge_seg.benchmarks.report_html import Html, bullets, code, esc, join, section
from edge_seg.benchmarks.report_style import CSS, SCRIPT

# anchor, title, what draws it (None: not run), how to read it, which files it needs
_Part = tuple[str, str, Callable[[ReportInput], Html | None], str, str]

_PARTS: tuple[_Part, ...] = (
    (
        "summary",
        "Summary",
        cards,
        "",
        "neither evaluate/*.json nor convert/*.json is in this folder.",
    ),
    (
        "pictures",
        "Pictures",
        report_accuracy.pictures,
        "The same pictures through every file, decoded by the same decoder. Scroll sideways for more columns.",
        "predict/overlays.json is not in this folder.",
    ),
    (
        "accuracy",
        "Accuracy",
        report_accuracy.accuracy,
        "In percent. Intervals (95 %, bootstrap) are over pictures. All variants saw the same "
        "pictures, so a difference between two of them is better known than their intervals suggest.",
        "evaluate/*.json is not in this folder.",
    ),
    (
        "tradeoff",
        "Accuracy against latency",
        report_pareto.tradeoff,
        "Up and to the left is better. A point joins accuracy and latency of the same file, matched by its hash. The "
        "line joins valid measurements of one profile that none other beats in both.",
        "it needs evaluations and measured latencies of the same files.",
    ),
    (
        "latency",
        "Latency",
        report_latency.latency,
        "The figures are of one run of the network: write the input, invoke, read every output. Preparing the "
        "picture and decoding are given apart. No run is dropped.",
        "benchmark/results.json is not in this folder.",
    ),
    (
        "samples",
        "Runs over time",
        report_samples.samples,
        "A slope is drift, a step a change of state. Axes of latency do not begin at zero.",
        "benchmark/results.json is not in this folder.",
    ),
    (
        "sustained",
        "Sustained runs",
        report_samples.sustained,
        "Minutes at a frame rate, as a camera makes them: what heat does to a device.",
        "no record is of edge-seg sustain.",
    ),
    (
        "gpu",
        "GPU",
        report_devices.gpu,
        "What was asked, what the runtime said that ran, and what the delegate's rules say offline.",
        "no record asked for a GPU, and no verdict of its rules was given.",
    ),
    (
        "devices",
        "Devices",
        report_devices.devices,
        "What was measured on, in which state, and how each fact about it is known.",
        "there is no record.",
    ),
    (
        "operations",
        "Operators",
        report_operations.operations,
        "Each operator as a file of its own, by the same kernels. Alone it finds its input in a cache and pays the "
        "call itself, so the sum is not the time of the whole.",
        "no times of operators were given (python -m edge_seg.studies.operation_speed, then --operations).",
    ),
    (
        "files",
        "Size and operators",
        report_delegates.files,
        "What lies in each converted file.",
        "convert/*.json is not in this folder.",
    ),
    (
        "delegates",
        "Delegates",
        report_delegates.verdicts,
        "Each operator against the delegate's rules, offline. A verdict by rules is not a run on a device.",
        "check/*.json is not in this folder.",
    ),
    (
        "parity",
        "Parity with PyTorch",
        report_delegates.parity,
        "Raw outputs of each file against those of the network it was converted from, on the same inputs.",
        "verify/*.json is not in this folder.",
    ),
    (
        "controls",
        "Controls",
        report_accuracy.controls,
        "Predictions damaged on purpose. A metric that does not fall under such damage measures nothing.",
        "controls.json is not in this folder.",
    ),
    (
        "classes",
        "Classes",
        report_accuracy.classes,
        "Each class in percent; stronger color is better. A dash means the class was not in these pictures.",
        "evaluate/*.json with per_class is not in this folder.",
    ),
    (
        "training",
        "Training",
        report_training.training,
        "Over the pictures seen, so that runs of different batch sizes compare.",
        "train/metrics.jsonl is not in this folder.",
    ),
    (
        "provenance",
        "Provenance",
        report_training.provenance,
        "",
        "no file in this folder says where it came from.",
    ),
)

_OF_RESULTS = (
    "summary",
    "tradeoff",
    "latency",
    "samples",
    "sustained",
    "gpu",
    "devices",
    "operations",
    "provenance",
)
_NAV = {"gpu": "GPU", "samples": "Runs", "operations": "Operators"}
_EXTRA = ("sustained", "operations", "gpu")  # no step of a run: left out of its page where they are absent

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def page(found: ReportInput) -> str:
    """Returns the whole HTML document; it loads nothing, and its policy forbids it to.

    Args:
        found: What the run folder holds.
    """
    from plotly.offline import get_plotlyjs

    title, drawn = _title(found), _drawn(found)
    links = "".join(f'<a href="#{esc(anchor)}">{esc(_NAV.get(anchor, anchor.capitalize()))}</a>' for anchor, _ in drawn)
    inside = join(*(part for _, part in drawn)).text
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{esc(title)}</title><style>{CSS}</style></head><body>"
        f"<header><h1>{esc(title)}</h1>{_head(found).text}</header>"
        f"<nav><div>{links}</div></nav><main>{inside}</main>"
        "<footer>Written by edge-seg report. Every figure above is read from a file of this run; "
        "a dash is a figure nobody measured.</footer>"
        f'<script id="plotly">{get_plotlyjs()}</script><script>{SCRIPT}</script></body></html>\n'
    )


def body(found: ReportInput) -> Html:
    """Returns the heading and the sections of a page, without style and script.

    Args:
        found: What to show.
    """
    title = Html(f"<h1>{esc(_title(found))}</h1>")
    return join(title, _head(found), *(part for _, part in _drawn(found)))


def _title(found: ReportInput) -> str:
    told = (found.quickstart or {}).get("title")
    return str(told or (f"Benchmark: {found.folder}" if found.of_results else f"Report of {found.folder}"))


def _drawn(found: ReportInput) -> list[tuple[str, Html]]:
    """Returns anchor and section of each part that this page has."""
    listed = []
    for part in _PARTS:
        anchor, title, draw, lead, absent = part
        if found.of_results and anchor not in _OF_RESULTS:
            continue
        inside = draw(found)
        if inside is None and anchor in _EXTRA and not found.of_results:
            continue
        listed.append((anchor, section(anchor, title, inside, lead=lead, absent=absent)))
    return listed


def _head(found: ReportInput) -> Html:
    document = found.quickstart or {}
    facts = [(key, document.get(key)) for key in ("model", "data", "device", "created_utc")]
    line = " ".join(f"<span>{esc(key.replace('_utc', ''))} <b>{esc(value)}</b></span>" for key, value in facts if value)
    notes = document.get("notes")
    remarks = [*(map(str, notes) if isinstance(notes, list) else []), *found.remarks]
    command = document.get("command")
    return join(
        Html(f'<div class="facts">{line}</div>'),
        code(str(command)) if command else Html(""),
        bullets(remarks, "notes"),
    )
