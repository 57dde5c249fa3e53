"""What the README shows of the results: a line per network, the rest is on the page of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_seg.benchmarks.machine import chip_name
from edge_seg.studies.results.documents import Document, Results
from edge_seg.studies.results.markdown import data_name, number, table

_SCHEMES = ("fp32", "fp16", "w8_dynamic", "w8a8", "qat_w8a8")
_VERDICTS = {"better": "better", "worse": "worse", "noise": "within the noise"}


def summary_markdown(found: Results) -> str:
    """Returns the tables and the sentence of the README's results block; nothing without documents."""
    return "\n\n".join([*_accuracy(found), *_speed(found.speeds), *_choices(found.ablation)])


def _accuracy(found: Results) -> list[str]:
    """A row per network and pictures; a network compared by `kept_accuracy` is not shown again from evaluations."""
    rows = {key: cells for document in found.kept for key, cells in [_kept_row(document)]}
    groups: dict[tuple[str, str, str], dict[str, Document]] = {}
    for document in found.evaluations:
        network, *what = str(document["name"]).split(", ")
        if len(what) == 1 and not str(document.get("command", "")).startswith("edge-seg quickstart"):
            groups.setdefault(_key(network, document), {})[str(document["scheme"])] = document
    for key, schemes in groups.items():
        if key not in rows and "fp32" in schemes:
            metric = str(schemes["fp32"].get("metric", "pq"))
            values = {s: (d[metric], d.get(f"{metric}_ci95") if s == "fp32" else None) for s, d in schemes.items()}
            rows[key] = _cells(values)
    if not rows:
        return []
    head = (
        "**Accuracy of the files**, in percent, on pictures not trained on: panoptic quality (PQ) or mask AP, that of "
        "the float file with its 95 % interval over pictures."
    )
    columns = ("network", "pictures", "metric", *(f"`{scheme}`" for scheme in _SCHEMES))
    return [head, table(columns, [[*key, *cells] for key, cells in rows.items()])]


def _key(network: str, document: Document) -> tuple[str, str, str]:
    pictures = f"{document['images']} of `{data_name(document)}`"
    return network, pictures, str(document.get("metric", "pq")).upper()


def _kept_row(document: Document) -> tuple[tuple[str, str, str], list[str]]:
    rows = {str(row["title"]): row for row in document["rows"]}
    network = document.get("name") or str(rows["fp32"]["files"][0]["file"]).removesuffix("_fp32.tflite")
    values = {title: (row["value"], row["value_ci95"] if title == "fp32" else None) for title, row in rows.items()}
    return _key(str(network), document), _cells(values)


def _cells(values: Mapping[str, tuple[float, Sequence[float] | None]]) -> list[str]:
    cells = []
    for scheme in _SCHEMES:
        value, ends = values.get(scheme, (None, None))
        cells.append(number(value, 1) + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else ""))
    return cells


def _speed(speeds: Sequence[Document]) -> list[str]:
    """A row per network of an interleaved run with a peer, the peer's last."""
    tables = []
    for run in (run for run in speeds if "what" not in run and run["rows"][0]["of_peer"]):
        peer = next(iter(run["rows"][0]["of_peer"]))
        networks: dict[str, dict[str, Document]] = {}
        for row in run["rows"]:
            if row["of_peer"].get(peer):
                networks.setdefault(str(row["network"]), {})[str(row["scheme"])] = row
        cpu = chip_name(run["device"]) or "an unnamed CPU"
        head = (
            f"**Time of one picture** on a desktop, not on a phone: {cpu}, threads: {run['threads']}, random weights, "
            f"all files in turns. Ratios are to {peer} in the same precision, turn by turn; below 1 is faster."
        )
        columns = ("network", "GMAC", "fp32 ms", "int8 ms", f"fp32 of {peer}", f"int8 of {peer}")
        tables += [head, table(columns, [_speed_row(name, rows, peer) for name, rows in networks.items()])]
    return tables


def _speed_row(network: str, rows: Mapping[str, Document], peer: str) -> list[str]:
    macs = next(iter(rows.values()))["macs_graph"]
    both = [rows.get(scheme) for scheme in ("fp32", "w8a8")]
    medians_ms = [row["median_ms"] if row else None for row in both]
    ratios = [row["of_peer"][peer][1] if row else None for row in both]
    return [
        network,
        number(macs and macs / 1e9, 2),
        *(number(median_ms, 1) for median_ms in medians_ms),
        *(number(ratio, 2) for ratio in ratios),
    ]


def _choices(comparison: Mapping[str, Any] | None) -> list[str]:
    """One sentence of the main group: what stands out of the noise and what does not."""
    if comparison is None:
        return []
    told: dict[str, list[str]] = {verdict: [] for verdict in _VERDICTS}
    for row in comparison["rows"]:
        if row["group"] == "main" and row["difference"]:
            told[row["verdict"]].append(f"{row['change']} ({row['difference']['value']:+.1f})")
    sides = "; ".join(f"**{_VERDICTS[verdict]}**: {', '.join(rows)}" for verdict, rows in told.items() if rows)
    return [
        f"**Choices** compared one at a time on `{comparison['data']}` ({comparison['epochs']:g} epochs, at most "
        f"{len(comparison['seeds'])} trainings each), difference of PQ to the recipe: {sides}."
    ]
