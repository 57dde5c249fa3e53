"""The results block of the README, made from committed JSON: `make results`.

Read are documents as `edge-seg evaluate --json` prints them, with a key `name` added, lists of records as
`edge-seg benchmark` writes them, and what the other studies write. No figure of the README is typed by hand.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_seg.artifact import read_json, write_bytes
from edge_seg.errors import EdgeSegError, InputError
from edge_seg.studies import results_gpu, results_speed
from edge_seg.studies.markdown import data_name, number, table

BEGIN = "<!-- results:begin -->"
END = "<!-- results:end -->"
NOTHING = "Not measured yet."
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


def results_markdown(folder: Path) -> str:
    """Returns the tables of a results folder as Markdown.

    Args:
        folder: Holds `*.json`; it may be missing or empty.

    Raises:
        InputError: A file is neither an evaluation with a name nor a list of benchmark records.
    """
    evaluations: list[Mapping[str, Any]] = []
    records: list[Mapping[str, Any]] = []
    training: list[Mapping[str, Any]] = []
    for path in sorted(folder.glob("*.json")):
        document = read_json(path, "result")
        if isinstance(document, list) and all(_has(row, "median_ms", "profile", "kind") for row in document):
            records += document
        elif _has(document, "name", "images", "data") and document.get("metric", "pq") in document:
            evaluations.append(document)
        elif _has(document, "processes", "batch_size"):
            training.append(document)
        else:
            raise InputError(
                f"{path} is not a result.",
                expected="an evaluation with a name, a list of benchmark records, or a training speed",
                got=", ".join(document)[:80] if isinstance(document, dict) else type(document).__name__,
                todo="write it with `edge-seg evaluate --json` or `edge-seg benchmark`",
            )
    speeds = [read_json(path, "speed run") for path in sorted((folder / "speed").glob("*.json"))]
    kept = [read_json(path, "comparison of files") for path in sorted((folder / "kept").glob("*.json"))]
    sections = (
        _accuracy(evaluations),
        _kept(kept),
        _limits([read_json(path, "limits") for path in sorted((folder / "limits").glob("*.json"))]),
        results_gpu.accuracy([read_json(path, "accelerator run") for path in sorted((folder / "gpu").glob("*.json"))]),
        results_gpu.bodies([read_json(path, "bodies") for path in sorted((folder / "gpu_bodies").glob("*.json"))]),
        _ablation(folder / "ablation"),
        results_speed.latency(records),
        results_speed.speed(speeds),
        results_speed.training(training),
    )
    return "\n\n".join([text for section in sections for text in section]) or NOTHING


def replace_block(text: str, block: str) -> str:
    """Returns `text` with everything between the two marks replaced by `block`.

    Raises:
        InputError: The marks are not there exactly once and in order.
    """
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in head + tail:
        raise InputError("The text has no results block.", expected=f"one {BEGIN} and then one {END}")
    return f"{head}{BEGIN}\n{block}\n{END}{tail}"


def _has(document: Any, *keys: str) -> bool:
    return isinstance(document, Mapping) and all(key in document for key in keys)


def _accuracy(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
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


def _kept(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
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


def _limits(runs: Sequence[Mapping[str, Any]]) -> list[str]:
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


def _ablation(folder: Path) -> list[str]:
    """The comparison of choices, from its documents; NumPy is imported for it alone."""
    if not any(folder.glob("*.json")):
        return []
    from edge_seg.studies import ablation_table

    return [ablation_table.markdown(ablation_table.table(ablation_table.read_documents(folder)))]


def main(arguments: Sequence[str]) -> int:
    """Rewrites the block of a Markdown file and the figures beside the documents; returns the exit code.

    Args:
        arguments: The Markdown file and the folder of results.
    """
    if len(arguments) != 2:
        print("usage: python -m edge_seg.studies.results_table README.md results", file=sys.stderr)
        return InputError.exit_code
    readme, folder = Path(arguments[0]), Path(arguments[1])
    try:
        text = replace_block(readme.read_text(encoding="utf-8"), results_markdown(folder))
        write_bytes(readme, text.encode())
        from edge_seg.studies import figures

        figures.write_figures(folder, folder / "figures")
    except EdgeSegError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
