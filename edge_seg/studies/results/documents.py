"""The committed documents of a results folder, read and sorted by kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from edge_seg.artifact import read_json
from edge_seg.errors import InputError

Document: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Results:
    """Every document of a folder.

    Attributes:
        evaluations: As `edge-seg evaluate --json` prints them, with a key `name`.
        records: As `edge-seg benchmark` writes them.
        training: Of `edge_seg.studies.training_speed`.
        speeds: Of `network_speed`, `decoder_speed`, `instance_decoder_speed`, `operation_speed` and `kernel_speed`.
        kept: Of `edge_seg.studies.kept_accuracy`.
        limits: Of `edge_seg.studies.instance_limits`.
        accelerator: Of `edge_seg.studies.gpu_accuracy`.
        bodies: Of `edge_seg.studies.gpu_bodies`.
        exactness: Name of the file without its suffix, and what `edge-seg verify --json` or a study of it said.
        same_file: Name of the file without its suffix, and a document of `edge_seg.studies.same_file`.
        ablation: The comparison of `edge_seg.studies.ablation_table`, None without documents.
    """

    evaluations: Sequence[Document]
    records: Sequence[Document]
    training: Sequence[Document]
    speeds: Sequence[Document]
    kept: Sequence[Document]
    limits: Sequence[Document]
    accelerator: Sequence[Document]
    bodies: Sequence[Document]
    exactness: Mapping[str, Document]
    same_file: Mapping[str, Document]
    ablation: Document | None


def read_results(folder: Path) -> Results:
    """Reads a results folder.

    Args:
        folder: Holds `*.json` and a folder per further kind; it may be missing or empty.

    Raises:
        InputError: A file is neither an evaluation with a name nor a list of benchmark records.
    """
    evaluations: list[Document] = []
    records: list[Document] = []
    training: list[Document] = []
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
    return Results(
        evaluations=evaluations,
        records=records,
        training=training,
        speeds=list(_named(folder / "speed", "speed run").values()),
        kept=list(_named(folder / "kept", "comparison of files").values()),
        limits=list(_named(folder / "limits", "limits").values()),
        accelerator=list(_named(folder / "gpu", "accelerator run").values()),
        bodies=list(_named(folder / "gpu_bodies", "bodies").values()),
        exactness=_named(folder / "exactness", "verification"),
        same_file=_named(folder / "same_file", "measurement of one file twice"),
        ablation=_ablation(folder / "ablation"),
    )


def _has(document: Any, *keys: str) -> bool:
    return isinstance(document, Mapping) and all(key in document for key in keys)


def _named(folder: Path, what: str) -> dict[str, Document]:
    return {path.stem: read_json(path, what) for path in sorted(folder.glob("*.json"))}


def _ablation(folder: Path) -> Document | None:
    """The comparison of choices, from its documents; NumPy is imported for it alone."""
    if not any(folder.glob("*.json")):
        return None
    from edge_seg.studies import ablation_table

    return ablation_table.table(ablation_table.read_documents(folder))
