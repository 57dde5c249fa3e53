"""Tables of accuracy for the page of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_seg.studies.results.markdown import data_name, number, table

_SCORES = {
    "pq": {
        "pq": "PQ",
        "sq": "SQ",
        "rq": "RQ",
        "pq_th": "PQ things",
        "pq_st": "PQ stuff",
        "pq_teacher_forced": "PQ, true centres",
    },
    "ap": {
        "ap": "AP",
        "ap50": "AP50",
        "ap75": "AP75",
        "ap_s": "AP small",
        "ap_m": "AP medium",
        "ap_l": "AP large",
        "boundary_ap": "boundary AP",
    },
}


def accuracy(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table per data set; the pictures and their fingerprint stand above it."""
    tables = []
    for key in dict.fromkeys(_data_key(e) for e in evaluations):
        rows = [e for e in evaluations if _data_key(e) == key]
        data, images, fingerprint, metric = key
        head = f"**Accuracy** on `{data}` (`val`, {images} pictures, data sha256 `{fingerprint[:12]}`), in percent."
        tables.append(f"{head} {metric.upper()} with its 95 % interval (bootstrap over pictures).")
        columns = ("network", "scheme", *_SCORES[metric].values(), "sha256")
        tables.append(table(columns, [_evaluation_row(e, metric) for e in rows]))
    return tables


def _data_key(evaluation: Mapping[str, Any]) -> tuple[str, int, str, str]:
    """The data set and the metric."""
    fingerprint, metric = str(evaluation.get("data_sha256", "")), str(evaluation.get("metric", "pq"))
    return data_name(evaluation), int(evaluation["images"]), fingerprint, metric


def _evaluation_row(evaluation: Mapping[str, Any], metric: str) -> list[str]:
    scores = [number(evaluation.get(key), 2) for key in _SCORES[metric]]
    if f"{metric}_ci95" in evaluation:
        low, high = evaluation[f"{metric}_ci95"]
        scores[0] += f" [{low:.1f}, {high:.1f}]"
    sha256 = str(evaluation.get("file_sha256", ""))[:12]
    return [str(evaluation["name"]), f"`{evaluation.get('scheme', '')}`", *scores, f"`{sha256}`"]


def kept(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table per comparison of files with their float file (`edge_seg.studies.kept_accuracy`)."""
    tables = []
    for found in comparisons:
        metric = str(found["metric"]).upper()
        tables.append(
            f"**Kept accuracy**: {metric} of files of one network on `{data_name(found)}` ({found['images']} "
            f"pictures), and its share of the float file's with the 95 % interval of both on the same resampled "
            f"pictures (`{found['command']}`)."
        )
        further = [n for row in found["rows"][:1] for n in row.get("figures", {})]
        columns = (
            "files",
            metric,
            "share of fp32",
            "95 % interval",
            *(f"{_SCORES['ap'][n]} (share)" for n in further),
            "seeds",
        )
        tables.append(table(columns, [_kept_row(row) for row in found["rows"]]))
    return tables


def _kept_row(row: Mapping[str, Any]) -> list[str]:
    low, high = row["share_ci95"]
    values = " / ".join(number(f["value"], 2) for f in row["files"])
    seeds = f"median of {values}" if len(row["files"]) > 1 else ""
    further = [f"{f['value']:.2f} ({f['share']:.3f})" for f in row.get("figures", {}).values()]
    value = number(row["value"], 2) + _between(row["value_ci95"])
    return [row["title"], value, f"{row['share']:.4f}", f"[{low:.4f}, {high:.4f}]", *further, seeds]


def limits(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One table per run of `edge_seg.studies.instance_limits`."""
    tables = []
    for run in runs:
        tables.append(
            f"**What limits** `{run['network']}` on `{data_name(run)}` ({run['images']} pictures): its predictions, "
            f"then with what they lie on put right, then true masks on its own grid (`{run['command']}`)."
        )
        rows = [
            [row["title"], *(number(row[n], 2) + _between(row[f"{n}_ci95"]) for n in ("ap", "ap50", "boundary_ap"))]
            for row in run["rows"]
        ]
        tables.append(table(("predictions", *(_SCORES["ap"][n] for n in ("ap", "ap50", "boundary_ap"))), rows))
    return tables


def _between(ends: Sequence[float] | None) -> str:
    return f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else ""
